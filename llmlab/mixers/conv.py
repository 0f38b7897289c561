"""Convolutions as mixers: a plain one of a few positions, and Hyena's of the whole row (Poli et al., 2023).

A plain convolution is one product with the window of each position. Hyena's filters are functions of position made
by a small network; they are applied by FFT in float32, and while decoding by a sum over the inputs so far, so that a
step costs O(L). It cannot tell packed documents apart, and declares so. It is causal but for the FFT's rounding: a
later input moves an output by some 1e-7 of its size. Left out of Hyena: training of the features
of position and of the decay, which the paper's code moves at a rate of 1e-5.

Letters of this file: J, the positions of a window or the features of one; O, what a gated order multiplies; d and r,
the twins of D and R; K, the inputs of a group.
"""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp

from llmlab.axes import shard
from llmlab.config import config
from llmlab.cost import Cost, Shape, total
from llmlab.nn.activation import Activation, activate
from llmlab.nn.conv import ShortConv, UniformFanIn
from llmlab.nn.einsum import Einsum, parameter
from llmlab.nn.init import FanIn, Fill, Init, Normal
from llmlab.nn.module import List, Module
from llmlab.nn.parts import Context, Declared, Mixer


def windows(x_BLD: jax.Array, before: int, after: int, segments_BL: jax.Array | None = None) -> jax.Array:
    """x_BLJD: each position with so many before and after it, zeros beyond the ends of the row and of its document."""
    length = x_BLD.shape[1]
    shift = lambda a, j, fill: jnp.pad(a, ((0, 0), (before, after)) + ((0, 0),) * (a.ndim - 2), constant_values=fill)[
        :, j : j + length
    ]
    found = []
    for j in range(before + after + 1):
        moved_BLD = shift(x_BLD, j, 0)
        if segments_BL is not None and j != before:
            moved_BLD = jnp.where((shift(segments_BL, j, -1) == segments_BL)[..., None], moved_BLD, 0)
        found.append(moved_BLD)
    return jnp.stack(found, axis=2)


