"""Does an encoder fill the gaps of a Markov language as well as can be, and better than one that sees only the past?

    llmlab train experiments/markov.py
    llmlab train experiments/markov.py:past
    python benchmarks/synthetic.py markov

Cost: about two minutes a run on one CPU core. Expected: with both sides in sight, a loss within 0.02 nats of 1.089, the
conditional entropy of a hidden state averaged over masks; with the past alone, none below 1.516.

Which neighbours are seen is a bias of several units; it learns ten times as fast as the weights, which need a tenth.
"""

from llmlab.data import Synthetic
from llmlab.data.synthetic import MaskedMarkov
from llmlab.ffn import Mlp
from llmlab.mixers import Attention, Bidirectional, Causal
from llmlab.mixers.attention import View
from llmlab.models import Block, Encoder
from llmlab.nn import Embedding, LayerNorm, LinearHead, Normal, Segment, Stack
from llmlab.nn.bias import Relative
from llmlab.optim import AdamW, Cosine, Group
from llmlab.optim.groups import STANDARD
from llmlab.tasks import Answers
from llmlab.train import Experiment, Train

PROBLEM = MaskedMarkov(length=32)
BIAS = Relative(heads=4, bidirectional=True, init=Normal(std=1.0))
QUICK = Group(match=r"^stack\.bias", peak=10.0, decay=0.0)


def config() -> Experiment:
    return both_sides()


def both_sides() -> Experiment:
    return fill(Bidirectional())


def past() -> Experiment:
    return fill(Causal())


def fill(view: View) -> Experiment:
    attention = Attention(heads=4, view=view, position=None)
    block = Block(mixer=attention, ffn=Mlp(hidden=128, activation="gelu"), norm=LayerNorm())
    return Experiment(
        model=Encoder(
            vocab=PROBLEM.vocab,
            width=64,
            embed=Embedding(init=Normal(std=1.0)),
            stack=Stack(segments=(Segment(pattern=(block,), repeats=2),), bias=BIAS),
            norm=LayerNorm(),
            head=LinearHead(),
        ),
        task=Answers(),
        data=Synthetic(problem=PROBLEM, batch=64, tests=32_768),
        optim=AdamW(peak=5e-3, schedule=Cosine(warmup=100, floor=0.0), decay=0.0, groups=(QUICK, *STANDARD)),
        train=Train(steps=4000, eval_every=250, eval_batches=16, log_every=100),
    )
