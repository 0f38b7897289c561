"""A streaming convolutional network whose layers are trained as many branches and run as one convolution each.

After RepCNN (arXiv 2406.02652) and MobileOne (Vasu et al., 2023): each convolution is a sum of equal convolutions, one
of width 1 and the identity, each with a batch normalisation of its own; as all are linear, `fold` adds them up. A
layer is a convolution of each channel by itself, then one of width 1 over channels. The sizes of RepCNN's paper are
not published with code: the defaults are ours. Left out: strides.

What holds is declared for evaluation: statistics of a batch, in training, are those of all its frames.

Letters of this file: J, the numbers of one input frame; P, the positions of a window; d, the twin of D.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from llmlab.axes import Dims, shard
from llmlab.config import Config, config, swap
from llmlab.cost import Cost, Shape, total
from llmlab.mixers.conv import windows
from llmlab.models.decoder import Model
from llmlab.nn.einsum import ZEROS, Einsum, parameter
from llmlab.nn.init import FanIn, Fill
from llmlab.nn.module import List, Module, Rngs, Statistic
from llmlab.nn.parts import Context, Declared, Layer
from llmlab.nn.stack import Stack, repeat

EPS = 1e-5


class Form(Config):
    """How a convolution is held: as the branches that are trained, or as their sum."""


@config
class Branched(Form):
    """convs: branches of full width. momentum: share of a batch in the running statistics."""

    convs: int = 4
    momentum: float = 0.1

    def check(self):
        if self.convs < 1 or not 0 < self.momentum <= 1:
            raise ValueError(f"Branched: convs {self.convs} is 1 or more, momentum {self.momentum} in (0, 1]")


@config
class Folded(Form):
    """One convolution with a bias."""


def fold(cfg, params: dict, stats: dict):
    """(config, parameters) of the same model in evaluation, with every `Branched` convolution as one. It has no
    statistics. `cfg` is any config that holds them; `params` and `stats` are its trees."""
    return swap(cfg, Branched, lambda _: Folded()), _fold(params, stats)


def _fold(params: dict, stats: dict) -> dict:
    if "branched" in params:
        return {"folded": _add_up(params["branched"], stats["branched"])}
    return {name: _fold(a, stats.get(name, {})) if isinstance(a, dict) else a for name, a in params.items()}


def _add_up(params: dict, stats: dict) -> dict:
    """The sum of the branches. Layers of a stack have a leading axis; the last letter of a kernel is its output."""
    kernel, bias = 0.0, 0.0
    for name, branch in params["branches"].items():  # the first is of full width
        norm, running = branch["norm"], stats["branches"][name]["norm"]
        gain = norm["scale"] * jax.lax.rsqrt(running["variance"] + EPS)
        bias += norm["bias"] - running["mean"] * gain
        if "conv" not in branch:  # the identity
            size = gain.shape[-1]
            one = jnp.ones((1, size)) if "taps" in params["branches"]["0"]["conv"] else jnp.eye(size)
        else:
            ((kind, one),) = branch["conv"].items()
        part = one * gain[..., None, :]
        if name == "0":
            kernel, own = part, kind
        else:
            first = kernel.shape[-2] - part.shape[-2]  # narrower ones see the newest positions
            kernel = kernel.at[..., first:, :].add(part)
    return {"conv": {own: kernel}, "bias": bias}


class BatchNormLayer(Module):
    """(x - mean) / deviation * scale + bias (Ioffe & Szegedy, 2015): of the batch in training, else running ones."""

    def __init__(self, momentum: float, dims: Dims, rngs: Rngs):
        self.momentum = momentum
        self.scale = parameter(Fill(value=1.0), "D", dims, rngs)
        self.bias = parameter(ZEROS, "D", dims, rngs)
        self.mean = Statistic(jnp.zeros(dims["D"]), axes="D")
        self.variance = Statistic(jnp.ones(dims["D"]), axes="D")

    def __call__(self, x_BLD: jax.Array, ctx: Context):
        """(y_BLD in float32, new statistics by name: none but in training). Padding is not counted."""
        x_BLD, stats = x_BLD.astype(jnp.float32), {}
        mean_D, variance_D = self.mean[...], self.variance[...]
        if ctx.training:
            real_BL = jnp.ones(x_BLD.shape[:2]) if ctx.segments_BL is None else (ctx.segments_BL > 0) * 1.0
            count = jnp.maximum(real_BL.sum(), 2.0)
            average = lambda a_BLD: (a_BLD * real_BL[..., None]).sum((0, 1)) / count
            now_D = average(x_BLD)
            spread_D = average(jnp.square(x_BLD - now_D))
            mix = lambda old_D, new_D: jax.lax.stop_gradient(old_D + self.momentum * (new_D - old_D))
            stats = {"mean": mix(mean_D, now_D), "variance": mix(variance_D, spread_D * count / (count - 1))}
            mean_D, variance_D = now_D, spread_D
        gain_D = self.scale[...] * jax.lax.rsqrt(variance_D + EPS)
        return (x_BLD - mean_D) * gain_D + self.bias[...], stats


class DepthwiseLayer(Module):
    """y_l = the sum of taps * x over the newest positions of the window, each channel by itself."""

    def __init__(self, size: int, dims: Dims, rngs: Rngs):
        self.taps = parameter(FanIn(), "PD", {**dims, "P": size}, rngs, size)

    def __call__(self, x_BLPD: jax.Array):
        taps_PD = self.taps[...]
        return (x_BLPD[:, :, -taps_PD.shape[0] :].astype(jnp.float32) * taps_PD).sum(2)

    def cost(self, shape: Shape) -> Cost:
        return Cost(2.0 * shape.tokens * self.taps.size)


class BranchLayer(Module):
    """A convolution (None for the identity) and its norm."""

    def __init__(self, conv: Module | None, momentum: float, dims, rngs):
        self.conv = conv
        self.norm = BatchNormLayer(momentum, dims, rngs)

    def __call__(self, x: jax.Array, ctx: Context):
        here = x if x.ndim == 3 else x[:, :, -1]
        return self.norm(here if self.conv is None else self.conv(x), ctx)


class BranchedLayer(Module):
    def __init__(self, form: Branched, convs: list[Module | None], dims, rngs):
        self.branches = List([BranchLayer(conv, form.momentum, dims, rngs) for conv in convs])

    def __call__(self, x: jax.Array, ctx: Context):
        """(y_BLD in float32, new statistics)."""
        found = [branch(x, ctx) for branch in self.branches]
        stats = {str(i): {"norm": new} for i, (_, new) in enumerate(found)}
        return sum(y_BLD for y_BLD, _ in found), {"branches": stats}

    def cost(self, shape: Shape) -> Cost:
        return total(branch.conv.cost(shape) for branch in self.branches if branch.conv is not None)


class FoldedLayer(Module):
    def __init__(self, conv: Module, dims, rngs):
        self.conv = conv
        self.bias = parameter(ZEROS, "D", dims, rngs)

    def __call__(self, x: jax.Array):
        return self.conv(x).astype(jnp.float32) + self.bias[...]

    def cost(self, shape: Shape) -> Cost:
        return self.conv.cost(shape)


class ConvLayer(Module):
    """One convolution in either form. spec: of its Einsum over single frames; None for one of windows x_BLPD."""

    def __init__(self, form: Form, dims: Dims, rngs: Rngs, spec: str | None = None):
        make = lambda: DepthwiseLayer(dims["P"], dims, rngs) if spec is None else Einsum(spec, dims, rngs)
        folded = isinstance(form, Folded)
        convs = [make() for _ in range(1 if folded else form.convs)]
        if spec is None and dims["P"] > 1:
            convs.append(DepthwiseLayer(1, dims, rngs))
        if spec is None or spec.startswith("BLD"):
            convs.append(None)
        self.folded = FoldedLayer(convs[0], dims, rngs) if folded else None
        self.branched = None if folded else BranchedLayer(form, convs, dims, rngs)

    def __call__(self, x: jax.Array, ctx: Context):
        """(relu of the convolution, in the type of x, new statistics by path)."""
        if self.folded is not None:
            y_BLD, stats = self.folded(x), {}
        else:
            y_BLD, stats = self.branched(x, ctx)
            stats = {"branched": stats}
        return shard(jax.nn.relu(y_BLD).astype(x.dtype), "BLD"), stats

    def cost(self, shape: Shape) -> Cost:
        return (self.folded or self.branched).cost(shape)


@config
class RepBlock(Layer):
    """size: positions of the window, the newest last. depthwise, pointwise: how its two convolutions are held."""

    size: int = 9
    depthwise: Form = Branched()
    pointwise: Form = Branched()

    def check(self):
        if self.size < 1:
            raise ValueError(f"RepBlock.size is {self.size}; a window has 1 or more positions")

    def build(self, dims, rngs):
        return RepBlockLayer(self, {**dims, "P": self.size}, rngs)


class RepBlockLayer(Module):
    letters = {"past": "BPD"}

    def __init__(self, cfg: RepBlock, dims, rngs):
        self.before, self.width = cfg.size - 1, dims["D"]
        self.depthwise = ConvLayer(cfg.depthwise, dims, rngs)
        self.pointwise = ConvLayer(cfg.pointwise, dims, rngs, "BLD,Dd->BLd")

    def __call__(self, x_BLD: jax.Array, ctx: Context):
        return self.run(windows(x_BLD, self.before, 0, ctx.segments_BL), ctx)

    def run(self, x_BLPD, ctx: Context):
        h_BLD, one = self.depthwise(x_BLPD, ctx)
        y_BLD, other = self.pointwise(h_BLD, ctx)
        return y_BLD, {"stats": {"depthwise": one, "pointwise": other}} if ctx.training else {}

    def start(self, batch: int, length: int, ctx: Context):
        """The inputs of the window's older positions."""
        return {"past": jnp.zeros((batch, self.before, self.width), ctx.dtype)}

    def extend(self, x_BLD: jax.Array, state, ctx: Context):
        """Padding on the left of a row is read, and kept, as zeros: what stands before a document."""
        x_BLD = jnp.where((ctx.positions_BL >= 0)[..., None], x_BLD, 0)
        all_BLD = jnp.concatenate([state["past"].astype(x_BLD.dtype), x_BLD], axis=1)
        y_BLD, _ = self.run(windows(all_BLD, self.before, 0)[:, self.before :], ctx)
        return y_BLD, {"past": all_BLD[:, x_BLD.shape[1] :].astype(state["past"].dtype)}

    def cost(self, shape: Shape) -> Cost:
        state = shape.batch * self.before * self.width * shape.itemsize
        return self.depthwise.cost(shape) + self.pointwise.cost(shape) + Cost(state=state)


