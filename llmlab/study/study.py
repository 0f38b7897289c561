"""A study as a value: a question, a base, arms that differ from it by named deltas, and how they are compared.

An experiment file defines `study() -> Study`, or a tuple of them (a ladder over scale). Deltas are {dotted path:
value} or functions of an experiment; the helpers of this file make arms of them.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Literal

from llmlab.config import Config, config, digest, flatten, get, put
from llmlab.study.matching import Axis, Knob
from llmlab.train.experiment import Experiment

Delta = Mapping[str, object] | Callable[[Experiment], Experiment]
SEEDS = 2**31 - 1  # jax and numpy take seeds up to here


@config
class Arm(Config):
    """A named variant. free: the knobs that match it to the base, None for those of the study."""

    name: str
    experiment: Experiment
    free: tuple[Knob, ...] | None = None


@config
class Tune(Config):
    """Trials for each arm, before any replicate: `grid` multiplies the arm's own value of `leaf`, each with `seeds`
    seeds that no replicate has, scored on a part of the training split. At an edge the grid is extended by its own
    ratio, at most `extend` times."""

    leaf: str = "optim.peak"
    grid: tuple[float, ...] = (0.5, 1.0, 2.0)
    seeds: int = 1
    extend: int = 2
    share: float = 0.1  # of the training split

    def check(self):
        if len(self.grid) < 2 or sorted(self.grid) != list(self.grid) or self.grid[0] <= 0:
            raise ValueError(f"Tune.grid is {self.grid}; it takes two or more rising multiples above 0")
        if self.seeds < 1 or self.extend < 0 or not 0 < self.share < 1:
            raise ValueError(
                f"Tune: seeds {self.seeds} is 1 or more, extend {self.extend} 0 or more, share {self.share} in (0, 1)"
            )


@config
class Study(Config):
    """base_name: what the base is called. match: the axis on which arms must equal the base, None for none.

    free: knobs that are turned until they do; tolerance: the share by which they may miss it. seeds: replicates of
    each arm; replicate i shares data order, evaluation set and initial seed over all arms. metric: of the final
    evaluation. min_effect: what difference of it matters. noise: the name of an arm that is the base again with its own
    initial and dropout seeds, None for none. together: cells that train as one program at most.
    """

    question: str
    base: Experiment
    arms: tuple[Arm, ...]
    name: str = "study"
    base_name: str = "base"
    match: Axis | None = "flops"
    free: tuple[Knob, ...] = ()
    tolerance: float = 0.005
    seeds: int = 3
    tune: Tune | None = None
    metric: str = "loss"
    better: Literal["lower", "higher"] = "lower"
    min_effect: float = 0.01
    alpha: float = 0.05
    power: float = 0.8
    noise: str | None = "A/A"
    together: int = 8

    def check(self):
        names = [self.base_name, *(arm.name for arm in self.arms), *([self.noise] if self.noise else [])]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"Study {self.name!r}: two arms are called {sorted(twice)[0]!r}; give each its own name")
        for name in ("seeds", "together"):
            if getattr(self, name) < 1:
                raise ValueError(f"Study.{name} is {getattr(self, name)}; it is 1 or more")
        for name in ("alpha", "power", "tolerance"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"Study.{name} is {getattr(self, name)}; it is a share between 0 and 1")
        if self.min_effect <= 0:
            raise ValueError(f"Study.min_effect is {self.min_effect}; it is the least difference that matters, above 0")

    def variants(self) -> dict[str, Experiment]:
        """{name: experiment as asked, before matching}: the base first, its twin last."""
        found = {self.base_name: self.base} | {arm.name: arm.experiment for arm in self.arms}
        return found | ({self.noise: self.base} if self.noise else {})

    def knobs(self, name: str) -> tuple[Knob, ...]:
        """The knobs that match an arm; none for the base and its twin."""
        own = {arm.name: arm.free for arm in self.arms}
        return (self.free if own[name] is None else own[name]) if name in own else ()

    def seeds_of(self, arm: str, replicate: int, phase: str = "replicate") -> dict[str, int]:
        """Seeds of a cell: pure functions of (study, phase, replicate), and for the twin's own ones of its name."""
        own = (arm,) if arm == self.noise else ()
        draw = lambda kind, *more: int(digest(self.name, phase, replicate, kind, *more), 16) % SEEDS
        return {"init": draw("init", *own), "data": draw("data"), "dropout": draw("dropout", *own)}


def change(experiment: Experiment, delta: Delta) -> Experiment:
    """The experiment with a delta applied."""
    if callable(delta):
        return delta(experiment)
    for path, value in delta.items():
        experiment = put(experiment, path, value)
    return experiment


def one_at_a_time(base: Experiment, deltas: Mapping[str, Delta]) -> tuple[Arm, ...]:
    """An arm for each delta: the base with that one."""
    return tuple(Arm(name=name, experiment=change(base, delta)) for name, delta in deltas.items())


def leave_one_out(plain: Experiment, deltas: Mapping[str, Delta]) -> tuple[Experiment, tuple[Arm, ...]]:
    """(base, arms): the base has every delta, each arm all but one."""

    def joined(names) -> Experiment:
        found = plain
        for name in names:
            found = change(found, deltas[name])
        return found

    arms = [Arm(name=f"no {out}", experiment=joined(n for n in deltas if n != out)) for out in deltas]
    return joined(deltas), tuple(arms)


def factorial(base: Experiment, factors: Mapping[str, Mapping[str, Delta]]) -> tuple[Arm, ...]:
    """An arm for each combination of levels, {factor: {level: delta}}; the one that equals the base is left out."""
    arms = []
    for levels in itertools.product(*(levels.items() for levels in factors.values())):
        experiment = base
        for _, delta in levels:
            experiment = change(experiment, delta)
        if experiment != base:
            name = ", ".join(f"{factor} {level}" for factor, (level, _) in zip(factors, levels))
            arms.append(Arm(name=name, experiment=experiment))
    return tuple(arms)


def ladder(study: Study, rungs: Mapping[str, Delta]) -> tuple[Study, ...]:
    """The study at each scale: {rung: delta of every arm}. Each rung is matched and compared by itself."""

    def at(rung: str, delta: Delta) -> Study:
        arms = tuple(dataclasses.replace(arm, experiment=change(arm.experiment, delta)) for arm in study.arms)
        return dataclasses.replace(study, name=f"{study.name}-{rung}", base=change(study.base, delta), arms=arms)

    return tuple(at(rung, delta) for rung, delta in rungs.items())


def override(study: Study, base: Experiment) -> Study:
    """The study with the leaves in which `base` differs from its own, set in every arm that has the old value.

    An arm whose delta is in that leaf keeps its own.
    """
    old, new = flatten(study.base), flatten(base)
    changed = {path: value for path, value in new.items() if old.get(path, ...) != value}

    def moved(experiment: Experiment) -> Experiment:
        here = flatten(experiment)
        for path in changed:
            if here.get(path, ...) == old.get(path):
                experiment = put(experiment, path, get(base, path))
        return experiment

    arms = tuple(dataclasses.replace(arm, experiment=moved(arm.experiment)) for arm in study.arms)
    return dataclasses.replace(study, base=base, arms=arms)
