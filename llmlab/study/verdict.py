"""From the values of runs to verdicts: better, worse, equivalent, or undecided with the runs that it needs.

Replicate i of an arm and replicate i of the base share their data order, so that arms are compared by paired
differences, arm - base. The verdict is decided by the paired t-interval after Holm over arms; the sign-flip p-value
stands beside it. A run that diverged has no value and is never dropped: see `compare`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from llmlab.study import statistics
from llmlab.study.power import runs_needed, runs_needed_to_equate
from llmlab.study.statistics import Estimate, estimate

DIVERGED = math.nan  # the value of a run that diverged
Values = Mapping[int, float]  # {replicate: value}
Verdict = Literal["better", "worse", "equivalent", "undecided"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of a metric. min_effect: the smallest difference that matters, in its unit.

    power: that the runs of "undecided (needs n = ...)" are planned for.
    """

    metric: str = "loss"
    better: Literal["lower", "higher"] = "lower"
    alpha: float = 0.05
    min_effect: float = 0.01
    power: float = 0.8

    def __post_init__(self):
        if self.better not in ("lower", "higher"):
            raise ValueError(f"Question.better is {self.better!r}; it is 'lower' or 'higher'")
        for name in ("alpha", "power"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"Question.{name} is {getattr(self, name)}; it lies between 0 and 1")
        if not self.min_effect > 0:
            raise ValueError(f"Question.min_effect is {self.min_effect}; it is the least difference that matters, > 0")

    def gain(self, difference: float) -> float:
        """The difference with the sign of an improvement."""
        return -difference if self.better == "lower" else difference


@dataclasses.dataclass(frozen=True, kw_only=True)
class Effect:
    """An arm against the base, before other arms are looked at. Differences are arm - base.

    base, own: their finished runs. difference: pairs of which both finished. unpaired: Welch's, of all finished runs.
    correlation: of the pairs. sign_flip: exact p of the differences, None above 40 pairs. p: that decides, of `test`.
    sign: of the effect that `test` saw, +1 for an improvement. base_diverged, diverged: runs, of `pairs` pairs.
    one_sided: pairs of which one run diverged.
    """

    arm: str
    base: Estimate
    own: Estimate
    difference: Estimate
    unpaired: Estimate
    correlation: float
    sign_flip: float | None
    test: Literal["paired t", "signed ranks"]
    p: float
    sign: int
    pairs: int
    base_diverged: int
    diverged: int
    one_sided: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judgement:
    """An effect with its verdict. level: the alpha of its interval after Holm. adjusted: p after Holm.

    equivalence: p of the two one-sided tests after Holm.
    """

    effect: Effect
    question: Question
    verdict: Verdict
    level: float
    adjusted: float
    equivalence: float

    @property
    def interval(self) -> tuple[float, float]:
        """Of the difference, at the level that decides."""
        return self.effect.difference.interval(self.level)

    @property
    def small(self) -> bool:
        """Whether a difference that is there is surely smaller than min_effect."""
        return self.verdict in ("better", "worse") and self.equivalence <= self.question.alpha

    @property
    def needs(self) -> int | None:
        """Runs of an arm after which an undecided arm would be decided, planned with the deviation that was seen.

        Enough to call a true effect of min_effect, and to call none equivalent. None where the runs tell no deviation,
        or some diverged.
        """
        sd, question = self.effect.difference.sd, self.question
        if self.verdict != "undecided" or self.effect.one_sided or not sd > 0:
            return None
        runs = runs_needed(question.min_effect, sd, self.level, question.power)
        pairs = runs_needed_to_equate(question.min_effect, sd, self.level, question.power)
        return None if runs is None or pairs is None else max(runs, pairs)

    @property
    def reason(self) -> str:
        """Why, in one clause."""
        effect, question = self.effect, self.question
        lost = f"{effect.one_sided} of {effect.pairs} pairs have one diverged run"
        if self.verdict == "equivalent":
            return f"the difference surely lies within ±{question.min_effect:g}"
        if self.verdict != "undecided":
            paired = "the interval of the paired difference leaves out 0"
            return paired if effect.test == "paired t" else f"decided by signed ranks, as {lost}"
        if effect.one_sided:
            return f"{lost}, and signed ranks do not decide"
        if effect.difference.n < 2:
            return "a single pair of runs says nothing of noise" if effect.difference.n else "no pair has finished"
        if effect.difference.sd == 0:
            return "all pairs differ by the same number, which says nothing of noise"
        return (
            f"by then a true difference of {question.min_effect:g} is called, and none is called equivalent, "
            f"each with power {question.power:g}"
        )

    def __str__(self) -> str:
        if self.verdict == "undecided":
            return f"undecided (needs n = {self.needs})" if self.needs else "undecided"
        return self.verdict + (" (by less than matters)" if self.small else "")


