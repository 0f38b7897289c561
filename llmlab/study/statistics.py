"""What runs say: intervals, tests, corrections, power. The unit is the training run, never the document.

Nothing here knows of studies or files; `llmlab.study.verdict` puts these together. Effects and standard deviations are
in the unit of the metric (nats for a loss). docs/statistics.md says what each number means, and gives the sources.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy import special

MOST_FLIPS = 40  # pairs up to which all sign patterns are counted; two halves of 2^20 sums each


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean with what its t-interval is made of. n: runs, or pairs. sd: of one of them. error: standard error.

    With fewer than two values there is no interval: it reaches from minus to plus infinity, and p is 1.
    """

    n: int
    mean: float
    sd: float
    error: float
    df: float

    def interval(self, alpha: float = 0.05) -> tuple[float, float]:
        """(low, high), which covers the true mean in 1 - alpha of all studies."""
        if not self.df > 0:
            return -math.inf, math.inf
        half = float(special.stdtrit(self.df, 1 - alpha / 2)) * self.error
        return self.mean - half, self.mean + half

    @property
    def p(self) -> float:
        """Two-sided, of the hypothesis that the true mean is 0."""
        return self._tail(abs(self.mean), 2)

    def tost(self, margin: float) -> float:
        """p of two one-sided tests (Schuirmann, 1987): small when the true mean surely lies within +-margin."""
        return self._tail(margin - abs(self.mean), 1)

    def _tail(self, distance: float, sides: int) -> float:
        if not self.df > 0:
            return 1.0
        if self.error == 0:
            return 0.0 if distance > 0 else 1.0
        return min(1.0, sides * float(special.stdtr(self.df, -distance / self.error)))


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, standard deviation (n - 1 in its divisor) and Student's t-interval of independent runs.

    >>> low, high = estimate([1.0, 2.0, 3.0]).interval(0.05)
    >>> round(low, 3), round(high, 3)
    (-0.484, 4.484)
    """
    values = np.asarray(values, np.float64)
    n = len(values)
    mean = float(values.mean()) if n else math.nan
    sd = float(values.std(ddof=1)) if n > 1 else math.nan
    return Estimate(n, mean, sd, sd / math.sqrt(n) if n > 1 else math.nan, n - 1)


def welch(base: Sequence[float], arm: Sequence[float]) -> Estimate:
    """Difference of means, arm - base, of two samples that are not paired (Welch, 1947). n: the smaller sample.

    >>> found = welch([1.0, 2.0, 3.0], [2.0, 4.0, 6.0])
    >>> found.mean, round(found.df, 2), round(found.p, 3)
    (2.0, 2.94, 0.221)
    """
    first, second = estimate(base), estimate(arm)
    mean, n = second.mean - first.mean, min(first.n, second.n)
    if n < 2:
        return Estimate(n, mean, math.nan, math.nan, 0)
    parts = first.error**2, second.error**2
    error = math.sqrt(sum(parts))
    df = error**4 / sum(part**2 / (e.n - 1) for part, e in zip(parts, (first, second))) if error else n - 1
    return Estimate(n, mean, math.sqrt((first.sd**2 + second.sd**2) / 2), error, df)


def correlation(base: Sequence[float], arm: Sequence[float]) -> float:
    """Pearson's, of pairs; nan when a side does not vary or there are fewer than three pairs."""
    if len(base) < 3 or np.ptp(base) == 0 or np.ptp(arm) == 0:
        return math.nan
    return float(np.corrcoef(base, arm)[0, 1])


def sign_flip(differences: Sequence[float]) -> float | None:
    """The exact two-sided p-value of paired differences (Fisher, 1935); None above 40 pairs.

    It is the share of all 2^n patterns of signs whose sum is as far from 0 as that of the data, and cannot go below
    `least_sign_flip(n)`.

    >>> sign_flip([1.0, 2.0, 3.0, 4.0, 5.0])
    0.0625
    """
    values = np.asarray(differences, np.float64)
    if len(values) > MOST_FLIPS:
        return None
    far = abs(values.sum()) - 1e-12 * np.abs(values).sum()
    if far <= 0:
        return 1.0
    first, second = (np.sort(_sums(half)) for half in np.array_split(values, 2))
    above = len(second) - np.searchsorted(second, far - first, "left")
    return min(1.0, 2 * int(above.sum()) / 2.0 ** len(values))  # as many lie below -far


