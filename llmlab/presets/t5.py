"""T5 (Raffel et al., 2020) and T5 1.1 (Shazeer, 2020): an encoder-decoder for texts with spans left out.

Pre-norm with RMSNorm and no biases; scores are not scaled; each half has a table of relative positions for all its
layers. T5: ReLU, and the tokens' table over sqrt(width) as output. 1.1: a gate with GELU, and an output table of its
own. Parameters: small 60,506,624; base 222,903,552; large 737,668,096; 3B 2,851,598,336; 11B 11,307,321,344; 1.1 small
76,961,152. Initial values are those of the authors' code. Targets begin with the padding token.
"""

from __future__ import annotations

import dataclasses

from llmlab.ffn.dense import Gated, Mlp
from llmlab.mixers.attention import Attention, Bidirectional
from llmlab.mixers.cross import CrossAttention
from llmlab.models.block import Block
from llmlab.models.encdec import EncoderDecoder
from llmlab.names import Table, tensor
from llmlab.nn.bias import Relative
from llmlab.nn.embed import Embedding, Head, LinearHead, TiedHead
from llmlab.nn.init import FanIn, Normal
from llmlab.nn.norm import RMSNorm
from llmlab.nn.parts import FeedForward
from llmlab.nn.stack import Segment, Stack
from llmlab.presets.family import ConfigError, Family, Settings, activation_name

