"""`plan`: the page, its exit code, and that `train` refuses what the plan says does not fit."""

import json

ARGUMENTS = ("--topology", "cpu:8", "--mesh.fsdp", 2)


def test_the_page_and_the_refusal(llmlab, file, text, tmp_path):
    run = tmp_path / "run"
    code, out, error = llmlab("plan", file, *ARGUMENTS, "--run", run, "--memory", 1)
    assert code == 0, error
    assert "FITS" in out and "8 host devices" in out and "mesh data 4 x fsdp 2" in out and "all-gather" in out
    assert "attention: XLA" in out and "kept for the backward pass" in out
    kept = json.loads((run / "plans" / "cpu-8.json").read_text())
    assert kept["fits"] is True and kept["flops"]["executed"] > kept["flops"]["algorithmic"] > 0

    code, out, _ = llmlab("plan", file, *ARGUMENTS, "--run", run, "--memory", 1e-6)
    assert code == 1 and "DOES NOT FIT" in out
    train = ("train", file, "--mesh.fsdp", 2, "--data.source.path", text, "--run", run)
    code, _, error = llmlab(*train)
    assert code == 65 and "says that this experiment needs" in error and not (run / "run.json").exists()


def test_every_arm_of_a_study(llmlab, file):
    code, out, error = llmlab("plan", file.with_name("two_words.py"), "--all", *ARGUMENTS, "--memory", 1)
    assert code == 0, error
    lines = [line.split() for line in out.splitlines()]
    assert [line[0] for line in lines if line] == ["arm", "base", "slower"]
    assert lines[1][1:3] == lines[2][1:3]  # as many parameters, as much memory


def test_the_search(llmlab, file):
    code, _, error = llmlab("plan", file, "--topology", "cpu:8", "--search")
    assert code == 78 and "has no data sheet" in error
