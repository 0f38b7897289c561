"""A time loop that is not linear, such as an LSTM's: the gradient of its weights is one product after the loop.

A cell says what one step does; it calls `affine` for its products of state and weight. What those give is saved, so
that the backward loop repeats elementwise work only. Autodiff of a plain scan adds to a gradient of the size of the
weights in every step, and sums it over devices there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from llmlab.axes import shard
from llmlab.kernels.matmul import dot


@dataclasses.dataclass(frozen=True)
class Loop:
    """How to run: cell(carry, inputs, marks, shared, affine) -> (carry, y), from the last step to the first if so.

    affine(group, left_Bc) is the stream of that group at this step plus left @ weights[group], in float32.
    """

    cell: Callable
    reverse: bool = False
    unroll: int = 1


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def recur(loop: Loop, carry, weights, streams, inputs, marks, shared=()):
    """(carry after all steps, y of each step), differentiable in all but `marks`.

    carry: arrays in float32. weights: a tuple, one (c, ...) for each group. streams: likewise (L, B, ...), what is
    added to each product, or None. inputs, marks: trees of arrays that begin with L. shared: what every step sees.
    """
    return _scan(loop, carry, (weights, streams, inputs, marks, shared), save=False)


def _scan(loop: Loop, carry, operands, save: bool):
    weights, streams, inputs, marks, shared = operands

    def step(carry, now):
        streams, inputs, marks = now
        products = [None] * len(weights)

        def affine(group, left):
            product, stream = _product(left, weights[group]), streams[group]
            products[group] = product if stream is None else stream.astype(jnp.float32) + product
            return products[group]

        after, y = loop.cell(carry, inputs, marks, shared, affine)
        return after, (y, carry, products) if save else y

    return jax.lax.scan(step, carry, (streams, inputs, marks), reverse=loop.reverse, unroll=loop.unroll)


def _forward(loop, carry, *operands):
    carry, (y, before, products) = _scan(loop, carry, operands, save=True)
    weights, streams, inputs, marks, shared = operands
    like = tuple(None if stream is None else jnp.zeros((), stream.dtype) for stream in streams)
    return (carry, y), (before, products, weights, inputs, marks, shared, like)


def _backward(loop: Loop, saved, cotangents):
    before, products, weights, inputs, marks, shared, like = saved
    dafter, dy = cotangents

    def step(carry, now):
        dafter, dshared = carry
        before, products, inputs, marks, dy = now

        def cell(before, products, inputs, shared):
            lefts = [None] * len(weights)

            def affine(group, left):
                lefts[group] = left.astype(weights[group].dtype)
                return _known(left, weights[group], products[group])

            return loop.cell(before, inputs, marks, shared, affine), lefts

        _, pull, lefts = jax.vjp(cell, before, products, inputs, shared, has_aux=True)
        dbefore, dproducts, dinputs, more = pull((dafter, dy))
        dproducts = [d.astype(w.dtype if a is None else a.dtype) for d, w, a in zip(dproducts, weights, like)]
        return (dbefore, jax.tree.map(jnp.add, dshared, more)), (dproducts, dinputs, lefts)

    (dbefore, dshared), (dproducts, dinputs, lefts) = jax.lax.scan(
        step,
        (dafter, jax.tree.map(lambda a: jnp.zeros(a.shape, jnp.float32), shared)),
        (before, products, inputs, marks, dy),
        reverse=not loop.reverse,
        unroll=loop.unroll,
    )
    over_steps = lambda left, d: jax.lax.dot_general(
        left, d.astype(left.dtype), (((0, 1), (0, 1)), ((), ())), preferred_element_type=jnp.float32
    )
    dweights = tuple(over_steps(left, d).astype(w.dtype) for left, d, w in zip(lefts, dproducts, weights))
    dstreams = tuple(None if a is None else d for d, a in zip(dproducts, like))
    dshared = jax.tree.map(lambda d, a: d.astype(a.dtype), dshared, shared)
    return dbefore, dweights, dstreams, dinputs, None, dshared


recur.defvjp(_forward, _backward)


def _product(left, w):
    """left_Bc @ w, in the type of the weight, summed in float32. The whole of `left` goes to each part of w."""
    return dot(shard(left, "Bc").astype(w.dtype), w, 1, 0)


@jax.custom_vjp
def _known(left, w, product):
    """A product that is known already, with the gradients of one that is computed here, but for that of w."""
    return product


def _known_backward(saved, dproduct):
    left, w = saved
    over = tuple(range(1, dproduct.ndim))
    dleft = jax.lax.dot_general(
        dproduct.astype(w.dtype), w, ((over, over), ((), ())), preferred_element_type=jnp.float32
    )
    return shard(dleft, "Bc").astype(left.dtype), None, dproduct


_known.defvjp(lambda left, w, product: (product, (left, w)), _known_backward)
