"""The frequencies of rotary positions, and how they are stretched so that a model reads more than it was trained on.

A scaling turns (width, theta, length) into radians a position and a factor on the turned part. Two of them depend on
`length`, the longest position of a row so far plus one, so each call turns all its positions alike; keys that stand in
a cache keep the turn of the call that wrote them. Decoding past `original` then differs from one long call, as it does
in the published code. Letters of this file: J, half of the width that is turned.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from llmlab.config import Config, config


def frequencies(width: int, theta: float) -> np.ndarray:
    """theta ** (-2 j / width), in radians a position."""
    return theta ** (-np.arange(0, width, 2) / width)


class Scaling(Config):
    """waves(width, theta, length_B) -> (frequencies of shape J or BJ, the factor on cosines and sines).

    border: the longest row whose waves are those of a short one; behind it a decode state is made anew. None: no such.
    """

    border = None

    def waves(self, width: int, theta: float, length_B: jax.Array) -> tuple[np.ndarray | jax.Array, float]:
        raise TypeError(f"{type(self).__name__} must define waves(width, theta, length_B)")


@config
class Linear(Scaling):
    """Positions divided by `factor` (Chen et al., 2023, arXiv 2306.15595)."""

    factor: float

    def check(self):
        check_factor(self)

    def waves(self, width, theta, length_B):
        return frequencies(width, theta) / self.factor, 1.0


@config
class Dynamic(Scaling):
    """A base that grows with the row's length once it is beyond `original` (NTK-aware, bloc97 and emozilla, 2023)."""

    factor: float
    original: int = 2048

    def check(self):
        check_factor(self)

    def waves(self, width, theta, length_B):
        length_B1 = jnp.maximum(length_B, self.original)[:, None].astype(jnp.float32)
        stretch_B1 = self.factor * length_B1 / self.original - (self.factor - 1)
        power_J = np.arange(0, width, 2) / max(width - 2, 1)  # of theta * stretch ** (width / (width - 2))
        return frequencies(width, theta) * stretch_B1**-power_J, 1.0


@config
class Yarn(Scaling):
    """Slow waves are interpolated, fast ones left, those between mixed (Peng et al., 2023, arXiv 2309.00071).

    fast, slow: turns within `original` positions above which a wave is left, below which it is interpolated.
    attention: the factor on cosines and sines, None for 0.1 ln(factor) + 1. whole: round the range to whole waves.
    """

    factor: float
    original: int = 4096
    fast: float = 32.0
    slow: float = 1.0
    attention: float | None = None
    whole: bool = True

    def check(self):
        check_factor(self)
        if not self.fast > self.slow > 0:
            raise ValueError(f"Yarn.fast is {self.fast} and slow {self.slow}; fast is more than slow, slow above 0")

    def waves(self, width, theta, length_B):
        plain_J = frequencies(width, theta)
        wave = lambda turns: width * math.log(self.original / (turns * 2 * math.pi)) / (2 * math.log(theta))
        first, last = wave(self.fast), wave(self.slow)
        if self.whole:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, width - 1)
        share_J = np.clip((np.arange(width // 2) - first) / max(last - first, 1e-3), 0, 1)  # that is interpolated
        factor = 0.1 * math.log(self.factor) + 1 if self.attention is None else self.attention
        return plain_J * (1 - share_J + share_J / self.factor), factor


@config
class Llama3(Scaling):
    """Waves longer than original / low are interpolated, shorter than original / high left (Llama 3.1)."""

    factor: float = 8.0
    low: float = 1.0
    high: float = 4.0
    original: int = 8192

    def check(self):
        check_factor(self)
        if not self.high > self.low > 0:
            raise ValueError(f"Llama3.high is {self.high} and low {self.low}; high is more than low, low above 0")

    def waves(self, width, theta, length_B):
        plain_J = frequencies(width, theta)
        turns_J = self.original * plain_J / (2 * math.pi)  # within the original length
        kept_J = np.clip((turns_J - self.low) / (self.high - self.low), 0, 1)
        return plain_J * (kept_J + (1 - kept_J) / self.factor), 1.0


@config
class LongRope(Scaling):
    """Each wave divided by a searched factor of its own (Ding et al., 2024, arXiv 2402.13753; Phi-3).

    short, long: a factor for each wave, for rows of at most `original` positions and for longer ones. factor: longest
    length / original. attention: the factor on cosines and sines, None for sqrt(1 + ln(factor) / ln(original)).
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    factor: float
    original: int = 4096
    attention: float | None = None

    border = property(lambda self: self.original)

    def check(self):
        check_factor(self)

    def waves(self, width, theta, length_B):
        for name in ("short", "long"):
            if len(getattr(self, name)) != width // 2:
                raise ValueError(
                    f"LongRope.{name} has {len(getattr(self, name))} factors, and the turned part of a head has "
                    f"{width // 2} waves; give one for each"
                )
        long_B1 = (length_B > self.original)[:, None]
        plain_J = frequencies(width, theta)
        factor = math.sqrt(1 + math.log(self.factor) / math.log(self.original))
        waves_BJ = jnp.where(long_B1, plain_J / np.array(self.long), plain_J / np.array(self.short))
        return waves_BJ, factor if self.attention is None else self.attention


def check_factor(scaling: Scaling) -> None:
    """Raises ValueError unless a scaling stretches, from an original length that it can read."""
    name = type(scaling).__name__
    if scaling.factor < 1:
        raise ValueError(f"{name}.factor is {scaling.factor}; it stretches positions, so it is 1 or more")
    if getattr(scaling, "original", 2) < 2:
        raise ValueError(f"{name}.original is {scaling.original}; it is the length of training, 2 or more")
