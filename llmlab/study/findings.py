"""What the rows of a study say, all of it: the one place from which reports take their numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llmlab.study import statistics
from llmlab.study.equivalents import AXES, Speedup, Steps, speedup, step_equivalent
from llmlab.study.likeness import check_rows
from llmlab.study.record import OUTCOMES, Row, read_rows, read_study
from llmlab.study.verdict import DIVERGED, Effect, Judgement, Question, Values, compare, judge

# Metrics of tasks and which way is better. Those not listed are compared without a direction.
BETTER = {"loss": "lower", "bits_per_byte": "lower", "accuracy": "higher", "sequence_accuracy": "higher"}
ENDED = (*OUTCOMES, "crashed", "out_of_memory")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Other:
    """A metric beside the primary one. q: after Benjamini-Hochberg over arms and metrics."""

    metric: str
    effect: Effect
    q: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuning:
    """An arm's trials. leaf: what was tuned. points: (value, mean of the metric, diverged runs), rising.

    chosen: the value of its replicates, None before there are any.
    """

    leaf: str
    points: tuple[tuple[float, float, int], ...]
    chosen: float | None

    @property
    def at_edge(self) -> bool:
        return self.chosen is not None and self.chosen in (self.points[0][0], self.points[-1][0])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
    """One arm's runs and verdict; the base has no judgement. states: {state: replicates}, over those that are wanted.

    axes: means over its runs. speedups: by axis. nested: see `nested`.
    """

    name: str
    rows: tuple[Row, ...]
    values: Values
    judged: Judgement | None
    others: tuple[Other, ...]
    steps: Steps | None
    speedups: dict[str, Speedup]
    tuning: Tuning | None
    axes: dict[str, float | None]
    states: dict[str, int]
    nested: tuple[float, float] | None

    @property
    def estimate(self) -> statistics.Estimate:
        return statistics.estimate([value for value in self.values.values() if math.isfinite(value)])

    @property
    def diverged(self) -> tuple[int, int]:
        """(k, n) of the runs that came to an end."""
        return sum(not math.isfinite(value) for value in self.values.values()), len(self.values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Findings:
    """A study with all that its rows say. arms: in the study's order, the base first, the A/A arm last.

    set_aside: rows of other code than study.json names. time_is_ranked: whether all ran on one kind of device.
    """

    study: dict
    question: Question
    arms: tuple[Arm, ...]
    set_aside: int
    time_is_ranked: bool

    @property
    def base(self) -> Arm:
        return next(arm for arm in self.arms if arm.name == self.study["base"])

    @property
    def noise(self) -> Arm | None:
        return next((arm for arm in self.arms if arm.name == self.study["noise"]), None)

    @property
    def compared(self) -> tuple[Arm, ...]:
        """The arms that are judged together: neither the base nor its twin."""
        return tuple(arm for arm in self.arms if arm.name not in (self.study["base"], self.study["noise"]))

    @property
    def complete(self) -> bool:
        """Whether every replicate has come to an end; before, no verdict is read."""
        return all(arm.states.keys() <= set(ENDED) for arm in self.arms)

    def verdict(self, arm: Arm) -> str:
        """In words; "" for the base, and no verdict before all runs have ended."""
        if arm.judged is None:
            return ""
        return str(arm.judged) if self.complete else "unfinished"


def read_findings(directory: str | Path) -> Findings:
    """Of a study's directory."""
    study, rows = read_study(directory), read_rows(directory)
    own = [row for row in rows if row.code == study["code"]]
    return dataclasses.replace(find(study, own), set_aside=len(rows) - len(own))


def find(study: dict, rows: Sequence[Row]) -> Findings:
    """What rows say. Raises Unlike where they may not be ranked against each other.

    study: as `llmlab.study.record.read_study` gives it.
    """
    check_rows(rows)
    question = Question(
        metric=study["metric"],
        better=study["better"],
        alpha=study["alpha"],
        min_effect=study["min_effect"],
        power=study["study"]["power"],
    )
    runs = {name: by_replicate(name, rows) for name in study["arms"]}
    values = {name: outcomes(found.values(), question.metric) for name, found in runs.items()}
    base, noise = study["base"], study["noise"]
    named = [name for name in study["arms"] if name not in (base, noise)]
    family = judge([compare(name, values[base], values[name], question) for name in named], question)
    alone = judge([compare(noise, values[base], values[noise], question)], question) if noise else []
    judged = {found.effect.arm: found for found in [*family, *alone]}
    others = other_metrics(study, runs, named)
    same = len({row.hardware for row in rows if row.phase == "replicate" and row.state in OUTCOMES}) <= 1

    def arm(name: str) -> Arm:
        found, own = judged.get(name), runs[name]
        pairs = [
            (runs[base][i].curve, own[i].curve) for i in own if i in runs[base] and both_done(runs[base][i], own[i])
        ]
        level = found.level if found else question.alpha
        axes = [axis for axis in AXES if same or axis != "seconds"]
        speedups = [speedup(axis, pairs, question, level) for axis in axes] if found else []
        curves = [row.curve for row in runs[base].values() if row.state == "done"]
        return Arm(
            name=name,
            rows=tuple(own.values()),
            values=values[name],
            judged=found,
            others=others.get(name, ()),
            steps=step_equivalent(found, curves) if found else None,
            speedups={each.axis: each for each in speedups if each},
            tuning=tuning(name, rows, question),
            axes=mean_axes(study, name, own.values()),
            states=count_states(study["seeds"], own.values()),
            nested=nested(runs[base], own, level) if found else None,
        )

    arms = tuple(arm(name) for name in study["arms"])
    return Findings(study=study, question=question, arms=arms, set_aside=0, time_is_ranked=same)


