"""`llmlab bench`: how fast models and kernels run here, and whether the kernels are right."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Literal

from llmlab.cli import on_cpu
from llmlab.cli.arguments import command_line, positive
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
    positive(flags, "rounds", "steps")
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

    dtype = resolved(flags)
    label = lambda suite, name: {"suite": suite, "name": name, "size": flags.size, "precision": dtype}
    for suite, name, batch in asked(flags):
        other = theirs.pop((suite, name, batch), None)
        if suite == "train":
            run = partial(train, name, flags.size, dtype, (flags.rounds, flags.steps), other)
        elif suite == "decode":
            run = partial(decode, name, flags.size, dtype, flags.rounds, batch, other)
        else:
            run = partial(kernels.measure, name, operand_sizes(), dtype, flags.rounds, other)
        yield label(suite, name) | ({"rows": batch} if batch else {}), run
    for name in kernels.CASES if "correctness" in flags.suite else ():
        yield label("correctness", name), partial(kernels.check, name, dtype)


def asked(flags: Flags) -> list[tuple[str, str, int | None]]:
    """(suite, name, rows that are decoded) of everything that is timed."""
    from llmlab.bench.kernels import CASES
    from llmlab.bench.shapes import DECODABLE

    batches = flags.batch or ((1, 8) if on_cpu() else (1, 32, 256))
    decoded = [("decode", name, batch) for name in flags.families if name in DECODABLE for batch in batches]
    found = [("train", name, None) for name in flags.families] + decoded + [("kernels", name, None) for name in CASES]
    return [one for one in found if one[0] in flags.suite]


def operand_sizes():
    """Of the kernels that are timed; told without starting jax, which would take an accelerator's memory."""
    from llmlab.bench.kernels import LARGE, MEDIUM

    return MEDIUM if on_cpu() else LARGE


def resolved(flags: Flags) -> str:
    return flags.precision if flags.precision != "auto" else "float32" if on_cpu() else "bfloat16"


def torch_python(flags: Flags) -> str | None:
    """The Python of the peers. Raises ValueError for a given one that cannot be."""
    if flags.torch_python is None:
        return sys.executable if all(map(importlib.util.find_spec, ("torch", "transformers"))) else None
    if shutil.which(flags.torch_python) is None:
        raise ValueError(f"--torch-python {flags.torch_python}: there is no such program")
    tried = subprocess.run([flags.torch_python, "-c", "import torch, transformers"], capture_output=True, text=True)
    if tried.returncode:
        why = tried.stderr.strip().splitlines()[-1:] or ["it ended without a word"]
        raise ValueError(f"--torch-python {flags.torch_python}: it has no torch with transformers: {why[0]}")
    return flags.torch_python


def peers(flags: Flags) -> dict:
    """{(suite, name, rows): an iterator of PyTorch's turns}. On an accelerator they end before jax takes its memory."""
    from llmlab.bench.peer import KERNELS

    python, found = torch_python(flags), {}
    for suite, name, batch in asked(flags) if python else ():
        if suite == "kernels" and name not in KERNELS:
            continue
        running = begin(flags, python, suite, name, batch)
        if not on_cpu():
            turns = flags.rounds * (flags.steps if suite == "train" else 1)
            try:
                running = iter(list(itertools.islice(running, turns)))
            except (RuntimeError, ValueError) as error:
                print(f"PyTorch is left out of {name}: {error}", flush=True)
                continue
        found[suite, name, batch] = running
    return found


def begin(flags: Flags, python: str, suite: str, name: str, batch: int | None):
    """PyTorch's turns of one thing that is timed."""
    from llmlab.bench.measure import CHUNK, PROMPT, peer
    from llmlab.bench.shapes import SIZES

    size, shape = SIZES[flags.size], ()
    if suite == "train":
        shape = size.rows(name)
    elif suite == "decode":
        shape = (batch, PROMPT, CHUNK)
    else:
        size = operand_sizes()
    return peer(python, suite, name, size, resolved(flags), shape, on_cpu())
