"""Workers finish a study, whatever happens to them; a row is made once."""

import dataclasses
import json
import os
import sys
import time

import pytest

from llmlab.study import group as group_file
from llmlab.study.cells import groups
from llmlab.study.claim import Claim, Lost
from llmlab.study.group import Group, Preempted
from llmlab.study.record import read_rows
from llmlab.study.runner import Pool, Slurm, retry
from llmlab.study.study import one_at_a_time


def numbers(directory):
    """What of the rows does not depend on the clock."""
    without = lambda point: {name: value for name, value in point.items() if name != "seconds"}
    return [
        dataclasses.replace(row, curve=[without(p) for p in row.curve], axes=without(row.axes))
        for row in read_rows(directory)
    ]


def test_a_study_is_finished_and_its_rows_are_whole(tiny, worker, tmp_path):
    assert worker(tiny()).work()
    rows = read_rows(tmp_path)
    assert [(row.arm, row.replicate, row.state) for row in rows] == [
        (arm, i, "done") for arm in ("A/A", "base", "silu") for i in (0, 1)
    ]
    for row in rows:
        assert set(row.metrics) >= {"loss", "accuracy", "bits_per_byte"}
        assert [point["step"] for point in row.curve] == [3, 6] and row.curve[-1]["loss"] == row.metrics["loss"]
        assert len(row.batches) > 1 and min(row.batches) < row.metrics["loss"] < max(row.batches)
        assert row.axes["tokens"] == 6 * 4 * 8 and row.evaluation["bytes"] > 0
        assert (tmp_path / "cells" / row.key / "run.json").exists()
    by = {(row.arm, row.replicate): row for row in rows}
    assert by["base", 0].evaluation == by["silu", 0].evaluation
    assert by["base", 0].metrics != by["A/A", 0].metrics != by["base", 1].metrics
    again = worker(tiny())
    again.train = None  # nothing is left to train
    assert again.work()


def test_replicas_of_a_group_equal_cells_that_train_alone(tiny, worker, tmp_path):
    assert worker(tiny(), tmp_path / "together").work()
    assert worker(tiny(together=1), tmp_path / "alone").work()
    assert len(groups(tmp_path / "together")) == 3 and len(groups(tmp_path / "alone")) == 6
    for a, b in zip(numbers(tmp_path / "together"), numbers(tmp_path / "alone")):
        assert a.metrics["loss"] == pytest.approx(b.metrics["loss"], rel=1e-5)


def test_a_study_with_more_seeds_trains_only_the_new_ones(tiny, worker, tmp_path):
    assert worker(tiny(seeds=1)).work()
    before = {row.key: os.path.getmtime(tmp_path / "cells" / row.key / "row.json") for row in read_rows(tmp_path)}
    assert worker(tiny(seeds=2)).work()
    assert len(read_rows(tmp_path)) == 6
    for key, time_of in before.items():
        assert os.path.getmtime(tmp_path / "cells" / key / "row.json") == time_of


def test_other_code_other_data_and_other_values_are_other_cells(tiny, worker):
    keys = lambda cells: {cell.key for cell in cells.replicates({})}
    base = worker(tiny()).cells
    assert keys(base) == keys(worker(tiny()).cells)
    for other in (worker(tiny(), code="new").cells, worker(tiny({"optim.peak": 2e-2})).cells):
        assert not keys(base) & keys(other)
    base.data["base"] = "other text"
    assert len(keys(base) & keys(worker(tiny()).cells)) == 4  # of the two other arms
    idle = worker(tiny({"train.log_every": 3, "data.workers": 1})).cells
    assert keys(idle) == keys(worker(tiny()).cells)


class Died(BaseException):
    """In place of a kill: nothing but `finally` blocks sees it, and those are muted."""


def die_at(monkeypatch, owner, name: str, count: int) -> None:
    """The worker dies right after the call number `count` of a function, and its heart stops."""
    original, seen = getattr(owner, name), []

    def run(*arguments):
        original(*arguments)
        seen.append(arguments)
        if len(seen) == count:
            monkeypatch.undo()
            monkeypatch.setattr(Claim, "release", lambda claim: claim._end.set())
            raise Died

    monkeypatch.setattr(owner, name, run)


