"""Cross-attention (Vaswani et al., 2017): queries from the stream, keys and values from an encoder's memory.

All of the memory's document is seen, wherever the query stands; the stack's position bias is not for it. Its decode
state is the memory's keys and values, computed once. The memory has the model's width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from llmlab.config import config
from llmlab.cost import Cost, Shape
from llmlab.kernels.attention import Mask
from llmlab.mixers.heads import MultiHead, MultiHeadLayer, project
from llmlab.nn.parts import Context


@config
class CrossAttention(MultiHead):
    """Reads `memory_BMD` of the context; the fields are those of all attention."""

    def build(self, dims, rngs):
        return CrossAttentionLayer(self, self.sizes(dims), rngs)


class CrossAttentionLayer(MultiHeadLayer):
    letters = {"k": "BGMK", "v": "BGMK", "order": "BM"}

    def __init__(self, cfg: CrossAttention, dims, rngs):
        super().__init__(cfg, dims, rngs, memory="M")

    def __call__(self, x_BLD: jax.Array, ctx: Context):
        if ctx.memory_segments_BM is None:
            mask = Mask(causal=False)
        elif ctx.segments_BL is None:
            mask = mask_real(order(ctx), x_BLD)
        else:
            mask = Mask(causal=False, segments_BL=ctx.segments_BL, segments_BM=ctx.memory_segments_BM)
        return self.attend(project(self.queries(x_BLD), "BLHK"), *self.remember(ctx), mask, ctx), {}

    def start(self, batch: int, length: int, ctx: Context):
        """The keys and values of the memory; "order" is 0 where it is real and -1 on its padding."""
        k_BGMK, v_BGMK = (jnp.swapaxes(a, 1, 2).astype(ctx.dtype) for a in self.remember(ctx))
        return {"k": k_BGMK, "v": v_BGMK, "order": order(ctx)}

    def extend(self, x_BLD: jax.Array, state, ctx: Context):
        mask = mask_real(state["order"], x_BLD)
        k_BMGK, v_BMGK = jnp.swapaxes(state["k"], 1, 2), jnp.swapaxes(state["v"], 1, 2)
        return self.attend(project(self.queries(x_BLD), "BLHK"), k_BMGK, v_BMGK, mask, ctx), state

    def remember(self, ctx: Context) -> tuple[jax.Array, jax.Array]:
        """Keys and values of the memory."""
        if ctx.memory_BMD is None:
            raise ValueError(
                "CrossAttention needs a context with memory_BMD, and there is none; it stands in the decoder of an "
                "encoder-decoder, whose start() is given the memory too"
            )
        return project(self.keys(ctx.memory_BMD), "BMGK"), project(self.v(ctx.memory_BMD), "BMGK")

    def cost(self, shape: Shape) -> Cost:
        if shape.memory is None:
            raise ValueError("CrossAttention.cost needs a Shape with `memory`, the length of what it reads")
        return self.heads_cost(shape, shape.memory, shape.memory, Mask(causal=False))


def order(ctx: Context) -> jax.Array:
    """0 where the memory is real, -1 on its padding."""
    if ctx.memory_segments_BM is None:
        return jnp.zeros(ctx.memory_BMD.shape[:2], jnp.int32)
    return jnp.where(ctx.memory_segments_BM != 0, 0, -1).astype(jnp.int32)


def mask_real(order_BM: jax.Array, x_BLD: jax.Array) -> Mask:
    """All of the memory but its padding."""
    return Mask(causal=False, order_BL=jnp.zeros(x_BLD.shape[:2], jnp.int32), order_BM=order_BM)