def _sums(values: np.ndarray) -> np.ndarray:
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    return sums


def least_sign_flip(n: int) -> float:
    """The smallest p-value that n pairs can give.

    >>> least_sign_flip(5), least_sign_flip(8)
    (0.0625, 0.0078125)
    """
    return min(1.0, 2.0 ** (1 - n))


def signed_ranks(differences: Sequence[float]) -> np.ndarray:
    """Ranks of the sizes, each with the sign of its difference; equal sizes share their mean rank, and infinite ones
    rank first: the worst rank of Lachin (1999) for runs that have no value.

    >>> signed_ranks([0.5, -0.1, np.inf, 0.0]).tolist()
    [3.0, -2.0, 4.0, 0.0]
    """
    values = np.asarray(differences, np.float64)
    _, inverse, counts = np.unique(np.abs(values), return_inverse=True, return_counts=True)
    return np.sign(values) * (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p-values: calling those at most alpha keeps the rate of any false call at alpha (Holm, 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order, m = np.argsort(p, kind="stable"), len(p)
    adjusted, most = [1.0] * m, 0.0
    for rank, i in enumerate(order):
        most = max(most, min(1.0, (m - rank) * p[i]))
        adjusted[i] = most
    return adjusted


def holm_levels(p: Sequence[float], alpha: float = 0.05) -> list[float]:
    """The alpha at which each interval must leave out 0, so that interval and adjusted p-value always agree.

    >>> holm_levels([0.01, 0.04, 0.03])
    [0.016666666666666666, 0.025, 0.025]
    """
    order, m = np.argsort(p, kind="stable"), len(p)
    levels, stopped = [alpha] * m, None
    for rank, i in enumerate(order):
        level = alpha / (m - rank)
        levels[i] = stopped or level
        if stopped is None and p[i] > level:
            stopped = level
    return levels


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """Adjusted p-values: of those called at alpha, a share of at most alpha is false on average (1995).

    >>> [round(q, 3) for q in benjamini_hochberg([0.01, 0.04, 0.03])]
    [0.03, 0.04, 0.04]
    """
    order, m = np.argsort(p, kind="stable"), len(p)
    adjusted, least = [1.0] * m, 1.0
    for rank in range(m - 1, -1, -1):
        least = min(least, p[order[rank]] * m / (rank + 1))
        adjusted[order[rank]] = float(least)
    return adjusted


def clopper_pearson(k: int, n: int, alpha: float = 0.05) -> tuple[float, float]:
    """The exact interval of a share of which k of n were seen (1934).

    >>> [round(side, 3) for side in clopper_pearson(0, 8)]
    [0.0, 0.369]
    """
    low = float(special.betaincinv(k, n - k + 1, alpha / 2)) if k else 0.0
    high = float(special.betaincinv(k + 1, n - k, 1 - alpha / 2)) if k < n else 1.0
    return low, high


def nested_bootstrap(
    groups: Sequence[Sequence[float]], alpha: float = 0.05, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean over runs of the mean within a run: runs are drawn again, then the items of each.

    groups: R of them, one for each run or pair, such as differences of documents. B: resamples. It is too narrow for
    few runs, as every percentile bootstrap is; the t-interval decides verdicts.
    """
    random = np.random.default_rng(seed)
    groups = [np.asarray(group, np.float64) for group in groups]
    means_RB = np.stack([random.choice(group, (resamples, len(group))).mean(1) for group in groups])
    # a run that is drawn twice takes two of its resampled means
    runs_RB, columns_RB = random.integers([[[len(groups)]], [[resamples]]], size=(2, len(groups), resamples))
    low, high = np.quantile(means_RB[runs_RB, columns_RB].mean(0), (alpha / 2, 1 - alpha / 2))
    return float(low), float(high)
