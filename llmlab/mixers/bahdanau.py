"""The decoder of Bahdanau et al. (2015, appendix A): a GRU that attends to an encoder's memory from inside its loop.

Before position i is read, the state s_{i-1} scores every h_j of the memory, v . tanh(W s_{i-1} + U h_j); their mean c_i
under the softmax enters all gates and the output, which is the paper's deep output: t_i, the larger of each pair of
U s_{i-1} + V x_i + C c_i, with x_i the embedding of the previous target. A linear head after it makes the paper's
distribution. The paper's encoder is a GRU(reset="before", direction=Both()).

Letters of this file: J, gates; P, the two of a maxout pair; Y, half of the memory's width (one direction); c and d,
the twins of C and D that a product contracts or gives.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from llmlab.axes import shard
from llmlab.config import config
from llmlab.cost import Cost, Shape, total
from llmlab.kernels.matmul import batched
from llmlab.kernels.recurrence import Loop, recur
from llmlab.mixers.recurrent import Orthogonal, ends, visible
from llmlab.nn.einsum import ZEROS, Einsum, parameter
from llmlab.nn.init import Init, Normal
from llmlab.nn.module import Module
from llmlab.nn.parts import Context, Mixer


@config
class Bahdanau(Mixer):
    """hidden: channels of the state and of the score's layer, None for the width.

    score_init: of v; the paper's 0 gives W and U no gradient in the first step.
    """

    hidden: int | None = None
    init: Init = Normal(std=0.01)
    recurrent_init: Init = Orthogonal()
    attention_init: Init = Normal(std=0.001)
    score_init: Init = ZEROS
    unroll: int = 1

    def check(self):
        if self.unroll < 1 or (self.hidden is not None and self.hidden < 1):
            raise ValueError(f"Bahdanau: hidden {self.hidden} and unroll {self.unroll} are 1 or more")

    def build(self, dims, rngs):
        if dims["D"] % 2:
            raise ValueError(f"Bahdanau reads a memory of two directions; its width, {dims['D']}, must be even")
        sizes = {"C": self.hidden or dims["D"], "J": 3, "P": 2, "Y": dims["D"] // 2}
        return BahdanauLayer(self, {**dims, **sizes}, rngs)


class BahdanauLayer(Module):
    letters = {"s": "BC", "keys": "BMC", "memory": "BMD", "visible": "BM"}

    def __init__(self, cfg: Bahdanau, dims, rngs):
        self.cfg = cfg
        self.begin = Einsum("BLY,YC->BLC", dims, rngs, cfg.init, ZEROS)
        self.keys = Einsum("BMD,DC->BMC", dims, rngs, cfg.attention_init)
        self.query = Einsum("BLc,cC->BLC", dims, rngs, cfg.attention_init)
        self.score = parameter(cfg.score_init, "C", dims, rngs, dims["C"])
        self.read = Einsum("BLD,DJC->BLJC", dims, rngs, cfg.init, ZEROS)  # gates in the order r, z, n
        self.context = Einsum("BLD,DJC->BLJC", dims, rngs, cfg.init)
        self.gates = Einsum("BLc,cJC->BLJC", {**dims, "J": 2}, rngs, cfg.recurrent_init)
        self.candidate = Einsum("BLc,cC->BLC", dims, rngs, cfg.recurrent_init)
        self.out_state = Einsum("BLC,CDP->BLDP", dims, rngs, cfg.init, ZEROS)
        self.out_read = Einsum("BLD,DdP->BLdP", dims, rngs, cfg.init)
        self.out_context = Einsum("BLD,DdP->BLdP", dims, rngs, cfg.init)

    def __call__(self, x_BLD: jax.Array, ctx: Context):
        fresh_BLC, visible_BLM = self.first(ctx), visible(ctx)
        if ctx.segments_BL is None:
            s_BC, fresh_BLC, reset_BL = fresh_BLC[:, 0], None, None
        else:
            s_BC, reset_BL = jnp.zeros_like(fresh_BLC[:, 0]), jnp.diff(ctx.segments_BL, axis=1, prepend=-1) != 0
        memory = (ctx.memory_BMD.astype(x_BLD.dtype), self.keys(ctx.memory_BMD.astype(x_BLD.dtype)))
        return self.run(x_BLD, s_BC, memory, (visible_BLM, reset_BL, None), fresh_BLC)[0], {}

    def start(self, batch: int, length: int, ctx: Context):
        """The state before a document, and what is computed of its memory once."""
        s_BC, visible_BM = self.first(ctx)[:, 0], visible(ctx)[:, 0]
        memory_BMD = ctx.memory_BMD.astype(ctx.dtype)
        return {"s": s_BC, "keys": self.keys(memory_BMD), "memory": memory_BMD, "visible": visible_BM}

    def extend(self, x_BLD: jax.Array, state, ctx: Context):
        memory = (state["memory"].astype(x_BLD.dtype), state["keys"].astype(x_BLD.dtype))
        marks = (state["visible"][:, None], None, ctx.positions_BL < 0)
        y_BLD, s_BC = self.run(x_BLD, state["s"], memory, marks, None)
        return y_BLD, {**state, "s": s_BC}

    def first(self, ctx: Context):
        """s_0 of each position's document, from the backward state at the document's first position."""
        first_BLY = ends(ctx)[0][..., self.begin.w.shape[0] :]
        return jnp.tanh(self.begin(first_BLY.astype(ctx.dtype)).astype(jnp.float32))

    def run(self, x_BLD, s_BC, memory, marks, fresh_BLC):
        """(t_BLD, state after the last step). memory: h_BMD, U h_BMC. marks: visible_BLM, reset_BL, hold_BL."""
        length, dtype = x_BLD.shape[1], x_BLD.dtype
        visible_BLM, *others = marks
        visible_BLM = jnp.broadcast_to(visible_BLM, (x_BLD.shape[0], length, visible_BLM.shape[-1]))
        time_first = lambda a, letters: None if a is None else shard(jnp.swapaxes(a, 0, 1), letters)
        marks = (time_first(visible_BLM, "lBM"), *(time_first(mark_BL, "lB") for mark_BL in others))
        a_BLJC = checkpoint_name(shard(self.read(x_BLD), "BLJC"), "projections")
        held = lambda part, letters: shard(part.w[...].astype(dtype), letters)
        by_state_cJC = jnp.concatenate([held(self.query, "cC")[:, None], held(self.gates, "cJC")], axis=1)
        weights = (by_state_cJC, held(self.context, "DJC"), held(self.candidate, "cC"))
        streams = (None, time_first(a_BLJC, "lBJC"), None)
        # One v for each row: its gradient is summed over rows, and over devices, after the loop.
        v_BC = jnp.broadcast_to(self.score[...], s_BC.shape)
        s_BC, seen = recur(
            Loop(attend, unroll=self.cfg.unroll),
            s_BC,
            weights,
            streams,
            time_first(fresh_BLC, "lBC"),
            marks,
            (shard(memory[0], "BMD"), shard(memory[1], "BMC"), v_BC),
        )
        back = lambda a, letters: shard(jnp.swapaxes(shard(a, "lB" + letters), 0, 1), "BL" + letters).astype(dtype)
        s_BLC, c_BLD = back(seen[0], "C"), back(seen[1], "D")
        t_BLDP = self.out_state(s_BLC) + self.out_read(x_BLD) + self.out_context(c_BLD)
        return shard(t_BLDP.max(-1), "BLD"), s_BC

    def cost(self, shape: Shape) -> Cost:
        """Products for each position and each position of the memory, and 3 C + 2 D FLOPs for each pair of them."""
        if shape.memory is None:
            raise ValueError("Bahdanau.cost needs a Shape with `memory`, the length of what it reads")
        width, _, channels = self.read.w.shape
        pairs = shape.tokens * shape.memory
        # One document a row; but any position may begin one.
        once, each = (self.begin.cost(Shape(shape.batch, n)) for n in (1, shape.length))
        state = 4 * shape.batch * channels + shape.batch * shape.memory * ((channels + width) * shape.itemsize + 1)
        own = Cost(
            once.algorithmic + pairs * (3.0 * channels + 2.0 * width),
            each.executed + pairs * 2.0 * (channels + width),
            each.bytes,
            state,
        )
        parts = (self.keys, self.query, self.read, self.context, self.gates, self.candidate)
        return own + total(part.cost(shape) for part in (*parts, self.out_state, self.out_read, self.out_context))


def attend(s_BC, fresh_BC, marks, shared, affine):
    """One position: what it sees of the memory, then the GRU's step. Gives s_{i-1} and c_i for the output."""
    (visible_BM, reset_B, hold_B), (memory_BMD, keys_BMC, v_BC) = marks, shared
    if reset_B is not None:
        s_BC = jnp.where(reset_B[:, None], fresh_BC, s_BC)
    q_BC, r_BC, z_BC = jnp.unstack(affine(0, s_BC), axis=1)
    hidden_BMC = jnp.tanh(q_BC[:, None] + keys_BMC.astype(jnp.float32))
    score_BM = jnp.einsum("BMC,BC->BM", hidden_BMC, v_BC)
    # Where nothing is seen, the mean is 0 rather than that of another document.
    weight_BM = jnp.where(visible_BM, jax.nn.softmax(jnp.where(visible_BM, score_BM, -1e30), axis=-1), 0)
    c_BD = batched("BM,BMD->BD", weight_BM.astype(memory_BMD.dtype), memory_BMD)
    read_r_BC, read_z_BC, read_n_BC = jnp.unstack(affine(1, c_BD), axis=1)
    n_BC = jnp.tanh(read_n_BC + affine(2, jax.nn.sigmoid(r_BC + read_r_BC) * s_BC))
    new_BC = shard(s_BC + jax.nn.sigmoid(z_BC + read_z_BC) * (n_BC - s_BC), "BC")
    if hold_B is not None:
        new_BC = jnp.where(hold_B[:, None], s_BC, new_BC)
    return new_BC, (s_BC, c_BD)
