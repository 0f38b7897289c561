"""Initial values of parameters, as values of the config tree."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from llmlab.config import Config, config


class Init(Config):
    """init(key, shape, fan_in, depth) -> array in float32."""

    def __call__(self, key: jax.Array, shape: tuple[int, ...], fan_in: int, depth: int) -> jax.Array:
        raise TypeError(f"{type(self).__name__} must define __call__")


@config
class Fill(Init):
    value: float = 0.0

    def __call__(self, key, shape, fan_in, depth):
        return jnp.full(shape, self.value, jnp.float32)


@config
class Normal(Init):
    """N(0, std²)."""

    std: float = 0.02

    def __call__(self, key, shape, fan_in, depth):
        return self.std * jax.random.normal(key, shape, jnp.float32)


@config
class FanIn(Init):
    """Normal of variance scale² / fan-in, cut at three deviations; activations keep their size (LeCun et al., 1998)."""

    scale: float = 1.0

    def __call__(self, key, shape, fan_in, depth):
        std = self.scale / math.sqrt(fan_in)
        return std * jax.random.truncated_normal(key, -3, 3, shape, jnp.float32)


@config
class PerDepth(Init):
    """Another initialisation divided by sqrt(2 x layers), for what writes into the residual stream (GPT-2)."""

    init: Init = Normal()

    def __call__(self, key, shape, fan_in, depth):
        return self.init(key, shape, fan_in, depth) / math.sqrt(2 * depth)


@config
class Scaled(Init):
    """Another initialisation times a factor."""

    init: Init
    factor: float

    def __call__(self, key, shape, fan_in, depth):
        return self.factor * self.init(key, shape, fan_in, depth)
