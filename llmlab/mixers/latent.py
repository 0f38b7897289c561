"""Multi-head latent attention (DeepSeek-V2, 2024, arXiv 2405.04434; V3, arXiv 2412.19437).

Keys and values of all heads are made from one normalised latent of low rank; positions are in a part of its own, whose
key all heads share. The decode state is the latent and that key. A call of few positions reads the latents themselves,
with the projections of keys and values absorbed into queries and outputs; a long one makes the keys and values again,
which costs fewer products. Letters: R, the rank of the latent (of the queries' latent in `q_down` and `q`).
Left out: pairs of neighbours in the turned part; a loader of published weights permutes them.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from llmlab.axes import Dims, shard
from llmlab.config import config
from llmlab.cost import Cost, Shape, total
from llmlab.kernels.attention import Added, Mask, attend, pairs
from llmlab.kernels.matmul import batched
from llmlab.mixers import cache
from llmlab.mixers.attention import Causal, View
from llmlab.mixers.heads import project
from llmlab.nn.einsum import Einsum
from llmlab.nn.init import FanIn, Init
from llmlab.nn.module import Module
from llmlab.nn.norm import RMSNorm
from llmlab.nn.parts import Context, Mixer, Norm, Position
from llmlab.nn.position import Rotary


@config
class LatentAttention(Mixer):
    """The defaults are those of DeepSeek-V2-Lite; V3 has 128 heads and a q_rank of 1536.

    rank: of the latent of keys and values. q_rank: of that of queries, None for none. head_size: of the part without
    positions, turned_size: of the part with them, value_size: of values. scale: of the scores, None for
    (head_size + turned_size) ** -0.5; a model stretched by Yarn has a larger one.
    """

    heads: int = 16
    rank: int = 512
    q_rank: int | None = None
    head_size: int = 128
    turned_size: int = 64
    value_size: int = 128
    view: View = Causal()
    position: Position = Rotary()
    norm: Norm = RMSNorm()
    scale: float | None = None
    init: Init = FanIn()
    out_init: Init = FanIn()

    def check(self):
        for name in ("heads", "rank", "q_rank", "head_size", "turned_size", "value_size"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ValueError(f"LatentAttention.{name} is {size}; it is 1 or more")

    def declared(self):
        return self.view.declared()

    def build(self, dims, rngs):
        return LatentAttentionLayer(self, {**dims, "H": self.heads}, rngs)


class LatentAttentionLayer(Module):
    letters = {"latent": "BMR", "turned": "BMK", **cache.LETTERS}

    def __init__(self, cfg: LatentAttention, dims: Dims, rngs):
        self.cfg = cfg
        make = lambda spec, init=cfg.init, **sizes: Einsum(spec, {**dims, **sizes}, rngs, init)
        ranked = cfg.q_rank is not None
        self.q_down = make("BLD,DR->BLR", R=cfg.q_rank) if ranked else None
        self.q_norm = cfg.norm.build({"R": cfg.q_rank}, rngs, "R") if ranked else None
        q_spec = "BLR,RHK->BLHK" if ranked else "BLD,DHK->BLHK"
        self.q = make(q_spec, R=cfg.q_rank, K=cfg.head_size)
        self.q_turned = make(q_spec, R=cfg.q_rank, K=cfg.turned_size)
        self.down = make("BLD,DR->BLR", R=cfg.rank)
        self.norm = cfg.norm.build({"R": cfg.rank}, rngs, "R")
        self.k_turned = make("BLD,DK->BLK", K=cfg.turned_size)
        self.k = make("BLR,RHK->BLHK", R=cfg.rank, K=cfg.head_size)
        self.v = make("BLR,RHK->BLHK", R=cfg.rank, K=cfg.value_size)
        self.out = make("BLHK,HKD->BLD", cfg.out_init, K=cfg.value_size)
        self.position = cfg.position.build(dims, rngs)

    def __call__(self, x_BLD: jax.Array, ctx: Context):
        latent_BLR, turned_BLK = self.remember(x_BLD, ctx)
        mask = self.cfg.view.row_mask(ctx)
        y_BLHK = self.read(self.queries(x_BLD, ctx), latent_BLR, turned_BLK, mask, ctx)
        return self.out(y_BLHK), {}

    def start(self, batch: int, length: int, ctx: Context):
        """An empty cache of latents and turned keys, or a ring of the window's size."""
        slots = self.slots(length)
        row = {"latent": (slots, self.cfg.rank), "turned": (slots, self.cfg.turned_size)}
        return cache.empty(row, batch, slots, ctx.dtype)

    def extend(self, x_BLD: jax.Array, state, ctx: Context):
        latent_BLR, turned_BLK = self.remember(x_BLD, ctx)
        mask, new = self.cfg.view.mask, {"latent": latent_BLR, "turned": turned_BLK}
        state, seen = cache.write(state, new, ctx.positions_BL, mask.window)
        mask = dataclasses.replace(mask, order_BL=ctx.positions_BL, order_BM=seen["order"])
        read = self.read_absorbed if self.absorbs(x_BLD.shape[1], seen["order"].shape[1]) else self.read
        latent_BMR, turned_BMK = seen["latent"].astype(x_BLD.dtype), seen["turned"].astype(x_BLD.dtype)
        return self.out(read(self.queries(x_BLD, ctx), latent_BMR, turned_BMK, mask, ctx)), state

    def absorbs(self, length: int, memory: int) -> bool:
        """Whether it costs fewer products to read latents than to make keys and values of them."""
        rank, made = self.cfg.rank, self.cfg.head_size + self.cfg.value_size  # the turned part costs the same
        return length * (memory * 2 * rank + rank * made) < memory * (rank * made + length * made)

    def queries(self, x_BLD: jax.Array, ctx: Context) -> tuple[jax.Array, jax.Array]:
        """The parts without and with positions."""
        if self.q_down is not None:
            x_BLD = self.q_norm(self.q_down(x_BLD))
        turned_BLHK = self.position(self.q_turned(x_BLD), ctx.positions_BL)
        return project(self.q(x_BLD), "BLHK"), project(turned_BLHK, "BLHK")

    def remember(self, x_BLD: jax.Array, ctx: Context) -> tuple[jax.Array, jax.Array]:
        """The latent and the turned key of each position."""
        turned_BL1K = self.position(self.k_turned(x_BLD)[:, :, None], ctx.positions_BL)
        return project(self.norm(self.down(x_BLD)), "BMR"), project(turned_BL1K[:, :, 0], "BMK")

    def read(self, queries, latent_BMR, turned_BMK, mask: Mask, ctx: Context) -> jax.Array:
        """Attention with the keys and values of every head."""
        k_BMHK, v_BMHK = shard(self.k(latent_BMR), "BMHK"), shard(self.v(latent_BMR), "BMHK")
        shared = jnp.broadcast_to(turned_BMK[:, :, None], (*k_BMHK.shape[:3], turned_BMK.shape[-1]))
        return self.attend(queries, jnp.concatenate([k_BMHK, shared], -1), v_BMHK, mask, ctx)

    def read_absorbed(self, queries, latent_BMR, turned_BMK, mask: Mask, ctx: Context) -> jax.Array:
        """The same with one key/value head: the latent itself."""
        weight = lambda part: shard(part.w[...].astype(latent_BMR.dtype), "RHK")
        latent_BLHR = batched("BLHK,RHK->BLHR", queries[0], weight(self.k)).astype(latent_BMR.dtype)
        k_BM1K = jnp.concatenate([latent_BMR, turned_BMK], -1)[:, :, None]
        y_BLHR = self.attend((latent_BLHR, queries[1]), k_BM1K, latent_BMR[:, :, None], mask, ctx)
        return batched("BLHR,RHK->BLHK", y_BLHR, weight(self.v)).astype(y_BLHR.dtype)

    def attend(self, queries, k_BMGK, v_BMGK, mask: Mask, ctx: Context) -> jax.Array:
        scale = self.cfg.scale or (self.cfg.head_size + self.cfg.turned_size) ** -0.5
        y_BLHK = attend(jnp.concatenate(queries, -1), k_BMGK, v_BMGK, mask, scale, added=Added(ctx.bias))
        return checkpoint_name(shard(y_BLHK, "BLHK"), "mixed")

    def slots(self, length: int) -> int:
        return min(length, self.cfg.view.window or length)

    def cost(self, shape: Shape) -> Cost:
        """Projections, and 2 FLOPs for each pair, head and element of its key and of its value."""
        cfg = self.cfg
        visible, executed = pairs(shape.length, shape.length, cfg.view.mask, cfg.view.whole)
        each = 2.0 * shape.batch * cfg.heads * (cfg.head_size + cfg.turned_size + cfg.value_size)
        state = shape.batch * self.slots(shape.length) * (cfg.rank + cfg.turned_size) * shape.itemsize
        parts = [self.q_down, self.q, self.q_turned, self.down, self.k_turned, self.k, self.v, self.out]
        core = Cost(each * visible, each * executed, 0.0, state)
        return core + total(part.cost(shape) for part in parts if part is not None)
