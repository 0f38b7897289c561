"""`llmlab bench`: how fast models and kernels run here, and whether the kernels are right."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import os
import sys
from functools import partial
from pathlib import Path
from typing import Literal

from llmlab.cli import on_cpu
from llmlab.cli.arguments import command_line
from llmlab.config import did_you_mean

SUITES = ("train", "decode", "kernels", "correctness")


@dataclasses.dataclass
class Flags:
    """Time training steps, decoding and kernels on the hardware that is there, and check the kernels' results."""

    suite: tuple[str, ...] = SUITES
    """What is measured: train, decode, kernels, correctness."""
    size: str | None = None
    """Of models: 15M, 124M, 350M, 1B, 8B-slice; by default 15M on CPU and 124M elsewhere."""
    families: tuple[str, ...] = ()
    """Of models: gpt2, llama, mixtral, dropless, bert, t5, mamba, mamba2; by default all that differ at the size."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of activations; bfloat16 on accelerators and float32 on CPU by default."""
    rounds: int = 5
    """Rounds that are counted; one before them is not."""
    steps: int = 3
    """Training steps of a round. On CPU the rounds of llmlab and of PyTorch alternate."""
    batch: tuple[int, ...] = ()
    """Rows that are decoded together; 1 8 on CPU, 1 32 256 elsewhere by default."""
    torch_python: str | None = None
    """A Python that has torch and transformers; by default this one, if it has them."""
    output: Path = Path(os.environ.get("LLMLAB_RUNS", "runs")) / "bench"
    """Folder of the results, which are compared with the last ones in it of the same machine and shape."""
    list: bool = False
    """Say what there is and measure nothing."""


def main(arguments: list[str]) -> int:
    flags = command_line(Flags, "llmlab bench", arguments)
    from llmlab.bench.shapes import FAMILIES, SIZES

    size = flags.size or ("15M" if on_cpu() else "124M")
    for kind, given, known in (
        ("suite", flags.suite, SUITES), ("size", (size,), SIZES), ("families", flags.families, FAMILIES)
    ):  # fmt: skip
        check_names(kind, given, known)
    for name in ("rounds", "steps"):
        if getattr(flags, name) < 1:
            raise ValueError(f"--{name} {getattr(flags, name)}: it is 1 or more")
    differ = tuple(name for name in FAMILIES if name != "dropless" or SIZES[size].small)
    flags = dataclasses.replace(flags, size=size, families=flags.families or differ)
    if flags.list:
        from llmlab.bench.kernels import CASES

        print(f"suites    {', '.join(SUITES)}\nfamilies  {', '.join(FAMILIES)}\nkernels   {'; '.join(CASES)}")
        for name, one in SIZES.items():
            tokens = f"{one.batch} x {one.length:,} tokens a device"
            print(f"{name:<10}{one.layers} layers of width {one.width:,}, vocabulary {one.vocab:,}, {tokens}")
        return 0
    return measure(flags)


def check_names(kind: str, given, known) -> None:
    for name in given:
        if name not in known:
            raise ValueError(f"--{kind} {name!r}: there are {', '.join(known)}{did_you_mean(name, known)}")


def measure(flags: Flags) -> int:
    """Measures row after row; what fails is a row that says so, and an exit code of 1."""
    theirs = peers(flags)
    import jax

    from llmlab.bench import record

    found = record.head() | {"command": ["llmlab", "bench", *sys.argv[2:]], "rows": []}
    known = record.earlier(flags.output, found["machine"])
    file = flags.output / f"bench-{found['date'].replace(':', '')}.json"
    print(f"{found['machine']}, commit {found['commit']}, load {found['load']}", flush=True)
    for labels, run in tasks(flags, theirs):
        try:
            row = run()
            row = record.against(row, known.get(record.shape(row)))
        except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
            row = labels | {"error": str(error).strip().partition("\n")[0]}
        found["rows"].append(row)
        record.write(file, found)
        print(record.line(row), flush=True)
    print(f"kept in {file}")
    return int(any(isinstance(row.get("error"), str) or row.get("right") is False for row in found["rows"]))


def tasks(flags: Flags, theirs: dict):
    """(what a row would be called, what measures it) of everything that is asked."""
    from llmlab.bench import kernels
    from llmlab.bench.measure import decode, train
    from llmlab.bench.shapes import DECODABLE

    dtype, batches = resolved(flags), flags.batch or ((1, 8) if on_cpu() else (1, 32, 256))
    label = lambda suite, name: {"suite": suite, "name": name, "size": flags.size, "precision": dtype}
    for name in flags.families if "train" in flags.suite else ():
        turns = (flags.rounds, flags.steps)
        yield label("train", name), partial(train, name, flags.size, dtype, turns, theirs.pop(name, None))
    for name, batch in itertools.product(flags.families if "decode" in flags.suite else (), batches):
        if name in DECODABLE:
            run = partial(decode, name, flags.size, dtype, flags.rounds, batch)
            yield label("decode", name) | {"rows": batch}, run
    for name in kernels.CASES if "kernels" in flags.suite else ():
        yield label("kernels", name), partial(kernels.measure, name, dtype, flags.rounds)
    for name in kernels.CASES if "correctness" in flags.suite else ():
        yield label("correctness", name), partial(kernels.check, name, dtype)


def resolved(flags: Flags) -> str:
    return flags.precision if flags.precision != "auto" else "float32" if on_cpu() else "bfloat16"


def peers(flags: Flags) -> dict:
    """{family: an iterator of PyTorch's steps}. On an accelerator they are done before jax takes its memory."""
    own = all(map(importlib.util.find_spec, ("torch", "transformers")))
    python = flags.torch_python or (sys.executable if own else None)
    if python is None or "train" not in flags.suite:
        return {}
    from llmlab.bench.measure import torch_steps

    found = {name: torch_steps(python, name, flags.size, resolved(flags), on_cpu()) for name in flags.families}
    for name in () if on_cpu() else flags.families:
        running = found.pop(name)
        try:
            found[name] = iter(list(itertools.islice(running, flags.rounds * flags.steps)))
        except (RuntimeError, ValueError) as error:
            print(f"PyTorch is left out of {name}: {error}", flush=True)
        running.close()
    return found