def by_replicate(name: str, rows: Sequence[Row]) -> dict[int, Row]:
    """An arm's replicates. Raises ValueError where two rows are the same replicate."""
    found: dict[int, Row] = {}
    for row in rows:
        if (row.arm, row.phase) == (name, "replicate"):
            twin = found.setdefault(row.replicate, row)
            if twin is not row:
                raise ValueError(
                    f"replicate {row.replicate} of arm {name!r} has two rows, {twin.key} and {row.key}: the study has "
                    "changed; give the changed one another name, or delete the cells of the old one"
                )
    return found


def outcomes(rows, metric: str) -> dict[int, float]:
    """{replicate: value} of runs that came to something; a run without a finite number has diverged."""
    found = {}
    for row in rows:
        if row.state in OUTCOMES:
            value = row.metrics.get(metric, math.nan) if row.state == "done" else DIVERGED
            found[row.replicate] = value if value is not None and math.isfinite(value) else DIVERGED
    return found


def both_done(first: Row, second: Row) -> bool:
    return first.state == second.state == "done"


def nested(base: dict[int, Row], own: dict[int, Row], alpha: float) -> tuple[float, float] | None:
    """The interval of the difference if other seeds and other evaluation batches had been drawn.

    The nested bootstrap over pairs of runs and the batches of each. None with fewer than two pairs that scored the same
    batches.
    """
    pairs = [(base[i].batches, own[i].batches) for i in own if i in base and both_done(base[i], own[i])]
    groups = [np.subtract(mine, theirs) for theirs, mine in pairs if mine and len(mine) == len(theirs)]
    return statistics.nested_bootstrap(groups, alpha) if len(groups) > 1 else None


def other_metrics(study: dict, runs: dict[str, dict[int, Row]], named: list[str]) -> dict[str, tuple[Other, ...]]:
    """Effects on the metrics that every finished run reports, without the primary one."""
    done = [row for found in runs.values() for row in found.values() if row.state == "done"]
    names = sorted(set.intersection(*(set(row.metrics) for row in done)) - {study["metric"]}) if done else []
    found: list[tuple[str, str, Effect]] = []
    for metric in names:
        question = Question(metric=metric, better=BETTER.get(metric, "lower"), alpha=study["alpha"])
        base = outcomes(runs[study["base"]].values(), metric)
        found += [(a, metric, compare(a, base, outcomes(runs[a].values(), metric), question)) for a in named]
    q = statistics.benjamini_hochberg([effect.p for _, _, effect in found])
    return {
        arm: tuple(Other(metric=m, effect=e, q=each) for (a, m, e), each in zip(found, q) if a == arm) for arm in named
    }


def tuning(name: str, rows: Sequence[Row], question: Question) -> Tuning | None:
    trials = [row for row in rows if (row.arm, row.phase) == (name, "tune") and row.state in OUTCOMES]
    leaves = {leaf for row in trials for leaf in row.trial}
    if len(leaves) != 1:
        return None
    [leaf] = leaves
    points = []
    for value in sorted({row.trial[leaf] for row in trials}):
        here = outcomes_of([row for row in trials if row.trial[leaf] == value], question.metric)
        good = [x for x in here if math.isfinite(x)]
        points.append((value, sum(good) / len(good) if good else math.nan, len(here) - len(good)))
    chosen = [row.trial.get(leaf) for row in rows if (row.arm, row.phase) == (name, "replicate")]
    return Tuning(leaf=leaf, points=tuple(points), chosen=chosen[0] if chosen else None)


def outcomes_of(rows: list[Row], metric: str) -> list[float]:
    return [value for row in rows for value in outcomes([row], metric).values()]


def mean_axes(study: dict, name: str, rows) -> dict[str, float | None]:
    """The axes of an arm as its runs report them, or as matching reached them before there are any."""
    found = dict(study["arms"][name]["axes"])
    done = [row.axes for row in rows if row.state == "done"]
    for axis in {axis for axes in done for axis in axes}:
        values = [axes.get(axis) for axes in done]
        found[axis] = None if None in values else sum(values) / len(values)
    return found


def count_states(wanted: int, rows) -> dict[str, int]:
    states = [row.state for row in rows]
    states += ["pending"] * max(0, wanted - len(states))
    return {state: states.count(state) for state in dict.fromkeys(states)}
