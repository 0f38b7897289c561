"""Can a mixer from outside the package train, shard, decode and be checked like any other?

    llmlab train experiments/plugin_mixer.py        (and check, describe, eval, generate)

The mixer is the minimal gated recurrence of Feng et al. (2024, "Were RNNs all we needed?"), in 40 lines.
Cost: about 4 minutes on 2 CPU cores. Expected: about 2.3 bits per byte, near the attention of quickstart.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
from quickstart import config as quickstart

from llmlab.axes import shard
from llmlab.config import config as part
from llmlab.config import swap
from llmlab.cost import Cost, total
from llmlab.mixers import Attention
from llmlab.nn import Einsum, Mixer, Module
from llmlab.train import Experiment


@part
class MinGru(Mixer):
    """h = (1 - z) h + z v, where gate z and value v depend on the input alone. channels: the size of h."""

    channels: int = 384

    def build(self, dims, rngs):
        return MinGruLayer({**dims, "C": self.channels}, rngs)


class MinGruLayer(Module):
    letters = {"h": "BC"}

    def __init__(self, dims, rngs):
        self.gate, self.value = (Einsum("BLD,DC->BLC", dims, rngs) for _ in range(2))
        self.out = Einsum("BLC,CD->BLD", dims, rngs)

    def __call__(self, x_BLD, ctx):
        keep_BLC, new_BLC = self.read(x_BLD)
        if ctx.segments_BL is not None:  # a document of a packed row begins anew
            begins_BL = jnp.diff(ctx.segments_BL, axis=1, prepend=-1) != 0
            keep_BLC = jnp.where(begins_BL[..., None], 0, keep_BLC)
        return self.out(run(keep_BLC, new_BLC).astype(x_BLD.dtype)), {}

    def read(self, x_BLD):
        z_BLC = jax.nn.sigmoid(shard(self.gate(x_BLD), "BLC").astype(jnp.float32) - 2)
        return 1 - z_BLC, z_BLC * shard(self.value(x_BLD), "BLC").astype(jnp.float32)

    def start(self, batch, length, ctx):
        return {"h": jnp.zeros((batch, self.gate.w.shape[1]), jnp.float32)}

    def extend(self, x_BLD, state, ctx):
        keep_BLC, new_BLC = self.read(x_BLD)
        padded_BL1 = ctx.positions_BL[..., None] < 0  # what stands before a prompt
        keep_BLC, new_BLC = jnp.where(padded_BL1, 1, keep_BLC), jnp.where(padded_BL1, 0, new_BLC)
        h_BLC = run(keep_BLC, new_BLC.at[:, 0].add(keep_BLC[:, 0] * state["h"]))
        return self.out(h_BLC.astype(x_BLD.dtype)), {"h": h_BLC[:, -1]}

    def cost(self, shape):
        return total(layer.cost(shape) for layer in (self.gate, self.value, self.out)) + Cost(
            state=4 * shape.batch * self.gate.w.shape[1]
        )


def run(keep_BLC, new_BLC):
    """h of every position at once, in log2(L) steps."""
    join = lambda a, b: (a[0] * b[0], a[1] * b[0] + b[1])
    return jax.lax.associative_scan(join, (keep_BLC, new_BLC), axis=1)[1]


def config() -> Experiment:
    experiment = quickstart()
    return dataclasses.replace(experiment, model=swap(experiment.model, Attention, lambda old: MinGru()))