INIT = FanIn()


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What a config of this class says. layers: of each half. buckets, distance: of relative positions."""

    layers: tuple[int, int]
    width: int
    heads: int
    ffn: FeedForward
    head_size: int = 64
    vocab: int = 32_128
    buckets: int = 32
    distance: int = 128
    eps: float = 1e-6
    dropout: float = 0.1
    head: Head = TiedHead(power=-0.5)

    def model(self) -> EncoderDecoder:
        norm = RMSNorm(eps=self.eps)
        return EncoderDecoder(
            vocab=self.vocab,
            width=self.width,
            embed=Embedding(init=Normal(std=1.0), dropout=self.dropout),
            encoder=self.half(self.layers[0], decoder=False),
            stack=self.half(self.layers[1], decoder=True),
            norm=norm,
            source_norm=norm,
            head=self.head,
        )

    def half(self, layers: int, decoder: bool) -> Stack:
        bias = Relative(heads=self.heads, buckets=self.buckets, distance=self.distance, bidirectional=not decoder)
        own = {"heads": self.heads, "head_size": self.head_size, "scale": 1.0, "dropout": self.dropout}
        own |= {"init": INIT, "query_init": FanIn(scale=self.head_size**-0.5), "out_init": INIT}
        view = {} if decoder else {"view": Bidirectional()}
        block = Block(
            mixer=Attention(position=None, **own, **view),
            cross=CrossAttention(**own) if decoder else None,
            ffn=self.ffn,
            norm=RMSNorm(eps=self.eps),
            dropout=self.dropout,
        )
        return Stack(segments=(Segment(pattern=(block,), repeats=layers),), bias=bias)


def t5(layers: int, width: int, heads: int, hidden: int, size: int = 64) -> EncoderDecoder:
    """A size of the paper."""
    return Sizes((layers, layers), width, heads, Mlp(hidden=hidden, activation="relu"), size).model()


def t5_1_1(layers: int, width: int, heads: int, hidden: int) -> EncoderDecoder:
    """A size of version 1.1, which was trained without dropout."""
    ffn = Gated(hidden=hidden, activation="gelu_tanh")
    return Sizes((layers, layers), width, heads, ffn, dropout=0.0, head=LinearHead(init=Normal(std=1.0))).model()


def t5_small() -> EncoderDecoder:
    return t5(6, 512, 8, 2048)


def t5_base() -> EncoderDecoder:
    return t5(12, 768, 12, 3072)


def t5_large() -> EncoderDecoder:
    return t5(24, 1024, 16, 4096)


def t5_3b() -> EncoderDecoder:
    return t5(24, 1024, 32, 16_384, 128)


def t5_11b() -> EncoderDecoder:
    return t5(24, 1024, 128, 65_536, 128)


def t5_1_1_small() -> EncoderDecoder:
    return t5_1_1(8, 512, 6, 1024)


def t5_1_1_base() -> EncoderDecoder:
    return t5_1_1(12, 768, 12, 2048)


def t5_1_1_large() -> EncoderDecoder:
    return t5_1_1(24, 1024, 16, 2816)


def t5_1_1_xl() -> EncoderDecoder:
    return t5_1_1(24, 2048, 32, 5120)


def t5_1_1_xxl() -> EncoderDecoder:
    return t5_1_1(24, 4096, 64, 10_240)


def read(settings: Settings) -> EncoderDecoder:
    """The model of a config.json."""
    settings.refuse_heads("", "lm")
    layers = settings.count("num_layers")
    sizes = Sizes(
        layers=(layers, settings.count("num_decoder_layers", default=layers)),
        width=settings.count("d_model"),
        heads=settings.count("num_heads"),
        ffn=read_ffn(settings),
        head_size=settings.count("d_kv", default=64),
        vocab=settings.count("vocab_size"),
        buckets=settings.count("relative_attention_num_buckets", default=32),
        distance=settings.count("relative_attention_max_distance", default=128),
        eps=settings.number("layer_norm_epsilon", default=1e-6),
        dropout=settings.number("dropout_rate", default=0.1),
        head=read_head(settings),
    )
    return sizes.model()


def read_ffn(settings: Settings) -> FeedForward:
    """ "relu", or "gated-gelu", whose GELU is that of tanh."""
    told = settings.get("feed_forward_proj", default="relu")
    gate, _, name = told.rpartition("-")
    if gate not in ("", "gated"):
        raise ConfigError(f"{settings.where}: feed_forward_proj is {told!r}; it is an activation, or gated-ACTIVATION")
    kind = Gated if gate else Mlp
    activation = "gelu_tanh" if told == "gated-gelu" else Settings({told: name}, settings.where).activation(told)
    return kind(hidden=settings.count("d_ff"), activation=activation)


def read_head(settings: Settings) -> Head:
    """The output, which is scaled unless the config says otherwise, by either of two keys.

    It has a table of its own if the file has one: with "tie_word_embeddings": false, as the first files of 1.1, or with
    "scale_decoder_outputs", as later versions of transformers write it, whatever they say of tying.
    """
    tied = settings.flag("tie_word_embeddings", True)
    power = -0.5 if settings.flag("scale_decoder_outputs", tied) else 0.0
    known = settings.tensors is not None
    apart = not tied or (known and settings.get("scale_decoder_outputs") is not None)
    if apart and (not known or "lm_head.weight" in settings.tensors):
        return LinearHead(power=power)
    return TiedHead(power=power)


def write(model: EncoderDecoder) -> dict:
    """The reverse of `read`."""
    encoder, decoder = (stack.segments[0].pattern[0] for stack in (model.encoder, model.stack))
    gated, name = isinstance(decoder.ffn, Gated), activation_name(decoder.ffn.activation)
    short = "gelu" if gated and decoder.ffn.activation == "gelu_tanh" else name
    return {
        "vocab_size": model.vocab,
        "d_model": model.width,
        "d_kv": encoder.mixer.head_size or model.width // encoder.mixer.heads,
        "d_ff": encoder.ffn.hidden,
        "num_layers": model.encoder.depth,
        "num_decoder_layers": model.stack.depth,
        "num_heads": encoder.mixer.heads,
        "relative_attention_num_buckets": model.stack.bias.buckets,
        "relative_attention_max_distance": model.stack.bias.distance,
        "feed_forward_proj": f"gated-{short}" if gated else short,
        "layer_norm_epsilon": encoder.norm.eps,
        "dropout_rate": encoder.dropout,
        "tie_word_embeddings": isinstance(model.head, TiedHead),
        "scale_decoder_outputs": model.head.power != 0.0,
        "is_encoder_decoder": True,
    }


def layers(side: str, ffn: int, gated: bool):
    """The names of a half. ffn: the number of its last sublayer."""
    stem = f"{side}.block.{{N}}.layer."
    found = attention(f"{stem}0.SelfAttention.", "mixer")
    if ffn == 2:
        found += attention(f"{stem}1.EncDecAttention.", "cross")
    dense = f"{stem}{ffn}.DenseReluDense."
    found += (
        tensor(f"{dense}wi_0.weight", "ffn.gate.w: F D"),
        tensor(f"{dense}{'wi_1' if gated else 'wi'}.weight", "ffn.up.w: F D"),
        tensor(f"{dense}wo.weight", "ffn.down.w: D F"),
    )
    return found + tuple(tensor(f"{stem}{i}.layer_norm.weight", f"wiring.before.{i}.scale: D") for i in range(ffn + 1))


def names(model: EncoderDecoder) -> Table:
    gated = isinstance(model.stack.segments[0].pattern[0].ffn, Gated)
    return Table(model=ENDS, layers={"encoder": layers("encoder", 1, gated), "stack": layers("decoder", 2, gated)})


def attention(stem: str, path: str):
    return (
        tensor(f"{stem}q.weight", f"{path}.q.w: HK D"),
        tensor(f"{stem}k.weight", f"{path}.k.w: GK D"),
        tensor(f"{stem}v.weight", f"{path}.v.w: GK D"),
        tensor(f"{stem}o.weight", f"{path}.out.w: D HK"),
    )


RELATIVE = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
ENDS = (
    tensor("shared.weight", "embed.table: V D"),
    tensor("lm_head.weight", "head.table: V D"),
    tensor("encoder.final_layer_norm.weight", "source_norm.scale: D"),
    tensor("decoder.final_layer_norm.weight", "norm.scale: D"),
    tensor(f"encoder.{RELATIVE}", "encoder.bias.table: W H"),
    tensor(f"decoder.{RELATIVE}", "stack.bias.table: W H"),
)
FAMILY = Family(
    kind="t5",
    read=read,
    write=write,
    table=names,
    ignored=(r"(encoder|decoder)\.embed_tokens\.weight$", r"EncDecAttention\.relative_attention_bias\.weight$"),
    architecture={"lm": "T5ForConditionalGeneration", "": "T5Model"},
)
