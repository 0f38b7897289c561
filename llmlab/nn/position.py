"""Positions: added to the stream (learned, sinusoidal) or turned into queries and keys (rotary).

Letters of this file: J, half of the last dimension.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from llmlab.axes import shard
from llmlab.config import config
from llmlab.nn.init import Init, Normal
from llmlab.nn.module import Module, Param
from llmlab.nn.parts import Position
from llmlab.nn.rotary import Scaling, frequencies


@config
class Learned(Position):
    """A trained vector for each position (GPT, BERT). `length` is the longest position it knows.

    offset: rows of the table before that of position 0, which no position has (2 in BART).
    """

    length: int = 1024
    offset: int = 0
    init: Init = Normal()

    def build(self, dims, rngs):
        return LearnedLayer(self, dims, rngs)


class LearnedLayer(Module):
    def __init__(self, cfg: Learned, dims, rngs):
        self.cfg = cfg
        shape = (cfg.offset + cfg.length, dims["D"])
        self.table = Param(cfg.init(rngs.params(), shape, dims["D"], 1), axes="lD")

    @property
    def longest(self) -> int:
        """The most positions that a row can have."""
        return self.cfg.length

    def __call__(self, x_BLD, positions_BL):
        length = self.longest
        if x_BLD.shape[1] > length:
            raise ValueError(
                f"{x_BLD.shape[1]} positions, but Learned(length={length}) has {length}; raise its `length`"
            )
        table_LD = shard(self.table[...].astype(x_BLD.dtype), "ld")  # whole, as the embedding's table is
        return x_BLD + shard(table_LD[self.cfg.offset + jnp.clip(positions_BL, 0, length - 1)], "BLD")


@config
class Sinusoidal(Position):
    """Fixed waves (Vaswani et al., 2017, section 3.5): sine and cosine interleaved as in the paper, or in halves."""

    longest: float = 10_000.0
    layout: Literal["interleaved", "halves"] = "interleaved"

    def build(self, dims, rngs):
        return SinusoidalLayer(self)


class SinusoidalLayer(Module):
    def __init__(self, cfg: Sinusoidal):
        self.cfg = cfg

    def __call__(self, x_BLD, positions_BL):
        width = x_BLD.shape[-1]
        if width % 2:
            raise ValueError(f"Sinusoidal needs an even width, not {width}")
        angles_BLJ = _angles(positions_BL, frequencies(width, self.cfg.longest))
        waves = (jnp.sin(angles_BLJ), jnp.cos(angles_BLJ))
        if self.cfg.layout == "interleaved":
            waves_BLD = jnp.stack(waves, axis=-1).reshape(*positions_BL.shape, width)
        else:
            waves_BLD = jnp.concatenate(waves, axis=-1)
        return x_BLD + waves_BLD.astype(x_BLD.dtype)


@config
class Rotary(Position):
    """Queries and keys turned by angles that grow with position (Su et al., 2021), in the half-rotation layout.

    theta: base of the wavelengths. fraction: the share of each head that is turned, counted from its start.
    scaling: how the waves are stretched (llmlab/nn/rotary.py), None for not.
    """

    theta: float = 10_000.0
    fraction: float = 1.0
    scaling: Scaling | None = None

    def check(self):
        if not 0 < self.fraction <= 1:
            raise ValueError(f"Rotary.fraction is {self.fraction}; it is a share of a head, above 0 and at most 1")

    def build(self, dims, rngs):
        return RotaryLayer(self)


class RotaryLayer(Module):
    def __init__(self, cfg: Rotary):
        self.cfg = cfg

    def __call__(self, x_BLHK: jax.Array, positions_BL: jax.Array) -> jax.Array:
        turned = int(x_BLHK.shape[-1] * self.cfg.fraction)
        if turned % 2:
            raise ValueError(f"Rotary turns pairs; fraction {self.cfg.fraction} of {x_BLHK.shape[-1]} is odd")
        waves, factor = frequencies(turned, self.cfg.theta), 1.0
        if self.cfg.scaling is not None:
            waves, factor = self.cfg.scaling.waves(turned, self.cfg.theta, positions_BL.max(1) + 1)
        angles_BLJ = _angles(positions_BL, waves)
        cos, sin = factor * jnp.cos(angles_BLJ)[:, :, None], factor * jnp.sin(angles_BLJ)[:, :, None]
        first, second, rest = jnp.split(x_BLHK, (turned // 2, turned), axis=-1)
        first, second = first * cos - second * sin, second * cos + first * sin
        return jnp.concatenate([first.astype(x_BLHK.dtype), second.astype(x_BLHK.dtype), rest], axis=-1)


def _angles(positions_BL, waves):
    """positions_BL times waves of shape J or BJ, in float32."""
    waves_B1J = jnp.atleast_2d(jnp.asarray(waves, jnp.float32))[:, None]
    return positions_BL[..., None].astype(jnp.float32) * waves_B1J
