"""Gemma (Gemma Team, 2024, arXiv 2403.08295): norms that multiply by 1 + w, a scaled embedding, a gate with gelu.

Parameters, tied: 2B 2,506,172,416; 7B 8,537,680,896. Heads are larger than width / heads. In files `hidden_act: gelu`
means the tanh form.
"""

from __future__ import annotations

from llmlab.ffn.dense import Gated
from llmlab.mixers.attention import Attention
from llmlab.models.block import Block
from llmlab.models.decoder import Decoder, Model
from llmlab.nn.embed import TiedHead
from llmlab.nn.norm import RMSNorm
from llmlab.nn.position import Rotary
from llmlab.presets.family import Family, Settings
from llmlab.presets.gated import (
    ATTENTION,
    GATED,
    INIT,
    NORMS,
    classes,
    decoder,
    gated,
    layers_of,
    names,
    read_attention,
    read_decoder,
    write_decoder,
)  # fmt: skip
from llmlab.presets.rope import read_rotary, write_rotary

NORM = RMSNorm(eps=1e-6, offset=1.0)


def gemma(layers: int, width: int, hidden: int, heads: int, kv: int) -> Decoder:
    """A decoder of this class."""
    attention = Attention(
        heads=heads, kv_heads=kv, head_size=256, position=Rotary(theta=10_000.0), init=INIT, out_init=INIT
    )
    block = Block(mixer=attention, ffn=gated(hidden, "gelu_tanh"), norm=NORM)
    return decoder([block] * layers, width, NORM, 256_000, TiedHead(), power=0.5)


def gemma_2b() -> Decoder:
    return gemma(18, 2048, 16_384, heads=8, kv=1)


def gemma_7b() -> Decoder:
    return gemma(28, 3072, 24_576, heads=16, kv=16)


def read_parts(settings: Settings, activation: str) -> tuple[RMSNorm, Gated]:
    """Norm and feed-forward of a config of any Gemma. activation: its key."""
    settings.refuse("use_bidirectional_attention", False, None)
    norm = RMSNorm(eps=settings.number("rms_norm_eps", default=1e-6), offset=1.0)
    found = settings.activation(activation, default="gelu_pytorch_tanh")
    return norm, Gated(hidden=settings.count("intermediate_size"), activation=found)


def read(settings: Settings) -> Model:
    """The model of a config.json."""
    if settings.get("hidden_act") == "gelu":
        settings = Settings({**settings.values, "hidden_act": "gelu_pytorch_tanh"}, settings.where, settings.tensors)
    norm, ffn = read_parts(settings, "hidden_act")
    size = settings.count("head_dim", default=256)
    attention = read_attention(settings, head_size=size, position=read_rotary(settings))
    block = Block(mixer=attention, ffn=ffn, norm=norm)
    return read_decoder(settings, [block] * settings.count("num_hidden_layers"), norm, tied=True, power=0.5)


def write(model: Model) -> dict:
    """The reverse of `read`."""
    return {**write_decoder(model), **write_rotary(layers_of(model)[0].mixer.position)}


FAMILY = Family(
    kind="gemma",
    read=read,
    write=write,
    table=names(*ATTENTION, *GATED, *NORMS),
    prefixes=("model.",),
    architecture=classes("Gemma", "sequence", "token"),
)
