"""The product of activations and a weight, and sums over rows.

On CPU the product is made 2-D, its gradients too: left to itself, XLA's CPU backend computes the gradient of a weight
from transposed copies (measured in benchmarks/README.md). Elsewhere XLA's own layout is the better one.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from llmlab import axes

FEW = 4  # rows: in bfloat16 XLA's CPU backend multiplies one at a fifth of the speed of four


def einsum(spec: str, x: jax.Array, w: jax.Array) -> jax.Array:
    """einsum of an activation and a weight, accumulated in float32, in the activation's dtype."""
    left, right, out = spec.replace("->", ",").split(",")
    inner = "".join(letter for letter in left if letter in right and letter not in out)
    rows, columns = left.removesuffix(inner), right.replace(inner, "")
    plain = left == rows + inner and right in (inner + columns, columns + inner) and out == rows + columns
    if not (plain and inner and columns and flattens()):
        return batched(spec, x, w).astype(x.dtype) if axes.platform() == "cpu" else jnp.einsum(spec, x, w)
    sizes, rows_of_x = dict(zip(right, w.shape)), x.shape[: len(rows)]
    x = x.reshape(-1, math.prod(sizes[letter] for letter in inner))
    if right.startswith(inner):
        y = checkpoint_name(_product(x, w.reshape(x.shape[1], -1)), "products")
    else:
        y = dot(x, w.reshape(-1, x.shape[1]), 1, 1).astype(x.dtype)
    return y.reshape(*rows_of_x, *(sizes[letter] for letter in columns))


def flattens() -> bool:
    """Whether leading dimensions may be merged: on CPU, unless L is sharded as well as B."""
    found = axes.scope()
    return axes.platform() == "cpu" and not (found and dict(found[0].shape).get("sequence", 1) > 1)


@jax.custom_vjp
def _product(x, w):
    """x (rows, inner) times w (inner, columns)."""
    return dot(x, w, 1, 0).astype(x.dtype)


def _forward(x, w):
    return _product(x, w), (x, w)


def _backward(saved, dy):
    x, w = saved
    return dot(dy, w, 1, 1).astype(x.dtype), dot(x, dy, 0, 0).astype(w.dtype)


_product.defvjp(_forward, _backward)


def dot(a, b, axis_a: int, axis_b: int):
    """a (2-D) times b over one axis each, summed in float32 (which also is what reaches a CPU's bf16 matrix unit)."""
    rows, half, over = a.shape[0], a.dtype == jnp.bfloat16 and axes.platform() == "cpu", ((axis_a,), (axis_b,))
    if half and axis_a == axis_b == 0:  # so that unit is reached for gradients of weights too, as of jax 0.12
        a, b, over = a[None], b[None], ((0, 1), (0, 1))
    elif half and axis_a == 1 and rows < FEW:
        a = jnp.pad(a, ((0, FEW - rows), (0, 0)))
    y = jax.lax.dot_general(a, b, (over, ((), ())), preferred_element_type=jnp.float32)
    return y if axis_a == 0 else y[:rows]


def scores(x_BLD: jax.Array, w_VD: jax.Array) -> jax.Array:
    """x times each row of a table, BLV in float32."""
    w_VD = w_VD.astype(x_BLD.dtype)
    if not flattens():
        return jnp.einsum("BLD,VD->BLV", x_BLD, w_VD, preferred_element_type=jnp.float32)
    return dot(x_BLD.reshape(-1, x_BLD.shape[2]), w_VD, 1, 1).reshape(*x_BLD.shape[:2], -1)


def batched(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """An einsum, summed in float32; on CPU of operands in float32, as XLA lacks some products of bfloat16 there."""
    if axes.platform() == "cpu":
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


def add_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
    """y + bias over the trailing dimensions; the gradient of the bias is `sum_rows`."""
    bias = bias.astype(y.dtype)
    return _add_bias(y, bias) if flattens() else y + bias


@jax.custom_vjp
def _add_bias(y, bias):
    return y + bias


def _add_bias_backward(bias, dy):
    return dy, sum_rows(dy.reshape(-1, bias.size)).reshape(bias.shape).astype(bias.dtype)


_add_bias.defvjp(lambda y, bias: (y + bias, bias), _add_bias_backward)


def sum_rows(a: jax.Array) -> jax.Array:
    """The sum over all dimensions but the last, in float32; on CPU a product with ones, several times faster."""
    if not flattens():
        return a.astype(jnp.float32).sum(tuple(range(a.ndim - 1)))
    rows = a.reshape(-1, a.shape[-1])
    return dot(jnp.ones((1, rows.shape[0]), a.dtype), rows, 1, 0)[0]
