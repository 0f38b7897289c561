"""Differential attention (Ye et al., 2024): what two halves of a head see in common is noise, and is taken away.

    out((1 - start) norm((softmax(q k) - share softmax(q' k')) v))       start = 0.8 - 0.6 exp(-0.3 layer), from 0
    share = exp(mix_0 mix_1) - exp(mix_2 mix_3) + start

q, q' and k, k' are the halves of a head, each with its own positions; the value is that of the whole head, so a model
has half as many heads as with plain attention. The decode state is that of `Attention`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from llmlab.axes import shard
from llmlab.config import config
from llmlab.kernels.attention import Added, Mask
from llmlab.mixers.attention import Attention, AttentionLayer
from llmlab.mixers.heads import project
from llmlab.nn.einsum import parameter
from llmlab.nn.init import Init, Normal
from llmlab.nn.norm import RMSNorm
from llmlab.nn.parts import Context, Norm


@config
class Differential(Attention):
    """heads: pairs of halves; head_size is that of both. mix: of the vectors that the share is made of.

    head_norm: of what each head reads.
    """

    mix: Init = Normal(std=0.1)
    head_norm: Norm = RMSNorm(eps=1e-5)

    def build(self, dims, rngs):
        dims = self.sizes(dims)
        if dims["K"] % 2:
            raise ValueError(f"Differential halves each head, and one has {dims['K']} elements; give an even head_size")
        return DifferentialLayer(self, dims, rngs)


class DifferentialLayer(AttentionLayer):
    flops = 6.0  # two halves of scores are one head's, and values are read twice

    def __init__(self, cfg: Differential, dims, rngs):
        super().__init__(cfg, dims, rngs)
        self.mix = parameter(cfg.mix, "JK", {**dims, "J": 4, "K": dims["K"] // 2}, rngs)
        self.head_norm = cfg.head_norm.build(dims, rngs, "K")

    def project(self, x_BLD, ctx: Context):
        """Queries, keys and values; positions are written into each half."""
        halves = lambda a: a.reshape(*a.shape[:2], -1, a.shape[-1] // 2)
        place = lambda a: self.position(halves(a), ctx.positions_BL).reshape(a.shape) if self.position else a
        q_BLHK, k_BLGK = place(self.queries(x_BLD)), place(self.keys(x_BLD))
        return project(q_BLHK, "BLHK"), project(k_BLGK, "BMGK"), project(self.v(x_BLD), "BMGK")

    def attend(self, q_BLHK, k_BMGK, v_BMGK, mask: Mask, ctx: Context, added: Added = Added()) -> jax.Array:
        halves = zip(jnp.split(q_BLHK, 2, -1), jnp.split(k_BMGK, 2, -1))
        seen_BLHK, noise_BLHK = (self.weigh(q, k, v_BMGK, mask, ctx, added).astype(jnp.float32) for q, k in halves)
        start = 0.8 - 0.6 * jnp.exp(-0.3 * jnp.asarray(0 if ctx.layer is None else ctx.layer, jnp.float32))
        grown, shrunk = jnp.exp((self.mix[...][::2] * self.mix[...][1::2]).sum(-1))
        y_BLHK = (1 - start) * self.head_norm(seen_BLHK - (grown - shrunk + start) * noise_BLHK)
        return self.out(checkpoint_name(shard(y_BLHK.astype(q_BLHK.dtype), "BLHK"), "mixed"))
