"""A short causal convolution of each channel by itself, as mixers with a state put it before their recurrence.

It is a sum of shifted products: elementwise work, which fuses, and no convolution. Letters of this file: J, the taps.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp

from llmlab import axes
from llmlab.axes import Dims
from llmlab.config import Config, config
from llmlab.cost import Cost, Shape
from llmlab.nn.activation import ACTIVATIONS, Activation
from llmlab.nn.einsum import parameter
from llmlab.nn.init import Init
from llmlab.nn.module import Module, Rngs
from llmlab.nn.parts import Context


@config
class UniformFanIn(Init):
    """Uniform within scale / sqrt(fan-in) of 0: what PyTorch gives linear layers and convolutions."""

    scale: float = 1.0

    def __call__(self, key, shape, fan_in, depth):
        edge = self.scale / math.sqrt(fan_in)
        return jax.random.uniform(key, shape, jnp.float32, -edge, edge)


@config
class ShortConv(Config):
    """y_l = activation(sum over j of taps_j x_{l-j} + bias), within a document. bias: its initial value, or None."""

    width: int = 4
    bias: Init | None = UniformFanIn()
    activation: Activation | None = "silu"
    init: Init = UniformFanIn()

    def check(self):
        if self.width < 1:
            raise ValueError(f"ShortConv.width is {self.width}; a position has at least the tap of itself")

    def build(self, dims: Dims, rngs: Rngs, letters: str = "C") -> ShortConvLayer:
        """A layer for x whose letters are B, L and then `letters`, each element of which is a channel."""
        return ShortConvLayer(self, {**dims, "J": self.width}, rngs, letters)


class ShortConvLayer(Module):
    """layer(x, ctx) -> y; layer.start(batch, ctx) -> past; layer.extend(x, past, ctx) -> (y, past). x: B, L, channels.

    The state `past` holds the inputs of the last width - 1 positions, zeros before a document begins; `letters` are
    its letters.
    """

    def __init__(self, cfg: ShortConv, dims: Dims, rngs: Rngs, letters: str):
        self.cfg = cfg
        self.letters = "BJ" + letters
        self.taps = parameter(cfg.init, "J" + letters, dims, rngs, cfg.width)
        self.bias = None if cfg.bias is None else parameter(cfg.bias, letters, dims, rngs, cfg.width)

    def __call__(self, x: jax.Array, ctx: Context) -> jax.Array:
        shape = (x.shape[0], self.cfg.width - 1, *x.shape[2:])
        return self.run(x, jnp.zeros(shape, x.dtype), ctx.segments_BL)

    def start(self, batch: int, ctx: Context) -> jax.Array:
        return jnp.zeros((batch, self.cfg.width - 1, *self.taps.shape[1:]), ctx.dtype)

    def extend(self, x: jax.Array, past: jax.Array, ctx: Context) -> tuple[jax.Array, jax.Array]:
        """Padding on the left of a row is read, and kept, as zeros: what stands before a document."""
        x = jnp.where(_widen(ctx.positions_BL >= 0, x), x, 0)
        y = self.run(x, past.astype(x.dtype), None)
        return y, jnp.concatenate([past, x.astype(past.dtype)], axis=1)[:, x.shape[1] :]

    def run(self, x, past, segments_BL):
        bias = None if self.bias is None else self.bias[...]
        y = _convolve(self.cfg.activation, x, past, self.taps[...], bias, segments_BL)
        return axes.shard(y, "BL" + self.letters[2:])

    def cost(self, shape: Shape) -> Cost:
        """A multiply-add for each tap and channel; no matrix product."""
        channels = math.prod(self.taps.shape[1:])
        moved = (2 * shape.tokens + self.cfg.width) * channels * shape.itemsize
        state = shape.batch * (self.cfg.width - 1) * channels * shape.itemsize
        return Cost(2.0 * shape.tokens * self.cfg.width * channels, 0.0, moved, state)


@partial(jax.checkpoint, prevent_cse=False, static_argnums=0)  # else every shifted copy of x would be saved
def _convolve(activation, x, past, taps, bias, segments_BL):
    """The convolution in float32; `past` holds what stands before x."""
    width, length = taps.shape[0], x.shape[1]
    padded = jnp.concatenate([past, x], axis=1)
    y = 0.0 if bias is None else bias
    for j in range(width):
        shifted = padded[:, width - 1 - j : width - 1 - j + length].astype(jnp.float32)
        if segments_BL is not None and j:
            before_BL = jnp.pad(segments_BL, ((0, 0), (j, 0)), constant_values=-1)[:, :length]
            shifted = jnp.where(_widen(before_BL == segments_BL, x), shifted, 0)
        y = y + taps[j] * shifted
    return (ACTIVATIONS[activation](y) if activation else y).astype(x.dtype)


def _widen(mask_BL, x):
    """The mask with a dimension of 1 for each dimension of channels."""
    return mask_BL.reshape(*mask_BL.shape, *(1,) * (x.ndim - 2))
