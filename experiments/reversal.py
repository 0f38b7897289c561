"""Does an encoder-decoder of GRUs turn 24 symbols around, and what is Bahdanau's attention worth to it?

    llmlab train experiments/reversal.py
    llmlab train experiments/reversal.py:no_attention
    python benchmarks/synthetic.py reversal

Cost: about two minutes a run on 2 CPU cores. Expected: with attention, 0.98 of the sequences are right in every symbol;
without, all must pass through one vector of 64 numbers, and at most 0.75 of the symbols are right.
"""

from llmlab.data import Synthetic
from llmlab.data.synthetic import Reversal
from llmlab.mixers.bahdanau import Bahdanau
from llmlab.mixers.recurrent import GRU, Both, Summary
from llmlab.models import Block
from llmlab.models.encdec import EncoderDecoder
from llmlab.nn import Embedding, repeat
from llmlab.nn.parts import Mixer
from llmlab.optim import AdamW, Cosine
from llmlab.tasks import Seq2Seq
from llmlab.train import Experiment, Train

PROBLEM = Reversal(sizes=(24, 24))


def config() -> Experiment:
    return attention()


def attention() -> Experiment:
    return turn(Bahdanau())


def no_attention() -> Experiment:
    return turn(GRU(initial=Summary()))


def turn(decoder: Mixer) -> Experiment:
    encoder = GRU(reset="before", direction=Both())
    return Experiment(
        model=EncoderDecoder(
            vocab=PROBLEM.vocab,
            width=64,
            source_embed=Embedding(),
            encoder=repeat(Block(mixer=encoder, ffn=None), 1),
            stack=repeat(Block(mixer=decoder, ffn=None), 1),
        ),
        task=Seq2Seq(),
        data=Synthetic(problem=PROBLEM, batch=64),
        optim=AdamW(peak=5e-3, schedule=Cosine(warmup=100), decay=0.0),
        train=Train(steps=800, eval_every=200, eval_batches=4, log_every=100),
    )
