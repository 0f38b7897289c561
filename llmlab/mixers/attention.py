"""Self-attention: which positions a query sees, with positions in queries and keys, and a sink.

Its decode state is a cache of keys and values; with a window it is a ring of the window's size.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from llmlab.config import Config, config
from llmlab.cost import Cost, Shape
from llmlab.kernels.attention import Added, Mask
from llmlab.mixers import cache
from llmlab.mixers.heads import MultiHead, MultiHeadLayer, project
from llmlab.nn.einsum import parameter
from llmlab.nn.init import Init
from llmlab.nn.parts import Context, Declared, Position
from llmlab.nn.position import Rotary


class View(Config):
    """Which positions a query sees.

    window: how many of the last ones, None for no limit. whole: any may be seen, though the mask is causal.
    """

    window = None
    whole = False

    def declared(self) -> Declared:
        return Declared(causal=False, decodable=False)

    @property
    def mask(self) -> Mask:
        """The pairs that are seen, by the index in the row."""
        return Mask(causal=True, window=self.window)

    def row_mask(self, ctx: Context) -> Mask:
        """The same for rows of documents."""
        return dataclasses.replace(self.mask, segments_BL=ctx.segments_BL, segments_BM=ctx.segments_BL)


@config
class Causal(View):
    """The past and itself; with a window, only the last so many positions, its own included."""

    window: int | None = None

    def check(self):
        if self.window is not None and self.window < 1:
            raise ValueError(f"Causal.window is {self.window}; a query sees at least itself, so it is 1 or more")

    def declared(self):
        return Declared()


@config
class Bidirectional(View):
    """All of its document."""

    @property
    def mask(self):
        return Mask(causal=False)


@config
class Prefix(View):
    """The past, and all of the document's prefix (`prefix_BL` of the batch)."""

    whole = True

    def row_mask(self, ctx):
        if ctx.prefix_BL is None:
            raise ValueError("Attention(view=Prefix()) needs a batch with prefix_BL; its task must give one")
        return dataclasses.replace(super().row_mask(ctx), prefix_BM=ctx.prefix_BL)


@config
class Attention(MultiHead):
    """view: which positions a query sees. position: written into queries and keys.

    sink: initial value of a logit of each head that takes part in its softmax and has no value (gpt-oss, 2025).
    """

    view: View = Causal()
    position: Position | None = Rotary()
    sink: Init | None = None

    def declared(self):
        return self.view.declared()

    def build(self, dims, rngs):
        return AttentionLayer(self, self.sizes(dims), rngs)


class AttentionLayer(MultiHeadLayer):
    letters = {
        "k": "BGMK",
        "v": "BGMK",
        **cache.LETTERS,
    }  # a head's keys together: a query reads them one after another

    def __init__(self, cfg: Attention, dims, rngs):
        super().__init__(cfg, dims, rngs, memory="L")
        self.position = cfg.position and cfg.position.build(dims, rngs)
        self.sink_bias = cfg.sink and parameter(cfg.sink, "H", dims, rngs)

    def __call__(self, x_BLD: jax.Array, ctx: Context):
        return self.attend(*self.project(x_BLD, ctx), self.cfg.view.row_mask(ctx), ctx, self.added(ctx)), {}

    def start(self, batch: int, length: int, ctx: Context):
        """An empty cache for `length` positions, or for the window if that is shorter."""
        (groups, size), slots = self.k.w.shape[1:], self.slots(length)
        row = (groups, slots, size)
        return cache.empty({"k": row, "v": row}, batch, slots, ctx.dtype)

    def extend(self, x_BLD: jax.Array, state, ctx: Context):
        q_BLHK, k_BLGK, v_BLGK = self.project(x_BLD, ctx)
        mask = self.cfg.view.mask
        new = {"k": jnp.swapaxes(k_BLGK, 1, 2), "v": jnp.swapaxes(v_BLGK, 1, 2)}
        state, seen = cache.write(state, new, ctx.positions_BL, mask.window, {"k": 2, "v": 2})
        mask = dataclasses.replace(mask, order_BL=ctx.positions_BL, order_BM=seen["order"])
        k_BMGK, v_BMGK = jnp.swapaxes(seen["k"], 1, 2), jnp.swapaxes(seen["v"], 1, 2)
        return self.attend(q_BLHK, k_BMGK, v_BMGK, mask, ctx, self.added(ctx)), state

    def project(self, x_BLD, ctx: Context):
        """Queries, keys and values, normalised and with their positions."""
        q_BLHK, k_BLGK, v_BLGK = self.queries(x_BLD), self.keys(x_BLD), self.v(x_BLD)
        if self.position is not None:
            q_BLHK, k_BLGK = self.position(q_BLHK, ctx.positions_BL), self.position(k_BLGK, ctx.positions_BL)
        return project(q_BLHK, "BLHK"), project(k_BLGK, "BMGK"), project(v_BLGK, "BMGK")

    def added(self, ctx: Context) -> Added:
        """What joins the scores: the stack's position bias, and the sink."""
        return Added(ctx.bias, None if self.sink_bias is None else self.sink_bias[...])

    def slots(self, length: int) -> int:
        return min(length, self.cfg.view.window or length)

    def cost(self, shape: Shape) -> Cost:
        view = self.cfg.view
        return self.heads_cost(shape, shape.length, self.slots(shape.length), view.mask, view.whole)
