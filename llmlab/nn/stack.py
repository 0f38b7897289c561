"""Depth: patterns of layers, repeated, stacked along N and run with one scan, so that compile time does not grow.

A stack is a tuple of segments, each a pattern of layers repeated; 26 layers of period 6 are four repeats and a tail.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from llmlab.config import Config, config
from llmlab.cost import Cost, Shape, total
from llmlab.nn.bias import PositionBias
from llmlab.nn.module import List, Module, Rngs, leading
from llmlab.nn.parts import Context, Declared, Layer

POLICIES = {
    "none": None,  # save everything that the backward pass reads
    "full": jax.checkpoint_policies.nothing_saveable,  # save each layer's input, recompute the rest
    "dots": jax.checkpoint_policies.save_from_both_policies(  # save what products with weights give
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names("products"),  # those of kernels/matmul.py, which it cannot see
    ),
    "projections": jax.checkpoint_policies.save_only_these_names("projections"),  # save what a mixer reads (q, k, v)
    "mixed": jax.checkpoint_policies.save_only_these_names("projections", "mixed"),  # and what it gives
}
Remat = Literal["none", "full", "dots", "projections", "mixed"]


@config
class Segment(Config):
    """A pattern of layers, repeated."""

    pattern: tuple[Layer, ...]
    repeats: int = 1

    def check(self):
        if not self.pattern or self.repeats < 1:
            raise ValueError(f"Segment: a pattern of {len(self.pattern)} layers x {self.repeats} holds no layer")

    @property
    def depth(self) -> int:
        return len(self.pattern) * self.repeats


@config
class Stack(Config):
    """remat: what the backward pass recomputes. unroll: repeats in one turn of the scan; 0 for a Python loop.

    bias: a position bias that all layers share.
    """

    segments: tuple[Segment, ...]
    bias: PositionBias | None = None
    remat: Remat = "none"
    unroll: int = 1

    @property
    def depth(self) -> int:
        return sum(segment.depth for segment in self.segments)

    def build(self, dims, rngs):
        return StackLayers(self, {**dims, "N": self.depth}, rngs)

    def declared(self) -> Declared:
        """What holds for every layer holds for the stack."""
        parts = [layer.declared() for segment in self.segments for layer in segment.pattern]
        return functools.reduce(operator.and_, parts, Declared())


def repeat(layer: Layer, times: int, remat: Remat = "none") -> Stack:
    """A stack of one kind of layer."""
    return Stack(segments=(Segment(pattern=(layer,), repeats=times),), remat=remat)


def arrange(layers: Sequence[Layer], **options) -> Stack:
    """A stack of these layers, as repeats of their shortest pattern and what is left of it; options: of the stack."""
    layers, count = tuple(layers), len(layers)
    period = next(n for n in range(1, count + 1) if all(layers[i] == layers[i % n] for i in range(count)))
    times, rest = divmod(count, period)
    tail = (Segment(pattern=layers[:rest]),) if rest else ()
    return Stack(segments=(Segment(pattern=layers[:period], repeats=times), *tail), **options)


class StackLayers(Module):
    def __init__(self, cfg: Stack, dims, rngs):
        self.cfg = cfg
        self.segments = List([_build(segment, dims, rngs) for segment in cfg.segments])
        self.bias = cfg.bias and cfg.bias.build(dims, rngs)

    def __call__(self, x_BLD: jax.Array, ctx: Context):
        """(y_BLD, aux): scalars, each the mean of the layers that give it; under "stats" new statistics by path."""
        ctx, scalars, counts, stats = self.share(ctx), {}, {}, {}
        for number, (segment, first) in enumerate(self.parts()):
            given = {}  # the names of the scalars of each place of the pattern, noted when `turn` is traced

            def turn(x_BLD, layers, index, segment=segment, first=first, given=given):
                found, statistics = {}, {}
                for place, layer in enumerate(layers):
                    x_BLD, aux = layer(x_BLD, ctx.at(first + index * len(segment.pattern) + place))
                    new = aux.pop("stats", None)
                    if new:
                        statistics[str(place)] = new
                    found = _add(found, aux)
                    given[place] = tuple(aux)
                return x_BLD, (found, statistics)

            x_BLD, (found, new) = self.run(turn, x_BLD, self.segments[number], segment.repeats)
            scalars = _add(scalars, {name: values_N.sum(0) for name, values_N in found.items()})
            for name in (name for names in given.values() for name in names):
                counts[name] = counts.get(name, 0) + segment.repeats
            if new:
                stats[str(number)] = new
        means = {name: value / counts[name] for name, value in scalars.items()}
        return x_BLD, means | ({"stats": {"segments": stats}} if stats else {})

    def run(self, turn, x_BLD, layers, repeats: int):
        """Scans `turn` over the stacked layers under the remat policy."""
        policy = POLICIES[self.cfg.remat]
        if self.cfg.remat != "none":
            turn = jax.checkpoint(turn, policy=policy)
        if self.cfg.unroll == 0:
            outputs = []
            for index in range(repeats):
                x_BLD, out = turn(x_BLD, jax.tree.map(lambda a, i=index: a[i], layers), jnp.asarray(index))
                outputs.append(out)
            return x_BLD, jax.tree.map(lambda *a: jnp.stack(a), *outputs)
        body = lambda x_BLD, inputs: turn(x_BLD, *inputs)
        return jax.lax.scan(body, x_BLD, (layers, jnp.arange(repeats)), unroll=self.cfg.unroll)

    def trace(self, x_BLD: jax.Array, ctx: Context) -> list[jax.Array]:
        """The stream before the first layer and after each: what probes and comparisons read."""
        ctx, found = self.share(ctx), [x_BLD]
        for (segment, first), layers in zip(self.parts(), self.segments):
            for index in range(segment.repeats):
                for place, layer in enumerate(jax.tree.map(lambda a, i=index: a[i], layers)):
                    number = first + index * len(segment.pattern) + place
                    found.append(layer(found[-1], ctx.at(jnp.asarray(number)))[0])
        return found

    def start(self, batch: int, length: int, ctx: Context):
        """The decode state of all layers, stacked like them where a segment is repeated."""
        ctx, found = self.share(ctx), []
        begin = lambda layers: [layer.start(batch, length, ctx) for layer in layers]
        for (segment, _), layers in zip(self.parts(), self.segments):
            once = segment.repeats == 1
            found.append(begin(_first(layers)) if once else jax.vmap(begin, axis_size=segment.repeats)(layers))
        return found

    @property
    def letters(self):
        """The letters of every array of the decode state."""
        stacked = lambda segment: "N" if segment.repeats > 1 else ""
        return [
            [jax.tree.map(lambda axes, first=stacked(segment): first + axes, layer.letters) for layer in layers]
            for (segment, _), layers in zip(self.parts(), self.segments)
        ]

    def extend(self, x_BLD: jax.Array, states, ctx: Context):
        """Runs a chunk of positions on the state of those before: (y_BLD, new states)."""
        ctx, new_states = self.share(ctx), []
        for (segment, first), layers, state in zip(self.parts(), self.segments, states):

            def turn(x_BLD, inputs, segment=segment, first=first):
                layers, states, index = inputs
                new = []
                for place, (layer, state) in enumerate(zip(layers, states)):
                    x_BLD, state = layer.extend(x_BLD, state, ctx.at(first + index * len(segment.pattern) + place))
                    new.append(state)
                return x_BLD, new

            if segment.repeats == 1:  # the state is written in place
                x_BLD, state = turn(x_BLD, (_first(layers), state, jnp.zeros((), jnp.int32)))
            else:
                x_BLD, state = jax.lax.scan(turn, x_BLD, (layers, state, jnp.arange(segment.repeats)))
            new_states.append(state)
        return x_BLD, new_states

    def unroll(self) -> None:
        """Makes each layer one of a long pattern that stands once, with its own arrays: on CPU, where a scan copies a
        layer's weights and state in every turn. The arrays are views of the stacked ones, and take no memory."""
        view = lambda a, i: jax.device_put(np.asarray(a)[i : i + 1], a.sharding)
        for number, (segment, layers) in enumerate(zip(self.cfg.segments, self.segments)):
            cut = [jax.tree.map(lambda a, i=i: view(a, i), layers) for i in range(segment.repeats)]
            self.segments[number] = List([layer for pattern in cut for layer in pattern])
        once = tuple(Segment(pattern=segment.pattern * segment.repeats) for segment in self.cfg.segments)
        self.cfg = dataclasses.replace(self.cfg, segments=once)

    def share(self, ctx: Context) -> Context:
        """The context with what the layers of this stack share."""
        return dataclasses.replace(ctx, bias=self.bias)

    def parts(self) -> list[tuple[Segment, int]]:
        """Each segment and the index of its first layer."""
        found, first = [], 0
        for segment in self.cfg.segments:
            found.append((segment, first))
            first += segment.depth
        return found

    def cost(self, shape: Shape) -> Cost:
        found = []
        for (segment, _), layers in zip(self.parts(), self.segments):
            one = jax.eval_shape(_first, layers)
            found.append(total(layer.cost(shape) for layer in one) * segment.repeats)
        return total(found)


def _build(segment: Segment, dims, rngs: Rngs):
    """The layers of a pattern, every parameter with a leading N axis."""
    make = lambda key: _pattern(segment, dims, Rngs(params=key))
    return leading(jax.vmap(make)(jax.random.split(rngs.params(), segment.repeats)))


def _pattern(segment: Segment, dims, rngs: Rngs):
    return List([layer.build(dims, rngs) for layer in segment.pattern])


def _first(layers):
    """The first of stacked layers."""
    return jax.tree.map(lambda a: a[0], layers)


def _add(a: dict, b: dict) -> dict:
    return {**a, **{name: a[name] + value if name in a else value for name, value in b.items()}}
