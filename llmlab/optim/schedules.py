"""Learning-rate schedules: what fraction of the peak a step has.

Each is a plain formula of a traced step. Warm-up rises as (step + 1) / (warmup + 1), as nanoGPT's does, so that the
first step already learns and the peak is reached at step `warmup`; a run shorter than its warm-up only warms up. A
decay ends at `steps`, the step after the last.

>>> float(Cosine(warmup=4, floor=0.1).factor(4, steps=20)), round(float(Cosine(warmup=4, floor=0.1).factor(20, 20)), 6)
(1.0, 0.1)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from llmlab.config import Config, config

Step = int | jax.Array


@config
class Schedule(Config):
    """How the learning rate moves over a run."""

    def factor(self, step: Step, steps: int) -> jax.Array:
        """The fraction of the peak learning rate at `step` (0, 1, ...) of a run of `steps`; float32, no unit."""
        raise TypeError(f"{type(self).__name__} must define factor(step, steps)")


@config
class Constant(Schedule):
    """The peak, after a linear warm-up."""

    warmup: int = 0

    def check(self):
        _check(self)

    def factor(self, step: Step, steps: int) -> jax.Array:
        return _warm(step, self.warmup)


@config
class Cosine(Schedule):
    """Half a cosine from the peak to `floor` of it (Loshchilov and Hutter 2017)."""

    warmup: int = 100
    floor: float = 0.1

    def check(self):
        _check(self)

    def factor(self, step: Step, steps: int) -> jax.Array:
        fall = 0.5 * (1 + jnp.cos(jnp.pi * _progress(step, self.warmup, steps)))
        return jnp.where(step < self.warmup, _warm(step, self.warmup), self.floor + (1 - self.floor) * fall)


@config
class Linear(Schedule):
    """A straight line from the peak to `floor` of it."""

    warmup: int = 100
    floor: float = 0.0

    def check(self):
        _check(self)

    def factor(self, step: Step, steps: int) -> jax.Array:
        fall = 1 - _progress(step, self.warmup, steps)
        return jnp.where(step < self.warmup, _warm(step, self.warmup), self.floor + (1 - self.floor) * fall)


@config
class WarmupStableDecay(Schedule):
    """The peak until the last `decay` of the run, then a straight line to `floor` of it (Hu et al. 2024, MiniCPM)."""

    warmup: int = 100
    decay: float = 0.2  # fraction of the run's steps
    floor: float = 0.0

    def check(self):
        _check(self)
        if not 0 < self.decay <= 1:
            raise ValueError(
                f"WarmupStableDecay.decay is {self.decay}; it is the fraction of the run that decays, in (0, 1]"
            )

    def factor(self, step: Step, steps: int) -> jax.Array:
        fall = 1 - _progress(step, (1 - self.decay) * steps, steps)
        return _warm(step, self.warmup) * (self.floor + (1 - self.floor) * fall)


@config
class InverseSquareRoot(Schedule):
    """After the warm-up, one over the square root of the step (Vaswani et al. 2017); needs no end of the run."""

    warmup: int = 1000

    def check(self):
        _check(self)

    def factor(self, step: Step, steps: int) -> jax.Array:
        return jnp.minimum(_warm(step, self.warmup), jnp.sqrt((self.warmup + 1) / (jnp.asarray(step, jnp.float32) + 1)))


def _warm(step: Step, warmup: int) -> jax.Array:
    return jnp.minimum(1.0, (jnp.asarray(step, jnp.float32) + 1) / (warmup + 1))


def _progress(step: Step, start: float, end: int) -> jax.Array:
    """0 at `start`, 1 at `end`, clipped to that."""
    return jnp.clip((jnp.asarray(step, jnp.float32) - start) / max(1, end - start), 0.0, 1.0)


def _check(schedule: Schedule) -> None:
    if schedule.warmup < 0:
        raise ValueError(f"{type(schedule).__name__}.warmup is {schedule.warmup}; it counts steps, 0 or more")
    floor = getattr(schedule, "floor", 0.0)
    if not 0 <= floor <= 1:
        raise ValueError(f"{type(schedule).__name__}.floor is {floor}; it is a fraction of the peak, in [0, 1]")
