"""What do the families of architectures learn from the same text, at equal width and depth?

    llmlab train experiments/families.py:gpt        (or bert, t5, mamba, mamba2, moe, hybrid, rnn)

One function is one variant: model and task change, everything else stays. Parameters and FLOPs differ; a likelihood of
masked tokens or of spans is not to be ranked against that of the next token.
Cost: 3 to 10 minutes each on 2 CPU cores. Expected: the table in docs/families.md.
"""

import dataclasses

from llmlab.data import Data, SentencePiece, Stdlib
from llmlab.ffn import Gated, MoE
from llmlab.mixers import GRU, Attention, Bidirectional, CrossAttention, Mamba, Mamba2
from llmlab.models import Block, Decoder, Encoder, EncoderDecoder, Model
from llmlab.nn import Embedding, RMSNorm, Segment, Stack, TiedHead, repeat
from llmlab.optim import AdamW, Cosine
from llmlab.tasks import CausalLM, MaskedLM, SpanCorruption, Task
from llmlab.train import Experiment, Train

VOCAB, WIDTH, LAYERS = 2048, 192, 4
ATTENTION, GATED = Attention(heads=4), Gated(hidden=512)
BALANCE = (("load_balance", 0.01), ("router_z", 0.001))


def family(model: Model, task: Task = CausalLM(), prompt: str | None = "def ") -> Experiment:
    return Experiment(
        model=dataclasses.replace(model, vocab=VOCAB + task.extra, width=WIDTH),
        task=task,
        data=Data(source=Stdlib(validation=0.03), tokenizer=SentencePiece(vocab=VOCAB), batch=8, length=256),
        optim=AdamW(peak=3e-3, schedule=Cosine(warmup=40, floor=0.05)),
        train=Train(steps=300, log_every=10, eval_every=100, eval_batches=8, save_every=100, prompt=prompt),
    )


def decoder(*pattern: Block, task: Task = CausalLM()) -> Experiment:
    segment = Segment(pattern=pattern, repeats=LAYERS // len(pattern))
    return family(Decoder(stack=Stack(segments=(segment,)), head=TiedHead()), task)


def gpt() -> Experiment:
    return decoder(Block(mixer=ATTENTION, ffn=GATED))


def bert() -> Experiment:
    block = Block(mixer=Attention(heads=4, view=Bidirectional()), ffn=GATED)
    model = Encoder(embed=Embedding(), stack=repeat(block, LAYERS), norm=RMSNorm())
    return family(model, MaskedLM(), prompt=None)


def t5() -> Experiment:
    encoder = Block(mixer=Attention(heads=4, view=Bidirectional()), ffn=GATED)
    writer = Block(mixer=ATTENTION, cross=CrossAttention(heads=4), ffn=GATED)
    model = EncoderDecoder(encoder=repeat(encoder, LAYERS // 2), stack=repeat(writer, LAYERS // 2))
    return family(model, SpanCorruption())


def mamba() -> Experiment:
    return decoder(*(Block(mixer=Mamba(), ffn=None) for _ in range(LAYERS)))


def mamba2() -> Experiment:
    return decoder(*(Block(mixer=Mamba2(), ffn=None) for _ in range(LAYERS)))


def moe() -> Experiment:
    block = Block(mixer=ATTENTION, ffn=MoE(experts=4, top_k=2, expert=Gated(hidden=256)))
    return decoder(block, task=CausalLM(auxiliary=BALANCE))


def hybrid() -> Experiment:
    """Jamba's pattern on a small scale: one layer of four attends, every second one has experts."""
    experts = MoE(experts=4, top_k=2, expert=Gated(hidden=256))
    pattern = (
        Block(mixer=Mamba(), ffn=GATED),
        Block(mixer=Mamba(), ffn=experts),
        Block(mixer=Attention(heads=4, position=None), ffn=GATED),
        Block(mixer=Mamba(), ffn=experts),
    )
    return decoder(*pattern, task=CausalLM(auxiliary=BALANCE))


def rnn() -> Experiment:
    return decoder(Block(mixer=GRU(), ffn=GATED))


def config() -> Experiment:
    return gpt()
