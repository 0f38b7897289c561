"""Which family of architectures tells best which package a fragment of code comes from, with equal compute?

    llmlab study experiments/quickstart.py          the five families and a hybrid, matched in training FLOPs
    llmlab train experiments/quickstart.py          a small decoder that learns the same code by heart, alone

Every family reads 64 tokens of Python's own standard library and names one of 16 packages: the same supervision for
encoders, decoders, encoder-decoders, state-space models and experts.
Cost: the training under 5 minutes on 2 CPU cores; the study trains 21 runs and was not timed on a free machine.
Expected: accuracies around 0.4, where a guess has 0.06 (docs/log.md); three seeds leave small differences undecided.
The decoder of the training reaches about 2.2 bits per byte.
"""

import dataclasses

from llmlab.data import Data, Fragments, SentencePiece, Stdlib
from llmlab.ffn import Gated, MoE
from llmlab.mixers import Attention, Bidirectional, CrossAttention, Mamba
from llmlab.models import Block, Decoder, Encoder, EncoderDecoder, Model, Pooled, Reread
from llmlab.nn import Embedding, RMSNorm, Segment, Stack, TiedHead, repeat
from llmlab.optim import AdamW, Cosine
from llmlab.study import Arm, Every, Leaf, Study
from llmlab.tasks import Classification
from llmlab.train import Experiment, Train

VOCAB = 2048


def config() -> Experiment:
    block = Block(mixer=Attention(heads=4), ffn=Gated(hidden=512))
    return Experiment(
        model=Decoder(vocab=VOCAB, width=192, stack=repeat(block, 4), head=TiedHead()),
        data=Data(source=Stdlib(validation=0.03), tokenizer=SentencePiece(vocab=VOCAB), batch=8, length=256),
        optim=AdamW(peak=3e-3, schedule=Cosine(warmup=40, floor=0.05)),
        train=Train(steps=300, log_every=10, eval_every=100, eval_batches=8, save_every=100, prompt="def "),
    )


# --- the study ---------------------------------------------------------------------------------------------------

ATTENTION, SEES_ALL = Attention(heads=2), Attention(heads=2, view=Bidirectional())
GATED, EXPERTS = Gated(hidden=128), MoE(experts=4, top_k=2, expert=Gated(hidden=64))
HIDDEN = (Every(field="hidden"),)
BALANCE = (("load_balance", 0.01), ("router_z", 0.001))


def reader(trunk: Model, task: Classification = Classification()) -> Experiment:
    """An experiment of a trunk under a head that is the same for every family: the mean of what it made of the row."""
    data = Fragments(batch=16)
    trunk = dataclasses.replace(trunk, **{"vocab": data.vocab, "width": 64})
    trunk = Reread(trunk=trunk) if isinstance(trunk, EncoderDecoder) else trunk
    return Experiment(
        model=Pooled(trunk=trunk, classes=data.labels.count),
        task=task,
        data=data,
        optim=AdamW(peak=3e-3, schedule=Cosine(warmup=20)),
        train=Train(steps=240, log_every=20, eval_every=60, eval_batches=16),
    )


def stack(*pattern: Block) -> Stack:
    return Stack(segments=(Segment(pattern=pattern),))


def study() -> Study:
    decoder = reader(Decoder(stack=repeat(Block(mixer=ATTENTION, ffn=GATED), 2), head=TiedHead()))
    encoder = Encoder(embed=Embedding(), stack=repeat(Block(mixer=SEES_ALL, ffn=GATED), 2), norm=RMSNorm())
    both = EncoderDecoder(
        encoder=repeat(Block(mixer=SEES_ALL, ffn=GATED), 1),
        stack=repeat(Block(mixer=ATTENTION, cross=CrossAttention(heads=2), ffn=GATED), 1),
    )
    # Mamba has no feed-forward to resize: its width is the coarse knob, its states are the fine one.
    mamba = Decoder(stack=stack(*(Block(mixer=Mamba(), ffn=None) for _ in range(2))), head=TiedHead())
    places = tuple(f"model.trunk.stack.segments.0.pattern.{i}.mixer.state" for i in range(2))
    experts = Decoder(stack=repeat(Block(mixer=ATTENTION, ffn=EXPERTS), 2), head=TiedHead())
    hybrid = Decoder(stack=stack(Block(mixer=Mamba(), ffn=GATED), Block(mixer=ATTENTION, ffn=GATED)), head=TiedHead())
    return Study(
        name="quickstart",
        question="Which family tells best which package a fragment of code comes from, with equal compute?",
        base=decoder,
        base_name="decoder",
        arms=(
            Arm(name="encoder", experiment=reader(encoder)),
            Arm(name="encoder-decoder", experiment=reader(both)),
            Arm(name="Mamba", experiment=reader(mamba), free=(Leaf(paths=("model.trunk.width",)), Leaf(paths=places))),
            Arm(name="experts", experiment=reader(experts, Classification(auxiliary=BALANCE))),
            Arm(name="hybrid", experiment=reader(hybrid)),
        ),
        match="flops",
        free=HIDDEN,
        seeds=3,
        metric="loss",
        min_effect=0.05,
    )
