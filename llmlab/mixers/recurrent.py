"""Recurrent networks as mixers: Elman's RNN (1990), the LSTM (Hochreiter & Schmidhuber, 1997; forget gate: Gers et al.,
2000) and both kinds of GRU (Cho et al., 2014), in one direction or in both.

What the input adds to the gates is one product over all positions; the time loop is kernels/recurrence.py. Left out:
peepholes, and layers inside one mixer (a stack repeats blocks).

Letters of this file: J, the gates of one product; I, directions; c, the channels that a product of the state contracts.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from llmlab.axes import shard
from llmlab.config import Config, config
from llmlab.cost import Cost, Shape, total
from llmlab.kernels.recurrence import Loop, recur
from llmlab.nn.einsum import ZEROS, Einsum, parameter
from llmlab.nn.init import FanIn, Init
from llmlab.nn.module import List, Module
from llmlab.nn.parts import Context, Declared, Mixer


@config
class Orthogonal(Init):
    """For each gate, a random matrix of the state that keeps lengths (Saxe et al., 2014); of shape (c, ..., C)."""

    scale: float = 1.0

    def __call__(self, key, shape, fan_in, depth):
        across = jax.random.normal(key, (*shape[1:-1], shape[0], shape[-1]), jnp.float32)
        return self.scale * jnp.moveaxis(jnp.linalg.qr(across)[0], -2, 0)


@config
class Gates(Init):
    """One value for each gate, such as an LSTM's bias of 1 for its forget gate (Jozefowicz et al., 2015)."""

    values: tuple[float, ...] = (0.0, 1.0, 0.0, 0.0)

    def __call__(self, key, shape, fan_in, depth):
        return jnp.broadcast_to(jnp.asarray(self.values, jnp.float32)[:, None], shape)


class Direction(Config):
    """In which order positions are read."""


@config
class Forward(Direction):
    """From the first to the last."""


@config
class Both(Direction):
    """One recurrence forward and one backward, beside each other; each begins anew in each document."""


class Initial(Config):
    """The state before a document; None in its place for zeros. build(dims, rngs, names) -> layer(ctx) -> state."""


@config
class Summary(Initial):
    """tanh of a product of what an encoder ends with: the forward half of the memory (its first D/2 channels) at the
    document's last position, the backward half at its first."""

    init: Init = FanIn()

    def build(self, dims, rngs, names):
        return SummaryLayer(self, dims, rngs, names)


class SummaryLayer(Module):
    def __init__(self, cfg: Summary, dims, rngs, names):
        self.parts = List([Einsum("BLD,DC->BLC", dims, rngs, cfg.init, ZEROS) for _ in names])

    def __call__(self, ctx: Context):
        """For each array of the state BLC: of the document of each position, or with L = 1 if rows are one document."""
        first_BLD, last_BLD = ends(ctx)
        half = first_BLD.shape[-1] // 2
        ends_BLD = jnp.concatenate([last_BLD[..., :half], first_BLD[..., half:]], axis=-1)
        return [jnp.tanh(part(ends_BLD).astype(jnp.float32)) for part in self.parts]

    def cost(self, shape: Shape) -> Cost:
        """Algorithmic: one product for each row. Executed: one for each position, as any may begin a document."""
        once, each = (total(part.cost(Shape(shape.batch, n)) for part in self.parts) for n in (1, shape.length))
        return Cost(once.algorithmic, each.executed, each.bytes)


def ends(ctx: Context):
    """The memory at the first and at the last position of each position's document, (B, L, D) twice.

    L is 1 where the context has no segments. Raises ValueError when it has no memory.
    """
    if ctx.memory_BMD is None:
        raise ValueError(
            "a recurrent mixer with initial=Summary(), or Bahdanau(), reads an encoder's memory and the context has "
            "none; use it in the decoder of an EncoderDecoder"
        )
    mine_BLM = visible(ctx)
    count = mine_BLM.shape[-1]
    pick = lambda at_BL: jnp.take_along_axis(ctx.memory_BMD, at_BL[..., None], axis=1)
    return pick(jnp.argmax(mine_BLM, axis=-1)), pick(count - 1 - jnp.argmax(mine_BLM[..., ::-1], axis=-1))


def visible(ctx: Context):
    """Which positions of the memory a position sees: its own document; with no segments, all but padding (L = 1)."""
    own_BM = ctx.memory_segments_BM
    if own_BM is None:
        own_BM = jnp.ones(ctx.memory_BMD.shape[:2], jnp.int32)
    if ctx.segments_BL is None:
        return (own_BM != 0)[:, None]
    return own_BM[:, None] == ctx.segments_BL[..., None]


