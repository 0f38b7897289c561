"""A difference in units that people act on: steps of the base, and the factor of compute that an arm is worth."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from llmlab.study.statistics import estimate
from llmlab.study.verdict import Judgement, Question

AXES = ("step", "tokens", "flops", "seconds")
END = 0.25  # share of a curve whose slope is the slope at its end
Curve = Sequence[Mapping[str, float]]  # evaluations of one run, in their order: AXES and metrics


@dataclasses.dataclass(frozen=True)
class Steps:
    """How many steps of the base, at the slope of its end, make the difference; above 0 where the arm is ahead.

    low, high: of the interval of the difference, at the level that decides; the slope is taken as known.
    """

    steps: float
    low: float
    high: float


def step_equivalent(judged: Judgement, base: Sequence[Curve]) -> Steps | None:
    """None where the base's curves are short of three points, or do not improve at their end."""
    question = judged.question
    slopes = [_slope(curve, question) for curve in base]
    slopes = [slope for slope in slopes if slope is not None]
    if not slopes or np.mean(slopes) <= 0:
        return None
    steps = [question.gain(side) / float(np.mean(slopes)) for side in judged.interval]
    return Steps(question.gain(judged.effect.difference.mean) / float(np.mean(slopes)), min(steps), max(steps))


def _slope(curve: Curve, question: Question) -> float | None:
    """Gain for each step at the end of a curve, by least squares over its last quarter, three points at least."""
    points = [(point["step"], question.gain(point[question.metric])) for point in curve if question.metric in point]
    last = [point for point in points if point[0] >= (1 - END) * points[-1][0]]
    last = points[-3:] if len(last) < 3 else last
    if len(last) < 3 or not np.isfinite(last).all():
        return None
    return float(np.polyfit(*np.transpose(last), 1)[0])


@dataclasses.dataclass(frozen=True)
class Speedup:
    """The factor of `axis` that the base needs for what an arm reaches: 1.3 is 30 % more. Intervals are of its log.

    bound: a side had reached the other's end at its first evaluation, so that the true factor is further from 1.
    """

    axis: str
    factor: float
    low: float
    high: float
    pairs: int
    bound: bool


def speedup(axis: str, pairs: Sequence[tuple[Curve, Curve]], question: Question, alpha: float) -> Speedup | None:
    """From pairs of curves (base, arm) of finished runs; None where a curve has no point before its end.

    The side that is ahead is asked where it had reached what the other ends with. Nothing is extrapolated; as a curve
    before its end still has a high learning rate, the factor is nearer to 1 than that of runs that end there.
    """
    found = [_factor(axis, base, arm, question) for base, arm in pairs]
    if not found or None in found:
        return None
    logs = estimate([math.log(factor) for factor, _ in found])
    low, high = logs.interval(alpha)
    bound = any(at_first for _, at_first in found)
    return Speedup(axis, math.exp(logs.mean), math.exp(low), _exp(high), len(found), bound)


def _factor(axis: str, base: Curve, arm: Curve, question: Question) -> tuple[float, bool] | None:
    sides = []
    for curve in (base, arm):
        points = [(p[axis], question.gain(p[question.metric])) for p in curve if question.metric in p and p[axis] > 0]
        if len(points) < 2 or not np.isfinite(points).all():
            return None
        sides.append(np.transpose(points))
    (base_x, base_y), (arm_x, arm_y) = sides
    if arm_y[-1] >= base_y[-1]:
        x, at_first = _reach(arm_x, arm_y, base_y[-1])
        return base_x[-1] / x, at_first
    x, at_first = _reach(base_x, base_y, arm_y[-1])
    return x / arm_x[-1], at_first


def _reach(x, y, level: float) -> tuple[float, bool]:
    """(where the best so far of a curve reaches a level, whether its first point had)."""
    best = np.maximum.accumulate(y)
    after = int(np.argmax(best >= level))
    if after == 0:
        return float(x[0]), True
    share = (level - best[after - 1]) / (best[after] - best[after - 1])
    return float(np.exp(np.log(x[after - 1]) + share * np.log(x[after] / x[after - 1]))), False


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
