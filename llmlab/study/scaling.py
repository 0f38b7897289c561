"""How a loss goes with scale: the parametric law, iso-FLOP curves, and where an arm's advantage goes.

Hoffmann et al., "Training Compute-Optimal Large Language Models" (2022): L(N, D) = E + A / N^alpha + B / D^beta for N
parameters and D training tokens, fitted by the *sum* of the Huber loss (delta 1e-3) of the residuals of log L.
Besiroglu et al., "Chinchilla Scaling: A Replication Attempt" (2024) show a known way to get it wrong: a mean in place
of the sum is so small that the optimiser's tolerance ends it early. Here the objective is divided by delta^2, which
leaves its minimum where it is and its gradients far above the tolerance.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy import optimize, special

from llmlab.study.statistics import Estimate

DELTA = 1e-3  # of Huber's loss, in log L: residuals of more than 0.1 % count linearly
EXPONENTS = np.arange(0.05, 1.3, 0.1)  # starts of alpha and of beta
COLLINEAR = 0.98  # correlation of log N and log D from which on a law cannot part them
STARTS = 12  # of the grid, the best of which are followed to their minimum
CENTRE_N, CENTRE_D = math.log(1e7), math.log(1e9)  # so that A' and alpha are not almost collinear
FLOPS_PER_PARAMETER = 6.0  # of training, for each token: 2 forward and 4 backward


@dataclasses.dataclass(frozen=True)
class Law:
    """L(N, D) = E + A / N^alpha + B / D^beta."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, parameters, tokens):
        """In nats for each token.

        >>> round(float(Law(1.69, 406.4, 410.7, 0.34, 0.28).loss(70e9, 1.4e12)), 2)
        1.94
        """
        return self.E + self.A / np.power(parameters, self.alpha) + self.B / np.power(tokens, self.beta)

    def optimum(self, flops: float, each: float = FLOPS_PER_PARAMETER) -> tuple[float, float]:
        """(parameters, tokens) of least loss for so many training FLOPs. each: FLOPs for a parameter and a token."""
        ratio = self.alpha * self.A / (self.beta * self.B)
        parameters = (ratio * (flops / each) ** self.beta) ** (1 / (self.alpha + self.beta))
        return parameters, flops / each / parameters


@dataclasses.dataclass(frozen=True)
class Fit:
    """A law with bootstrap intervals: `low` and `high` hold those of each number by itself. draws: resampled laws."""

    law: Law
    low: Law
    high: Law
    draws: tuple[Law, ...]
    points: int

    def interval(self, of, alpha: float = 0.05) -> tuple[float, float]:
        """Percentile interval of a number of the law, such as `lambda law: law.loss(1e9, 2e10)`."""
        return quantiles([of(law) for law in self.draws], alpha)


def fit(parameters, tokens, losses, resamples: int = 200, alpha: float = 0.05, seed: int = 0) -> Fit:
    """The law of runs with N parameters, D tokens and final loss L, each a sequence with one entry for each run.

    Runs are drawn again with replacement for the intervals. Raises ValueError when the runs cannot tell the law.
    """
    points_3P = np.array([parameters, tokens, losses], np.float64)
    for name, values in zip(("parameters", "tokens"), points_3P):
        if len(np.unique(values)) < 3:
            raise ValueError(
                f"the runs have {len(np.unique(values))} different numbers of {name}; a law needs 3 or more of each: "
                "add rungs to the ladder"
            )
    if points_3P.shape[1] < 6 or points_3P.min() <= 0:
        raise ValueError(f"{points_3P.shape[1]} runs, all numbers above 0: a law of 5 parameters needs 6 or more")
    together = np.corrcoef(np.log(points_3P[:2]))[0, 1]
    if abs(together) > COLLINEAR:
        raise ValueError(
            f"parameters and tokens of the runs go together (correlation {together:.3f}), so that alpha cannot be told "
            "from beta: train some sizes on more or fewer tokens"
        )
    best = min((_descend(start, points_3P) for start in _starts(points_3P)), key=lambda found: found.fun)
    random = np.random.default_rng(seed)
    draws = []
    for _ in range(resamples):
        drawn_3P = points_3P[:, random.integers(points_3P.shape[1], size=points_3P.shape[1])]
        if min(len(np.unique(drawn_3P[0])), len(np.unique(drawn_3P[1]))) >= 3:
            draws.append(_law(_descend(best.x, drawn_3P).x))
    sides = [quantiles([getattr(law, f.name) for law in draws], alpha) for f in dataclasses.fields(Law)]
    low, high = (Law(*side) for side in zip(*sides))
    return Fit(_law(best.x), low, high, tuple(draws), points_3P.shape[1])


def _descend(start, points_3P):
    return optimize.minimize(_objective, start, (points_3P,), "BFGS", jac=True, options={"gtol": 1e-6, "maxiter": 300})


def _objective(x, points_3P):
    """(sum of Huber's loss over delta^2, its gradient) at x = (log E, log A', log B', alpha, beta); see `_law`."""
    u_P, v_P = _centred(points_3P)
    terms_3P = np.stack([np.full_like(u_P, x[0]), x[1] - x[3] * u_P, x[2] - x[4] * v_P])
    log_P = special.logsumexp(terms_3P, axis=0)
    residual_P = (log_P - np.log(points_3P[2])) / DELTA
    share_3P = np.exp(terms_3P - log_P) * np.clip(residual_P, -1, 1) / DELTA
    gradient = [*share_3P.sum(1), -(share_3P[1] * u_P).sum(), -(share_3P[2] * v_P).sum()]
    return special.huber(1.0, residual_P).sum(), np.array(gradient)


