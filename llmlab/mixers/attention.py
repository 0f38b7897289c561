"""Multi-head attention (Vaswani et al., 2017), with grouped (Ainslie et al., 2023) or one key/value head.

Its decode state is a cache of keys and values; with a window it is a ring of the window's size. Left out here: what
belongs to the stack (shared position biases) and latent or differential forms.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from llmlab.axes import shard
from llmlab.config import Config, config
from llmlab.cost import Cost, Shape, total
from llmlab.kernels.attention import Mask, attend, pairs
from llmlab.nn.einsum import Einsum
from llmlab.nn.init import FanIn, Init
from llmlab.nn.module import Module
from llmlab.nn.parts import Context, Declared, Mixer, Norm, Position, check_rate
from llmlab.nn.position import Rotary


class View(Config):
    """Which positions a query sees."""


@config
class Causal(View):
    """The past and itself; with a window, only the last so many positions, its own included."""

    window: int | None = None

    def check(self):
        if self.window is not None and self.window < 1:
            raise ValueError(f"Causal.window is {self.window}; a query sees at least itself, so it is 1 or more")


@config
class Bidirectional(View):
    """All of its document."""


@config
class Prefix(View):
    """The past, and all of the document's prefix (`prefix_BL` of the batch)."""


@config
class Attention(Mixer):
    """kv_heads: key/value heads, None for as many as `heads`. head_size: None for width / heads.

    norm: of each query and key head, before positions. scale: of the scores, None for head_size ** -0.5.
    bias, out_bias: initial biases, None for none. dropout: of the probabilities.
    """

    heads: int = 8
    kv_heads: int | None = None
    head_size: int | None = None
    view: View = Causal()
    position: Position | None = Rotary()
    norm: Norm | None = None
    softcap: float | None = None
    scale: float | None = None
    bias: Init | None = None
    out_bias: Init | None = None
    init: Init = FanIn()
    out_init: Init = FanIn()
    dropout: float = 0.0

    def check(self):
        for name in ("heads", "kv_heads", "head_size"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ValueError(f"Attention.{name} is {size}; it is 1 or more")
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"Attention.kv_heads is {self.kv_heads}, which does not divide heads = {self.heads}")
        check_rate("Attention", self.dropout)

    def declared(self):
        causal = isinstance(self.view, Causal)
        return Declared(causal=causal, decodable=causal)

    def build(self, dims, rngs):
        if self.head_size is None and dims["D"] % self.heads:
            raise ValueError(
                f"Attention.heads is {self.heads}, which does not divide the width {dims['D']}; "
                "choose another number of heads, or give head_size"
            )
        sizes = {"H": self.heads, "G": self.kv_heads or self.heads, "K": self.head_size or dims["D"] // self.heads}
        return AttentionLayer(self, {**dims, **sizes}, rngs)


class AttentionLayer(Module):
    letters = {"k": "BMGK", "v": "BMGK", "order": "BM", "used": ""}

    def __init__(self, cfg: Attention, dims, rngs):
        self.cfg = cfg
        self.q = Einsum("BLD,DHK->BLHK", dims, rngs, cfg.init, cfg.bias)
        self.k = Einsum("BLD,DGK->BLGK", dims, rngs, cfg.init, cfg.bias)
        self.v = Einsum("BLD,DGK->BLGK", dims, rngs, cfg.init, cfg.bias)
        self.out = Einsum("BLHK,HKD->BLD", dims, rngs, cfg.out_init, cfg.out_bias)
        self.q_norm = cfg.norm and cfg.norm.build(dims, rngs, "K")
        self.k_norm = cfg.norm and cfg.norm.build(dims, rngs, "K")
        self.position = cfg.position and cfg.position.build(dims, rngs)

    def __call__(self, x_BLD: jax.Array, ctx: Context):
        q_BLHK, k_BLGK, v_BLGK = self.project(x_BLD, ctx)
        mask = dataclasses.replace(
            self.mask, segments_BL=ctx.segments_BL, segments_BM=ctx.segments_BL, prefix_BM=self.prefix(ctx)
        )
        return self.attend(q_BLHK, k_BLGK, v_BLGK, mask, ctx), {}

    def start(self, batch: int, length: int, ctx: Context):
        """An empty cache for `length` positions, or for the window if that is shorter."""
        slots = min(length, self.mask.window or length)
        keys_BMGK = jnp.zeros((batch, slots, *self.k.w.shape[1:]), ctx.dtype)
        return {
            "k": keys_BMGK,
            "v": keys_BMGK,
            "order": jnp.full((batch, slots), -1, jnp.int32),
            "used": jnp.zeros((), jnp.int32),
        }

    def extend(self, x_BLD: jax.Array, state, ctx: Context):
        q_BLHK, k_BLGK, v_BLGK = self.project(x_BLD, ctx)
        slots, length = state["order"].shape[1], x_BLD.shape[1]
        new = {"k": k_BLGK.astype(state["k"].dtype), "v": v_BLGK.astype(state["v"].dtype), "order": ctx.positions_BL}
        place = (state["used"] + jnp.arange(length))[-slots:] % slots
        written = {name: state[name].at[:, place].set(new[name][:, -slots:]) for name in new}
        seen = written
        if length > 1 and self.mask.window == slots:  # a ring forgets keys that the chunk's first queries still see
            seen = {name: jnp.concatenate([state[name], new[name]], axis=1) for name in new}
        mask = dataclasses.replace(self.mask, order_BL=ctx.positions_BL, order_BM=seen["order"])
        y_BLD = self.attend(q_BLHK, seen["k"].astype(q_BLHK.dtype), seen["v"].astype(q_BLHK.dtype), mask, ctx)
        return y_BLD, {**written, "used": state["used"] + length}

    def project(self, x_BLD, ctx: Context):
        """Queries, keys and values, normalised and with their positions."""
        q_BLHK, k_BLGK, v_BLGK = self.q(x_BLD), self.k(x_BLD), self.v(x_BLD)
        if self.q_norm is not None:
            q_BLHK, k_BLGK = self.q_norm(q_BLHK), self.k_norm(k_BLGK)
        if self.position is not None:
            q_BLHK, k_BLGK = self.position(q_BLHK, ctx.positions_BL), self.position(k_BLGK, ctx.positions_BL)
        return (
            checkpoint_name(shard(q_BLHK, "BLHK"), "projections"),
            checkpoint_name(shard(k_BLGK, "BMGK"), "projections"),
            checkpoint_name(shard(v_BLGK, "BMGK"), "projections"),
        )

    def attend(self, q_BLHK, k_BMGK, v_BMGK, mask: Mask, ctx: Context):
        scale = self.cfg.scale if self.cfg.scale is not None else q_BLHK.shape[-1] ** -0.5
        dropout = (
            (self.cfg.dropout, jax.random.fold_in(ctx.key, 1)) if self.cfg.dropout and ctx.key is not None else None
        )
        y_BLHK = attend(q_BLHK, k_BMGK, v_BMGK, mask, scale, self.cfg.softcap, dropout)
        return self.out(checkpoint_name(shard(y_BLHK, "BLHK"), "mixed"))

    @property
    def mask(self) -> Mask:
        view = self.cfg.view
        return Mask(causal=not isinstance(view, Bidirectional), window=getattr(view, "window", None))

    def prefix(self, ctx: Context):
        if not isinstance(self.cfg.view, Prefix):
            return None
        if ctx.prefix_BL is None:
            raise ValueError("Attention(view=Prefix()) needs a batch with prefix_BL; its task must give one")
        return ctx.prefix_BL

    def cost(self, shape: Shape) -> Cost:
        """Projections, and 4 FLOPs for each pair, head and head element; the state holds keys and values."""
        visible, executed = pairs(shape.length, shape.length, self.mask, whole=isinstance(self.cfg.view, Prefix))
        each = 4.0 * shape.batch * self.q.w.shape[1] * self.q.w.shape[2]
        slots = min(shape.length, self.mask.window or shape.length)
        state = 2 * shape.batch * slots * self.k.w.shape[1] * self.k.w.shape[2] * shape.itemsize
        core = Cost(each * visible, each * executed, 0.0, state)
        return core + total(part.cost(shape) for part in (self.q, self.k, self.v, self.out))
