"""Which mixers say what stood after a mark, the last time it was seen?

    llmlab train experiments/induction.py
    llmlab train experiments/induction.py:mamba
    python benchmarks/synthetic.py induction

Cost: one to three minutes a run on 2 CPU cores. Expected: two layers of attention, Mamba and a GRU do; one layer of
attention cannot look beside what it finds, and stays near the chance of 1 / 16.
"""

from llmlab.data import Synthetic
from llmlab.data.synthetic import InductionHead
from llmlab.mixers import Attention
from llmlab.mixers.mamba import Mamba
from llmlab.mixers.recurrent import GRU
from llmlab.models import Block, Decoder
from llmlab.nn import Embedding, Learned, Normal, repeat
from llmlab.nn.parts import Mixer
from llmlab.optim import AdamW, Cosine
from llmlab.tasks import Answers
from llmlab.train import Experiment, Train

PROBLEM = InductionHead(symbols=16, length=64)
UNIT = Normal(std=1.0)  # as large as what a layer adds to it
ATTENTION, PLACES = Attention(heads=1, position=None), Learned(length=PROBLEM.length, init=UNIT)


def config() -> Experiment:
    return two_layers()


def two_layers() -> Experiment:
    return recall(ATTENTION, layers=2, position=PLACES)


def one_layer() -> Experiment:
    return recall(ATTENTION, layers=1, position=PLACES)


def mamba() -> Experiment:
    return recall(Mamba(), layers=1)


def gru() -> Experiment:
    return recall(GRU(), layers=1)


def recall(mixer: Mixer, layers: int, position: Learned | None = None) -> Experiment:
    return Experiment(
        model=Decoder(
            vocab=PROBLEM.vocab,
            width=32,
            embed=Embedding(position=position, init=UNIT),
            stack=repeat(Block(mixer=mixer, ffn=None), layers),
        ),
        task=Answers(),
        data=Synthetic(problem=PROBLEM, batch=64),
        optim=AdamW(peak=3e-3, schedule=Cosine(warmup=100), decay=0.0),
        train=Train(steps=2000, eval_every=200, eval_batches=8, log_every=100),
    )
