"""The command, killed at random moments ten times: the study and its workers. Minutes long: each start compiles."""

import contextlib
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from llmlab.study.cells import groups
from llmlab.study.record import read_rows

pytestmark = pytest.mark.soak
PATIENCE = 1800  # seconds
STUDY = '''"""A study."""
from llmlab.data import Bytes, Data, TextFiles
from llmlab.ffn import Mlp
from llmlab.mixers import Attention
from llmlab.models import Block, Decoder
from llmlab.nn import repeat
from llmlab.optim import AdamW, Constant
from llmlab.study import Study, Tune, one_at_a_time
from llmlab.train import Experiment, Train


def study() -> Study:
    block = Block(mixer=Attention(heads=2), ffn=Mlp(hidden=16))
    base = Experiment(
        model=Decoder(vocab=257, width=8, stack=repeat(block, 1)),
        data=Data(source=TextFiles(path=TEXT), tokenizer=Bytes(), batch=4, length=8),
        optim=AdamW(peak=1e-2, schedule=Constant()),
        train=Train(steps=2000, precision="float32", eval_every=500, eval_batches=2, save_every=100),
    )
    path = "model.stack.segments.0.pattern.0.ffn.activation"
    arms = one_at_a_time(base, {"silu": {path: "silu"}, "relu": {path: "relu"}})
    return Study(question="?", base=base, arms=arms, seeds=2, tune=Tune(grid=(0.5, 1.0), extend=1), name="soak")
'''


def numbers(directory):
    """What of the rows does not depend on the clock."""
    without = lambda point: {name: value for name, value in point.items() if name != "seconds"}
    return [
        dataclasses.replace(row, curve=[without(p) for p in row.curve], axes=without(row.axes))
        for row in read_rows(directory)
    ]


def processes(text: str) -> list[int]:
    """The processes whose command line has a text."""
    found = subprocess.run(["pgrep", "-f", text], capture_output=True, text=True, check=False).stdout
    return [int(line) for line in found.split() if int(line) != os.getpid()]


def test_killed_ten_times_at_random_moments(text, tmp_path, capfd):
    file = tmp_path / "soaked.py"
    file.write_text(STUDY.replace("TEXT", repr(str(text))))
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment |= {"LLMLAB_CACHE": str(tmp_path / "cache"), "JAX_PLATFORMS": "cpu", "LLMLAB_HUGE_PAGES": "0"}

    def start(name, *arguments):
        command = [sys.executable, "-m", "llmlab", "study", str(file), "--run", str(tmp_path / name), *arguments]
        output = (tmp_path / f"{name}.log").open("a")
        plain = ("--no-contracts", "--no-prices", "--cpu-devices", "2")
        return subprocess.Popen([*command, *plain], env=environment, stdout=output, stderr=subprocess.STDOUT)

    def finish(process, name):
        assert process.wait(PATIENCE) == 0, (tmp_path / f"{name}.log").read_text()[-3000:]

    finish(start("whole"), "whole")
    killed, moments = tmp_path / "killed", []
    run = None
    for number in range(10):
        before = progress(killed)
        deadline = time.monotonic() + PATIENCE
        while progress(killed) < before + 300:  # it has gone on since the last kill
            if run is None or run.poll() is not None:  # its workers have all been killed
                run = start("killed", "--workers", "2")
            assert time.monotonic() < deadline, (tmp_path / "killed.log").read_text()[-3000:]
            time.sleep(0.1)
        time.sleep(random.uniform(0, 3))
        workers = [pid for pid in processes(str(killed)) if pid != run.pid]
        victims = [run.pid, *workers] if number % 3 == 2 or not workers else [random.choice(workers)]
        for pid in victims:
            kill(pid)
        if run.pid in victims:
            run.wait()
        moments.append((len(victims), [row.state for row in read_rows(killed)].count("done")))
    run.wait(PATIENCE)
    finish(start("killed", "--workers", "2"), "killed")
    assert numbers(killed) == numbers(tmp_path / "whole")
    assert sorted(key for group in groups(killed) for key in group["cells"]) == sorted(r.key for r in read_rows(killed))
    with capfd.disabled():
        print(f"\nkilled (processes, rows done then): {moments}; {len(numbers(killed))} rows are equal")


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it may just have ended
        os.kill(pid, signal.SIGKILL)


def progress(directory) -> int:
    """Steps that groups have told of, those that are done counted whole."""
    steps = sum(2000 for row in read_rows(directory) if row.state == "done")
    for file in directory.glob("groups/*/progress.json"):
        steps += json.loads(file.read_text())["step"]
    return steps
