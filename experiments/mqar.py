"""Do two layers of attention recall several keys of one row, and can one layer?

    llmlab train experiments/mqar.py
    llmlab train experiments/mqar.py:one_layer
    python benchmarks/synthetic.py mqar

Cost: about a minute a run on one CPU core. Expected: two layers reach an accuracy of 0.99 after a plateau near
1 / pairs = 0.25, where a model guesses among the values of the row; one layer stays there.

Positions are a bias for each distance that learns ten times as fast as the rest, so that a head looks at the token
before early on: the plateau ends with that.
"""

from llmlab.data import Synthetic
from llmlab.data.synthetic import Mqar
from llmlab.mixers import Attention
from llmlab.models import Block, Decoder
from llmlab.nn import Embedding, Normal, Relative, Segment, Stack
from llmlab.optim import AdamW, Cosine, Group
from llmlab.optim.groups import STANDARD
from llmlab.tasks import Answers
from llmlab.train import Experiment, Train

PROBLEM = Mqar(vocab=256, length=64, pairs=4)
UNIT = Normal(std=1.0)  # as large as what a layer adds to it
DISTANCE = Relative(heads=4, init=Normal(std=2.0))  # from the start, heads look at different distances
QUICK = Group(match=r"^stack\.bias", peak=10.0, decay=0.0)  # scores of several units; weights are of a tenth


def config() -> Experiment:
    return two_layers()


def two_layers() -> Experiment:
    return attend(layers=2)


def one_layer() -> Experiment:
    return attend(layers=1)


def attend(layers: int) -> Experiment:
    block = Block(mixer=Attention(heads=4, position=None), ffn=None)
    return Experiment(
        model=Decoder(
            vocab=PROBLEM.vocab,
            width=64,
            embed=Embedding(init=UNIT),
            stack=Stack(segments=(Segment(pattern=(block,), repeats=layers),), bias=DISTANCE),
        ),
        task=Answers(),
        data=Synthetic(problem=PROBLEM, batch=64),
        optim=AdamW(peak=5e-3, schedule=Cosine(warmup=100), decay=0.1, groups=(QUICK, *STANDARD)),
        train=Train(steps=400, eval_every=50, eval_batches=2, log_every=100),
    )
