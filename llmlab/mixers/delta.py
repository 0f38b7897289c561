"""DeltaNet (Yang et al., 2024): linear attention that replaces what its state holds under a key, by the delta rule.

    q, k, v = conv(x)        q, k of length 1        beta = sigmoid(x)
    S_l = a_l S_{l-1} + k_l beta_l (v_l - k_l a_l S_{l-1})        y_l = q_l S_l / sqrt(size of k)

With a decay a_l and an output gate it is Gated DeltaNet (Yang, Kautz & Hatamizadeh, 2025). Left out: several keys for
each position. Letters: H heads, S the size of a key, K the size of a value.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from llmlab.axes import shard
from llmlab.config import config
from llmlab.cost import Cost, Shape, total
from llmlab.kernels.chunked import delta_flops, delta_rule
from llmlab.kernels.scan import document_starts
from llmlab.mixers.decay import Decay, Stepped
from llmlab.mixers.linear import head_size
from llmlab.mixers.mamba2 import LogUniform
from llmlab.nn.activation import Activation, activate
from llmlab.nn.conv import ShortConv
from llmlab.nn.einsum import Einsum
from llmlab.nn.init import FanIn, Init
from llmlab.nn.module import Module
from llmlab.nn.norm import RMSNorm
from llmlab.nn.parts import Context, Mixer, Norm


@config
class DeltaNet(Mixer):
    """keys, values: the size of all heads together, as a multiple of the width.

    conv: of queries, keys and values. decay: one for each head, None for none. largest: beta is between 0 and it; up
    to 2, with which a state can change its sign (Grazzi et al., 2024). norm: of each head's output. gate: the
    activation of an output gate, None for none. chunk: positions that are computed as one.
    """

    heads: int = 8
    keys: float = 1.0
    values: float = 1.0
    conv: ShortConv = ShortConv(bias=None)
    decay: Decay | None = None
    largest: float = 1.0
    norm: Norm = RMSNorm(eps=1e-5)
    gate: Activation | None = None
    chunk: int = 64
    init: Init = FanIn()
    out_init: Init = FanIn()

    def check(self):
        for name in ("heads", "chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"DeltaNet.{name} is {getattr(self, name)}; it is 1 or more")
        if not 0 < self.largest <= 2:
            raise ValueError(f"DeltaNet.largest is {self.largest}; beyond 2 the state grows without bound")

    def build(self, dims, rngs):
        sizes = {"S": head_size(self, "keys", dims["D"]), "K": head_size(self, "values", dims["D"]), "H": self.heads}
        return DeltaNetLayer(self, {**dims, **sizes}, rngs)


def gated_delta_net(heads: int = 6) -> DeltaNet:
    """Yang, Kautz & Hatamizadeh, 2025: with a decay and an output gate, at the sizes of the authors' code."""
    decay = Stepped(rate=LogUniform(low=1e-4, high=16.0))
    return DeltaNet(heads=heads, keys=0.75, values=1.5, decay=decay, gate="silu")


