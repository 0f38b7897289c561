"""Mamba (Gu & Dao, 2023): a state-space model whose step, input and output maps the input chooses.

    u = silu(conv(value x))       step, b, c = selection(u)       rate = -exp(log_rate)
    h_l = exp(step_l rate) h_{l-1} + step_l b_l u_l               y_l = c_l h_l + skip u_l
    out(y silu(gate x))

Initial values are those of the authors' code. Jamba's (Lieber et al., 2024) has Selective(norm=RMSNorm()). Optimizers
should not decay `log_rate`. Left out: complex states, and the fused kernel of the authors.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from llmlab.axes import shard
from llmlab.config import Config, config
from llmlab.cost import Cost, Shape, total
from llmlab.kernels.scan import CHUNK, document_starts, selective_scan
from llmlab.nn.activation import activate
from llmlab.nn.conv import ShortConv, UniformFanIn
from llmlab.nn.einsum import Einsum, parameter
from llmlab.nn.init import Fill, Init, Normal, PerDepth
from llmlab.nn.module import Module
from llmlab.nn.parts import Context, Mixer, Norm


@config
class StepBias(Init):
    """Values whose softplus is log-uniform between `low` and `high`, and at least `floor`."""

    low: float = 1e-3
    high: float = 0.1
    floor: float = 1e-4

    def __call__(self, key, shape, fan_in, depth):
        edges = math.log(self.low), math.log(self.high)
        step = jnp.maximum(jnp.exp(jax.random.uniform(key, shape, jnp.float32, *edges)), self.floor)
        return step + jnp.log(-jnp.expm1(-step))  # the inverse of softplus


@config
class LogRange(Init):
    """log 1, log 2, ... along the last dimension (S4D-Real: Gu et al., 2022)."""

    def __call__(self, key, shape, fan_in, depth):
        return jnp.broadcast_to(jnp.log(jnp.arange(1, shape[-1] + 1, dtype=jnp.float32)), shape)


class Selection(Config):
    """What chooses step, b and c: build(dims, rngs) -> layer(u_BLC) -> (step_BLC, b_BLS, c_BLS)."""


@config
class Selective(Selection):
    """The input does. rank: of the map to the step, None for width / 16, rounded up. norm: of that rank, b and c."""

    rank: int | None = None
    norm: Norm | None = None
    init: Init = UniformFanIn()
    bias: Init = StepBias()

    def check(self):
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"Selective.rank is {self.rank}; it is 1 or more, or None for width / 16")

    def build(self, dims, rngs):
        return SelectiveLayer(self, {**dims, "R": self.rank or -(-dims["D"] // 16)}, rngs)


class SelectiveLayer(Module):
    def __init__(self, cfg: Selective, dims, rngs):
        self.low = Einsum("BLC,CR->BLR", dims, rngs, cfg.init)
        self.b = Einsum("BLC,CS->BLS", dims, rngs, cfg.init)
        self.c = Einsum("BLC,CS->BLS", dims, rngs, cfg.init)
        self.step = Einsum("BLR,RC->BLC", dims, rngs, cfg.init)
        self.bias = parameter(cfg.bias, "C", dims, rngs)
        build = lambda letter: cfg.norm and cfg.norm.build(dims, rngs, letter)
        self.low_norm, self.b_norm, self.c_norm = build("R"), build("S"), build("S")

    def __call__(self, u_BLC: jax.Array):
        low_BLR, b_BLS, c_BLS = self.low(u_BLC), self.b(u_BLC), self.c(u_BLC)
        if self.low_norm is not None:
            low_BLR, b_BLS, c_BLS = self.low_norm(low_BLR), self.b_norm(b_BLS), self.c_norm(c_BLS)
        return _positive(shard(self.step(low_BLR), "BLC"), self.bias[...]), b_BLS, c_BLS

    def cost(self, shape: Shape) -> Cost:
        return total(part.cost(shape) for part in (self.low, self.b, self.c, self.step))


@partial(jax.checkpoint, prevent_cse=False)  # saves its input alone
def _positive(step_BLC, bias_C):
    return jax.nn.softplus(step_BLC.astype(jnp.float32) + bias_C)


@config
class Fixed(Selection):
    """Parameters that the input does not change: a linear time-invariant system, to see what selection is worth."""

    bias: Init = StepBias()
    b: Init = Fill(value=1.0)
    c: Init = Normal(std=1.0)

    def build(self, dims, rngs):
        return FixedLayer(self, dims, rngs)


class FixedLayer(Module):
    def __init__(self, cfg: Fixed, dims, rngs):
        self.bias = parameter(cfg.bias, "C", dims, rngs)
        self.b, self.c = parameter(cfg.b, "S", dims, rngs), parameter(cfg.c, "S", dims, rngs)

    def __call__(self, u_BLC: jax.Array):
        widen = lambda a: jnp.broadcast_to(a, (*u_BLC.shape[:2], a.shape[0]))
        return widen(jax.nn.softplus(self.bias[...])), widen(self.b[...]), widen(self.c[...])

    def cost(self, shape: Shape) -> Cost:
        return Cost()


@config
class Mamba(Mixer):
    """expand: channels, as a multiple of the width. state: numbers that each channel keeps.

    bias: of value, gate and out, None for none. skip: what of a channel's input goes past the state.
    chunk: positions whose states the backward pass holds at once.
    """

    expand: int = 2
    state: int = 16
    conv: ShortConv = ShortConv()
    selection: Selection = Selective()
    chunk: int = CHUNK
    bias: Init | None = None
    rate: Init = LogRange()
    skip: Init = Fill(value=1.0)
    init: Init = UniformFanIn()
    out_init: Init = PerDepth(init=UniformFanIn(scale=2**0.5))  # 1 / sqrt(layers): a layer adds once to the stream

    def check(self):
        for name in ("expand", "state", "chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"Mamba.{name} is {getattr(self, name)}; it is 1 or more")

    def build(self, dims, rngs):
        return MambaLayer(self, {**dims, "C": self.expand * dims["D"], "S": self.state}, rngs)


class MambaLayer(Module):
    letters = {"conv": "BJC", "state": "BSC"}

    def __init__(self, cfg: Mamba, dims, rngs):
        self.cfg = cfg
        self.value = Einsum("BLD,DC->BLC", dims, rngs, cfg.init, cfg.bias)
        self.gate = Einsum("BLD,DC->BLC", dims, rngs, cfg.init, cfg.bias)
        self.conv = cfg.conv.build(dims, rngs)
        self.selection = cfg.selection.build(dims, rngs)
        self.log_rate = parameter(cfg.rate, "CS", dims, rngs)
        self.skip_scale = parameter(cfg.skip, "C", dims, rngs)
        self.out = Einsum("BLC,CD->BLD", dims, rngs, cfg.out_init, cfg.bias)

    def __call__(self, x_BLD: jax.Array, ctx: Context):
        value_BLC, gate_BLC = self.project(x_BLD)
        u_BLC = self.conv(value_BLC, ctx)
        y_BLC, _ = self.mix(u_BLC, *self.selection(u_BLC), document_starts(ctx.segments_BL))
        return self.finish(y_BLC, gate_BLC), {}

    def start(self, batch: int, length: int, ctx: Context):
        """An empty state; its size does not depend on `length`."""
        state_BSC = jnp.zeros((batch, *self.log_rate.shape[::-1]), jnp.float32)
        return {"conv": self.conv.start(batch, ctx), "state": state_BSC}

    def extend(self, x_BLD: jax.Array, state, ctx: Context):
        value_BLC, gate_BLC = self.project(x_BLD)
        u_BLC, past_BJC = self.conv.extend(value_BLC, state["conv"], ctx)
        step_BLC, b_BLS, c_BLS = self.selection(u_BLC)
        step_BLC = jnp.where(ctx.positions_BL[..., None] < 0, 0, step_BLC)  # no step at padding: the state stays
        y_BLC, state_BSC = self.mix(u_BLC, step_BLC, b_BLS, c_BLS, state_BSC=state["state"])
        return self.finish(y_BLC, gate_BLC), {"conv": past_BJC, "state": state_BSC}

    def project(self, x_BLD):
        value_BLC, gate_BLC = shard(self.value(x_BLD), "BLC"), shard(self.gate(x_BLD), "BLC")
        return checkpoint_name(value_BLC, "projections"), checkpoint_name(gate_BLC, "projections")

    def mix(self, u_BLC, step_BLC, b_BLS, c_BLS, starts_BL=None, state_BSC=None):
        rate_CS = -jnp.exp(self.log_rate[...])
        y_BLC, state_BSC = selective_scan(u_BLC, step_BLC, rate_CS, b_BLS, c_BLS, starts_BL, state_BSC, self.cfg.chunk)
        return y_BLC + (self.skip_scale[...] * u_BLC).astype(y_BLC.dtype), state_BSC

    def finish(self, y_BLC, gate_BLC):
        return self.out(checkpoint_name(shard(activate("silu", gate_BLC, y_BLC), "BLC"), "mixed"))

    def cost(self, shape: Shape) -> Cost:
        """Products and convolution; 2 FLOPs for each channel's skip, 9 for each number of its state, in float32."""
        channels, size = self.log_rate.shape
        scan = Cost(
            algorithmic=shape.tokens * channels * (9.0 * size + 2),
            bytes=shape.tokens * (3 * channels + 2 * size) * shape.itemsize,
            state=4 * shape.batch * channels * size,
        )
        parts = (self.value, self.gate, self.conv, self.selection, self.out)
        return scan + total(part.cost(shape) for part in parts)
