"""Activations by name, which save nothing but their inputs for the backward pass."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

Activation = Literal["gelu", "gelu_tanh", "relu", "relu2", "silu", "tanh"]
ACTIVATIONS = {
    "gelu": partial(jax.nn.gelu, approximate=False),  # with the error function
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),  # So et al., 2021
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
}


@partial(jax.checkpoint, prevent_cse=False, static_argnums=0)
def activate(name: str, *factors_BLF: jax.Array) -> jax.Array:
    """The activation of the first factor, times the others; computed in float32, in the type of the first.

    Only the factors are saved for the backward pass.
    """
    first, *others = (factor_BLF.astype(jnp.float32) for factor_BLF in factors_BLF)
    return math.prod(others, start=ACTIVATIONS[name](first)).astype(factors_BLF[0].dtype)
