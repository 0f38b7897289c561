"""An experiment with a mixer of its own, as a user's file has it: a running average of each channel.

llmlab train smooth_words.py --data.source.path TEXT
"""

import jax
import jax.numpy as jnp

from llmlab.config import REQUIRED
from llmlab.config import config as make_config
from llmlab.data import Bytes, Data, TextFiles
from llmlab.ffn import Mlp
from llmlab.mixers import Attention
from llmlab.models import Block, Decoder
from llmlab.nn import Embedding, Mixer, Segment, Stack, TiedHead
from llmlab.nn.einsum import Einsum
from llmlab.nn.module import Module
from llmlab.optim import AdamW, Constant
from llmlab.train import Experiment, Train


@make_config
class Smooth(Mixer):
    """y = w (keep * last + (1 - keep) * x), from 0 at the start of each document. slow: channels that keep more."""

    keep: float = 0.5
    slow: int | None = None

    def build(self, dims, rngs):
        return SmoothLayer(self, dims, rngs)


class SmoothLayer(Module):
    letters = {"last": "BD"}

    def __init__(self, cfg: Smooth, dims, rngs):
        self.cfg, self.width = cfg, dims["D"]
        self.out = Einsum("BLD,Dd->BLd", dims, rngs)

    def __call__(self, x_BLD, ctx):
        return self.extend(x_BLD, self.start(*x_BLD.shape[:2], ctx), ctx)[0], {}

    def start(self, batch, length, ctx):
        return {"last": jnp.zeros((batch, self.width), ctx.dtype)}

    def extend(self, x_BLD, state, ctx):
        keep_D = jnp.where(jnp.arange(self.width) < (self.cfg.slow or 0), 0.9, self.cfg.keep).astype(x_BLD.dtype)

        def turn(last_BD, inputs):
            x_BD, position_B = inputs
            last_BD = jnp.where(position_B[:, None] == 0, 0, last_BD)
            new_BD = keep_D * last_BD + (1 - keep_D) * x_BD
            new_BD = jnp.where(position_B[:, None] < 0, last_BD, new_BD)  # padding
            return new_BD, new_BD

        last_BD, y_LBD = jax.lax.scan(turn, state["last"], (jnp.moveaxis(x_BLD, 1, 0), ctx.positions_BL.T))
        return self.out(jnp.moveaxis(y_LBD, 0, 1)), {"last": last_BD}

    def cost(self, shape):
        return self.out.cost(shape)


def config() -> Experiment:
    pattern = (Block(mixer=Smooth(), ffn=None), Block(mixer=Attention(heads=8), ffn=Mlp(hidden=32)))
    return Experiment(
        model=Decoder(
            vocab=257,
            width=32,
            embed=Embedding(multiple=8),
            stack=Stack(segments=(Segment(pattern=pattern, repeats=2),)),
            head=TiedHead(),
        ),
        data=Data(source=TextFiles(path=REQUIRED), tokenizer=Bytes(), batch=8, length=16),
        optim=AdamW(peak=1e-2, schedule=Constant()),
        train=Train(steps=4, log_every=1, prompt="ab"),
    )
