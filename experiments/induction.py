"""Which mixers say what stood after a mark, the last time it was seen?

    llmlab train experiments/induction.py
    llmlab train experiments/induction.py:mamba
    python benchmarks/synthetic.py induction

Cost: about a minute a run on one CPU core. Expected: two layers of attention, Mamba and a GRU do; one layer of
attention cannot look beside what it finds, and stays near the chance of 1 / 16.

Attention has a bias for each distance that learns ten times as fast as the weights: scores are of several units.
"""

import dataclasses

from llmlab.data import Synthetic
from llmlab.data.synthetic import InductionHead
from llmlab.mixers import Attention
from llmlab.mixers.mamba import Mamba
from llmlab.mixers.recurrent import GRU
from llmlab.models import Block, Decoder
from llmlab.nn import Embedding, Normal, Relative, Stack, repeat
from llmlab.nn.parts import Mixer
from llmlab.optim import AdamW, Cosine, Group
from llmlab.optim.groups import STANDARD
from llmlab.tasks import Answers
from llmlab.train import Experiment, Train

PROBLEM = InductionHead(symbols=16, length=64)
UNIT = Normal(std=1.0)  # as large as what a layer adds to it
DISTANCE = Relative(heads=4, init=Normal(std=2.0))  # from the start, heads look at different distances
QUICK = Group(match=r"^stack\.bias", peak=10.0, decay=0.0, optional=True)


def config() -> Experiment:
    return two_layers()


def two_layers() -> Experiment:
    return attend(2)


def one_layer() -> Experiment:
    return attend(1)


def mamba() -> Experiment:
    return recall(layers(Mamba(), 1))


def gru() -> Experiment:
    return recall(layers(GRU(), 1))


def attend(count: int) -> Experiment:
    return recall(dataclasses.replace(layers(Attention(heads=4, position=None), count), bias=DISTANCE))


def layers(mixer: Mixer, count: int) -> Stack:
    return repeat(Block(mixer=mixer, ffn=None), count)


def recall(stack: Stack) -> Experiment:
    return Experiment(
        model=Decoder(
            vocab=PROBLEM.vocab,
            width=32,
            embed=Embedding(init=UNIT),
            stack=stack,
        ),
        task=Answers(),
        data=Synthetic(problem=PROBLEM, batch=64),
        optim=AdamW(peak=5e-3, schedule=Cosine(warmup=100), decay=0.0, groups=(QUICK, *STANDARD)),
        train=Train(steps=800, eval_every=100, eval_batches=8, log_every=100),
    )
