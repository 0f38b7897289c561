"""The report: its files, the check of its numbers, the ladder, the live page, and the commands."""

import csv
import dataclasses
import html.parser
import json
import threading
import urllib.error
import urllib.request

import pytest

from llmlab.cli import run
from llmlab.study import live, report, rungs
from llmlab.study.record import read_rows, read_study, write_row
from llmlab.study.tables import verdict_table
from tests.study.planted import plant

FILES = ["report.html", "report.md", "table.csv", "table.tex"]


@pytest.fixture
def study(tmp_path):
    return plant(tmp_path / "activation", seeds=6, diverge=[("no norm", 2)])


class Balance(html.parser.HTMLParser):
    """Counts tags that stay open, and addresses of the network."""

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.sections = [], [], []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.addresses += [v for k, v in attributes.items() if k in ("src", "href") and v.startswith(("http", "//"))]
        self.sections += [attributes["id"]] if tag == "section" else []
        if tag not in ("meta", "link", "br", "path"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("path",):
            assert self.open.pop() == tag


def test_the_report_is_whole_and_needs_no_network(study):
    assert [file.name for file in report.write(study)] == FILES
    page = (study / "report.html").read_text()
    seen = Balance()
    seen.feed(page)
    assert seen.open == [] and seen.addresses == []
    order = ["matching", "differences", "curves", "tuning", "divergence", "other-metrics", "caveats"]
    assert seen.sections == [*order, "exact-differences", "record"]
    assert page.index("relu2 and swiglu are better than gelu; no norm is worse than gelu.") < page.index(
        'id="matching"'
    )
    assert page.count("<figure") == 5 and "7f3a91c2d04be865" in page


def test_names_of_arms_cannot_break_the_page(tmp_path):
    name = 'a</script><b onx="1">|&'
    directory = plant(tmp_path / "odd", seeds=3, arms={"base": 0.0, name: 0.01})
    report.write(directory)
    page = (directory / "report.html").read_text()
    assert "<b onx" not in page and "a&lt;/script&gt;" in page
    seen = Balance()
    seen.feed(page)
    assert seen.open == []


def test_numbers_of_the_table_are_those_of_the_rows(study):
    report.write(study)
    with (study / "table.csv").open() as file:
        records = {(r["arm"], r["metric"]): r for r in csv.DictReader(file)}
    losses = {"gelu": {}, "relu2": {}}
    for row in read_rows(study):
        if row.arm in losses and row.phase == "replicate":
            losses[row.arm][row.replicate] = row.metrics["loss"]
    mean = sum(losses["relu2"][i] - losses["gelu"][i] for i in range(6)) / 6
    assert float(records["relu2", "loss"]["difference"]) == pytest.approx(mean, rel=1e-12)
    assert records["relu2", "loss"]["verdict"] == "better" and records["no norm", "loss"]["diverged"] == "1"
    assert ("relu2", "accuracy") in records


def test_markdown_and_tex_say_the_verdicts_first(study):
    report.write(study)
    text = (study / "report.md").read_text()
    assert text.startswith("# Does ReLU²") and text.index("relu2 and swiglu are better") < text.index("| arm |")
    assert "- relu2: `model.stack.segments.0.pattern.0.ffn`: `Mlp(gelu)` → `Mlp(relu2)`" in text
    tex = (study / "table.tex").read_text()
    assert r"\begin{tabular}{lrrrrrrl}" in tex and r"$\pm$" in tex and "−" not in tex


def test_check_accepts_what_was_written_and_finds_what_was_changed(study):
    report.write(study)
    assert report.check(study) == 4
    for name in FILES:
        file = study / name
        text = file.read_text()
        file.write_text(text.replace("0.0", "0.1", 1))
        with pytest.raises(report.Mismatch, match=f"{name} is not what the rows say; line"):
            report.check(study)
        file.write_text(text)
    row = next(row for row in read_rows(study) if (row.arm, row.replicate, row.phase) == ("relu2", 3, "replicate"))
    write_row(study, dataclasses.replace(row, metrics=row.metrics | {"loss": row.metrics["loss"] + 1e-3}))
    with pytest.raises(report.Mismatch):
        report.check(study)


def test_check_without_a_report_says_how_to_make_one(study):
    with pytest.raises(FileNotFoundError, match="has no report.html; `llmlab report"):
        report.check(study)


def test_looks_are_recorded_once_for_each_number_of_runs(study):
    row = next(row for row in read_rows(study) if (row.arm, row.replicate) == ("relu2", 5))
    write_row(study, dataclasses.replace(row, state="running", metrics={}))
    report.write(study)
    assert "No verdict is read" in (study / "report.html").read_text()
    report.write(study)
    write_row(study, row)
    report.write(study)
    assert report.looks(study) == [29, 30]
    assert "looked at before, at 29 ended runs (now 30)" in (study / "report.md").read_text()


def test_the_verdict_table_is_text(study):
    text = verdict_table(study)
    assert "relu2" in text and "better" in text and "sign-flip p" in text and "\x1b" not in text
    narrow = verdict_table(study, 80)
    assert "sign-flip p" not in narrow and "−0.0" in narrow
    assert all(len(line) <= 80 for line in narrow.splitlines())


def test_a_study_without_any_row_has_a_report(tmp_path):
    directory = plant(tmp_path / "empty", seeds=2)
    for row in read_rows(directory):
        (directory / "cells" / row.key / "row.json").unlink()
    report.write(directory)
    assert "0 of 10 replicates have ended" in (directory / "report.html").read_text()


def climb(folder, slope=-0.018):
    """Three rungs whose advantage goes by `slope` for each of them, each of 16 times the FLOPs."""
    for index, factor in enumerate((1, 4, 16)):
        directory = plant(folder / f"rung{factor}", "rung", 6, arms={"gelu": 0.0, "relu2": -0.05 - slope * index})
        study = read_study(directory)
        for arm in study["arms"].values():
            arm["axes"]["flops"] *= factor**2
        (directory / "study.json").write_text(json.dumps(study))
        for row in read_rows(directory):
            axes = row.axes | {"flops": row.axes["flops"] * factor**2, "active": row.axes["active"] * factor}
            write_row(directory, dataclasses.replace(row, axes=axes))
    return folder


def test_a_ladder_says_where_the_advantage_goes(tmp_path, capsys):
    assert run("report", [str(climb(tmp_path / "ladder"))]) == 0
    page = (tmp_path / "ladder" / "ladder.html").read_text()
    assert "The advantage of relu2 shrinks with scale: −0.0149 for each tenfold of FLOPs" in page
    assert "1 different numbers of tokens; a law needs 3 or more" in page
    assert run("report", [str(tmp_path / "ladder"), "--check"]) == 0
    assert "says what the rows say" in capsys.readouterr().out
    assert [path.name for path in rungs.studies(tmp_path / "ladder")] == ["rung1", "rung16", "rung4"]


def test_the_command_writes_checks_and_refuses(study, capsys):
    assert run("report", [str(study)]) == 0
    assert run("report", [str(study), "--check"]) == 0
    assert "4 files say what the rows say" in capsys.readouterr().out
    (study / "table.csv").write_text("arm\n")
    assert run("report", [str(study), "--check"]) == 65
    assert "table.csv is not what the rows say; line 1" in capsys.readouterr().err
    assert run("report", [str(study.parent / "none")]) == 78
    assert "holds no study" in capsys.readouterr().err


def test_the_live_page_follows_the_rows(study):
    with live.server(study, port=0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        get = lambda path: urllib.request.urlopen(address + path).read().decode()
        first = get("/version")
        assert f'data-live="{first}"' in get("/") and get("/version") == first
        row = next(row for row in read_rows(study) if (row.arm, row.replicate) == ("relu2", 5))
        write_row(study, dataclasses.replace(row, state="running", metrics={}))
        assert get("/version") != first and "Unfinished: 29 of 30" in get("/")
        write_row(study, dataclasses.replace(row, tokenizer="Bytes"))
        assert "Nothing is ranked" in get("/")
        with pytest.raises(urllib.error.HTTPError):
            get("/cells/../../etc/passwd")
        server.shutdown()


def test_runs_lists_filters_and_sorts(study, capsys):
    folder = study.parent
    for name, width, loss in (("wide", 256, 1.5), ("narrow", 64, 1.75)):
        (folder / name).mkdir()
        experiment = {"_type": "x:Y", "model": {"_type": "x:M", "width": width, "parts": [1, 2]}}
        record = {"experiment": experiment, "file": "a/quick.py", "started": "2026-11-24T10:00", "code": "ab"}
        (folder / name / "run.json").write_text(json.dumps(record))
        lines = [{"step": 10, "kind": "train", "loss": 9.0}, {"step": 20, "kind": "validation", "loss": loss}]
        (folder / name / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 3')

    def listed(*flags):
        assert run("runs", [str(folder), *flags]) == 0
        return capsys.readouterr().out.splitlines()

    assert [line.split()[0] for line in listed()] == ["kind", "study", "run", "run"]
    assert [line.split()[1] for line in listed("--filter", "kind=run", "--sort", "loss")[1:]] == [
        str(folder / "wide"),
        str(folder / "narrow"),
    ]
    one = listed("--filter", "model.width=64", "--columns", "model.width", "loss")
    assert len(one) == 2 and one[1].split() == ["run", str(folder / "narrow"), "64", "1.75"]
    assert listed("--filter", "model.width=3") == [f"nothing under {folder} fits"]
    assert run("runs", [str(folder), "--sort", "los"]) == 78
    assert "--sort los: no run has it; they have accuracy" not in capsys.readouterr().err
