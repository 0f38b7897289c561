"""Eight seeds as one program against eight runs one after another, by size of the model.

    python benchmarks/replicas_cpu.py --output benchmarks/results/replicas_cpu.json

step: the time of 8 separate steps of `Program` over that of one step of `Replicas`, best of several rounds in turn.
run: the same for whole runs of 100 steps, with what each process of its own does again: trace and compile.
vmap: the ratio of the batched form, in place of the one that is chosen on CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={CORES}"

import jax  # noqa: E402
import numpy as np  # noqa: E402

from llmlab.data import Bytes, Data  # noqa: E402
from llmlab.ffn import Gated  # noqa: E402
from llmlab.mixers import Attention, Mamba  # noqa: E402
from llmlab.models import Block, Decoder  # noqa: E402
from llmlab.nn import TiedHead, repeat  # noqa: E402
from llmlab.study.replicas import Replicas  # noqa: E402
from llmlab.train import Experiment, Train  # noqa: E402
from llmlab.train.program import Program  # noqa: E402

# name: (width, layers, batch, length)
SIZES = {"tiny": (16, 2, 2, 16), "small": (32, 2, 4, 32), "medium": (64, 4, 8, 64), "large": (128, 4, 12, 64)}
SEEDS = 8


def experiment(size: str, mixer: str) -> Experiment:
    width, layers, batch, length = SIZES[size]
    block = Block(mixer=Attention(heads=4), ffn=Gated(hidden=4 * width))
    block = Block(mixer=Mamba(), ffn=None) if mixer == "mamba" else block
    return Experiment(
        model=Decoder(vocab=257, width=width, stack=repeat(block, layers), head=TiedHead()),
        data=Data(tokenizer=Bytes(), batch=batch, length=length),
        train=Train(steps=100),
    )


def best(function, rounds: int) -> float:
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


class Separate:
    """Eight states that take their steps one after another, as eight runs would."""

    def __init__(self, one: Experiment):
        self.program = Program(one, one.mesh.build(jax.devices()[:1]))
        self.states = [self.program._init(jax.random.key(seed)) for seed in range(SEEDS)]
        self.batches = [one.example(one.data.batch, seed=seed) for seed in range(SEEDS)]

    def __call__(self):
        for number, batch in enumerate(self.batches):
            self.states[number], metrics = self.program.step(self.states[number], batch)
            jax.block_until_ready(metrics["objective"])


class Together:
    """The same as one program."""

    def __init__(self, one: Experiment, form: str):
        self.replicas = Replicas([one] * SEEDS, [{"init": seed, "dropout": seed} for seed in range(SEEDS)], form)
        self.state = self.replicas.start()
        rows = [one.example(one.data.batch, seed=seed) for seed in range(SEEDS)]
        self.batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def __call__(self):
        self.state, metrics = self.replicas.step(self.state, self.batch, self.replicas.numbers)
        jax.block_until_ready(metrics["objective"])


def measure(size: str, mixer: str, rounds: int) -> dict:
    one = experiment(size, mixer)
    forms, first = {"separate": Separate(one), "together": Together(one, "auto"), "vmap": Together(one, "vmap")}, {}
    for name, form in forms.items():
        began = time.perf_counter()
        form()
        first[name] = time.perf_counter() - began
    seconds = {name: [] for name in forms}
    for _ in range(rounds):  # in turn, so that other jobs of the machine disturb all alike
        for name, form in forms.items():
            seconds[name].append(best(form, 3))
    least = {name: min(found) for name, found in seconds.items()}
    whole = {
        "separate": SEEDS * first["separate"] + (one.train.steps - 1) * least["separate"],
        "together": first["together"] + (one.train.steps - 1) * least["together"],
    }
    return {
        "size": size,
        "mixer": mixer,
        "parameters": sum(spec.size for spec in forms["separate"].program.specs.values()),
        "ms_of_8_separate_steps": 1e3 * least["separate"],
        "ms_of_one_step_together": 1e3 * least["together"],
        "step": least["separate"] / least["together"],
        "vmap": least["separate"] / least["vmap"],
        "run": whole["separate"] / whole["together"],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--mixers", nargs="+", choices=("attention", "mamba"), default=["attention", "mamba"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    found = []
    for mixer in arguments.mixers:
        for size in arguments.sizes:
            found.append(measure(size, mixer, arguments.rounds))
            print("{mixer} {size}: step {step:.2f}, run {run:.2f}, vmap {vmap:.2f}".format(**found[-1]), flush=True)
    machine = {"cores": CORES, "python": platform.python_version(), "jax": jax.__version__, "load": os.getloadavg()}
    if arguments.output:
        arguments.output.write_text(json.dumps({"machine": machine, "seeds": SEEDS, "results": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
