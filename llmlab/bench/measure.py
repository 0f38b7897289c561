"""Training steps and decoding, timed. A row is what was measured of one model: its shape, and figures of it.

Tokens are random; a step is forward, backward, clipping and AdamW, and each is waited for. The best step is the
steadier figure of a shared machine, the median that of a quiet one.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from llmlab.bench.shapes import SIZES, experiment
from llmlab.chips import find
from llmlab.generate import Generator, Sampling
from llmlab.generate.decode import CHUNK
from llmlab.kernels.receipt import receipt
from llmlab.nn.module import Rngs, split
from llmlab.train.peak import measure, peak_flops
from llmlab.train.program import Program

PROMPT = 64  # tokens before those that are decoded
Seconds = list[tuple[float, float]]  # of steps: by the clock, and of the processor


def train(family: str, size: str, precision: str, turns: tuple[int, int], theirs: Iterator | None) -> dict:
    """A row of training steps. turns: (rounds, steps of a round). theirs: the peer's seconds, of a step each time."""
    asked = experiment(family, SIZES[size], precision, jax.device_count())
    program, (rows, length) = Program(asked, asked.mesh.build()), (asked.data.batch, asked.data.length)
    state, batch = program.init(), asked.example(rows)
    if family == "t5":  # half of the tokens on either side, as the peer's are
        batch = {name: array[:, : length // 2] for name, array in batch.items()}
    else:
        batch.pop("segments_BL")  # rows of one document, as the peer's are
    batch = jax.device_put(batch, {name: program.batch_sharding(name, a.shape) for name, a in batch.items()})
    with receipt() as kernels:
        began = time.process_time()
        step = program.step.lower(state, batch).compile()
        compiling = time.process_time() - began
    peak, source = peak_flops(program.mesh)
    known, ours, others = find(jax.devices()[0].device_kind), [], []
    for turn in range(turns[0] + 1):  # the first is not counted
        for _ in range(turns[1]):
            wall, cpu = time.perf_counter(), time.process_time()
            state, metrics = step(state, batch)
            float(metrics["objective"])
            ours += [(time.perf_counter() - wall, time.process_time() - cpu)] if turn else []
            peak = peak if known else max(peak, measure(repeats=1, dtype=program.dtype))
        others += [next(theirs) for _ in range(turns[1])] if theirs and turn else []
    work, found, memory = (
        program.model.cost(asked.task.shape(batch)),
        rates(rows * length, ours),
        step.memory_analysis(),
    )
    row = {"suite": "train", "name": family, "size": size, "precision": program.dtype, "rows": rows, "length": length}
    row |= found | {
        "mfu": round(3 * work.algorithmic / found["seconds"] / peak, 4),
        "mfu_of": f"{peak / 1e12:.3g} TFLOP/s ({source})",
        "executed_share_of_best": round(3 * work.executed / found["seconds_best"] / peak, 4),
        "parameters": sum(spec.size for spec in program.specs.values()),
        "state_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "compile_cpu_seconds": round(compiling, 1),
        "kernels": dict(kernels),
    }
    return beside(row, rates(rows * length // jax.device_count(), others) if others else None)


def beside(row: dict, theirs: dict | None) -> dict:
    """The row, and PyTorch's rates with how many times as fast ours are."""
    if theirs is None:
        return row
    ratio = {
        name: round(row[f"tokens_per_second{end}"] / theirs[f"tokens_per_second{end}"], 3)
        for name, end in (("median", ""), ("best", "_best"))
    }
    return row | {"torch": theirs, "ratio_to_torch": ratio}


def rates(tokens: int, seen: Seconds) -> dict:
    """What the seconds of single steps of so many tokens say."""
    walls, cpus, *_ = zip(*seen)
    median, best = statistics.median(walls), min(walls)
    return {
        "seconds": median,
        "seconds_best": best,
        "cpu_seconds": min(cpus),
        "tokens_per_second": round(tokens / median, 1),
        "tokens_per_second_best": round(tokens / best, 1),
    }


def peer(python: str, suite: str, name: str, size, precision: str, shape: tuple[int, ...], on_cpu: bool) -> Iterator:
    """[seconds, CPU seconds, peak bytes or None] of a turn of PyTorch's (bench/peer.py), done when it is asked for.

    size: a dataclass; shape: (rows, positions) of training, (rows, prompt, new tokens) of decoding.
    """
    asked = {"suite": suite, "name": name, "size": dataclasses.asdict(size), "half": getattr(size, "half", None)}
    asked |= {"precision": precision, "shape": shape, "cores": len(os.sched_getaffinity(0)), "on_cpu": on_cpu}
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    source = Path(__file__).with_name("peer.py").read_text()  # as a file it would find the modules here before others
    command = [python, "-c", source, json.dumps(asked)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    with subprocess.Popen(command, **pipes) as worker:
        try:
            if not any(line.startswith('{"ready"') for line in worker.stdout):
                raise RuntimeError(f"{python} has ended before its first turn of {name}; what it says is above")
            while True:
                worker.stdin.write("\n")
                worker.stdin.flush()
                yield json.loads(worker.stdout.readline())
        finally:
            worker.kill()


def decode(family: str, size: str, precision: str, rounds: int, batch: int, theirs: Iterator | None) -> dict:
    """A row of greedy decoding behind a short prompt, in scans as `generate` does them. theirs: the peer's turns."""
    asked = experiment(family, SIZES[size], precision)
    program = Program(asked, asked.mesh.build(jax.devices()[:1]))
    build = lambda key: split(asked.model.build(Rngs(params=key)))[1:]
    params, stats = jax.jit(build)(jax.random.key(0))
    params = jax.tree.map(lambda a: a.astype(program.dtype), params)
    generator = Generator(program.structure, params, stats, program.mesh, asked.rules, program.dtype)
    key, greedy, new = jax.random.key(0), Sampling(temperature=0.0), CHUNK * (rounds + 1)
    prompts = np.random.default_rng(0).integers(1, SIZES[size].vocab, (batch, PROMPT)).tolist()
    with receipt() as kernels:
        rows = generator.rows(prompts, new, prompts if family == "t5" else None)
        tokens_B, carry = generator.prefill(generator.params, generator.stats, rows, key, PROMPT + new, greedy)
        state_bytes = sum(a.nbytes for a in jax.tree.leaves(carry[1]))
        carry, seen, others = (tokens_B, np.zeros(batch, bool), *carry), [], []
        for number in range(rounds + 1):
            wall, cpu = time.perf_counter(), time.process_time()
            out, carry = generator.extend(generator.params, generator.stats, carry, key, 1 + CHUNK * number, greedy, ())
            np.asarray(out)
            seen.append(((time.perf_counter() - wall) / CHUNK, (time.process_time() - cpu) / CHUNK))
            others += [next(theirs)] if theirs and number else []
    row = {"suite": "decode", "name": family, "size": size, "precision": program.dtype, "rows": batch, "prompt": PROMPT}
    row |= rates(batch, seen[1:])  # the first compiles
    row |= {"state_bytes": state_bytes, "kernels": dict(kernels)}
    if chip := find(jax.devices()[0].device_kind):
        moved = state_bytes + sum(a.nbytes for a in jax.tree.leaves(params))
        row["bandwidth_share"] = round(moved / row["seconds"] / chip.bandwidth, 4)
    return beside(row, rates(batch, others) if others else None)
