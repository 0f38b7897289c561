"""Mamba-2 (Dao & Gu, 2024): a state-space model with one decay for each head, computed as products of matrices.

    value, b, c = conv(x)         step = softplus(step x + bias)      rate = -exp(log_rate)
    S_l = exp(step_l rate) S_{l-1} + b_l step_l value_l               y_l = c_l S_l + skip value_l
    out(norm(y silu(gate x)))     the norm over each group of heads

Initial values are those of the authors' code, in which one matrix holds the products that are apart here. Optimizers
should not decay `log_rate`. Letters: H heads of size K, G groups that share b and c, S the state of a head's channel.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from llmlab.axes import shard
from llmlab.config import config
from llmlab.cost import Cost, Shape, total
from llmlab.kernels.chunked import linear_attention, linear_flops
from llmlab.kernels.norm import rms_norm
from llmlab.kernels.scan import document_starts
from llmlab.mixers.mamba import StepBias
from llmlab.nn.activation import activate
from llmlab.nn.conv import ShortConv, UniformFanIn
from llmlab.nn.einsum import Einsum, parameter
from llmlab.nn.init import Fill, Init, PerDepth
from llmlab.nn.module import Module
from llmlab.nn.parts import Context, Mixer


@config
class LogUniform(Init):
    """The logarithm of what is uniform between `low` and `high`."""

    low: float = 1.0
    high: float = 16.0

    def __call__(self, key, shape, fan_in, depth):
        return jnp.log(jax.random.uniform(key, shape, jnp.float32, self.low, self.high))


@config
class Mamba2(Mixer):
    """expand: channels, as a multiple of the width. state: numbers that each channel keeps. head_size: channels of a
    head. groups: of heads that share b and c.

    steps: the least and the largest step. chunk: positions that are computed as one; on CPU 64 is faster. eps: of the
    norm.
    """

    expand: int = 2
    state: int = 128
    head_size: int = 64
    groups: int = 1
    conv: ShortConv = ShortConv()
    steps: tuple[float, float] = (0.0, math.inf)
    chunk: int = 256
    eps: float = 1e-5
    bias: Init | None = None
    step: Init = StepBias()
    rate: Init = LogUniform()
    skip: Init = Fill(value=1.0)
    init: Init = UniformFanIn()
    out_init: Init = PerDepth(init=UniformFanIn(scale=2**0.5))  # 1 / sqrt(layers): a layer adds once to the stream

    def check(self):
        for name in ("expand", "state", "head_size", "groups", "chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"Mamba2.{name} is {getattr(self, name)}; it is 1 or more")
        if not 0 <= self.steps[0] <= self.steps[1]:
            raise ValueError(f"Mamba2.steps is {self.steps}; give the least step, 0 or more, and then the largest")

    def build(self, dims, rngs):
        channels = self.expand * dims["D"]
        heads = channels // self.head_size
        if channels % self.head_size or heads % self.groups:
            raise ValueError(
                f"Mamba2: {channels} channels (expand x width) in heads of {self.head_size} and {self.groups} groups "
                "do not divide; choose another head_size or groups"
            )
        sizes = {"H": heads, "K": self.head_size, "G": self.groups, "S": self.state}
        return Mamba2Layer(self, {**dims, **sizes}, rngs)


class Mamba2Layer(Module):
    letters = {"value": "BJHK", "b": "BJGS", "c": "BJGS", "state": "BHSK"}

    def __init__(self, cfg: Mamba2, dims, rngs):
        self.cfg = cfg
        self.dims = {letter: dims[letter] for letter in "GHKS"}
        self.gate = Einsum("BLD,DHK->BLHK", dims, rngs, cfg.init, cfg.bias)
        self.value = Einsum("BLD,DHK->BLHK", dims, rngs, cfg.init, cfg.bias)
        self.b = Einsum("BLD,DGS->BLGS", dims, rngs, cfg.init, cfg.bias)
        self.c = Einsum("BLD,DGS->BLGS", dims, rngs, cfg.init, cfg.bias)
        self.step = Einsum("BLD,DH->BLH", dims, rngs, cfg.init, cfg.bias)
        self.value_conv = cfg.conv.build(dims, rngs, "HK")
        self.b_conv, self.c_conv = cfg.conv.build(dims, rngs, "GS"), cfg.conv.build(dims, rngs, "GS")
        self.step_bias = parameter(cfg.step, "H", dims, rngs)
        self.log_rate = parameter(cfg.rate, "H", dims, rngs)
        self.skip_scale = parameter(cfg.skip, "H", dims, rngs)
        self.norm_scale = parameter(Fill(value=1.0), "HK", dims, rngs)
        self.out = Einsum("BLHK,HKD->BLD", dims, rngs, cfg.out_init, cfg.bias)

    def __call__(self, x_BLD: jax.Array, ctx: Context):
        convolved = [conv(part(x_BLD), ctx) for part, conv in self.convolved()]
        y_BLHK, _ = self.mix(*convolved, self.steps(x_BLD), document_starts(ctx.segments_BL))
        return self.finish(y_BLHK, x_BLD), {}

    def start(self, batch: int, length: int, ctx: Context):
        """An empty state; its size does not depend on `length`."""
        past = {name: conv.start(batch, ctx) for name, (_, conv) in zip(("value", "b", "c"), self.convolved())}
        shape = (batch, *(self.dims[letter] for letter in "HSK"))
        return past | {"state": jnp.zeros(shape, jnp.float32)}

    def extend(self, x_BLD: jax.Array, state, ctx: Context):
        convolved, new = [], {}
        for name, (part, conv) in zip(("value", "b", "c"), self.convolved()):
            y, new[name] = conv.extend(part(x_BLD), state[name], ctx)
            convolved.append(y)
        step_BLH = jnp.where(ctx.positions_BL[..., None] < 0, 0, self.steps(x_BLD))  # padding: the state stays
        y_BLHK, new["state"] = self.mix(*convolved, step_BLH, None, state["state"])
        return self.finish(y_BLHK, x_BLD), new

    def convolved(self):
        return (self.value, self.value_conv), (self.b, self.b_conv), (self.c, self.c_conv)

    def steps(self, x_BLD):
        step_BLH = shard(self.step(x_BLD), "BLH").astype(jnp.float32) + self.step_bias[...]
        return jnp.clip(jax.nn.softplus(step_BLH), *self.cfg.steps)

    def mix(self, value_BLHK, b_BLGS, c_BLGS, step_BLH, starts_BL, state_BHSK=None):
        value_BLHK, b_BLGS, c_BLGS = (checkpoint_name(a, "projections") for a in (value_BLHK, b_BLGS, c_BLGS))
        decay_BLH = -jnp.exp(self.log_rate[...]) * step_BLH
        written_BLHK = (value_BLHK * step_BLH[..., None]).astype(value_BLHK.dtype)
        y_BLHK, state_BHSK = linear_attention(
            c_BLGS, b_BLGS, written_BLHK, decay_BLH, starts_BL, state_BHSK, self.cfg.chunk
        )
        return y_BLHK + (self.skip_scale[...][:, None] * value_BLHK).astype(y_BLHK.dtype), state_BHSK

    def finish(self, y_BLHK, x_BLD):
        gate_BLHK = checkpoint_name(shard(self.gate(x_BLD), "BLHK"), "projections")
        gated_BLHK = activate("silu", gate_BLHK, y_BLHK)
        groups = gated_BLHK.reshape(*x_BLD.shape[:2], self.cfg.groups, -1)
        normed = rms_norm(groups, jnp.ones(groups.shape[-1]), self.cfg.eps).reshape(gated_BLHK.shape)
        scaled_BLHK = (self.norm_scale[...] * normed).astype(x_BLD.dtype)
        return self.out(checkpoint_name(shard(scaled_BLHK, "BLHK"), "mixed"))

    def cost(self, shape: Shape) -> Cost:
        """Products and convolutions; for each number of the state 5 FLOPs by the recurrence, which is not what runs."""
        heads, keys, values, groups = (self.dims[letter] for letter in "HSKG")
        scan = Cost(
            algorithmic=shape.tokens * heads * values * (5.0 * keys + 2),
            executed=linear_flops(shape, self.dims, self.cfg.chunk),
            bytes=shape.tokens * (2 * heads * values + 2 * groups * keys + heads) * shape.itemsize,
            state=4 * shape.batch * heads * keys * values,
        )
        parts = [part for pair in self.convolved() for part in pair] + [self.gate, self.step, self.out]
        return scan + total(part.cost(shape) for part in parts)
