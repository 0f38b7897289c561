"""How fast a matrix state forgets: what stands in the `decay` slot of linear attention and of the delta rule.

A decay is given as its logarithm, 0 or less, in float32. Letters: H heads, S channels of a head's key.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from llmlab.axes import shard
from llmlab.config import config
from llmlab.cost import Cost, Shape
from llmlab.mixers.mamba import StepBias
from llmlab.mixers.mamba2 import LogUniform
from llmlab.nn.einsum import ZEROS, Einsum, parameter
from llmlab.nn.init import FanIn, Init
from llmlab.nn.module import Module
from llmlab.nn.parts import Part


class Decay(Part):
    """build(dims, rngs) -> layer(x_BLD) -> the logarithm of the decay, BLH or BLHS (layer.letters); layer.cost(shape).

    A decay of BLHS is one for each channel of the keys.
    """


@config
class Retention(Decay):
    """1 - 2^(-first - h) for head h, whatever the input (Sun et al., 2023)."""

    first: float = 5.0

    def build(self, dims, rngs):
        return RetentionLayer(self, dims["H"])


class RetentionLayer(Module):
    letters = "BLH"

    def __init__(self, cfg: Retention, heads: int):
        self.first, self.heads = cfg.first, heads

    def __call__(self, x_BLD):
        decay_H = jnp.log1p(-(2.0 ** -(self.first + jnp.arange(self.heads))))
        return jnp.broadcast_to(decay_H, (*x_BLD.shape[:2], self.heads))

    def cost(self, shape: Shape) -> Cost:
        return Cost()


@config
class PerHead(Decay):
    """sigmoid(x w + bias)^(1 / temperature), one for each head."""

    temperature: float = 16.0
    bias: Init = ZEROS
    init: Init = FanIn()

    def build(self, dims, rngs):
        return PerHeadLayer(self, dims, rngs)


class PerHeadLayer(Module):
    letters = "BLH"

    def __init__(self, cfg: PerHead, dims, rngs):
        self.temperature = cfg.temperature
        self.gate = Einsum("BLD,DH->BLH", dims, rngs, cfg.init)
        self.bias = parameter(cfg.bias, "H", dims, rngs)

    def __call__(self, x_BLD):
        gate_BLH = shard(self.gate(x_BLD), "BLH").astype(jnp.float32) + self.bias[...]
        return jax.nn.log_sigmoid(gate_BLH) / self.temperature

    def cost(self, shape: Shape) -> Cost:
        return self.gate.cost(shape)


@config
class PerChannel(Decay):
    """sigmoid(x w1 w2 + bias)^(1 / temperature), one for each channel of a key (gated linear attention)."""

    rank: int = 16
    temperature: float = 16.0
    bias: Init = ZEROS
    init: Init = FanIn()

    def check(self):
        if self.rank < 1:
            raise ValueError(f"PerChannel.rank is {self.rank}; it is 1 or more")

    def build(self, dims, rngs):
        return PerChannelLayer(self, {**dims, "R": self.rank}, rngs)


class PerChannelLayer(Module):
    letters = "BLHS"

    def __init__(self, cfg: PerChannel, dims, rngs):
        self.temperature = cfg.temperature
        self.low = Einsum("BLD,DR->BLR", dims, rngs, cfg.init)
        self.gate = Einsum("BLR,RHS->BLHS", dims, rngs, cfg.init)
        self.bias = parameter(cfg.bias, "HS", dims, rngs)

    def __call__(self, x_BLD):
        gate_BLHS = shard(self.gate(self.low(x_BLD)), "BLHS").astype(jnp.float32) + self.bias[...]
        return jax.nn.log_sigmoid(gate_BLHS) / self.temperature

    def cost(self, shape: Shape) -> Cost:
        return self.low.cost(shape) + self.gate.cost(shape)


@config
class Stepped(Decay):
    """exp(-rate softplus(x w + bias)) with a trained rate, one for each head: Mamba-2's, and Gated DeltaNet's."""

    bias: Init = StepBias()
    rate: Init = LogUniform()
    init: Init = FanIn()

    def build(self, dims, rngs):
        return SteppedLayer(self, dims, rngs)


class SteppedLayer(Module):
    letters = "BLH"

    def __init__(self, cfg: Stepped, dims, rngs):
        self.step = Einsum("BLD,DH->BLH", dims, rngs, cfg.init)
        self.bias = parameter(cfg.bias, "H", dims, rngs)
        self.log_rate = parameter(cfg.rate, "H", dims, rngs)

    def __call__(self, x_BLD):
        step_BLH = shard(self.step(x_BLD), "BLH").astype(jnp.float32) + self.bias[...]
        return -jnp.exp(self.log_rate[...]) * jax.nn.softplus(step_BLH)

    def cost(self, shape: Shape) -> Cost:
        return self.step.cost(shape)
