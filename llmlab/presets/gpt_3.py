"""GPT-3 (Brown et al., 2020, arXiv 2005.14165) and GPT-Neo (Black et al., 2021): dense and banded layers in turn.

GPT-3 is GPT-2's decoder for 2,048 positions in the eight sizes of table 2.1, from 125 million to 175 billion. Its
weights and the width of its bands were not published: the band here is GPT-Neo's, and a dense layer comes first as
there. The table's heads are wider than the stream for XL (24 x 128, not 2,048) and narrower for 13B (40 x 128, not
5,140). Parameters: small 125,226,240; medium 355,871,744; large 760,300,032; XL 1,517,123,584 (the paper says 1.3
billion, which 16 heads give); 2.7B 2,651,553,280; 6.7B 6,658,404,352; 13B 12,936,488,380; 175B 174,604,259,328.

GPT-Neo does not scale scores and has no biases on queries, keys and values. Parameters: 125M 125,198,592; 1.3B
1,315,575,808; 2.7B 2,651,307,520.
"""

from __future__ import annotations

from llmlab.mixers.attention import Causal
from llmlab.models.block import Block
from llmlab.models.decoder import Decoder, Model
from llmlab.names import Table, tensor
from llmlab.nn.embed import TiedHead
from llmlab.nn.norm import LayerNorm
from llmlab.presets.family import ConfigError, Family, Settings, head_settings, trunk_of
from llmlab.presets.gated import classes, layers_of
from llmlab.presets.gpt_2 import (
    CLASSIFIER,
    ENDS,
    INIT,
    NORM,
    NORMS,
    OUT,
    decoder,
    heads,
    mlp,
    read_decoder,
    written,
)  # fmt: skip

BAND = 256
GLOBAL, LOCAL = "global", "local"


def alternating(layers: int, width: int, **own) -> Decoder:
    """Dense and banded layers in turn. own: of attention."""
    ffn = mlp(4 * width, init=INIT, out_init=OUT)
    block = lambda window: Block(mixer=heads(view=Causal(window=window), **own), ffn=ffn, norm=NORM)
    return decoder([block(None), block(BAND)] * (layers // 2), width, vocab=50_257, length=2048)


def gpt3(layers: int, width: int, count: int, size: int) -> Decoder:
    """count, size: of heads."""
    return alternating(layers, width, count=count, head_size=size, init=INIT, out_init=OUT)


def gpt3_small() -> Decoder:
    return gpt3(12, 768, 12, 64)


def gpt3_medium() -> Decoder:
    return gpt3(24, 1024, 16, 64)


def gpt3_large() -> Decoder:
    return gpt3(24, 1536, 16, 96)


def gpt3_xl() -> Decoder:
    return gpt3(24, 2048, 24, 128)


def gpt3_2b7() -> Decoder:
    return gpt3(32, 2560, 32, 80)


def gpt3_6b7() -> Decoder:
    return gpt3(32, 4096, 32, 128)


def gpt3_13b() -> Decoder:
    return gpt3(40, 5140, 40, 128)


def gpt3_175b() -> Decoder:
    return gpt3(96, 12_288, 96, 128)


def gpt_neo_125m(layers: int = 12, width: int = 768, count: int = 12) -> Decoder:
    return alternating(layers, width, count=count, scale=1.0, bias=None, init=INIT, out_init=INIT)


def gpt_neo_1b3() -> Decoder:
    return gpt_neo_125m(24, 2048, 16)


def gpt_neo_2b7() -> Decoder:
    return gpt_neo_125m(32, 2560, 20)


def read(settings: Settings) -> Model:
    """The model of a config.json of GPT-Neo."""
    width, count = settings.count("hidden_size", default=2048), settings.count("num_heads", default=16)
    norm = LayerNorm(eps=settings.number("layer_norm_epsilon", default=1e-5))
    hidden = settings.count("intermediate_size", default=4 * width)
    ffn = mlp(hidden, settings.activation("activation_function", default="gelu_new"))
    views = {GLOBAL: Causal(), LOCAL: Causal(window=settings.count("window_size", default=256))}
    layers = [
        Block(mixer=heads(count, view=views[kind], scale=1.0, bias=None), ffn=ffn, norm=norm)
        for kind in read_kinds(settings)
    ]
    return read_decoder(settings, layers, norm, settings.count("max_position_embeddings", default=2048), width)


def read_kinds(settings: Settings) -> list[str]:
    """GLOBAL or LOCAL for each layer, of `attention_types`: patterns and how often each comes."""
    depth, told = settings.count("num_layers", default=24), settings.get("attention_types")
    try:
        kinds = [kind for pattern, times in told or [[[GLOBAL, LOCAL], depth // 2]] for kind in pattern * times]
    except (TypeError, ValueError):
        kinds = []
    if len(kinds) != depth or set(kinds) - {GLOBAL, LOCAL}:
        raise ConfigError(
            f"{settings.where}: attention_types is {told!r}; it is patterns of {GLOBAL!r} and {LOCAL!r}, each with the "
            f"number of times that it comes, for {depth} layers"
        )
    return kinds


def write(model: Model) -> dict:
    """The reverse of `read`."""
    layers, trunk = layers_of(model), trunk_of(model)
    windows = [layer.mixer.view.window for layer in layers]
    return {
        "vocab_size": trunk.vocab,
        "max_position_embeddings": trunk.embed.position.length,
        "hidden_size": trunk.width,
        "num_layers": trunk.stack.depth,
        "num_heads": layers[0].mixer.heads,
        "intermediate_size": layers[0].ffn.hidden,
        "activation_function": written(layers[0].ffn.activation),
        "layer_norm_epsilon": layers[0].norm.eps,
        "attention_types": [[[GLOBAL if window is None else LOCAL], 1] for window in windows],
        "attention_layers": [GLOBAL if window is None else LOCAL for window in windows],
        "window_size": next(filter(None, windows), BAND),
        "tie_word_embeddings": isinstance(trunk.head, TiedHead),
        **head_settings(model),
    }


PARTS = (
    tensor("transformer.h.{N}.attn.attention.q_proj.weight", "mixer.q.w: HK D"),
    tensor("transformer.h.{N}.attn.attention.k_proj.weight", "mixer.k.w: GK D"),
    tensor("transformer.h.{N}.attn.attention.v_proj.weight", "mixer.v.w: GK D"),
    tensor("transformer.h.{N}.attn.attention.out_proj.weight", "mixer.out.w: D HK"),
    tensor("transformer.h.{N}.attn.attention.out_proj.bias", "mixer.out.bias: D"),
    tensor("transformer.h.{N}.mlp.c_fc.weight", "ffn.up.w: F D"),
    tensor("transformer.h.{N}.mlp.c_fc.bias", "ffn.up.bias: F"),
    tensor("transformer.h.{N}.mlp.c_proj.weight", "ffn.down.w: D F"),
    tensor("transformer.h.{N}.mlp.c_proj.bias", "ffn.down.bias: D"),
)
FAMILY = Family(
    kind="gpt_neo",
    read=read,
    write=write,
    table=Table(model=ENDS, layers={"stack": PARTS + NORMS}, heads=CLASSIFIER),
    prefixes=("transformer.",),
    ignored=(r"\.attn\.attention\.(masked_)?bias$",),
    architecture=classes("GPTNeo", "sequence", "token", "question"),
)
