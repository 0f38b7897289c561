"""What self- and cross-attention share: heads, their projections and norms, and how they weigh values.

Multi-head attention (Vaswani et al., 2017), with grouped (Ainslie et al., 2023) or one key/value head.
"""

from __future__ import annotations

import jax
from jax.ad_checkpoint import checkpoint_name

from llmlab.axes import Dims, shard
from llmlab.config import config
from llmlab.cost import Cost, Shape, total
from llmlab.kernels.attention import Added, Mask, attend, pairs
from llmlab.nn.einsum import Einsum
from llmlab.nn.init import FanIn, Init
from llmlab.nn.module import Module
from llmlab.nn.parts import Context, Mixer, Norm, check_rate


@config
class MultiHead(Mixer):
    """kv_heads: key/value heads, None for as many as `heads`. head_size: None for width / heads.

    norm: of each query and key head, before positions. scale: of the scores, None for head_size ** -0.5.
    bias, out_bias: initial biases, None for none. query_init: None for `init`. dropout: of the probabilities.
    """

    heads: int = 8
    kv_heads: int | None = None
    head_size: int | None = None
    norm: Norm | None = None
    softcap: float | None = None
    scale: float | None = None
    bias: Init | None = None
    out_bias: Init | None = None
    init: Init = FanIn()
    query_init: Init | None = None
    out_init: Init = FanIn()
    dropout: float = 0.0

    def check(self):
        name = type(self).__name__
        for field in ("heads", "kv_heads", "head_size"):
            size = getattr(self, field)
            if size is not None and size < 1:
                raise ValueError(f"{name}.{field} is {size}; it is 1 or more")
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"{name}.kv_heads is {self.kv_heads}, which does not divide heads = {self.heads}")
        check_rate(name, self.dropout)

    def sizes(self, dims: Dims) -> Dims:
        """`dims` with those of the heads."""
        if self.head_size is None and dims["D"] % self.heads:
            raise ValueError(
                f"{type(self).__name__}.heads is {self.heads}, which does not divide the width {dims['D']}; "
                "choose another number of heads, or give head_size"
            )
        own = {"H": self.heads, "G": self.kv_heads or self.heads, "K": self.head_size or dims["D"] // self.heads}
        return {**dims, **own}


class MultiHeadLayer(Module):
    """Projections of queries (letter L) and of keys and values (letter `memory`: L or M), and the way back."""

    flops = 4.0  # of each pair of positions, head and element of it: a product with keys, and one with values

    def __init__(self, cfg: MultiHead, dims: Dims, rngs, memory: str):
        self.cfg = cfg
        self.q = Einsum("BLD,DHK->BLHK", dims, rngs, cfg.query_init or cfg.init, cfg.bias)
        self.k = Einsum(f"B{memory}D,DGK->B{memory}GK", dims, rngs, cfg.init, cfg.bias)
        self.v = Einsum(f"B{memory}D,DGK->B{memory}GK", dims, rngs, cfg.init, cfg.bias)
        self.out = Einsum("BLHK,HKD->BLD", dims, rngs, cfg.out_init, cfg.out_bias)
        self.q_norm = cfg.norm and cfg.norm.build(dims, rngs, "K")
        self.k_norm = cfg.norm and cfg.norm.build(dims, rngs, "K")

    def queries(self, x_BLD: jax.Array) -> jax.Array:
        q_BLHK = self.q(x_BLD)
        return q_BLHK if self.q_norm is None else self.q_norm(q_BLHK)

    def keys(self, x_BMD: jax.Array) -> jax.Array:
        k_BMGK = self.k(x_BMD)
        return k_BMGK if self.k_norm is None else self.k_norm(k_BMGK)

    def attend(self, q_BLHK, k_BMGK, v_BMGK, mask: Mask, ctx: Context, added: Added = Added()) -> jax.Array:
        """What the queries read, projected back to the width. Keys and values may be of another dtype."""
        y_BLHK = self.weigh(q_BLHK, k_BMGK, v_BMGK, mask, ctx, added)
        return self.out(checkpoint_name(shard(y_BLHK, "BLHK"), "mixed"))

    def weigh(self, q_BLHK, k_BMGK, v_BMGK, mask: Mask, ctx: Context, added: Added) -> jax.Array:
        """The mean of the values, weighted by how well keys fit the queries."""
        scale = self.cfg.scale if self.cfg.scale is not None else q_BLHK.shape[-1] ** -0.5
        drawn = self.cfg.dropout and ctx.key is not None
        dropout = (self.cfg.dropout, jax.random.fold_in(ctx.key, 1)) if drawn else None
        k_BMGK, v_BMGK = k_BMGK.astype(q_BLHK.dtype), v_BMGK.astype(q_BLHK.dtype)
        return attend(q_BLHK, k_BMGK, v_BMGK, mask, scale, self.cfg.softcap, dropout, added)

    def heads_cost(self, shape: Shape, memory: int, slots: int, mask: Mask, whole: bool = False) -> Cost:
        """Projections, and `flops` for each pair, head and head element; the state holds keys and values."""
        visible, executed = pairs(shape.length, memory, mask, whole)
        each = self.flops * shape.batch * self.q.w.shape[1] * self.q.w.shape[2]
        state = 2 * shape.batch * slots * self.k.w.shape[1] * self.k.w.shape[2] * shape.itemsize
        core = Cost(each * visible, each * executed, 0.0, state)
        return core + total(part.cost(shape) for part in (self.q, self.k, self.v, self.out))


def project(x: jax.Array, letters: str) -> jax.Array:
    """Lays out what a mixer reads, and names it for the remat policies."""
    return checkpoint_name(shard(x, letters), "projections")
