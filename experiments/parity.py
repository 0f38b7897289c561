"""Which models learn parity on strings of 1 to 40 bits so that it holds on 41 to 500?

    llmlab train experiments/parity.py
    llmlab train experiments/parity.py:transformer
    python benchmarks/synthetic.py parity

Cost: about a minute a run on 2 CPU cores. Expected: recurrent networks do (0.99 and more), as one bit of state decides;
a transformer, whose depth does not grow with the string, stays near the chance of 0.5.
"""

from llmlab.data import Synthetic
from llmlab.data.synthetic import Parity
from llmlab.ffn import Mlp
from llmlab.mixers import Attention
from llmlab.mixers.recurrent import LSTM, RNN
from llmlab.models import Block, Decoder
from llmlab.nn import Stack, repeat
from llmlab.optim import AdamW, Cosine
from llmlab.tasks import Answers
from llmlab.train import Experiment, Train


def config() -> Experiment:
    return lstm()


def lstm() -> Experiment:
    return judge(repeat(Block(mixer=LSTM(), ffn=None), 1))


def rnn() -> Experiment:
    return judge(repeat(Block(mixer=RNN(), ffn=None), 1))


def transformer() -> Experiment:
    return judge(repeat(Block(mixer=Attention(heads=2), ffn=Mlp(hidden=128)), 2))


def judge(stack: Stack) -> Experiment:
    return Experiment(
        model=Decoder(vocab=3, width=32, stack=stack),
        task=Answers(),
        data=Synthetic(problem=Parity(), batch=64),
        optim=AdamW(peak=3e-3, schedule=Cosine(warmup=100), b2=0.99, decay=0.0),
        train=Train(steps=1000, eval_every=250, eval_batches=4, log_every=100),
    )
