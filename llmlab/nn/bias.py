"""Position biases: numbers added to the scores of attention, by the distance of a query and a key.

A stack owns one and shares it over its layers through the context; each layer asks for it tile by tile, so that no
H x L x M array exists for a whole row. Letters of this file: W, buckets of distances;
J, distances.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from llmlab.config import config
from llmlab.nn.einsum import parameter
from llmlab.nn.init import Init
from llmlab.nn.module import Module
from llmlab.nn.parts import Part


class PositionBias(Part):
    """layer(order_BL, order_BM) -> bias_BHLM in float32; B is 1 where the orders are those of all rows."""


@config
class PerWidth(Init):
    """N(0, 1 / model width): of T5's table, whose fan-in is none of its own dimensions."""

    def __call__(self, key, shape, fan_in, depth):
        return jax.random.normal(key, shape, jnp.float32) / math.sqrt(fan_in)


@config
class Alibi(PositionBias):
    """A penalty that grows with distance, with a fixed slope for each head (Press et al., 2021, as in BLOOM).

    It is the same in both directions; what is seen of them, the mask says.
    """

    heads: int = 8

    def check(self):
        check_heads(self)

    def build(self, dims, rngs):
        return AlibiLayer(self)

    def slopes(self) -> np.ndarray:
        """2^(-8 i / n) for the next lower power of two n; further heads take the odd powers of the base of 2 n."""
        whole = 1 << (self.heads.bit_length() - 1)
        first = 2.0 ** (-8 * np.arange(1, whole + 1) / whole)
        rest = 2.0 ** (-4 * np.arange(1, 2 * (self.heads - whole), 2) / whole)
        return np.concatenate([first, rest])


class AlibiLayer(Module):
    def __init__(self, cfg: Alibi):
        self.cfg = cfg

    def __call__(self, order_BL: jax.Array, order_BM: jax.Array) -> jax.Array:
        distance_BLM = jnp.abs(order_BL[:, :, None] - order_BM[:, None]).astype(jnp.float32)
        slopes_H11 = jnp.asarray(self.cfg.slopes(), jnp.float32)[:, None, None]
        return -slopes_H11 * distance_BLM[:, None]


@config
class Relative(PositionBias):
    """A trained number for each head and bucket of distances (Raffel et al., 2020).

    Half of the buckets are one distance each, the others grow in steps of one logarithm up to `distance`, and the last
    holds all beyond. bidirectional: later keys have buckets of their own, half of all; else they have that of distance
    0 (a decoder, which does not see them).
    """

    heads: int = 8
    buckets: int = 32
    distance: int = 128
    bidirectional: bool = False
    init: Init = PerWidth()

    def check(self):
        check_heads(self)
        exact = self.side // 2
        if exact < 1 or self.distance <= exact:
            raise ValueError(
                f"Relative.buckets is {self.buckets} and distance {self.distance}; buckets are "
                f"{4 if self.bidirectional else 2} or more, and the distance is beyond the {exact} that have their own"
            )

    @property
    def side(self) -> int:
        """Buckets of one direction."""
        return self.buckets // 2 if self.bidirectional else self.buckets

    def bucket_of(self) -> np.ndarray:
        """The bucket of each distance from 0 to `distance`; what is further has that of the last.

        Rounded step by step as in float32, so that a distance on the edge of a bucket falls where T5's code puts it.
        """
        exact, distance_J = self.side // 2, np.arange(self.distance + 1)
        ratio_J = (np.maximum(distance_J, exact) / np.float32(exact)).astype(np.float32)
        steps_J = np.log(ratio_J.astype(float)).astype(np.float32) / np.float32(math.log(self.distance / exact))
        far_J = exact + (steps_J * np.float32(self.side - exact)).astype(int)
        return np.where(distance_J < exact, distance_J, np.minimum(far_J, self.side - 1))

    def build(self, dims, rngs):
        return RelativeLayer(self, dims, rngs)


class RelativeLayer(Module):
    def __init__(self, cfg: Relative, dims, rngs):
        self.cfg = cfg
        self.table = parameter(cfg.init, "WH", {**dims, "W": cfg.buckets, "H": cfg.heads}, rngs, fan_in=dims["D"])

    def __call__(self, order_BL: jax.Array, order_BM: jax.Array) -> jax.Array:
        ahead_BLM = order_BM[:, None] - order_BL[:, :, None]  # above 0 for keys that come later
        back_BLM = jnp.abs(ahead_BLM) if self.cfg.bidirectional else jnp.maximum(-ahead_BLM, 0)
        bucket_BLM = jnp.asarray(self.cfg.bucket_of())[jnp.minimum(back_BLM, self.cfg.distance)]
        if self.cfg.bidirectional:
            bucket_BLM += self.cfg.side * (ahead_BLM > 0)
        table_HW = self.table[...].astype(jnp.float32).T
        return jnp.moveaxis(table_HW[:, bucket_BLM], 0, 1)


def check_heads(bias: PositionBias) -> None:
    """Raises ValueError unless a bias has a head."""
    if bias.heads < 1:
        raise ValueError(f"{type(bias).__name__}.heads is {bias.heads}; it is that of the attention, 1 or more")
