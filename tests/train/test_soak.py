"""The command itself, killed at random moments, and as a job of two processes. Minutes long: each start compiles."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from llmlab.train import manifest
from llmlab.train.checkpoint import Checkpoints
from llmlab.train.program import Program
from llmlab.train.run import load

pytestmark = pytest.mark.soak
FILE = Path(__file__).parents[2] / "experiments" / "nanogpt_char_cpu.py"
EXPERTS = '''"""Experts that two processes share."""
from llmlab.data import Bytes, Data, TextFiles
from llmlab.ffn import Gated, MoE
from llmlab.mixers import Attention
from llmlab.models import Block, Decoder
from llmlab.nn import repeat
from llmlab.optim import AdamW, Constant
from llmlab.train import Experiment, Train


def config() -> Experiment:
    block = Block(mixer=Attention(heads=4), ffn=MoE(experts=8, expert=Gated(hidden=32)))
    return Experiment(
        model=Decoder(vocab=257, width=32, stack=repeat(block, 2)),
        data=Data(source=TextFiles(path=""), tokenizer=Bytes(), batch=16, length=32),
        optim=AdamW(peak=1e-3, schedule=Constant()),
        train=Train(steps=20),
    )
'''
JOBS = {
    "data": (),
    "fsdp": ("--mesh.data", 1, "--mesh.fsdp", 8),
    "tensor": ("--mesh.data", 2, "--mesh.tensor", 4),
    "sequence": ("--mesh.data", 1, "--mesh.sequence", 8),
    "product": ("--mesh.data", 2, "--mesh.fsdp", 2, "--mesh.tensor", 2),
    "stream": ("--mesh.data", 2, "--mesh.tensor", 4, "--rules", "every*stream"),
    "expert": ("--mesh.data", 1, "--mesh.expert", 8),
}
SETTINGS = ("--train.log-every", "1", "--train.precision", "float32")
PATIENCE = 600  # seconds


@pytest.fixture
def start(text, tmp_path):
    """start(name of the run, *arguments) -> the process of `llmlab train`, its output in a file beside the run."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment |= {"LLMLAB_CACHE": str(tmp_path / "cache"), "JAX_PLATFORMS": "cpu"}
    alive = []

    def begin(name, *arguments, log=None, file=FILE):
        command = [sys.executable, "-m", "llmlab", "train", str(file), "--data.source.path", str(text)]
        command += [*SETTINGS, "--run", str(tmp_path / name), *map(str, arguments)]
        output = (tmp_path / f"{log or name}.log").open("a")
        alive.append(subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT))
        return alive[-1]

    yield begin
    for process in alive:
        process.kill()


def finish(process, path, code=0):
    assert process.wait(PATIENCE) == code, path.read_text()[-3000:]


def await_step(process, directory, step, find):
    """Returns when `find(directory)` has reached `step`."""
    deadline = time.monotonic() + PATIENCE
    while find(directory) < step:
        assert process.poll() is None and time.monotonic() < deadline, f"{directory} has not reached {step}"
        time.sleep(0.05)


def saved(directory):
    return (manifest.committed(directory / "checkpoints") or [0])[-1]


def last_logged(directory):
    path = directory / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return len(lines)


def losses(directory):
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return np.array([line["loss"] for line in lines if line["kind"] == "train"])


def test_killed_five_times_at_random_moments(start, tmp_path, logged, capfd):
    arguments = ("--train.steps", 400, "--train.save-every", 10, "--train.eval-every", 50, "--train.prompt", "None")
    finish(start("whole", *arguments), tmp_path / "whole.log")
    killed, moments = tmp_path / "killed", []
    for _ in range(5):
        process, before = start("killed", *arguments), saved(killed)
        await_step(process, killed, before + 10, saved)
        time.sleep(random.uniform(0, 2))
        process.send_signal(signal.SIGKILL)
        assert process.wait(PATIENCE) == -signal.SIGKILL, "it ended before it was killed"
        moments.append((last_logged(killed), saved(killed), bool(manifest.leftovers(killed / "checkpoints"))))
    finish(start("killed", *arguments), tmp_path / "killed.log")
    assert (tmp_path / "killed.log").read_text().count("going on from step") == 5

    directories = (tmp_path / "whole", killed)
    assert logged(directories[0]) == logged(directories[1])
    assert len(losses(killed)) == 400
    experiment = load(killed)
    program = Program(experiment, experiment.mesh.build(jax.devices()[:1]))
    states, metas = zip(*(Checkpoints(d / "checkpoints").restore(400, program.abstract_state) for d in directories))
    jax.tree.map(np.testing.assert_array_equal, *map(jax.device_get, states))
    assert metas[0] == metas[1] and metas[0]["data_index"] == 400 * experiment.data.batch
    assert not list(killed.glob("checkpoints/*.bad*"))
    with capfd.disabled():
        print(f"\nkilled at (lines logged, last checkpoint, one half written): {moments}; the ends are bit-identical")


def pair(start, name, *arguments, file=FILE):
    """The two processes of a job, 4 devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        job = ("--coordinator", f"127.0.0.1:{free.getsockname()[1]}", "--processes", 2, "--cpu-devices", 4)
    return [start(name, *arguments, *job, "--process", i, log=f"{name}{i}", file=file) for i in range(2)]


@pytest.mark.parametrize("rule", JOBS)
def test_two_processes_lose_what_one_device_does(rule, start, tmp_path, capfd):
    file = FILE
    if rule == "expert":
        file = tmp_path / "experts.py"
        file.write_text(EXPERTS)
    arguments = ("--train.steps", 20, "--data.batch", 16, "--train.prompt", "None")
    finish(start("one", *arguments, "--cpu-devices", 1, file=file), tmp_path / "one.log")
    for number, process in enumerate(pair(start, "two", *arguments, *JOBS[rule], file=file)):
        finish(process, tmp_path / f"two{number}.log")
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    np.testing.assert_allclose(two, one, rtol=1e-5)
    assert len(one) == 20
    with capfd.disabled():
        print(f"\nlargest relative difference of 20 losses: {np.abs(two / one - 1).max():.1e}")


def test_a_signal_to_one_process_stops_both_and_both_go_on(start, tmp_path):
    arguments = ("--train.steps", 300, "--data.batch", 16, "--train.prompt", "None")
    job, directory = pair(start, "job", *arguments), tmp_path / "job"
    await_step(job[0], directory, 20, last_logged)
    job[1].send_signal(signal.SIGTERM)
    for number, process in enumerate(job):
        finish(process, tmp_path / f"job{number}.log", code=76)
    stopped = saved(directory)
    assert 20 <= stopped < 300
    for number, process in enumerate(pair(start, "job", *arguments)):
        finish(process, tmp_path / f"job{number}.log")
    assert f"going on from step {stopped}" in (tmp_path / "job0.log").read_text()
    assert len(losses(directory)) == 300 and saved(directory) == 300