class DeltaNetLayer(Module):
    letters = {"q": "BJHS", "k": "BJHS", "v": "BJHK", "state": "BHSK"}

    def __init__(self, cfg: DeltaNet, dims, rngs):
        self.cfg = cfg
        self.dims = {letter: dims[letter] for letter in "HKS"}
        self.q = Einsum("BLD,DHS->BLHS", dims, rngs, cfg.init)
        self.k = Einsum("BLD,DHS->BLHS", dims, rngs, cfg.init)
        self.v = Einsum("BLD,DHK->BLHK", dims, rngs, cfg.init)
        self.beta = Einsum("BLD,DH->BLH", dims, rngs, cfg.init)
        self.q_conv, self.k_conv = cfg.conv.build(dims, rngs, "HS"), cfg.conv.build(dims, rngs, "HS")
        self.v_conv = cfg.conv.build(dims, rngs, "HK")
        self.decay = cfg.decay and cfg.decay.build(dims, rngs)
        if self.decay is not None and self.decay.letters != "BLH":
            raise ValueError(
                f"DeltaNet.decay is {cfg.decay}; the delta rule takes one decay for each head, not channel"
            )
        self.gate = cfg.gate and Einsum("BLD,DHK->BLHK", dims, rngs, cfg.init)
        self.norm = cfg.norm.build(dims, rngs, "K")
        self.out = Einsum("BLHK,HKD->BLD", dims, rngs, cfg.out_init)

    def __call__(self, x_BLD: jax.Array, ctx: Context):
        q_BLHS, k_BLHS, v_BLHK = (conv(part(x_BLD), ctx) for part, conv in self.convolved().values())
        starts_BL = document_starts(ctx.segments_BL)
        y_BLHK, _ = self.mix(q_BLHS, k_BLHS, v_BLHK, *self.strengths(x_BLD), starts_BL)
        return self.finish(y_BLHK, x_BLD), {}

    def start(self, batch: int, length: int, ctx: Context):
        """An empty state; its size does not depend on `length`."""
        past = {name: conv.start(batch, ctx) for name, (_, conv) in self.convolved().items()}
        return past | {"state": jnp.zeros((batch, *(self.dims[letter] for letter in "HSK")), jnp.float32)}

    def extend(self, x_BLD: jax.Array, state, ctx: Context):
        found, new = {}, {}
        for name, (part, conv) in self.convolved().items():
            found[name], new[name] = conv.extend(part(x_BLD), state[name], ctx)
        real_BL1 = ctx.positions_BL[..., None] >= 0  # padding writes nothing, and nothing decays
        beta_BLH, decay_BLH = (jnp.where(real_BL1, a, 0) for a in self.strengths(x_BLD))
        y_BLHK, new["state"] = self.mix(*found.values(), beta_BLH, decay_BLH, None, state["state"])
        return self.finish(y_BLHK, x_BLD), new

    def convolved(self):
        return {"q": (self.q, self.q_conv), "k": (self.k, self.k_conv), "v": (self.v, self.v_conv)}

    def strengths(self, x_BLD):
        """How much is replaced, and the logarithm of the decay: in float32."""
        beta_BLH = self.cfg.largest * jax.nn.sigmoid(shard(self.beta(x_BLD), "BLH").astype(jnp.float32))
        return beta_BLH, jnp.zeros_like(beta_BLH) if self.decay is None else self.decay(x_BLD)

    def mix(self, q_BLHS, k_BLHS, v_BLHK, beta_BLH, decay_BLH, starts_BL, state_BHSK=None):
        q_BLHS, k_BLHS, v_BLHK = (checkpoint_name(a, "projections") for a in (q_BLHS, k_BLHS, v_BLHK))
        q_BLHS, k_BLHS = _unit(q_BLHS, q_BLHS.shape[-1] ** -0.5), _unit(k_BLHS)
        given = (q_BLHS, k_BLHS, v_BLHK, beta_BLH, decay_BLH, starts_BL, state_BHSK)
        y_BLHK, state_BHSK = delta_rule(*given, self.cfg.chunk)
        return self.norm(y_BLHK), state_BHSK

    def finish(self, y_BLHK, x_BLD):
        if self.gate is not None:
            y_BLHK = activate(self.cfg.gate, self.gate(x_BLD), y_BLHK)
        return self.out(checkpoint_name(shard(y_BLHK, "BLHK"), "mixed"))

    def cost(self, shape: Shape) -> Cost:
        """Products and convolutions; 8 FLOPs for each number of the state by the recurrence, which is not what runs."""
        heads, values, keys = (self.dims[letter] for letter in "HKS")
        core = Cost(
            algorithmic=8.0 * shape.tokens * heads * keys * values,
            executed=delta_flops(shape, self.dims, self.cfg.chunk),
            bytes=2 * shape.tokens * heads * (keys + values + 1) * shape.itemsize,
            state=4 * shape.batch * heads * keys * values,
        )
        parts = [part for pair in self.convolved().values() for part in pair]
        parts += [part for part in (self.beta, self.decay, self.gate, self.out) if part is not None]
        return core + total(part.cost(shape) for part in parts)


def _unit(x, scale: float = 1.0):
    """x with a last dimension of length `scale`."""
    x32 = x.astype(jnp.float32)
    return (x32 * scale * jax.lax.rsqrt((x32 * x32).sum(-1, keepdims=True) + 1e-6)).astype(x.dtype)
