"""A block: one mixer and one feed-forward around a residual stream; how they are wired is a value."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable

import jax

from llmlab.axes import shard
from llmlab.config import config
from llmlab.cost import Cost, Shape, total
from llmlab.ffn.dense import Gated
from llmlab.mixers.attention import Attention
from llmlab.nn.module import List, Module
from llmlab.nn.norm import RMSNorm
from llmlab.nn.parts import Context, Declared, FeedForward, Layer, Mixer, Norm, Part, check_rate, drop

Sublayer = Callable[[jax.Array], jax.Array]
PARTS = {"mixer": 2, "cross": 4, "ffn": 3}  # sublayers in their order, and what tells their dropout apart


class Wiring(Part):
    """build(dims, rngs, norm, count) -> layer(x_BLD, sublayers) -> x_BLD, with the norms of `count` sublayers."""

    def build(self, dims, rngs, norm: Norm, count: int):
        return self.layer(*(List([norm.build(dims, rngs) for _ in range(n)]) for n in self.norms(count)))


@config
class PreNorm(Wiring):
    """x + f(norm(x)) (GPT-2, LLaMA)."""

    def norms(self, count):
        return (count,)

    layer = property(lambda self: PreNormLayer)


@config
class Renormed(Wiring):
    """n + f(n) with n = norm(x): the stream itself is normalised (an option of BLOOM)."""

    def norms(self, count):
        return (count,)

    layer = property(lambda self: RenormedLayer)


@config
class PostNorm(Wiring):
    """norm(x + f(x)) (the original Transformer, BERT)."""

    def norms(self, count):
        return (count,)

    layer = property(lambda self: PostNormLayer)


@config
class Sandwich(Wiring):
    """x + norm(f(norm(x))) (Gemma 2)."""

    def norms(self, count):
        return (count, count)

    layer = property(lambda self: SandwichLayer)


@config
class Parallel(Wiring):
    """x + f(norm(x)) + g(norm(x)), with one norm (GPT-J)."""

    def norms(self, count):
        return (1,)

    layer = property(lambda self: ParallelLayer)


@config
class Bare(Wiring):
    """f(x): no residual and no norm (recurrent networks of before both)."""

    def norms(self, count):
        return ()

    layer = property(lambda self: BareLayer)


class BareLayer(Module):
    def __call__(self, x_BLD, sublayers: list[Sublayer]):
        for sublayer in sublayers:
            x_BLD = shard(sublayer(x_BLD), "BLD")
        return x_BLD


class PreNormLayer(Module):
    def __init__(self, before):
        self.before = before

    def __call__(self, x_BLD, sublayers: list[Sublayer]):
        for norm, sublayer in zip(self.before, sublayers):
            x_BLD = shard(x_BLD + sublayer(norm(x_BLD)), "BLD")
        return x_BLD


class RenormedLayer(Module):
    def __init__(self, before):
        self.before = before

    def __call__(self, x_BLD, sublayers: list[Sublayer]):
        for norm, sublayer in zip(self.before, sublayers):
            n_BLD = norm(x_BLD)
            x_BLD = shard(n_BLD + sublayer(n_BLD), "BLD")
        return x_BLD


class PostNormLayer(Module):
    def __init__(self, after):
        self.after = after

    def __call__(self, x_BLD, sublayers: list[Sublayer]):
        for norm, sublayer in zip(self.after, sublayers):
            x_BLD = shard(norm(x_BLD + sublayer(x_BLD)), "BLD")
        return x_BLD


class SandwichLayer(Module):
    def __init__(self, before, after):
        self.before, self.after = before, after

    def __call__(self, x_BLD, sublayers: list[Sublayer]):
        for before, after, sublayer in zip(self.before, self.after, sublayers):
            x_BLD = shard(x_BLD + after(sublayer(before(x_BLD))), "BLD")
        return x_BLD


class ParallelLayer(Module):
    def __init__(self, before):
        self.before = before

    def __call__(self, x_BLD, sublayers: list[Sublayer]):
        n_BLD = self.before[0](x_BLD)
        return shard(x_BLD + sum(sublayer(n_BLD) for sublayer in sublayers), "BLD")


@config
class Block(Layer):
    """cross: what reads an encoder's memory, after the mixer. ffn: None for a block of the mixer alone.

    dropout: of what each sublayer adds to the stream.
    """

    mixer: Mixer = Attention()
    cross: Mixer | None = None
    ffn: FeedForward | None = Gated()
    norm: Norm = RMSNorm()
    wiring: Wiring = PreNorm()
    dropout: float = 0.0

    def check(self):
        check_rate("Block", self.dropout)

    def declared(self) -> Declared:
        """What holds for all its parts."""
        parts = [part.declared() for part in (self.mixer, self.cross, self.ffn) if part is not None]
        return functools.reduce(operator.and_, parts)

    def build(self, dims, rngs):
        return BlockLayer(self, dims, rngs)


class BlockLayer(Module):
    def __init__(self, cfg: Block, dims, rngs):
        self.cfg = cfg
        self.mixer = cfg.mixer.build(dims, rngs)
        self.cross = cfg.cross and cfg.cross.build(dims, rngs)
        self.ffn = cfg.ffn and cfg.ffn.build(dims, rngs)
        self.wiring = cfg.wiring.build(dims, rngs, cfg.norm, len(self.parts))

    @property
    def parts(self) -> list[str]:
        """The names of its sublayers, in order."""
        return [name for name in PARTS if getattr(self, name) is not None]

    @property
    def mixers(self) -> list[str]:
        """The names of the sublayers that have a decode state."""
        return [name for name in self.parts if name != "ffn"]

    def __call__(self, x_BLD: jax.Array, ctx: Context):
        aux = {}
        return self.wiring(x_BLD, [self.sublayer(name, ctx, aux) for name in self.parts]), aux

    def sublayer(self, name: str, ctx: Context, aux: dict) -> Sublayer:
        """A part as a function of the stream; what it finds goes into `aux`."""

        def apply(n_BLD):
            y_BLD, found = getattr(self, name)(shard(n_BLD, "BLd"), ctx.apart(PARTS[name]))
            _gather(aux, name, found)
            return drop(y_BLD, self.cfg.dropout, ctx, salt=PARTS[name])

        return apply

    def start(self, batch: int, length: int, ctx: Context):
        return {name: getattr(self, name).start(batch, length, ctx) for name in self.mixers}

    @property
    def letters(self):
        return {name: getattr(self, name).letters for name in self.mixers}

    def extend(self, x_BLD: jax.Array, state, ctx: Context):
        new = {}

        def extended(name: str) -> Sublayer:
            def apply(n_BLD):
                y_BLD, new[name] = getattr(self, name).extend(n_BLD, state[name], ctx)
                return y_BLD

            return apply

        parts = [self.sublayer(name, ctx, {}) if name == "ffn" else extended(name) for name in self.parts]
        return self.wiring(x_BLD, parts), new

    def cost(self, shape: Shape) -> Cost:
        return total(getattr(self, name).cost(shape) for name in self.parts)


def _gather(aux: dict, part: str, found: dict) -> None:
    """Adds to `aux` what a part found: scalars of one name are summed, new statistics stand under the part's path."""
    for name, value in found.items():
        if name == "stats":
            aux.setdefault("stats", {})[part] = value
        else:
            aux[name] = aux[name] + value if name in aux else value
