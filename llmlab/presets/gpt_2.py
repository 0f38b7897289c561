"""GPT-2 (Radford et al., 2019): pre-norm decoder with learned positions, biases everywhere, and a tied head.

Parameters: 124,439,808; medium 354,823,168; large 774,030,080; XL 1,557,611,200. What writes into the stream begins
with a deviation of 0.02 / sqrt(2 x layers), positions with 0.01. Matrices lie in files as [in, out], queries, keys and
values in one. What its decoders share with GPT-1 and GPT-3 stands here.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmlab.ffn.dense import Mlp
from llmlab.mixers.attention import Attention
from llmlab.models.block import Block
from llmlab.models.decoder import Decoder, Model
from llmlab.names import Table, tensor
from llmlab.nn.einsum import ZEROS
from llmlab.nn.embed import Embedding, LinearHead, TiedHead
from llmlab.nn.init import Normal, PerDepth
from llmlab.nn.norm import LayerNorm
from llmlab.nn.parts import Layer, Norm
from llmlab.nn.position import Learned
from llmlab.nn.stack import arrange
from llmlab.presets.family import Family, Settings, activation_name, head_settings, headed, trunk_of
from llmlab.presets.gated import HEADS, QUESTION, classes, layers_of

INIT, OUT = Normal(std=0.02), PerDepth(init=Normal(std=0.02))
NORM = LayerNorm(eps=1e-5)


def heads(count: int, **own) -> Attention:
    """Attention with biases and without positions. own: what a family has of its own."""
    return Attention(**{"heads": count, "position": None, "bias": ZEROS, "out_bias": ZEROS, **own})


def mlp(hidden: int, activation: str = "gelu_tanh", **own) -> Mlp:
    return Mlp(hidden=hidden, activation=activation, bias=ZEROS, **own)


def decoder(layers: Sequence[Layer], width: int, vocab: int, length: int, norm: Norm | None = NORM) -> Decoder:
    """A tied decoder with learned positions of a published size."""
    embed = Embedding(position=Learned(length=length, init=Normal(std=0.01)), init=INIT)
    return Decoder(vocab=vocab, width=width, embed=embed, stack=arrange(layers), norm=norm, head=TiedHead())


def gpt2(layers: int = 12, width: int = 768, count: int = 12) -> Decoder:
    """The size of 124 million, or another."""
    attention, ffn = heads(count, init=INIT, out_init=OUT), mlp(4 * width, init=INIT, out_init=OUT)
    return decoder([Block(mixer=attention, ffn=ffn, norm=NORM)] * layers, width, vocab=50_257, length=1024)


def gpt2_medium() -> Decoder:
    return gpt2(24, 1024, 16)


def gpt2_large() -> Decoder:
    return gpt2(36, 1280, 20)


def gpt2_xl() -> Decoder:
    return gpt2(48, 1600, 25)


def read_decoder(settings: Settings, layers: Sequence[Layer], norm: Norm | None, length: int, width: int) -> Model:
    """The model of a config, under the head that it names."""
    tied = settings.flag("tie_word_embeddings", True) or settings.head() != "lm"
    trunk = Decoder(
        vocab=settings.count("vocab_size"),
        width=width,
        embed=Embedding(position=Learned(length=length)),
        stack=arrange(layers),
        norm=norm,
        head=TiedHead() if tied else LinearHead(),
    )
    return headed(settings, trunk)


def read(settings: Settings) -> Model:
    """The model of a config.json."""
    settings.refuse("add_cross_attention", False, None)
    width, count = settings.count("n_embd", default=768), settings.count("n_head", default=12)
    norm = LayerNorm(eps=settings.number("layer_norm_epsilon", default=1e-5))
    scale = (width // count) ** -0.5 if settings.flag("scale_attn_weights", True) else 1.0
    falling = settings.flag("scale_attn_by_inverse_layer_idx", False)
    hidden = settings.count("n_inner", default=4 * width)
    ffn = mlp(hidden, settings.activation("activation_function", default="gelu_new"))
    layers = [
        Block(mixer=heads(count, scale=scale / (layer + 1 if falling else 1)), ffn=ffn, norm=norm)
        for layer in range(settings.count("n_layer", default=12))
    ]
    return read_decoder(settings, layers, norm, settings.count("n_positions", default=1024), width)


def write(model: Model) -> dict:
    """The reverse of `read`."""
    layers, trunk = layers_of(model), trunk_of(model)
    first, size = layers[0].mixer, layers[0].mixer.head_size or trunk.width // layers[0].mixer.heads
    scales = [layer.mixer.scale for layer in layers]
    return {
        **sizes(model),
        "n_inner": layers[0].ffn.hidden,
        "activation_function": written(layers[0].ffn.activation),
        "scale_attn_weights": first.scale in (None, size**-0.5),
        "scale_attn_by_inverse_layer_idx": len(set(scales)) > 1,
        "tie_word_embeddings": isinstance(trunk.head, TiedHead),
    }


def sizes(model: Model) -> dict:
    """What GPT-1 and GPT-2 say alike."""
    trunk, block = trunk_of(model), layers_of(model)[0]
    return {
        "vocab_size": trunk.vocab,
        "n_positions": trunk.embed.position.length,
        "n_embd": trunk.width,
        "n_layer": trunk.stack.depth,
        "n_head": block.mixer.heads,
        "layer_norm_epsilon": block.norm.eps,
        **head_settings(model),
    }


def written(activation: str) -> str:
    """The name of an activation as the files of these families say it."""
    return "gelu_new" if activation == "gelu_tanh" else activation_name(activation)


PARTS = (
    tensor("transformer.h.{N}.attn.c_attn.weight", "mixer.q.w: D +HK", "mixer.k.w: D +GK", "mixer.v.w: D +GK"),
    tensor("transformer.h.{N}.attn.c_attn.bias", "mixer.q.bias: +HK", "mixer.k.bias: +GK", "mixer.v.bias: +GK"),
    tensor("transformer.h.{N}.attn.c_proj.weight", "mixer.out.w: HK D"),
    tensor("transformer.h.{N}.attn.c_proj.bias", "mixer.out.bias: D"),
    tensor("transformer.h.{N}.mlp.c_fc.weight", "ffn.up.w: D F"),
    tensor("transformer.h.{N}.mlp.c_fc.bias", "ffn.up.bias: F"),
    tensor("transformer.h.{N}.mlp.c_proj.weight", "ffn.down.w: F D"),
    tensor("transformer.h.{N}.mlp.c_proj.bias", "ffn.down.bias: D"),
)
NORMS = (
    tensor("transformer.h.{N}.ln_1.weight", "wiring.before.0.scale: D"),
    tensor("transformer.h.{N}.ln_1.bias", "wiring.before.0.bias: D"),
    tensor("transformer.h.{N}.ln_2.weight", "wiring.before.1.scale: D"),
    tensor("transformer.h.{N}.ln_2.bias", "wiring.before.1.bias: D"),
)
ENDS = (
    tensor("transformer.wte.weight", "embed.table: V D"),
    tensor("transformer.wpe.weight", "embed.position.table: l D"),
    tensor("transformer.ln_f.weight", "norm.scale: D"),
    tensor("transformer.ln_f.bias", "norm.bias: D"),
    tensor("lm_head.weight", "head.table: V D"),
)
CLASSIFIER = {
    "sequence": HEADS["sequence"],
    "token": (tensor("classifier.weight", "out.w: J D"), tensor("classifier.bias", "out.bias: J")),
    "question": QUESTION,
}
FAMILY = Family(
    kind="gpt2",
    read=read,
    write=write,
    table=Table(model=ENDS, layers={"stack": PARTS + NORMS}, heads=CLASSIFIER),
    prefixes=("transformer.",),
    ignored=(r"\.attn\.(masked_)?bias$",),
    architecture=classes("GPT2", "sequence", "token", "question") | {"lm": "GPT2LMHeadModel"},
)