def _centred(points_3P):
    return np.log(points_3P[0]) - CENTRE_N, np.log(points_3P[1]) - CENTRE_D


def _law(x) -> Law:
    alpha, beta = float(x[3]), float(x[4])
    return Law(
        float(np.exp(x[0])), float(np.exp(x[1] + alpha * CENTRE_N)), float(np.exp(x[2] + beta * CENTRE_D)), alpha, beta
    )


def _starts(points_3P) -> list[np.ndarray]:
    """The best of a grid of exponents, each with the E, A and B that are best for it in least relative squares."""
    u_P, v_P = _centred(points_3P)
    found = []
    for alpha in EXPONENTS:
        for beta in EXPONENTS:
            columns_P3 = np.stack([np.ones_like(u_P), np.exp(-alpha * u_P), np.exp(-beta * v_P)], 1)
            weights, error = optimize.nnls(columns_P3 / points_3P[2][:, None], np.ones_like(u_P))
            found.append((error, [*np.log(np.maximum(weights, 1e-6)), alpha, beta]))
    return [np.array(start) for _, start in sorted(found)[:STARTS]]


def quantiles(values: Sequence[float], alpha: float = 0.05) -> tuple[float, float]:
    low, high = np.quantile(values, (alpha / 2, 1 - alpha / 2))
    return float(low), float(high)


@dataclasses.dataclass(frozen=True)
class IsoFlop:
    """Compute-optimal sizes: for each budget, the parabola of loss over log N has its minimum at `parameters`.

    They grow as FLOPs^exponent, with a bootstrap interval over runs. budgets: training FLOPs.
    """

    budgets: tuple[float, ...]
    parameters: tuple[float, ...]
    losses: tuple[float, ...]
    exponent: float
    interval: tuple[float, float]


def iso_flop(budgets, parameters, losses, resamples: int = 500, alpha: float = 0.05, seed: int = 0) -> IsoFlop:
    """From runs of equal budgets (one number for all runs of a budget), three or more sizes in each."""
    budgets, log_n, losses = np.asarray(budgets, np.float64), np.log(parameters), np.asarray(losses, np.float64)
    groups = [np.flatnonzero(budgets == budget) for budget in np.unique(budgets)]
    vertices = []
    for group in groups:
        vertex = _vertex(log_n[group], losses[group])
        if vertex is None:
            raise ValueError(
                f"the runs of {budgets[group[0]]:.3g} FLOPs have no minimum of loss over three or more sizes: "
                "add smaller or larger models"
            )
        vertices.append(vertex)
    logs = np.log(np.unique(budgets))
    if len(logs) < 2:
        raise ValueError("one budget of FLOPs has no exponent; iso-FLOP curves need two or more")
    random, slopes = np.random.default_rng(seed), []
    for _ in range(resamples):
        drawn = [random.choice(group, len(group)) for group in groups]
        found = [_vertex(log_n[group], losses[group]) for group in drawn]
        if None not in found:
            slopes.append(np.polyfit(logs, [n for n, _ in found], 1)[0])
    sizes, least = zip(*vertices)
    slope = float(np.polyfit(logs, sizes, 1)[0])
    interval = quantiles(slopes, alpha) if slopes else (-math.inf, math.inf)
    return IsoFlop(tuple(np.unique(budgets).tolist()), tuple(np.exp(sizes).tolist()), least, slope, interval)


def _vertex(log_n, losses) -> tuple[float, float] | None:
    """(log N, loss) at the bottom of the parabola through the points; None where it has none."""
    if len(np.unique(log_n)) < 3:
        return None
    centre = log_n.mean()
    a, b, c = np.polyfit(log_n - centre, losses, 2)
    return (float(centre - b / (2 * a)), float(c - b * b / (4 * a))) if a > 0 else None


@dataclasses.dataclass(frozen=True)
class Trend:
    """Where an arm's gain over the base goes. slope: of the gain (positive is better) for each tenfold of scale.

    says: "grows", "shrinks" or "unclear". crossing: the scale at which the fitted gain is 0, within a hundredfold of
    what was run; None otherwise, and where the trend is unclear.
    """

    slope: Estimate
    says: str
    crossing: float | None


def trend(scales, gains, alpha: float = 0.05) -> Trend:
    """A line through paired gains over log10 of scale (training FLOPs, or parameters), one entry for each pair of runs.

    >>> trend([1e15, 1e15, 1e16, 1e16, 1e17, 1e17], [0.031, 0.029, 0.021, 0.020, 0.009, 0.010]).says
    'shrinks'
    """
    x, y = np.log10(scales), np.asarray(gains, np.float64)
    n = len(x)
    if len(np.unique(x)) < 2 or n < 3:
        raise ValueError(f"{n} pairs at {len(np.unique(x))} scales; a trend needs 3 pairs or more, at 2 scales or more")
    spread = ((x - x.mean()) ** 2).sum()
    slope = float(((x - x.mean()) * y).sum() / spread)
    residual = y - y.mean() - slope * (x - x.mean())
    sd = math.sqrt(float((residual**2).sum()) / (n - 2))
    found = Estimate(n, slope, sd, sd / math.sqrt(spread), n - 2)
    low, high = found.interval(alpha)
    if low <= 0 <= high:
        return Trend(found, "unclear", None)
    zero = x.mean() - y.mean() / slope
    near = x.min() - 2 <= zero <= x.max() + 2
    return Trend(found, "grows" if slope > 0 else "shrinks", float(10**zero) if near else None)
