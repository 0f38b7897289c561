"""Every matmul of a model: an einsum whose weight is read from the equation's letters.

>>> from llmlab.nn.module import Rngs
>>> layer = Einsum("BLD,DHK->BLHK", {"D": 8, "H": 2, "K": 4}, Rngs(params=0))
>>> layer.w.shape, layer.w.get_metadata()["axes"], layer.w.get_metadata()["inputs"]
((8, 2, 4), 'DHK', 'D')
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from llmlab import axes
from llmlab.axes import Dims
from llmlab.cost import Cost, Shape
from llmlab.kernels.matmul import add_bias, einsum
from llmlab.nn.init import FanIn, Fill, Init
from llmlab.nn.module import Module, Param, Rngs

ZEROS = Fill(value=0.0)


def parameter(init: Init, letters: str, dims: Dims, rngs: Rngs, fan_in: int = 1) -> Param:
    """A parameter that is no matrix, such as a bias: its shape is read from its letters."""
    return Param(init(rngs.params(), axes.shape(letters, dims), fan_in, dims.get("N", 1)), axes=letters)


class Einsum(Module):
    """y = einsum(spec, x, w) (+ bias). Shape, axes and fan-in of w come from the letters.

    spec: "x,w->y", such as "BLD,DHK->BLHK". bias: its initial value, or None for none; its letters are those of y
    that come from w. Raises ValueError when an operand repeats a letter.
    """

    turned: Param | None = None

    def __init__(self, spec: str, dims: Dims, rngs: Rngs, init: Init = FanIn(), bias: Init | None = None):
        x, w, y = spec.replace("->", ",").split(",")
        for operand in (x, w, y):
            if len(set(operand)) < len(operand):
                raise ValueError(f"{operand!r} in {spec!r} repeats a letter; write the second one in lower case")
        shape = axes.shape(w, dims)
        inputs = "".join(letter for letter in w if letter in x and letter not in y)
        depth, fan_in = dims.get("N", 1), axes.size(inputs, dims)
        self.spec = spec
        self.w = Param(init(rngs.params(), shape, fan_in, depth), axes=w, inputs=inputs)
        letters = "".join(letter for letter in y if letter in w)
        self.bias = None if bias is None else parameter(bias, letters, dims, rngs, fan_in)

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.turned is not None and self.turned.dtype == x.dtype:
            y = einsum(self.turned_spec, x, self.turned[...])
        else:
            letters = self.spec.replace("->", ",").split(",")[1]
            # Gathered for this product, and its gradient summed before it is cut: else XLA reshards the activations.
            y = einsum(self.spec, x, axes.shard(self.w[...].astype(x.dtype), letters))
        return y if self.bias is None else add_bias(y, self.bias[...])

    def turn(self, dtype: str) -> None:
        """Holds the weight once more, in `dtype` and with what is summed last, for activations of that dtype.

        A CPU so reads the weight from one end to the other for few rows.
        """
        x, w, y = self.spec.replace("->", ",").split(",")
        inputs = self.w.get_metadata()["inputs"]
        if inputs and x.endswith(inputs) and w.startswith(inputs):
            last = tuple(range(-len(w), len(inputs) - len(w)))
            turned = jnp.moveaxis(self.w[...].astype(dtype), last, tuple(range(-len(inputs), 0)))
            letters = w.removeprefix(inputs) + inputs
            self.turned = Param(turned, axes="N" * (turned.ndim - len(w)) + letters)
            self.turned_spec = f"{x},{letters}->{y}"

    def cost(self, shape: Shape) -> Cost:
        """2 FLOPs for each element of the weight and each element of the letters that only x has."""
        x, w, y = self.spec.replace("->", ",").split(",")
        known = dict(zip(w, self.w.shape)) | {"B": shape.batch, "L": shape.length}
        if shape.memory is not None:
            known["M"] = shape.memory
        count = lambda letters: axes.size(letters, {letter.upper(): known[letter] for letter in letters})
        flops = 2.0 * count("".join(dict.fromkeys(x + w)))
        return Cost(flops, flops, shape.itemsize * (count(x) + count(w) + count(y)))
