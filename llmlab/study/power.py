"""Before a study: which effect so many runs can detect, and how many runs an effect needs.

samples = 1 plans paired differences, whose `sd` is that of a difference; samples = 2 plans two samples of n runs each,
whose `sd` is that of a run. The tests are two-sided t-tests, and powers come from the noncentral t distribution; the
normal approximation promises too much for few runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy import special

MOST_RUNS = 100_000
QUANTILES = (np.arange(100) + 0.5) / 100  # at which the distribution of a standard deviation is looked at


def power(effect: float, sd: float, n: int, alpha: float = 0.05, samples: int = 1) -> float:
    """The probability that n runs of an arm call a true effect.

    >>> round(power(effect=0.01, sd=0.01, n=10), 3)
    0.803
    """
    if n < 2:
        return 0.0
    df, shift = samples * (n - 1), abs(effect) / sd * math.sqrt(n / samples)
    most = float(special.stdtrit(df, 1 - alpha / 2))
    return float(1 - special.nctdtr(df, shift, most) + special.nctdtr(df, shift, -most))


def detectable_effect(sd: float, n: int, alpha: float = 0.05, power: float = 0.8, samples: int = 1) -> float:
    """The smallest true effect that n runs of an arm call with that power; infinite for one run.

    >>> round(detectable_effect(sd=0.0055, n=8), 4)
    0.0064
    """
    if n < 2:
        return math.inf
    low, high = 0.0, 1.0
    while _power(high, 1.0, n, alpha, samples) < power:
        low, high = high, 2 * high
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if _power(middle, 1.0, n, alpha, samples) >= power else (middle, high)
    return sd * high


def runs_needed(effect: float, sd: float, alpha: float = 0.05, power: float = 0.8, samples: int = 1) -> int | None:
    """Runs of an arm until a true effect is called with that power; None above 100,000.

    >>> runs_needed(effect=0.005, sd=0.0055), runs_needed(effect=0.005, sd=0.0055, samples=2)
    (12, 21)
    """
    return _least(lambda n: _power(effect, sd, n, alpha, samples) >= power)


def power_of_equivalence(margin: float, sd: float, n: int, alpha: float = 0.05) -> float:
    """The probability that two one-sided tests on n pairs call a true effect of 0 equivalent within +-margin."""
    if n < 2:
        return 0.0
    error_Q = sd * np.sqrt(special.chdtri(n - 1, 1 - QUANTILES) / (n - 1) / n)
    room_Q = (margin - special.stdtrit(n - 1, 1 - alpha) * error_Q) / (sd / math.sqrt(n))
    return float(np.maximum(0, 2 * special.ndtr(room_Q) - 1).mean())


def runs_needed_to_equate(margin: float, sd: float, alpha: float = 0.05, power: float = 0.8) -> int | None:
    """Pairs until two one-sided tests call a true effect of 0 equivalent with that power; None above 100,000.

    >>> runs_needed_to_equate(margin=0.005, sd=0.0055)
    12
    """
    return _least(lambda n: power_of_equivalence(margin, sd, n, alpha) >= power)


_power = power  # the function, where a parameter has its name


def _least(enough: Callable[[int], bool]) -> int | None:
    """The smallest n from 2 on that is enough, for a test that stays true from there on."""
    high = 2
    while not enough(high):
        if high > MOST_RUNS:
            return None
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