@config
class Recurrent(Mixer):
    """What RNN, LSTM and GRU have in common. hidden: channels of the state in one direction, None for the width (half
    of it in both directions); a projection to the width follows where they do not make it up.

    unroll: steps in one turn of the time loop.
    """

    hidden: int | None = None
    direction: Direction = Forward()
    initial: Initial | None = None
    bias: Init = ZEROS
    init: Init = FanIn()
    recurrent_init: Init = Orthogonal()
    out_init: Init = FanIn()
    unroll: int = 1

    state = ("h",)  # names of the arrays
    products = (1,)  # gates of each product of the state
    free = False  # whether a gate's input stays outside the products, with a second bias

    def check(self):
        if self.unroll < 1 or (self.hidden is not None and self.hidden < 1):
            raise ValueError(f"{type(self).__name__}: hidden {self.hidden} and unroll {self.unroll} are 1 or more")
        if self.initial is not None and isinstance(self.direction, Both):
            raise ValueError(f"{type(self).__name__}: initial is the state of a decoder, which has no Both()")

    def declared(self):
        forward = isinstance(self.direction, Forward)
        return Declared(causal=forward, decodable=forward)

    def build(self, dims, rngs):
        passes = 2 if isinstance(self.direction, Both) else 1
        if self.hidden is None and dims["D"] % passes:
            raise ValueError(f"{type(self).__name__}(direction=Both()) halves the width, {dims['D']}; give `hidden`")
        return RecurrentLayer(self, {**dims, "C": self.hidden or dims["D"] // passes, "I": passes}, rngs)

    def step(self, state: dict, free_BC, affine) -> dict:
        """The state after one position. affine(i, left): the gates (B, J, C) of product i."""
        raise TypeError(f"{type(self).__name__} must define step")

    def cell(self, state: dict, inputs, marks, shared, affine):
        """A step with what holds for all cells: documents begin anew, padding changes nothing."""
        free_BC, fresh = inputs
        reset_B, hold_B = marks
        if reset_B is not None:
            fresh = fresh or dict.fromkeys(state, 0.0)
            state = {name: jnp.where(reset_B[:, None], fresh[name], a) for name, a in state.items()}
        new = {name: shard(a, "BC") for name, a in self.step(state, free_BC, affine).items()}
        if hold_B is not None:
            new = {name: jnp.where(hold_B[:, None], state[name], a) for name, a in new.items()}
        return new, new["h"]


@config
class RNN(Recurrent):
    """h = f(W x + U h + b)."""

    activation: Literal["tanh", "relu"] = "tanh"

    def step(self, state, free_BC, affine):
        return {"h": getattr(jax.nn, self.activation)(affine(0, state["h"])[:, 0])}


@config
class LSTM(Recurrent):
    """c = f c + i g, h = o tanh(c); gates in the order i, f, g, o. `bias` holds the forget gate's at 1."""

    bias: Init = Gates()

    state = ("h", "c")
    products = (4,)

    def step(self, state, free_BC, affine):
        i_BC, f_BC, g_BC, o_BC = jnp.unstack(affine(0, state["h"]), axis=1)
        c_BC = jax.nn.sigmoid(f_BC) * state["c"] + jax.nn.sigmoid(i_BC) * jnp.tanh(g_BC)
        return {"h": jax.nn.sigmoid(o_BC) * jnp.tanh(c_BC), "c": c_BC}


@config
class GRU(Recurrent):
    """Gates in the order r, z, n. reset: where r stands.

    "after" the product: n = tanh(W x + r (U h + b)), h = (1 - z) n + z h (PyTorch, Flax, cuDNN).
    "before" it: n = tanh(W x + U (r h)), h = (1 - z) h + z n (Cho et al., 2014, with z as in Bahdanau et al., 2015).
    """

    reset: Literal["after", "before"] = "after"

    products = property(lambda self: (3,) if self.reset == "after" else (2, 1))
    free = property(lambda self: self.reset == "after")

    def step(self, state, free_BC, affine):
        h_BC = state["h"]
        if self.reset == "after":
            r_BC, z_BC, n_BC = jnp.unstack(affine(0, h_BC), axis=1)
            n_BC = jnp.tanh(free_BC + jax.nn.sigmoid(r_BC) * n_BC)
            return {"h": n_BC + jax.nn.sigmoid(z_BC) * (h_BC - n_BC)}
        r_BC, z_BC = jnp.unstack(affine(0, h_BC), axis=1)
        n_BC = jnp.tanh(affine(1, jax.nn.sigmoid(r_BC) * h_BC)[:, 0])
        return {"h": h_BC + jax.nn.sigmoid(z_BC) * (n_BC - h_BC)}


class RecurrentLayer(Module):
    def __init__(self, cfg: Recurrent, dims, rngs):
        self.cfg = cfg
        self.passes = List([PassLayer(cfg, dims, rngs) for _ in range(dims["I"])])
        whole = dims["I"] * dims["C"] == dims["D"]
        self.out = None if whole else Einsum("BLIC,ICD->BLD", dims, rngs, cfg.out_init)
        self.initial = cfg.initial and cfg.initial.build(dims, rngs, cfg.state)

    @property
    def letters(self):
        return dict.fromkeys(self.cfg.state, "BC")

    def __call__(self, x_BLD: jax.Array, ctx: Context):
        batch, fresh = x_BLD.shape[0], None
        state = self.zeros(batch)
        if self.initial is not None:
            fresh = dict(zip(self.cfg.state, self.initial(ctx)))
            if ctx.segments_BL is None:
                state, fresh = {name: a_BLC[:, 0] for name, a_BLC in fresh.items()}, None
        found = [
            layer.run(x_BLD, state, backward, _begins(ctx.segments_BL, backward), None, fresh)[0]
            for layer, backward in zip(self.passes, (False, True))
        ]
        return self.project(found, x_BLD), {}

    def start(self, batch: int, length: int, ctx: Context):
        """The state before a document; its size does not depend on `length`."""
        if self.initial is None:
            return self.zeros(batch)
        return {name: a_BLC[:, 0] for name, a_BLC in zip(self.cfg.state, self.initial(ctx))}

    def extend(self, x_BLD: jax.Array, state, ctx: Context):
        h_BLC, state = self.passes[0].run(x_BLD, state, False, None, ctx.positions_BL < 0, None)
        return self.project([h_BLC], x_BLD), state

    def zeros(self, batch: int):
        channels = self.passes[0].read.w.shape[-1]
        return {name: jnp.zeros((batch, channels), jnp.float32) for name in self.cfg.state}

    def project(self, found: list[jax.Array], x_BLD):
        """What all directions give, at the width of the stream."""
        y_BLIC = checkpoint_name(jnp.stack(found, axis=2).astype(x_BLD.dtype), "mixed")
        return shard(y_BLIC.reshape(x_BLD.shape) if self.out is None else self.out(y_BLIC), "BLD")

    def cost(self, shape: Shape) -> Cost:
        """2 x gates x (D C + C^2) FLOPs for each position and direction; the state is float32."""
        state = 4 * shape.batch * self.passes[0].read.w.shape[-1] * len(self.cfg.state)
        parts = [*self.passes, *(part for part in (self.out, self.initial) if part is not None)]
        return Cost(state=state) + total(part.cost(shape) for part in parts)


class PassLayer(Module):
    """One direction."""

    def __init__(self, cfg: Recurrent, dims, rngs):
        self.cfg = cfg
        gates = {**dims, "J": sum(cfg.products)}
        self.read = Einsum("BLD,DJC->BLJC", gates, rngs, cfg.init, cfg.bias)
        self.state = List([Einsum("BLc,cJC->BLJC", {**dims, "J": n}, rngs, cfg.recurrent_init) for n in cfg.products])
        self.free_bias = parameter(ZEROS, "C", dims, rngs) if cfg.free else None

    def run(self, x_BLD, state, backward: bool, reset_BL, hold_BL, fresh):
        """(h_BLC, state after the last step). fresh: the state BLC before the document of each position."""
        a_BLJC = checkpoint_name(shard(self.read(x_BLD), "BLJC"), "projections")
        a_LBJC = shard(_swap(a_BLJC), "lBJC")  # the loop runs over whole rows
        weights = tuple(shard(part.w[...].astype(x_BLD.dtype), "cJC") for part in self.state)
        cuts = [sum(self.cfg.products[:i]) for i in range(1, len(weights))]
        streams, free_LBC = tuple(jnp.split(a_LBJC, cuts, axis=2)), None
        if self.free_bias is not None:
            free_LBC = a_LBJC[:, :, -1]
            bias_LBC = jnp.broadcast_to(self.free_bias[...].astype(a_LBJC.dtype), free_LBC.shape)
            streams = (jnp.concatenate([a_LBJC[:, :, :-1], bias_LBC[:, :, None]], axis=2),)
        fresh = jax.tree.map(lambda a_BLC: shard(_swap(a_BLC), "lBC"), fresh)
        marks = jax.tree.map(lambda mark_BL: shard(_swap(mark_BL), "lB"), (reset_BL, hold_BL))
        loop = Loop(self.cfg.cell, reverse=backward, unroll=self.cfg.unroll)
        state, h_LBC = recur(loop, state, weights, streams, (free_LBC, fresh), marks)
        return shard(_swap(shard(h_LBC, "lBC")), "BLC"), state

    def cost(self, shape: Shape) -> Cost:
        return total(part.cost(shape) for part in (self.read, *self.state))


def _begins(segments_BL, backward: bool):
    """Where a document begins, in the order of reading; None where a row is one document."""
    if segments_BL is None:
        return None
    edge = {"append": -1} if backward else {"prepend": -1}
    return jnp.diff(segments_BL, axis=1, **edge) != 0


def _swap(a):
    return jnp.swapaxes(a, 0, 1)
