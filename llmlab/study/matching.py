"""Matching: every arm is resized by its free knobs until it equals the base on the declared axis, or is refused.

Axes are those of FLOPs and sizes that a study may hold equal. `flops` are algorithmic, of the whole training: three
forward passes over every step's batch. `state_bytes` are what decoding one row of full length carries along.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Literal

from llmlab.config import Config, config, get, nodes, put
from llmlab.nn.module import Spec, abstract, specs
from llmlab.train.experiment import Experiment

Axis = Literal["parameters", "active", "flops", "tokens", "state_bytes"]
Sizes = dict[str, float | None]
AXES: tuple[str, ...] = Axis.__args__
TRIES = 60  # of one knob; a search that needs more has met a knob that does not move its axis


class Unmatched(ValueError):
    """An arm that no value of its knobs brings to the base."""


class Knob(Config):
    """The slot of a free size, a whole number: `read` and `turn` it. The axis must not fall when it grows."""

    def read(self, experiment: Experiment) -> int:
        raise TypeError(f"{type(self).__name__} must define read(experiment)")

    def turn(self, experiment: Experiment, value: int) -> dict[str, int]:
        """{dotted path: value} of every leaf that the knob sets."""
        raise TypeError(f"{type(self).__name__} must define turn(experiment, value)")


@config
class Leaf(Knob):
    """Leaves of these dotted paths, all with one value that `multiple` divides; such as train.steps or model.width."""

    paths: tuple[str, ...]
    multiple: int = 1

    def check(self):
        if not self.paths or self.multiple < 1:
            raise ValueError(f"Leaf needs a path and a multiple of 1 or more; it has {self.paths}, {self.multiple}")

    def read(self, experiment):
        return max(1, round(get(experiment, self.paths[0]) / self.multiple))

    def turn(self, experiment, value):
        return {path: value * self.multiple for path in self.paths}


@config
class Every(Knob):
    """A field wherever the model has it, in the proportions that it has: `Every(field="hidden")`, every feed-forward's
    hidden size, experts' too. The value is that of the largest; `multiple` divides each."""

    field: str = "hidden"
    multiple: int = 1

    def read(self, experiment):
        return max(1, round(max(self.found(experiment).values()) / self.multiple))

    def turn(self, experiment, value):
        found = self.found(experiment)
        each = lambda old: max(1, round(value * old / max(found.values())))
        return {path: self.multiple * each(old) for path, old in found.items()}

    def found(self, experiment: Experiment) -> dict[str, int]:
        places = {f"model.{path}" if path else "model": node for path, node in nodes(experiment.model)}
        found = {f"{path}.{self.field}": getattr(node, self.field, None) for path, node in places.items()}
        found = {path: value for path, value in found.items() if isinstance(value, int)}
        if not found:
            raise Unmatched(f"no part of the model has a size {self.field!r}; give the arm another knob (Arm.free)")
        return found


@functools.lru_cache(maxsize=4096)
def measure(experiment: Experiment) -> Sizes:
    """What an experiment has on every axis; nothing is allocated."""
    model = abstract(experiment.model.build)
    table = specs(model)
    cost = model.cost(experiment.shape(rows=1))
    rows = experiment.data.batch * experiment.train.steps
    return {
        "parameters": sum(spec.size for spec in table.values()),
        "active": active(experiment, table.values()),
        "flops": 3 * cost.algorithmic * rows,
        "tokens": rows * experiment.data.length,
        "state_bytes": cost.state if experiment.model.declared().decodable else None,
    }


def active(experiment: Experiment, table) -> int:
    """Parameters that a token meets: of experts, `top_k` of them. Raises ValueError where that cannot be told."""
    shares: dict[int, set[float]] = {}
    for _, node in nodes(experiment.model):
        if hasattr(node, "experts") and hasattr(node, "top_k"):
            shares.setdefault(node.experts, set()).add(node.top_k / node.experts)

    def share(spec: Spec) -> float:
        letters = spec.axes.lstrip("N")
        if not letters.startswith("E") or len(letters) == 1:
            return 1.0
        known = shares.get(spec.shape[spec.axes.index("E")], set())
        if len(known) != 1:
            raise ValueError(
                f"{'.'.join(spec.path)} has experts, and {len(known)} parts of the model tell how many a token meets; "
                "give mixtures of other top_k another number of experts"
            )
        return next(iter(known))

    return round(sum(spec.size * share(spec) for spec in table))


