"""Norms that save their input and one or two numbers a row for the backward pass, and nothing of the size of x."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from llmlab.kernels.matmul import sum_rows


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """x / rms(x) * scale over the last dimension, in float32; the result has the type of x."""
    return _rms_forward(x, scale, eps)[0]


def _rms_forward(x, scale, eps):
    x32 = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt((x32 * x32).mean(-1, keepdims=True) + eps)
    return (x32 * inverse * scale).astype(x.dtype), (x, inverse, scale)


def _rms_backward(eps, saved, dy):
    x, inverse, scale = saved
    dy, unit = dy.astype(jnp.float32), x.astype(jnp.float32) * inverse
    dunit = dy * scale
    dx = inverse * (dunit - unit * (dunit * unit).mean(-1, keepdims=True))
    return dx.astype(x.dtype), sum_rows(dy * unit)


rms_norm.defvjp(_rms_forward, _rms_backward)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array | None, eps: float) -> jax.Array:
    """(x - mean) / deviation * scale + bias over the last dimension, in float32; the result has the type of x."""
    return _layer_forward(x, scale, bias, eps)[0]


def _layer_forward(x, scale, bias, eps):
    x32 = x.astype(jnp.float32)
    mean = x32.mean(-1, keepdims=True)
    centred = x32 - mean
    inverse = jax.lax.rsqrt((centred * centred).mean(-1, keepdims=True) + eps)
    y = centred * inverse * scale
    return (y if bias is None else y + bias).astype(x.dtype), (x, mean, inverse, scale, bias)


def _layer_backward(eps, saved, dy):
    x, mean, inverse, scale, bias = saved
    dy, unit = dy.astype(jnp.float32), (x.astype(jnp.float32) - mean) * inverse
    dunit = dy * scale
    dx = inverse * (dunit - dunit.mean(-1, keepdims=True) - unit * (dunit * unit).mean(-1, keepdims=True))
    return dx.astype(x.dtype), sum_rows(dy * unit), None if bias is None else sum_rows(dy)


layer_norm.defvjp(_layer_forward, _layer_backward)
