"""Mistral 7B (Jiang et al., 2023, arXiv 2310.06825): LLaMA's class with a window, grouped heads and no biases.

Parameters: v0.1 and v0.2 7,241,732,096; v0.3 7,248,023,552. v0.1 sees the last 4,096 positions; later ones see all, and
their waves are longer.
"""

from __future__ import annotations

from llmlab.ffn.dense import Gated
from llmlab.mixers.attention import Attention, Causal
from llmlab.models.block import Block
from llmlab.models.decoder import Decoder, Model
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


def heads(count: int, kv: int, size: int, theta: float, window: int | None = None) -> Attention:
    return Attention(
        heads=count,
        kv_heads=kv,
        head_size=size,
        view=Causal(window=window),
        position=Rotary(theta=theta),
        init=INIT,
        out_init=INIT,
    )


def mistral_7b(vocab: int = 32_000, theta: float = 10_000.0, window: int | None = 4096) -> Decoder:
    """Version 0.1."""
    norm = RMSNorm(eps=1e-5)
    block = Block(mixer=heads(32, 8, 128, theta, window), ffn=gated(14_336), norm=norm)
    return decoder([block] * 32, 4096, norm, vocab)


def mistral_7b_v02() -> Decoder:
    return mistral_7b(theta=1e6, window=None)


def mistral_7b_v03() -> Decoder:
    return mistral_7b(vocab=32_768, theta=1e6, window=None)


def read_mixer(settings: Settings, window: int | None, theta: float) -> Attention:
    """Attention of a config. window, theta: what a config means that says nothing of them."""
    view = Causal(window=settings.nullable(settings.count, "sliding_window", window))
    position = read_rotary(settings, theta=theta)
    return read_attention(settings, view=view, position=position, bias=None, out_bias=None)


def read(settings: Settings) -> Model:
    """The model of a config.json."""
    norm = RMSNorm(eps=settings.number("rms_norm_eps", default=1e-6))
    activation = settings.activation("hidden_act", default="silu")
    ffn = Gated(hidden=settings.count("intermediate_size"), activation=activation)
    block = Block(mixer=read_mixer(settings, 4096, 1e4), ffn=ffn, norm=norm)
    return read_decoder(settings, [block] * settings.count("num_hidden_layers"), norm)


def write(model: Model) -> dict:
    """The reverse of `read`."""
    attention = layers_of(model)[0].mixer
    window = {"sliding_window": attention.view.window}
    return {**write_decoder(model), **window, **write_rotary(attention.position)}


FAMILY = Family(
    kind="mistral",
    read=read,
    write=write,
    table=names(*ATTENTION, *GATED, *NORMS),
    prefixes=("model.",),
    architecture=classes("Mistral", "sequence", "token", "question"),
)