@config
class RepCNN(Model):
    """features: numbers of a frame, such as log-mel energies. form: of the first convolution, features to width.

    A key-word spotter is Pooled(trunk=RepCNN(), pooling=Mean(), classes=...).
    """

    features: int = 40
    width: int = 64
    form: Form = Branched()
    stack: Stack = repeat(RepBlock(), 6)

    def check(self):
        if self.features < 1 or self.width < 1:
            raise ValueError(f"RepCNN: features {self.features} and width {self.width} are 1 or more")

    vocab = property(lambda self: 0)  # it reads no ids

    def declared(self) -> Declared:
        return self.stack.declared()

    def build(self, rngs):
        return RepCNNModel(self, rngs)


class RepCNNModel(Module):
    def __init__(self, cfg: RepCNN, rngs):
        dims = {"J": cfg.features, "D": cfg.width, "N": cfg.stack.depth}
        self.first = ConvLayer(cfg.form, dims, rngs, "BLJ,JD->BLD")
        self.stack = cfg.stack.build(dims, rngs)

    def __call__(self, features_BLJ: jax.Array, ctx: Context):
        """(hidden_BLD, aux)."""
        x_BLD, first = self.first(features_BLJ.astype(ctx.dtype), ctx)
        y_BLD, aux = self.stack(x_BLD, ctx)
        if not ctx.training:
            return y_BLD, aux
        return y_BLD, {**aux, "stats": {"first": first, "stack": aux["stats"]}}

    def start(self, batch: int, length: int, ctx: Context):
        """The state of a stream; its size does not depend on `length`."""
        return self.stack.start(batch, length, ctx)

    @property
    def letters(self):
        """The letters of every array of the state."""
        return self.stack.letters

    def extend(self, features_BLJ: jax.Array, state, ctx: Context):
        """(hidden_BLD, state) of the next frames, one or many."""
        x_BLD, _ = self.first(features_BLJ.astype(ctx.dtype), ctx)
        return self.stack.extend(x_BLD, state, ctx)

    longest = None  # positions that a row can have: no limit

    def cost(self, shape: Shape) -> Cost:
        return self.first.cost(shape) + self.stack.cost(shape)