@pytest.mark.parametrize(
    ("owner", "name", "count"),
    [(Group, "save", 1), (Group, "save", 2), (Group, "keep", 1), (group_file, "write_row", 9), (Group, "finish", 1)],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_worker_that_dies_is_followed_by_another_with_the_same_rows(
    tiny, worker, tmp_path, monkeypatch, undisturbed, owner, name, count
):
    die_at(monkeypatch, owner, name, count)
    with pytest.raises(Died):
        worker(tiny({"train.save_every": 2}), tmp_path).work()
    monkeypatch.undo()
    assert any(row.state == "running" for row in read_rows(tmp_path)) or name == "finish"
    started = time.monotonic()
    other = worker(tiny({"train.save_every": 2}), tmp_path)
    other.patience = 0.5
    assert other.work()
    assert numbers(tmp_path) == undisturbed and time.monotonic() - started < 60
    assert not list(tmp_path.glob("groups/*/checkpoints")) or name == "finish"


@pytest.fixture(scope="module")
def undisturbed(tiny, make_worker, tmp_path_factory):
    """The rows of a study that nobody disturbs."""
    directory = tmp_path_factory.mktemp("undisturbed")
    assert make_worker(tiny({"train.save_every": 2}), directory).work()
    return numbers(directory)


def test_a_crash_is_a_state_and_is_trained_anew_when_asked(tiny, worker, tmp_path, monkeypatch):
    monkeypatch.setattr(Group, "save", lambda *_: (_ for _ in ()).throw(RuntimeError("RESOURCE_EXHAUSTED: no memory")))
    assert not worker(tiny()).work()
    assert {row.state for row in read_rows(tmp_path)} == {"out_of_memory"}
    monkeypatch.setattr(Group, "save", lambda *_: (_ for _ in ()).throw(KeyError("lost")))
    assert not worker(tiny()).work()  # failed once, it is not tried again
    retry(tmp_path)
    assert not worker(tiny()).work()
    assert {(row.state, row.error) for row in read_rows(tmp_path)} == {("crashed", "KeyError: 'lost'")}
    monkeypatch.undo()
    retry(tmp_path)
    assert worker(tiny()).work()


def test_a_signal_saves_and_marks_and_another_worker_goes_on(tiny, worker, tmp_path, monkeypatch, undisturbed):
    asked = []
    monkeypatch.setattr("llmlab.train.signals.Signals.asked", lambda self, step: asked.append(step) or step == 4)
    with pytest.raises(Preempted, match="stopped at step 4 of 6, and saved"):
        worker(tiny({"train.save_every": 2})).work()
    assert {row.state for row in read_rows(tmp_path)} == {"pending", "preempted"}
    monkeypatch.undo()
    assert worker(tiny({"train.save_every": 2})).work()
    assert numbers(tmp_path) == undisturbed


def test_a_run_that_diverges_is_counted_and_has_no_metrics(tiny, worker, tmp_path):
    arm = {"silu": {"optim.peak": 1e30, "optim.clip": None}}
    study = tiny()
    study = tiny(arms=one_at_a_time(study.base, arm), match=None)
    assert worker(study).work()
    rows = [row for row in read_rows(tmp_path) if row.arm == "silu"]
    assert {row.state for row in rows} == {"diverged"} and not any(row.metrics for row in rows)
    assert all("not finite at step" in row.error for row in rows)


# --- claims ------------------------------------------------------------------------------------------------------


def test_one_claim_holds_and_a_dead_one_is_taken_over_once(tmp_path):
    first, second, third = (Claim(tmp_path, beat=60, patience=5) for _ in range(3))
    assert first.take() and not second.take()
    first.check()
    os.utime(first.path(0), (1, 1))  # its heart has stopped
    assert second.take() and not third.take()
    with pytest.raises(Lost, match="taken over"):
        first.check()
    second.release()
    assert third.take()


def test_the_claim_of_a_process_that_is_gone_is_dead_at_once(tmp_path):
    claim = Claim(tmp_path, beat=60, patience=1000)
    assert claim.take()
    owner = json.loads(claim.path(0).read_text())
    claim.path(0).write_text(json.dumps({**owner, "born": "long ago"}))  # its number belongs to another process now
    assert not claim.alive(0)
    claim.path(0).write_text(json.dumps({**owner, "born": "long ago", "host": "elsewhere"}))
    assert claim.alive(0)  # there the heartbeat alone tells


def test_the_heart_beats(tmp_path):
    claim = Claim(tmp_path, beat=0.05)
    assert claim.take()
    os.utime(claim.path(0), (1, 1))
    deadline = time.monotonic() + 10
    while claim.path(0).stat().st_mtime < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert claim.path(0).stat().st_mtime > 2
    claim.release()


# --- backends ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pool", "submitit"])
def test_workers_in_processes_of_their_own_are_started_and_awaited(kind, tmp_path):
    if kind == "submitit":
        pytest.importorskip("submitit", reason="submitit is not installed (the extra cluster)")
    backend = Pool(workers=2) if kind == "pool" else Slurm(workers=2, cluster="local", folder=str(tmp_path / "logs"))
    script = "import os, pathlib, sys; pathlib.Path(sys.argv[1], str(os.getpid())).touch()"
    (tmp_path / "seen").mkdir()
    backend.run(None, [sys.executable, "-c", script, str(tmp_path / "seen")])
    assert len(list((tmp_path / "seen").iterdir())) == 2


def test_workers_are_stopped_with_who_awaits_them(monkeypatch):
    def interrupted(seconds):
        raise KeyboardInterrupt

    began = time.monotonic()
    monkeypatch.setattr(time, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Pool(workers=1).run(None, [sys.executable, "-c", "import time; time.sleep(300)"])
    assert time.monotonic() - began < 60
