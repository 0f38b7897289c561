"""A block: one mixer and one feed-forward around a residual stream; how they are wired is a value."""

from __future__ import annotations

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


class PreNormLayer(Module):
    def __init__(self, before):
        self.before = before

    def __call__(self, x_BLD, sublayers: list[Sublayer]):
        for norm, sublayer in zip(self.before, sublayers):
            x_BLD = shard(x_BLD + sublayer(norm(x_BLD)), "BLD")
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
    """ffn: None for a block of the mixer alone. dropout: of what each sublayer adds to the stream."""

    mixer: Mixer = Attention()
    ffn: FeedForward | None = Gated()
    norm: Norm = RMSNorm()
    wiring: Wiring = PreNorm()
    dropout: float = 0.0

    def check(self):
        check_rate("Block", self.dropout)

    def declared(self) -> Declared:
        """What holds for the mixer and for the feed-forward."""
        return self.mixer.declared() & (self.ffn.declared() if self.ffn else Declared())

    def build(self, dims, rngs):
        return BlockLayer(self, dims, rngs)


class BlockLayer(Module):
    def __init__(self, cfg: Block, dims, rngs):
        self.cfg = cfg
        self.mixer = cfg.mixer.build(dims, rngs)
        self.ffn = cfg.ffn and cfg.ffn.build(dims, rngs)
        self.wiring = cfg.wiring.build(dims, rngs, cfg.norm, 1 if cfg.ffn is None else 2)

    def __call__(self, x_BLD: jax.Array, ctx: Context):
        aux = {}

        def mix(n_BLD):
            y_BLD, found = self.mixer(n_BLD, ctx)
            _gather(aux, "mixer", found)
            return drop(y_BLD, self.cfg.dropout, ctx, salt=2)

        return self.wiring(x_BLD, [mix, *self.feed(ctx, aux)]), aux

    def start(self, batch: int, length: int, ctx: Context):
        return self.mixer.start(batch, length, ctx)

    @property
    def letters(self):
        return self.mixer.letters

    def extend(self, x_BLD: jax.Array, state, ctx: Context):
        found = {}

        def mix(n_BLD):
            y_BLD, found["state"] = self.mixer.extend(n_BLD, state, ctx)
            return y_BLD

        return self.wiring(x_BLD, [mix, *self.feed(ctx, {})]), found["state"]

    def feed(self, ctx: Context, aux: dict) -> list[Sublayer]:
        """The feed-forward as a sublayer, or nothing; what it finds goes into `aux`."""
        if self.ffn is None:
            return []

        def feed(n_BLD):
            y_BLD, found = self.ffn(n_BLD, ctx)
            _gather(aux, "ffn", found)
            return drop(y_BLD, self.cfg.dropout, ctx, salt=3)

        return [feed]

    def cost(self, shape: Shape) -> Cost:
        return total(part.cost(shape) for part in (self.mixer, self.ffn) if part is not None)


def _gather(aux: dict, part: str, found: dict) -> None:
    """Adds to `aux` what a part found: scalars of one name are summed, new statistics stand under the part's path."""
    for name, value in found.items():
        if name == "stats":
            aux.setdefault("stats", {})[part] = value
        else:
            aux[name] = aux[name] + value if name in aux else value
