"""Does an LSTM add two numbers of 3 digits that it has not seen together?

    llmlab train experiments/addition.py
    python benchmarks/synthetic.py addition

Cost: about two minutes a run on 2 CPU cores. Expected: 0.98 of the digits of the sum are right. Digits stand with the
least first, in the order in which a carry goes.
"""

from llmlab.data import Synthetic
from llmlab.data.synthetic import Addition
from llmlab.mixers.recurrent import LSTM
from llmlab.models import Block, Decoder
from llmlab.nn import repeat
from llmlab.optim import AdamW, Cosine
from llmlab.tasks import Answers
from llmlab.train import Experiment, Train

PROBLEM = Addition(digits=3, order="least first", layout="row")


def config() -> Experiment:
    return Experiment(
        model=Decoder(vocab=PROBLEM.vocab, width=128, stack=repeat(Block(mixer=LSTM(), ffn=None), 1)),
        task=Answers(),
        data=Synthetic(problem=PROBLEM, batch=128),
        optim=AdamW(peak=5e-3, schedule=Cosine(warmup=100), b2=0.99, decay=0.0),
        train=Train(steps=1200, eval_every=300, eval_batches=4, log_every=100),
    )
