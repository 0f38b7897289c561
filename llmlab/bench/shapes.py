"""The models that are timed: each family at each size, as an experiment whose data is never opened."""

from __future__ import annotations

import dataclasses

from llmlab.data import Bytes, Data
from llmlab.ffn import Capacity, Dropless, Gated, Mlp, MoE
from llmlab.mixers import Attention, Bidirectional, CrossAttention, Mamba, Mamba2
from llmlab.models import Block, Decoder, Encoder, EncoderDecoder, PostNorm
from llmlab.nn import Embedding, Fill, LayerNorm, Learned, Relative, RMSNorm, Stack, TiedHead, TransformHead, repeat
from llmlab.optim import AdamW
from llmlab.tasks import Answers, CausalLM, Continuation
from llmlab.train import Experiment, Train

FAMILIES = ("gpt2", "llama", "mixtral", "dropless", "bert", "t5", "mamba", "mamba2")
DECODABLE = tuple(family for family in FAMILIES if family != "bert")


@dataclasses.dataclass(frozen=True)
class Size:
    """batch: rows of `length` tokens on each device. kv_heads, hidden: of LLaMA and Mixtral; plain feed-forwards have
    four times the width. states: layers of Mamba. sparse: (layers, experts, hidden units of one) of Mixtral."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    hidden: int
    vocab: int
    batch: int
    length: int
    states: int
    sparse: tuple[int, int, int]

    @property
    def small(self) -> bool:
        """Whether it is the size for CPUs: T5's layers are shared between its halves, Mixtral's experts have slots
        (1.25 times the even share; "dropless" has none), and of Mamba, whose peers are slow there, two rows."""
        return self.width < 768

    @property
    def half(self) -> int:
        """Layers of each half of T5."""
        return self.layers // 2 if self.small else self.layers

    def rows(self, family: str) -> tuple[int, int]:
        """(rows, tokens of a row) on each device; BERT reads at most 512."""
        length = min(self.length, 512) if family == "bert" else self.length
        few = self.small and family.startswith("mamba")
        return (2 if few else self.batch * self.length // length), length


SIZES = {  # the shapes of GPT-2, its medium, GPT-3 XL, and eight layers of LLaMA-3 8B, beside a small one
    "15M": Size(6, 384, 6, 2, 1024, 8192, 8, 256, 6, (4, 4, 1024)),
    "124M": Size(12, 768, 12, 4, 2048, 50_304, 32, 1024, 24, (12, 8, 1024)),
    "350M": Size(24, 1024, 16, 4, 2816, 50_304, 16, 1024, 48, (24, 8, 1408)),
    "1B": Size(24, 2048, 32, 8, 5632, 50_304, 4, 2048, 48, (24, 8, 2816)),
    "8B-slice": Size(8, 4096, 32, 8, 14_336, 128_256, 2, 4096, 16, (2, 8, 14_336)),
}


def experiment(family: str, size: Size, precision: str = "auto", devices: int = 1) -> Experiment:
    """Random tokens are all that it asks for; its task takes a loss at every position, as the peers do."""
    heads, width, zeros, task = size.heads, size.width, Fill(value=0.0), CausalLM()
    biased = {"heads": heads, "position": None, "bias": zeros, "out_bias": zeros}
    wide, norm, embed = Mlp(hidden=4 * width, activation="gelu_tanh", bias=zeros), RMSNorm(), Embedding()
    rows, length = size.rows(family)
    attention, layers = Attention(heads=heads, kv_heads=size.kv_heads), size.layers
    if family == "gpt2":
        block = Block(mixer=Attention(**biased), ffn=wide, norm=LayerNorm())
        embed, norm = Embedding(position=Learned(length=length)), LayerNorm()
    elif family == "llama":
        block = Block(mixer=attention, ffn=Gated(hidden=size.hidden))
    elif family in ("mixtral", "dropless"):
        layers, experts, hidden = size.sparse
        form = Capacity(factor=1.25) if size.small and family == "mixtral" else Dropless()
        block = Block(mixer=attention, ffn=MoE(experts=experts, top_k=2, expert=Gated(hidden=hidden), form=form))
        task = CausalLM(auxiliary=(("load_balance", 0.001),))
    elif family in ("mamba", "mamba2"):
        block, layers = Block(mixer=Mamba() if family == "mamba" else Mamba2(), ffn=None), size.states
    if family == "bert":
        block = Block(mixer=Attention(view=Bidirectional(), **biased), ffn=wide, norm=LayerNorm(), wiring=PostNorm())
        embed = Embedding(position=Learned(length=length), types=2, norm=LayerNorm())
        model = Encoder(embed=embed, stack=repeat(block, layers), norm=None, head=TransformHead())
        task = Answers()
    elif family == "t5":
        model, task = pair(size), Continuation()
    else:
        model = Decoder(embed=embed, stack=repeat(block, layers), norm=norm, head=TiedHead())
    return Experiment(
        model=dataclasses.replace(model, vocab=size.vocab, width=width),
        task=task,
        data=Data(tokenizer=Bytes(), batch=rows * devices, length=length),
        optim=AdamW(peak=1e-4),
        train=Train(precision=precision),
    )


def pair(size: Size) -> EncoderDecoder:
    """T5's class."""
    ffn, heads = Mlp(hidden=4 * size.width, activation="relu"), size.heads
    read = Block(mixer=Attention(heads=heads, view=Bidirectional(), position=None), ffn=ffn)
    write = Block(mixer=Attention(heads=heads, position=None), cross=CrossAttention(heads=heads), ffn=ffn)
    stack = lambda block, two: Stack(
        segments=repeat(block, size.half).segments, bias=Relative(heads=heads, bidirectional=two)
    )
    return EncoderDecoder(encoder=stack(read, True), stack=stack(write, False))
