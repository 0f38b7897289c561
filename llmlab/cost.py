"""One definition of work: FLOPs, bytes and decode state of any part, and the traced program they are checked against.

A multiply-add counts 2. `algorithmic` counts exactly the pairs that a mask shows and recomputes nothing: it is the
number for MFU and for matching arms. `executed` is what the program does. Both are for one forward pass; training
is three times that.
"""

from __future__ import annotations

import dataclasses
import math

import jax
from jax.extend import core

from llmlab import axes


@dataclasses.dataclass(frozen=True)
class Shape:
    """The work given to a part: rows, queries in each row, and keys if they differ (`memory`).

    outputs: positions of each row that the head reads, None for all.
    """

    batch: int
    length: int
    memory: int | None = None
    outputs: int | None = None
    itemsize: int = 4  # bytes of an activation

    @property
    def tokens(self) -> int:
        return self.batch * self.length


@dataclasses.dataclass(frozen=True)
class Cost:
    """FLOPs of one forward pass, bytes it must move (operands read once, results written once), bytes of state."""

    algorithmic: float = 0.0
    executed: float = 0.0
    bytes: float = 0.0
    state: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other))))

    def __mul__(self, times: float) -> Cost:
        return Cost(*(times * a for a in dataclasses.astuple(self)))


def total(costs) -> Cost:
    return sum(costs, Cost())


def visible_pairs(length: int, memory: int, causal: bool, window: int | None = None) -> int:
    """How many (query, key) pairs of one row a mask shows; queries are the last `length` of `memory` positions."""
    if window is None and not causal:
        return length * memory
    window = memory if window is None else min(window, memory)

    def triangle(rows: int) -> int:  # causal pairs of the first rows of a square: a ramp up to the window, then flat
        ramp = min(rows, window)
        return ramp * (ramp + 1) // 2 + (rows - ramp) * window

    ahead = 0 if causal else length * (length - 1) // 2
    return triangle(memory) - triangle(memory - length) + ahead


def traced_flops(function, *args) -> int:
    """FLOPs of the matrix products in the traced program, loops multiplied by their trip counts."""
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr: core.Jaxpr) -> int:
    found = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contract, _), (batch, _) = eqn.params["dimension_numbers"]
            left, right = (v.aval.shape for v in eqn.invars)
            inner = math.prod(left[i] for i in contract)
            shared = math.prod(left[i] for i in batch)
            found += 2 * math.prod(left) * math.prod(right) // (inner * shared) if inner * shared else 0
        elif eqn.primitive.name == "ragged_dot_general":
            found += _ragged_flops(eqn)
        inner_programs = [_count(sub) for sub in _subprograms(eqn)]
        if eqn.primitive.name == "cond":
            found += max(inner_programs)
        elif eqn.primitive.name == "while" and any(inner_programs):
            raise ValueError("a while loop has no static trip count; write a scan, or declare the kernel's cost")
        else:
            found += (
                eqn.params.get("length", 1) * sum(inner_programs)
                if eqn.primitive.name == "scan"
                else sum(inner_programs)
            )
    return found


def _ragged_flops(eqn) -> int:
    """A TPU computes each row for its own group; elsewhere XLA computes every row for every group (as of jax 0.12)."""
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    (_, contract), (_, batch) = numbers.dot_dimension_numbers
    left, right, sizes = (v.aval.shape for v in eqn.invars[:3])
    summed = {*contract, *batch, *numbers.rhs_group_dimensions}
    columns = math.prod(size for i, size in enumerate(right) if i not in summed)
    return 2 * math.prod(left) * columns * (1 if axes.platform() == "tpu" else sizes[-1])


def _subprograms(eqn):
    if eqn.primitive.name.startswith("custom_"):  # what runs is the primal function; the rules are traced elsewhere
        names = ("call_jaxpr", "fun_jaxpr", "jaxpr")
        values = [eqn.params[name] for name in names if name in eqn.params][:1]
    else:
        values = eqn.params.values()
    for value in values:
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item
