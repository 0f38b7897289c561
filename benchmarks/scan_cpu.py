"""The selective scan on CPU: against an associative scan, its memory in a training step, and Mamba-2 beside it.

    python benchmarks/scan_cpu.py --output benchmarks/results/scan_cpu.json

scan: one value and all gradients at B 2, L 256, C 768, S 16, kernels/scan.py against jax.lax.associative_scan over
arrays of B L C S; temporary bytes of the compiled programs. step: the peak of temporary memory of the training step of
a Mamba of 2 layers, for each length, and its slope in bytes for each position. mixers: tokens a second, forward and
backward, of one layer of Mamba, Mamba-2 and DeltaNet at equal width; the floor is the share of that time which their
products would take at the speed of a large product; decode: microseconds of one position after so many. Peers are
interleaved and the best of the rounds is given.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

from llmlab.cost import Shape
from llmlab.data import Bytes, Data
from llmlab.kernels.scan import selective_scan
from llmlab.mixers import DeltaNet, Mamba, Mamba2
from llmlab.models import Block, Decoder
from llmlab.nn import Context, repeat
from llmlab.nn.module import Rngs
from llmlab.tasks import example_batch
from llmlab.train import Experiment
from llmlab.train.program import Program

ROWS, LENGTH, CHANNELS, STATE = 2, 256, 768, 16
WIDTH, LENGTHS = 256, (256, 512, 1024, 2048)


def associative(x_BLC, step_BLC, rate_CS, b_BLS, c_BLS):
    """The same recurrence by jax.lax.associative_scan."""
    decay_BLCS = jnp.exp(step_BLC[..., None] * rate_CS)
    written_BLCS = (step_BLC * x_BLC)[..., None] * b_BLS[:, :, None]
    join = lambda left, right: (left[0] * right[0], left[1] * right[0] + right[1])
    h_BLCS = jax.lax.associative_scan(join, (decay_BLCS, written_BLCS), axis=1)[1]
    return (h_BLCS * c_BLS[:, :, None]).sum(-1)


def best(peers: dict[str, Callable[[], jax.Array]], rounds: int) -> dict[str, float]:
    """Seconds of the best round of each peer, one after the other in every round."""
    times = {name: [] for name in peers}
    for _ in range(rounds):
        for name, run in peers.items():
            began = time.perf_counter()
            jax.block_until_ready(run())
            times[name].append(time.perf_counter() - began)
    return {name: min(found[1:]) for name, found in times.items()}


def compare_scans(rounds: int) -> dict:
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = ((ROWS, LENGTH, CHANNELS), (ROWS, LENGTH, CHANNELS), (ROWS, LENGTH, STATE), (ROWS, LENGTH, STATE))
    x, step, b, c = (jax.random.normal(key, shape) for key, shape in zip(keys, shapes))
    rate = -jnp.broadcast_to(jnp.arange(1.0, STATE + 1), (CHANNELS, STATE))
    given = (x, jnp.exp(step - 4), rate, b, c)
    loss = lambda scan: lambda *given: (scan(*given) ** 2).sum()
    peers = {"chunked": lambda *given: selective_scan(*given)[0], "associative": associative}
    compiled = {n: jax.jit(jax.value_and_grad(loss(f), range(5))).lower(*given).compile() for n, f in peers.items()}
    seconds = best({name: lambda f=f: f(*given) for name, f in compiled.items()}, rounds)
    memory = {name: f.memory_analysis().temp_size_in_bytes for name, f in compiled.items()}
    return {
        "milliseconds": {name: round(1e3 * value, 1) for name, value in seconds.items()},
        "times_faster": round(seconds["associative"] / seconds["chunked"], 2),
        "temporary_bytes": memory,
        "share_of_memory": round(memory["chunked"] / memory["associative"], 4),
    }


def measure_step() -> dict:
    """Temporary bytes of a whole training step for one row of each length."""
    found = {}
    for length in LENGTHS:
        model = Decoder(vocab=256, width=WIDTH, stack=repeat(Block(mixer=Mamba(), ffn=None), 2))
        experiment = Experiment(model=model, data=Data(tokenizer=Bytes(), batch=1, length=length))
        program = Program(experiment, experiment.mesh.build())
        batch = example_batch(experiment.task, experiment.data, 256, 1)
        found[length] = program.step.lower(program.init(), batch).compile().memory_analysis().temp_size_in_bytes
    slopes = [(found[b] - found[a]) / (b - a) for a, b in zip(LENGTHS, LENGTHS[1:])]
    return {"temporary_bytes": found, "bytes_for_each_position": [round(slope) for slope in slopes]}


def compare_mixers(rounds: int) -> dict:
    x_BLD = jax.random.normal(jax.random.key(0), (ROWS, 1024, WIDTH))
    positions_BL = jnp.broadcast_to(jnp.arange(1024), (ROWS, 1024))
    wide = Mamba2(chunk=64)
    configs = {"mamba": Mamba(), "mamba2": dataclasses.replace(wide, state=16), "mamba2 state 128": wide}
    configs["delta"] = DeltaNet(heads=4)
    layers = {name: cfg.build({"D": WIDTH, "N": 1}, Rngs(params=0)) for name, cfg in configs.items()}
    loss = lambda layer, x_BLD: (layer(x_BLD, Context(positions_BL=positions_BL))[0] ** 2).sum()
    gradient = jax.jit(jax.grad(loss, (0, 1)))
    runs = {name: lambda layer=layer: gradient(layer, x_BLD) for name, layer in layers.items()}
    square, product = jnp.ones((1024, 1024)), jax.jit(jnp.matmul)
    train = best({**runs, "product": lambda: product(square, square)}, rounds)
    speed = 2 * 1024**3 / train.pop("product")
    floor = {name: 3 * layers[name].cost(Shape(ROWS, 1024)).executed / speed / train[name] for name in layers}
    step = jax.jit(lambda layer, x, state, ctx: layer.extend(x, state, ctx))
    after = {}
    for length in (64, 4096):
        ctx = Context(positions_BL=jnp.full((1, 1), length))
        states = {name: layer.start(1, length, ctx) for name, layer in layers.items()}
        run = {n: lambda n=n, s=states, ctx=ctx: step(layers[n], x_BLD[:1, :1], s[n], ctx) for n in layers}
        after[length] = {n: round(1e6 * t) for n, t in best(run, 20 * rounds).items()}
    return {
        "train_tokens_per_second": {name: round(x_BLD.shape[0] * 1024 / t) for name, t in train.items()},
        "floor": {name: round(share, 2) for name, share in floor.items()},
        "decode_microseconds": after,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    found = {
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "scan": compare_scans(options.rounds),
        "step": measure_step(),
        "mixers": compare_mixers(options.rounds),
    }
    print(json.dumps(found, indent=1))
    if options.output:
        options.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