@config
class Convolution(Mixer):
    """y_l = activation(sum over j of W_j x_{l+j} + b), within a document: over the past ("causal") or both sides.

    width: positions of the window, itself included. groups: of channels that are mixed among themselves only.
    """

    width: int = 3
    place: Literal["causal", "centre"] = "causal"
    groups: int = 1
    activation: Activation | None = None
    bias: Init | None = Fill()
    init: Init = FanIn()

    def check(self):
        if self.width < 1 or self.groups < 1:
            raise ValueError(f"Convolution: width {self.width} and groups {self.groups} are 1 or more")
        if self.place == "centre" and self.width % 2 == 0:
            raise ValueError(f"Convolution.width is {self.width}; a window around its centre is odd")

    def declared(self):
        causal = self.place == "causal"
        return Declared(causal=causal, decodable=causal)

    def build(self, dims, rngs):
        if dims["D"] % self.groups:
            raise ValueError(f"Convolution.groups is {self.groups}, which does not divide the width {dims['D']}")
        sizes = {"J": self.width, "G": self.groups, "K": dims["D"] // self.groups}
        return ConvolutionLayer(self, {**dims, **sizes}, rngs)


class ConvolutionLayer(Module):
    letters = {"past": "BJD"}

    def __init__(self, cfg: Convolution, dims, rngs):
        self.cfg = cfg
        spec = "BLJD,JDd->BLd" if cfg.groups == 1 else "BLJGK,GJKk->BLGk"
        self.taps = Einsum(spec, dims, rngs, cfg.init, cfg.bias)

    def __call__(self, x_BLD: jax.Array, ctx: Context):
        before = self.cfg.width - 1 if self.cfg.place == "causal" else self.cfg.width // 2
        return self.run(windows(x_BLD, before, self.cfg.width - 1 - before, ctx.segments_BL)), {}

    def start(self, batch: int, length: int, ctx: Context):
        """The inputs of the last width - 1 positions."""
        width = self.taps.w.shape[1] if self.cfg.groups == 1 else self.cfg.groups * self.taps.w.shape[2]
        return {"past": jnp.zeros((batch, self.cfg.width - 1, width), ctx.dtype)}

    def extend(self, x_BLD: jax.Array, state, ctx: Context):
        """Padding on the left of a row is read, and kept, as zeros: what stands before a document."""
        x_BLD, past = jnp.where((ctx.positions_BL >= 0)[..., None], x_BLD, 0), self.cfg.width - 1
        all_BLD = jnp.concatenate([state["past"].astype(x_BLD.dtype), x_BLD], axis=1)
        y_BLD = self.run(windows(all_BLD, past, 0)[:, past:])
        return y_BLD, {"past": all_BLD[:, x_BLD.shape[1] :].astype(state["past"].dtype)}

    def run(self, x_BLJD):
        batch, length, width, channels = x_BLJD.shape
        if self.cfg.groups > 1:
            x_BLJD = x_BLJD.reshape(batch, length, width, self.cfg.groups, -1)
        y_BLD = self.taps(x_BLJD).reshape(batch, length, channels)
        return shard(y_BLD if self.cfg.activation is None else activate(self.cfg.activation, y_BLD), "BLD")

    def cost(self, shape: Shape) -> Cost:
        width = self.taps.w.shape[1] if self.cfg.groups == 1 else self.cfg.groups * self.taps.w.shape[2]
        past = shape.batch * (self.cfg.width - 1) * width * shape.itemsize
        return self.taps.cost(shape) + Cost(state=past if self.cfg.place == "causal" else 0.0)


@config
class Hyena(Mixer):
    """x_0 * (h * (x_1 * v)) for order 2, with `order` gates and order - 1 filters h; each of x and v goes through a
    short convolution first.

    longest: positions that the filters are laid over. features: of a position, odd. rank: width of the network that
    makes filters. frequency: of its sines, at the start. fast, slow: shares of `longest` in which the first and last
    channel's windows fall to 0.01.
    """

    order: int = 2
    longest: int = 1024
    features: int = 3
    rank: int = 64
    depth: int = 2
    frequency: float = 1.0
    fast: float = 0.3
    slow: float = 1.5
    short: ShortConv = ShortConv(width=3, activation=None)
    init: Init = FanIn()
    filter_init: Init = UniformFanIn()
    out_init: Init = FanIn()

    def check(self):
        if self.order < 2 or self.longest < 2 or self.rank < 1 or self.depth < 0:
            raise ValueError(
                f"Hyena: order {self.order} and longest {self.longest} are 2 or more, rank {self.rank} 1 or more, "
                f"depth {self.depth} 0 or more"
            )
        if self.features < 3 or self.features % 2 == 0:
            raise ValueError(f"Hyena.features is {self.features}; it is odd: the position, and pairs of waves")

    def declared(self):
        return Declared(isolated=False)

    def build(self, dims, rngs):
        sizes = {"C": dims["D"], "O": self.order + 1, "R": self.rank, "J": self.features}
        return HyenaLayer(self, {**dims, **sizes}, rngs)


class HyenaLayer(Module):
    def __init__(self, cfg: Hyena, dims, rngs):
        self.cfg = cfg
        self.read = Einsum("BLD,DOC->BLOC", dims, rngs, cfg.init, Fill())
        self.short = cfg.short.build(dims, rngs, "OC")
        self.filters = FilterLayer(cfg, {**dims, "O": cfg.order - 1}, rngs)
        self.skip_bias = parameter(Normal(std=1.0), "OC", {**dims, "O": cfg.order - 1}, rngs)
        self.out = Einsum("BLC,CD->BLD", dims, rngs, cfg.out_init, Fill())

    @property
    def letters(self):
        return {"filter": "OCM", "past": "BOCM", "short": self.short.letters, "used": ""}

    def __call__(self, x_BLD: jax.Array, ctx: Context):
        filter_LOC = self.filters(x_BLD.shape[1])
        a_BLOC = self.short(shard(self.read(x_BLD), "BLOC"), ctx)
        return self.mix(a_BLOC, lambda o, z_BLC: convolve(shard(z_BLC, "BlC"), filter_LOC[:, o])), {}

    def start(self, batch: int, length: int, ctx: Context):
        """What the filters have read, none so far, and the filters themselves: from the end, and zeros after it."""
        filter_OCM = jnp.moveaxis(self.filters(length)[::-1], 0, -1)
        return {
            "filter": jnp.pad(filter_OCM, ((0, 0), (0, 0), (0, length))),
            "past": jnp.zeros((batch, *filter_OCM.shape), ctx.dtype),
            "short": self.short.start(batch, ctx),
            "used": jnp.zeros((), jnp.int32),
        }

    def extend(self, x_BLD: jax.Array, state, ctx: Context):
        a_BLOC, short = self.short.extend(self.read(x_BLD), state["short"], ctx)
        new, used, length = {**state, "short": short}, state["used"], x_BLD.shape[1]
        slots = state["past"].shape[-1]

        def conv(o, z_BLC):
            z_BLC = jnp.where((ctx.positions_BL >= 0)[..., None], z_BLC, 0).astype(state["past"].dtype)
            z_B1CL = jnp.swapaxes(z_BLC, 1, 2)[:, None]
            new["past"] = jax.lax.dynamic_update_slice(new["past"], z_B1CL, (0, o, 0, used))
            past_BCM, filter_CM = new["past"][:, o].astype(jnp.float32), state["filter"][o]
            if length > 1:
                y_BMC = convolve(jnp.swapaxes(past_BCM, 1, 2), filter_CM[:, slots - 1 :: -1].T)
                return jax.lax.dynamic_slice_in_dim(y_BMC, used, length, axis=1)
            # Of position m: filter[used - m].
            ago_CM = jax.lax.dynamic_slice_in_dim(filter_CM, slots - 1 - used, slots, axis=1)
            return (ago_CM * past_BCM).sum(-1)[:, None]

        y_BLD = self.mix(a_BLOC, conv)
        return y_BLD, {**new, "used": used + length}

    def mix(self, a_BLOC, conv):
        """Gates and filters in turn. conv(o, z_BLC): filter o applied to the row, both in float32."""
        *gates, v_BLC = jnp.unstack(a_BLOC.astype(jnp.float32), axis=2)
        for o, gate_BLC in enumerate(reversed(gates[1:])):
            v_BLC = v_BLC * gate_BLC
            v_BLC = conv(o, v_BLC) + self.skip_bias[...][o] * v_BLC
        return self.out(shard((v_BLC * gates[0]).astype(a_BLOC.dtype), "BLC"))

    def cost(self, shape: Shape) -> Cost:
        """FFTs as 5/2 n log2(n) FLOPs for n = 2 L real numbers; no matrix product. The state holds what was read."""
        channels, filters = self.out.w.shape[0], self.cfg.order - 1
        size = 2 * shape.length
        transforms = (2 * shape.batch + 1) * channels * filters  # rows there and back, and the filter
        work = transforms * 2.5 * size * math.log2(size) + 6.0 * shape.batch * channels * filters * shape.length
        kept = shape.length * channels * filters
        core = Cost(algorithmic=work, state=shape.batch * kept * shape.itemsize + 8 * kept)
        return core + total(part.cost(shape) for part in (self.read, self.short, self.filters, self.out))


class FilterLayer(Module):
    """filters(length) -> filter_LOC in float32: sines of products of a position's features, under a falling window."""

    def __init__(self, cfg: Hyena, dims, rngs):
        self.cfg, init = cfg, cfg.filter_init
        specs = ["LJ,JR->LR"] + ["Lr,rR->LR"] * cfg.depth
        self.layers = List([Einsum(spec, dims, rngs, init, init) for spec in specs])
        self.frequency = parameter(Fill(value=cfg.frequency), "R", dims, rngs)
        self.out = Einsum("LR,ROC->LOC", dims, rngs, init)

    def __call__(self, length: int):
        cfg = self.cfg
        if length > cfg.longest:
            raise ValueError(f"{length} positions, but Hyena(longest={cfg.longest}) has filters of {cfg.longest}")
        place_L = jnp.arange(length, dtype=jnp.float32)
        bands = (cfg.features - 1) // 2
        angles_LJ = 2 * math.pi / cfg.longest * place_L[:, None] * jnp.linspace(1e-4, bands - 1, bands)
        share_L1 = place_L[:, None] / (cfg.longest - 1)
        h_LR = jnp.concatenate([share_L1, jnp.cos(angles_LJ), -jnp.sin(angles_LJ)], axis=-1)
        for layer in self.layers:
            h_LR = jnp.sin(self.frequency[...] * layer(h_LR))
        channels = self.out.w.shape[-1]
        falls_C = -math.log(0.01) * jnp.linspace(1 / cfg.slow, 1 / cfg.fast, channels)
        return shard(self.out(h_LR) * jnp.exp(-share_L1 * falls_C)[:, None], "lOC")

    def cost(self, shape: Shape) -> Cost:
        return total(part.cost(shape) for part in (*self.layers, self.out))


def convolve(z_BLC: jax.Array, filter_LC: jax.Array) -> jax.Array:
    """y_l = the sum over m <= l of filter_{l-m} z_m, by FFT with zeros after the row so that nothing comes round."""
    length = z_BLC.shape[1]
    transform = lambda a: jnp.fft.rfft(jnp.swapaxes(a, -1, -2), 2 * length)
    y_BCL = jnp.fft.irfft(transform(z_BLC) * transform(filter_LC), 2 * length)[..., :length]
    return shard(jnp.swapaxes(y_BCL, 1, 2), "BLC")
