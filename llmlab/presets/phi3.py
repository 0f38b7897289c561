"""Phi-3 (Abdin et al., 2024, arXiv 2404.14219): LLaMA's class with fused projections, a window, and searched waves.

Parameters: mini 3,821,079,552; medium 13,960,238,080. The factors of the long contexts were searched for each release
and stand in its config.json, so they are arguments here. A text that grows beyond the original length while it is
written is read anew with the other factors, each row by itself; transformers takes the longest of a batch. Phi-3-small
is another architecture and not built.
"""

from __future__ import annotations

from llmlab.ffn.dense import Gated
from llmlab.mixers.attention import Attention, Causal
from llmlab.models.block import Block
from llmlab.models.decoder import Decoder, Model
from llmlab.names import tensor
from llmlab.nn.norm import RMSNorm
from llmlab.nn.position import Rotary
from llmlab.nn.rotary import LongRope
from llmlab.presets.family import Family, Settings
from llmlab.presets.gated import (
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

SHORT = Rotary(theta=10_000.0)


def phi3(layers: int, width: int, hidden: int, attention: Attention) -> Decoder:
    """A decoder of this class."""
    norm = RMSNorm(eps=1e-5)
    block = Block(mixer=attention, ffn=gated(hidden), norm=norm)
    return decoder([block] * layers, width, norm, vocab=32_064)


def heads(count: int, kv: int, size: int, window: int | None, position: Rotary) -> Attention:
    view = Causal(window=window)
    return Attention(heads=count, kv_heads=kv, head_size=size, view=view, position=position, init=INIT, out_init=INIT)


def searched(short: tuple[float, ...], long: tuple[float, ...]) -> Rotary:
    """Positions of the long contexts: from 4,096 to 131,072."""
    return Rotary(theta=10_000.0, scaling=LongRope(short=short, long=long, factor=32.0, original=4096))


def phi3_mini_4k(window: int | None = 2047, position: Rotary = SHORT) -> Decoder:
    return phi3(32, 3072, 8192, heads(32, 32, 96, window, position))


def phi3_mini_128k(short: tuple[float, ...], long: tuple[float, ...]) -> Decoder:
    """short, long: 48 factors each."""
    return phi3_mini_4k(None, searched(short, long))


def phi3_medium_4k(window: int | None = 2047, position: Rotary = SHORT) -> Decoder:
    return phi3(40, 5120, 17_920, heads(40, 10, 128, window, position))


def phi3_medium_128k(short: tuple[float, ...], long: tuple[float, ...]) -> Decoder:
    """short, long: 64 factors each."""
    return phi3_medium_4k(None, searched(short, long))


def read(settings: Settings) -> Model:
    """The model of a config.json."""
    norm = RMSNorm(eps=settings.number("rms_norm_eps", default=1e-5))
    activation = settings.activation("hidden_act", default="silu")
    attention = read_attention(
        settings,
        view=Causal(window=settings.nullable(settings.count, "sliding_window", None)),
        position=read_rotary(settings),
        bias=None,
        out_bias=None,
    )
    ffn = Gated(hidden=settings.count("intermediate_size"), activation=activation)
    block = Block(mixer=attention, ffn=ffn, norm=norm)
    return read_decoder(settings, [block] * settings.count("num_hidden_layers"), norm)


def write(model: Model) -> dict:
    """The reverse of `read`."""
    attention = layers_of(model)[0].mixer
    window = {"sliding_window": attention.view.window}
    return {**write_decoder(model), **window, **write_rotary(attention.position)}


FUSED = (
    tensor("model.layers.{N}.self_attn.qkv_proj.weight", "mixer.q.w: +HK D", "mixer.k.w: +GK D", "mixer.v.w: +GK D"),
    tensor("model.layers.{N}.self_attn.o_proj.weight", "mixer.out.w: D HK"),
    tensor("model.layers.{N}.mlp.gate_up_proj.weight", "ffn.gate.w: +F D", "ffn.up.w: +F D"),
    tensor("model.layers.{N}.mlp.down_proj.weight", "ffn.down.w: D F"),
)
FAMILY = Family(
    kind="phi3",
    read=read,
    write=write,
    table=names(*FUSED, *NORMS),
    prefixes=("model.",),
    architecture=classes("Phi3", "sequence", "token"),
)