@dataclasses.dataclass(frozen=True)
class Matched:
    """Arms brought to the base: their experiments, what they reached on every axis, and what the knobs were set to."""

    experiments: dict[str, Experiment]
    sizes: dict[str, Sizes]
    set: dict[str, dict[str, int]]
    errors: dict[str, float]


def match(study) -> Matched:
    """Every arm of the study, matched. Raises Unmatched with the arm, the axis, what was reached, what was wanted."""
    variants, axis = study.variants(), study.match
    sizes = {study.base_name: measure(study.base)}
    found = Matched({study.base_name: study.base}, sizes, {study.base_name: {}}, {study.base_name: 0.0})
    wanted = axis and sizes[study.base_name][axis]
    if axis and wanted is None:
        raise Unmatched(f"the base {study.base_name!r} decodes nothing, so it has no {axis}; match on another axis")
    for name, experiment in variants.items():
        if name in found.experiments:
            continue
        made, turned = (experiment, {}) if axis is None else solve(name, experiment, study.knobs(name), axis, wanted)
        found.experiments[name], found.set[name] = made, turned
        sizes[name] = sizes[study.base_name] if made == study.base else measure(made)
        found.errors[name] = abs(sizes[name][axis] / wanted - 1) if axis else 0.0
        if found.errors[name] > study.tolerance:
            raise Unmatched(refusal(study, name, sizes[name][axis], wanted))
    return found


def refusal(study, name: str, reached: float, wanted: float) -> str:
    knobs = ", ".join(str(knob) for knob in study.knobs(name)) or "no free knob"
    return (
        f"arm {name!r} does not match {study.base_name!r} on {study.match}: it reaches {reached:,.0f} and "
        f"{wanted:,.0f} is wanted, {reached / wanted - 1:+.2%} with a tolerance of {study.tolerance:.2%} ({knobs}). "
        "Give it a finer knob or a second one (Arm.free), raise Study.tolerance, or match on another axis"
    )


def solve(name: str, experiment: Experiment, knobs: tuple[Knob, ...], axis: str, wanted: float):
    """(experiment, {path: value}): each knob in turn set to the whole number that comes nearest to `wanted`."""
    turned: dict[str, int] = {}
    for knob in knobs:

        def at(value: int, experiment=experiment, knob=knob) -> Experiment:
            for path, size in knob.turn(experiment, value).items():
                experiment = put(experiment, path, size)
            return experiment

        def reach(value: int, at=at) -> float:
            reached = measure(at(value))[axis]
            if reached is None:
                raise Unmatched(f"arm {name!r} decodes nothing, so it has no {axis}; match on another axis")
            return reached

        value = nearest(reach, wanted, knob.read(experiment))
        turned |= knob.turn(experiment, value)
        experiment = at(value)
    return experiment, turned


def nearest(reach: Callable[[int], float], wanted: float, start: int) -> int:
    """The whole number of 1 or more for which a function that does not fall comes nearest to `wanted`."""
    seen: dict[int, float] = {}

    def look(value: int) -> float:
        if value not in seen:
            seen[value] = reach(value)
        return seen[value]

    value, step = start, max(1, start // 8)
    while look(value) < wanted and len(seen) < TRIES:  # a bracket: low below `wanted`, high at it or above
        last, value, step = value, value + step, 2 * step
        if look(value) == look(last) and len(seen) > 12:
            return start  # it does not move this axis
    high = value
    while look(value) > wanted and value > 1 and len(seen) < TRIES:
        high, value = value, max(1, min(value - 1, math.floor(value * wanted / look(value))))
    low = value
    while high - low > 1 and len(seen) < TRIES:
        span = look(high) - look(low)
        guess = low + round((high - low) * (wanted - look(low)) / span) if span else (low + high) // 2
        middle = min(max(guess, low + 1), high - 1)
        if len(seen) > TRIES // 3:  # interpolation that crawls gives way to halving
            middle = (low + high) // 2
        low, high = (middle, high) if look(middle) <= wanted else (low, middle)
        if look(low) == wanted:
            break
    return min(seen, key=lambda value: (abs(seen[value] - wanted), value))
