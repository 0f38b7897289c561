"""Normalisation over the last dimension, computed in float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from llmlab.config import config
from llmlab.kernels.norm import layer_norm, rms_norm
from llmlab.nn.einsum import ZEROS
from llmlab.nn.init import Init
from llmlab.nn.module import Module, Param
from llmlab.nn.parts import Norm


@config
class RMSNorm(Norm):
    """x / rms(x) * (offset + scale) (Zhang & Sennrich, 2019). Gemma: offset 1 and a scale that starts at 0."""

    eps: float = 1e-6
    offset: float = 0.0

    def build(self, dims, rngs, letter="D"):
        return RMSNormLayer(self, dims[letter], letter)


class RMSNormLayer(Module):
    def __init__(self, cfg: RMSNorm, size: int, letter: str):
        self.cfg = cfg
        self.scale = Param(jnp.full(size, 1.0 - cfg.offset), axes=letter)

    def __call__(self, x: jax.Array) -> jax.Array:
        return rms_norm(x, self.cfg.offset + self.scale[...], self.cfg.eps)


@config
class LayerNorm(Norm):
    """(x - mean) / deviation * scale + bias (Ba et al., 2016); bias: its initial value, or None for none."""

    eps: float = 1e-5
    bias: Init | None = ZEROS

    def build(self, dims, rngs, letter="D"):
        return LayerNormLayer(self, dims[letter], letter, rngs)


class LayerNormLayer(Module):
    def __init__(self, cfg: LayerNorm, size: int, letter: str, rngs):
        self.cfg = cfg
        self.scale = Param(jnp.ones(size), axes=letter)
        self.bias = None if cfg.bias is None else Param(cfg.bias(rngs.params(), (size,), size, 1), axes=letter)

    def __call__(self, x: jax.Array) -> jax.Array:
        return layer_norm(x, self.scale[...], None if self.bias is None else self.bias[...], self.cfg.eps)
