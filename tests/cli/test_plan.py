"""`plan`: the page, its exit code, and that `train` refuses what the plan says does not fit."""

import json
import re

import jax
import pytest

from llmlab.chips import find
from llmlab.plan.topology import Topology

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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--topology", "cpu:8", "--memory", -1), r"--memory -1\.0: it is above 0"),
        (("--topology", "cpu:8", "--price", 0), r"--price 0\.0: it is above 0"),
        (("--topology", "cpu:64"), r"cpu:64 needs 64 host devices, this process shows 8: --cpu-devices 64"),
        (("--topology", "v5e"), r"topology 'v5e' is not understood, it says no sizes; write CHIP:SIZES"),
        (("--topology", "v5w:4x4"), r"topology 'v5w:4x4' is not understood; did you mean 'v5[ep]'\?; write"),
    ],
)
def test_what_a_plan_cannot_be_made_for(llmlab, file, words, message):
    code, _, error = llmlab("plan", file, *words)
    assert code == 78 and re.search(message, error), error


def test_a_page_that_goes_to_a_file_is_cut_nowhere(llmlab, file, monkeypatch):
    found = Topology("v5e:8", find("TPU v5e"), 1, tuple(jax.devices()[:8]))
    monkeypatch.setattr("llmlab.plan.topology", lambda name: found)
    code, out, error = llmlab("plan", file, "--topology", "v5e:8", "--search", "--tries", 1)
    assert code == 0, error
    lines = out.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("layout "))
    assert re.split(" {2,}", lines[first].strip()) == [
        "layout",
        "step at the least",
        "MFU at best",
        "peak of a device",
        "compiled in",
    ]
    assert re.search(r"^data 8, remat none \(as written\) .* [kM]B +\d+ CPU s$", lines[first + 2].strip()), lines
