"""A run with a part of its own: stopped, gone on with, and used by a process that knows only its directory."""

import json
import os
import signal
import subprocess
import sys

import pytest

from llmlab.train.metrics import Log

USE = """
import json, sys
from llmlab.cli import run
directory = sys.argv[1]
sys.exit(run("eval", [directory]) or run("generate", [directory, "--prompt", "ab", "ce", "--tokens", "4"]))
"""


def test_train_stops_on_a_signal_goes_on_and_is_used(llmlab, file, text, tmp_path, monkeypatch):
    directory = tmp_path / "runs" / "smooth_words"
    command = ("train", file, "--data.source.path", text)
    write = Log.write

    def interrupt(log, kind, step, metrics):
        write(log, kind, step, metrics)
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as interrupted:
        interrupted.setattr(Log, "write", interrupt)
        code, out, _ = llmlab(*command)
    assert code == 76 and f"stopped and saved; `llmlab {' '.join(map(str, command))}` goes on" in out
    saved = sorted(path.name for path in (directory / "checkpoints").iterdir())
    assert len(saved) == 1 and 2 <= int(saved[0]) < 4

    code, out, error = llmlab(*command)
    assert code == 0, error
    assert f"going on from step {saved[0]}" in out and f"llmlab generate {directory} --prompt 'ab'" in out
    assert not error  # no warning of a library
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 4]
    for name in ("run.json", "run.html", "loss.svg", "sample.txt", "experiment.py"):
        assert (directory / name).stat().st_size, name
    assert (directory / "sample.txt").read_text().startswith("ab")

    code, out, error = llmlab("train", file, "--data.source.path", text, "--optim.peak", "1")
    assert code == 65 and "holds another experiment; it differs in\n  optim.peak: 0.01 -> 1.0\n" in error
    use_in_a_fresh_process(directory, lines[-1]["loss"])


def use_in_a_fresh_process(directory, loss):
    """`eval` and `generate` reload the run from run.json, the class of the experiment's own file too."""
    environment = os.environ | {"XLA_FLAGS": os.environ["XLA_FLAGS"].rpartition(" ")[0]}  # on one device
    command = [sys.executable, "-c", USE, str(directory)]
    found = subprocess.run(command, env=environment, cwd=directory.parent, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    metrics, _, texts = found.stdout.partition("}\n")
    assert json.loads(metrics + "}")["loss"] == pytest.approx(loss, rel=1e-5)
    assert json.loads(metrics + "}")["step"] == 4
    assert texts.startswith("--- ab") and "\n--- ce" in texts
    assert found.stderr.startswith("[step 4: 8 tokens in ") and len(found.stderr.splitlines()) == 1


@pytest.mark.soak
def test_check_holds_the_part_to_the_contract(llmlab, file):
    code, out, error = llmlab("check", file, "--only", "causality", "packing isolation", "executed = traced FLOPs")
    assert code == 0, (out, error)
    assert out.count("holds ") == 3 and out.splitlines()[-1] == "the contract holds"


@pytest.mark.soak
def test_the_whole_contract(llmlab, file):
    code, out, _ = llmlab("check", file)
    assert code == 0 and out.count("holds ") == 10, out
