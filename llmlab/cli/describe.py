"""`llmlab describe EXPERIMENT`: what an experiment is and takes, without running it or needing its devices."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import jax
from rich.console import Console
from rich.table import Table

from llmlab import axes
from llmlab.axes import Maybe
from llmlab.cli.arguments import parse, positive
from llmlab.config import show
from llmlab.nn.module import Rngs, Spec, abstract, specs, split
from llmlab.optim import state_letters
from llmlab.train.experiment import Experiment


@dataclasses.dataclass
class Flags:
    """Print an experiment: its config, parameters, sharding, FLOPs and memory, for a mesh of any size."""

    devices: int = 1
    """Devices of the mesh that is described; none of them need exist."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """float32 or bfloat16 activations in the estimate; auto takes the experiment's, bfloat16 if that is auto too."""


def main(arguments: list[str]) -> int:
    flags, experiment = parse("describe", Flags, arguments)
    positive(flags, "devices")
    console = Console(soft_wrap=True, highlight=False, width=160)
    sizes = experiment.mesh.resolve(flags.devices)
    found = Description(experiment, sizes)
    console.print(show(experiment), markup=False)
    console.print()
    console.print(found.table())
    for line in found.totals(flags.precision):
        console.print(line, markup=False)
    for line in found.undivided():
        console.print(line, markup=False)
    return 0


class Description:
    """Sizes of an experiment on a mesh that is given by its axis sizes alone."""

    def __init__(self, experiment: Experiment, sizes: dict[str, int]):
        self.experiment, self.sizes = experiment, sizes
        data = experiment.data
        axes.spec("BL", (data.batch // experiment.train.accumulate, data.length), experiment.rules.live, sizes)
        self.model = abstract(experiment.model.build)
        self.specs = specs(self.model)
        tx = experiment.optim.build(self.specs, experiment.train.steps)
        self.opt = jax.eval_shape(lambda: tx.init(split(experiment.model.build(Rngs(params=jax.random.key(0))))[1]))
        self.opt_letters = state_letters(self.opt, self.specs)

    def partition(self, letters: str, shape: tuple[int, ...]):
        return axes.spec(letters, shape, self.experiment.rules.stored, self.sizes)

    def share(self, letters: str, shape: tuple[int, ...], itemsize: int) -> int:
        """Bytes of an array that one device holds."""
        used = [name for part in self.partition(letters, shape) for name in _names(part)] if letters else []
        return math.prod(shape) * itemsize // math.prod(self.sizes[name] for name in used)

    def table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        for column in ("parameter", "letters", "shape", "sharding", "bytes a device"):
            table.add_column(column, no_wrap=True)
        for spec in self.specs.values():
            partition = self.partition(spec.axes, spec.shape)
            shown = ", ".join(f"{a}: {'*'.join(_names(p))}" for a, p in zip(spec.axes, partition) if p) or "replicated"
            bytes_each = self.share(spec.axes, spec.shape, spec.dtype.itemsize)
            table.add_row(".".join(spec.path), spec.axes, str(spec.shape), shown, f"{bytes_each:,}")
        return table

    def totals(self, precision: str) -> list[str]:
        data, train = self.experiment.data, self.experiment.train
        name = train.precision if precision == "auto" else precision
        itemsize = 4 if name == "float32" else 2
        params = sum(self.share(s.axes, s.shape, s.dtype.itemsize) for s in self.specs.values())
        opt = sum(
            self.share(letters, leaf.shape, leaf.dtype.itemsize)
            for leaf, letters in zip(jax.tree.leaves(self.opt), jax.tree.leaves(self.opt_letters))
        )
        cost = self.model.cost(self.experiment.shape(1, itemsize))
        count = sum(s.size for s in self.specs.values())
        activations = self.activations(itemsize)
        return [
            "",
            f"{count:,} parameters" + self._padding(),
            f"{3 * cost.algorithmic / data.length:,.0f} FLOPs a token in training, at length {data.length} "
            f"({3 * cost.executed / data.length:,.0f} executed, recomputation not counted)",
            f"{3 * cost.algorithmic * data.batch * train.steps:.3g} FLOPs and "
            f"{data.batch * data.length * train.steps:,} tokens in {train.steps:,} steps",
            f"memory of one of {math.prod(self.sizes.values())} devices: parameters {_show(params)}, "
            f"optimizer {_show(opt)}, gradients {_show(params)}, activations about {_show(activations)} "
            "(34 x tokens x width a layer in 16 bits; an estimate)",
        ]

    def activations(self, itemsize: int) -> int:
        """The usual estimate (Korthikanti et al., 2022) without attention matrices; under remat each layer's input."""
        data, model = self.experiment.data, self.experiment.model
        shares = math.prod(self.sizes[axis] for axis in ("data", "fsdp", "expert", "sequence"))
        tokens = data.batch * data.length // self.experiment.train.accumulate // shares
        stack = getattr(model, "stack", None)
        depth = stack.depth if stack else 1
        each = 17 * itemsize if stack is None or stack.remat == "none" else itemsize
        return int(tokens * model.width * (each * depth + (17 * itemsize if each == itemsize else 0)))

    def undivided(self) -> list[str]:
        """What a rule does not divide, and what of the optimizer has no letters."""
        rules = self.experiment.rules
        lines = []
        soft = {(letter, a.axis) for letter, part in rules.stored for a in part if isinstance(a, Maybe)}
        for spec in self.specs.values():
            for letter, size in zip(spec.axes, spec.shape):
                lines += [
                    f"not divided: {'.'.join(spec.path)}: {letter} of {size} over {axis} {self.sizes[axis]}; replicated"
                    for known, axis in soft
                    if known == letter and self.sizes[axis] > 1 and size % self.sizes[axis]
                ]
        leaves = jax.tree_util.tree_leaves_with_path(self.opt)
        for (path, leaf), letters in zip(leaves, jax.tree.leaves(self.opt_letters)):
            if not letters and math.prod(leaf.shape) > 1:
                lines.append(f"replicated: optimizer state {jax.tree_util.keystr(path)} of shape {leaf.shape}")
        return lines

    def _padding(self) -> str:
        padding = sum(math.prod(s.shape) - s.size for s in self.specs.values() if isinstance(s, Spec))
        return f" (and {padding:,} of padding)" if padding else ""


def _names(part) -> tuple[str, ...]:
    return () if part is None else (part,) if isinstance(part, str) else tuple(part)


def _show(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
