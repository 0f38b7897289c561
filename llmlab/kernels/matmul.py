"""The product of activations and a weight."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from llmlab import axes


def einsum(spec: str, x: jax.Array, w: jax.Array) -> jax.Array:
    """einsum of an activation and a weight, accumulated in float32, in the activation's dtype."""
    accumulate = jnp.float32 if axes.platform() == "cpu" else None
    return jnp.einsum(spec, x, w, preferred_element_type=accumulate).astype(x.dtype)