def compare(arm: str, base: Values, own: Values, question: Question) -> Effect:
    """An arm against the base, over the replicates that both have.

    Diverged runs are DIVERGED. Means and the t-interval are of runs that finished, as a diverged one has no number.
    Once a pair has one diverged run, they do not decide any more: the exact sign-flip test of signed ranks does, in
    which that pair ranks first, against the side that diverged. Two diverged runs of a pair differ by 0.
    """
    common = sorted(base.keys() & own.keys())
    pairs = np.array([(base[i], own[i]) for i in common], np.float64).reshape(-1, 2)
    lost = ~np.isfinite(pairs)
    both = pairs[~lost.any(1)]
    difference = estimate(both[:, 1] - both[:, 0])
    one_sided = int((lost[:, 0] != lost[:, 1]).sum())
    if one_sided:
        bad = math.inf if question.better == "lower" else -math.inf
        filled = np.where(lost, bad, pairs)
        with np.errstate(invalid="ignore"):
            differences = np.nan_to_num(filled[:, 1] - filled[:, 0], nan=0.0, posinf=math.inf, neginf=-math.inf)
        ranks = statistics.signed_ranks(differences)
        p, sign = statistics.sign_flip(ranks), float(ranks.sum())
        p = 1.0 if p is None else p
    else:
        p, sign = difference.p, difference.mean
    return Effect(
        arm=arm,
        base=estimate(finished(base)),
        own=estimate(finished(own)),
        difference=difference,
        unpaired=statistics.welch(finished(base), finished(own)),
        correlation=statistics.correlation(both[:, 0], both[:, 1]),
        sign_flip=statistics.sign_flip(both[:, 1] - both[:, 0]),
        test="signed ranks" if one_sided else "paired t",
        p=p,
        sign=int(np.sign(question.gain(sign))) if math.isfinite(sign) else 0,
        pairs=len(pairs),
        base_diverged=int(lost[:, 0].sum()),
        diverged=int(lost[:, 1].sum()),
        one_sided=one_sided,
    )


def finished(values: Values) -> list[float]:
    return [value for value in values.values() if math.isfinite(value)]


def judge(effects: Sequence[Effect], question: Question) -> list[Judgement]:
    """Verdicts on the arms of one study, in their order.

    Under the null the rate of "better" or "worse" is alpha for one arm, and at most alpha for any of several.

    >>> losses = [1.50, 1.52, 1.49, 1.51, 1.50, 1.53]
    >>> base, arm = dict(enumerate(losses)), dict(enumerate(x - 0.02 + 0.002 * (-1) ** i for i, x in enumerate(losses)))
    >>> question = Question(min_effect=0.01)
    >>> [found] = judge([compare("relu2", base, arm, question)], question)
    >>> str(found)
    'better'
    """
    p = [effect.p for effect in effects]
    adjusted, levels = statistics.holm(p), statistics.holm_levels(p, question.alpha)
    tost = [1.0 if effect.one_sided else effect.difference.tost(question.min_effect) for effect in effects]
    equal = statistics.holm(tost)
    return [_judge(*each, question) for each in zip(effects, adjusted, levels, equal)]


def _judge(effect: Effect, adjusted: float, level: float, equal: float, question: Question) -> Judgement:
    verdict = "undecided"
    if adjusted <= question.alpha and effect.sign:
        verdict = "better" if effect.sign > 0 else "worse"
    elif equal <= question.alpha:
        verdict = "equivalent"
    return Judgement(
        effect=effect, question=question, verdict=verdict, level=level, adjusted=adjusted, equivalence=equal
    )
