"""Linear attention: softmax(q k) replaced by a product of features, so that the past is one matrix for each head.

    S_l = a_l S_{l-1} + f(k_l) v_l        y_l = f(q_l) S_l

Without a decay and divided by the sum of its weights it is that of Katharopoulos et al. (2020); the decay, the norm
and the gate make it retention (Sun et al., 2023) or gated linear attention (Yang et al., 2023). Left out: random
features. Letters: H heads, S the size of a key's features, K the size of a value.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from llmlab.axes import shard
from llmlab.config import Config, config
from llmlab.cost import Cost, Shape, total
from llmlab.kernels.chunked import linear_attention, linear_flops
from llmlab.kernels.scan import document_starts
from llmlab.mixers.decay import Decay, PerChannel, Retention
from llmlab.nn.activation import Activation, activate
from llmlab.nn.einsum import Einsum
from llmlab.nn.init import FanIn, Init
from llmlab.nn.module import Module
from llmlab.nn.norm import RMSNorm
from llmlab.nn.parts import Context, Mixer, Norm, Position
from llmlab.nn.position import Rotary

EPS = 1e-6  # added to the sum of weights


class Feature(Config):
    """What queries and keys become: feature(q, k) -> (q, k)."""


@config
class Elu(Feature):
    """elu(x) + 1 of both, which is positive."""

    def __call__(self, q_BLHS, k_BLHS):
        return jax.nn.elu(q_BLHS) + 1, jax.nn.elu(k_BLHS) + 1


@config
class Scaled(Feature):
    """Queries divided by the root of their size; keys as they are."""

    def __call__(self, q_BLHS, k_BLHS):
        return q_BLHS * q_BLHS.shape[-1] ** -0.5, k_BLHS


@config
class LinearAttention(Mixer):
    """keys, values: the size of all heads together, as a multiple of the width.

    decay: of the state, None for none. norm: of each head's output, None to divide by the sum of weights instead.
    gate: the activation of an output gate, None for none. chunk: positions that are computed as one; with a decay for
    each channel take 16.
    """

    heads: int = 8
    keys: float = 1.0
    values: float = 1.0
    feature: Feature = Elu()
    decay: Decay | None = None
    position: Position | None = None
    norm: Norm | None = None
    gate: Activation | None = None
    chunk: int = 64
    bias: Init | None = None
    gate_bias: Init | None = None
    init: Init = FanIn()
    out_init: Init = FanIn()

    def check(self):
        for name in ("heads", "chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"LinearAttention.{name} is {getattr(self, name)}; it is 1 or more")

    def build(self, dims, rngs):
        sizes = {"S": head_size(self, "keys", dims["D"]), "K": head_size(self, "values", dims["D"]), "H": self.heads}
        return LinearAttentionLayer(self, {**dims, **sizes}, rngs)


def head_size(cfg: Mixer, name: str, width: int) -> int:
    """The size of one of `cfg.heads` heads, whose sizes together are a multiple of the width."""
    size = getattr(cfg, name) * width / cfg.heads
    if size < 1 or size != int(size):
        raise ValueError(
            f"{type(cfg).__name__}.{name} is {getattr(cfg, name)}: {cfg.heads} heads at width {width} would have "
            f"size {size:g}; choose another number of heads, or another multiple"
        )
    return int(size)


def retention(heads: int = 4) -> LinearAttention:
    """Sun et al., 2023: fixed decays, rotary positions, each head normalised, a gate."""
    return LinearAttention(
        heads=heads, values=2.0, feature=Scaled(), decay=Retention(), position=Rotary(), norm=RMSNorm(), gate="silu"
    )


def gated_linear_attention(heads: int = 4) -> LinearAttention:
    """Yang et al., 2023: a decay for each channel that the input chooses, each head normalised, a gate."""
    return LinearAttention(
        heads=heads, keys=0.5, feature=Scaled(), decay=PerChannel(), norm=RMSNorm(), gate="silu", chunk=16
    )


class LinearAttentionLayer(Module):
    letters = {"state": "BHSK"}

    def __init__(self, cfg: LinearAttention, dims, rngs):
        self.cfg = cfg
        self.dims = {letter: dims[letter] for letter in "HKS"} | {"G": dims["H"]}
        self.q = Einsum("BLD,DHS->BLHS", dims, rngs, cfg.init, cfg.bias)
        self.k = Einsum("BLD,DHS->BLHS", dims, rngs, cfg.init, cfg.bias)
        self.v = Einsum("BLD,DHK->BLHK", dims, rngs, cfg.init, cfg.bias)
        self.gate = cfg.gate and Einsum("BLD,DHK->BLHK", dims, rngs, cfg.init, cfg.gate_bias)
        self.decay = cfg.decay and cfg.decay.build(dims, rngs)
        self.position = cfg.position and cfg.position.build(dims, rngs)
        self.norm = cfg.norm and cfg.norm.build(dims, rngs, "K")
        self.out = Einsum("BLHK,HKD->BLD", dims, rngs, cfg.out_init, cfg.bias)

    def __call__(self, x_BLD: jax.Array, ctx: Context):
        y_BLHK, _ = self.mix(*self.project(x_BLD, ctx), document_starts(ctx.segments_BL))
        return self.finish(y_BLHK, x_BLD), {}

    def start(self, batch: int, length: int, ctx: Context):
        """An empty state; its size does not depend on `length`."""
        return {"state": jnp.zeros((batch, self.dims["H"], self.dims["S"], self.columns), jnp.float32)}

    def extend(self, x_BLD: jax.Array, state, ctx: Context):
        q_BLHS, k_BLHS, v_BLHK, decay = self.project(x_BLD, ctx)
        real_BL = ctx.positions_BL >= 0  # padding writes nothing, and nothing decays
        k_BLHS = jnp.where(real_BL[..., None, None], k_BLHS, 0)
        decay = jnp.where(real_BL.reshape(*real_BL.shape, *(1,) * (decay.ndim - 2)), decay, 0)
        y_BLHK, state_BHSK = self.mix(q_BLHS, k_BLHS, v_BLHK, decay, None, state["state"])
        return self.finish(y_BLHK, x_BLD), {"state": state_BHSK}

    def project(self, x_BLD, ctx: Context):
        """Features of queries and keys, values, and the logarithm of the decay."""
        q_BLHS, k_BLHS = shard(self.q(x_BLD), "BLHS"), shard(self.k(x_BLD), "BLHS")
        if self.position is not None:
            q_BLHS, k_BLHS = self.position(q_BLHS, ctx.positions_BL), self.position(k_BLHS, ctx.positions_BL)
        q_BLHS, k_BLHS = self.cfg.feature(q_BLHS, k_BLHS)
        found = (q_BLHS, k_BLHS, shard(self.v(x_BLD), "BLHK"))
        if self.decay is None:
            decay = jnp.zeros(q_BLHS.shape[:3], jnp.float32)
        else:
            decay = self.decay(x_BLD)
        return *(checkpoint_name(a, "projections") for a in found), decay

    def mix(self, q_BLHS, k_BLHS, v_BLHK, decay, starts_BL, state_BHSK=None):
        if self.norm is None:  # a value of ones gathers the weights
            v_BLHK = jnp.concatenate([v_BLHK, jnp.ones_like(v_BLHK[..., :1])], axis=-1)
        y_BLHK, state_BHSK = linear_attention(q_BLHS, k_BLHS, v_BLHK, decay, starts_BL, state_BHSK, self.cfg.chunk)
        if self.norm is None:
            sums_BLH1 = y_BLHK[..., -1:].astype(jnp.float32) + EPS
            return (y_BLHK[..., :-1] / sums_BLH1).astype(y_BLHK.dtype), state_BHSK
        return self.norm(y_BLHK), state_BHSK

    def finish(self, y_BLHK, x_BLD):
        if self.gate is not None:
            y_BLHK = activate(self.cfg.gate, self.gate(x_BLD), y_BLHK)
        return self.out(checkpoint_name(shard(y_BLHK, "BLHK"), "mixed"))

    @property
    def columns(self) -> int:
        """The size of what is written: a value, and a one where weights are summed."""
        return self.dims["K"] + (self.norm is None)

    def cost(self, shape: Shape) -> Cost:
        """Products; 4 FLOPs for each number of the state by the recurrence, which is not what runs."""
        dims = {**self.dims, "K": self.columns}
        by_channel = self.decay is not None and "S" in self.decay.letters
        numbers = dims["H"] * dims["S"] * self.columns
        core = Cost(
            algorithmic=4.0 * shape.tokens * dims["H"] * dims["S"] * self.dims["K"],
            executed=linear_flops(shape, dims, self.cfg.chunk, by_channel),
            bytes=2 * shape.tokens * dims["H"] * (dims["S"] + self.dims["K"]) * shape.itemsize,
            state=4 * shape.batch * numbers,
        )
        parts = (self.q, self.k, self.v, self.gate, self.decay, self.out)
        return core + total(part.cost(shape) for part in parts if part is not None)
