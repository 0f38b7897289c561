"""Gemma 2 (Gemma Team, 2024, arXiv 2408.00118): windows in every other layer, norms on both sides, capped scores.

Parameters, tied: 2B 2,614,341,888; 9B 9,241,705,984; 27B 27,227,128,320. Scores are capped at 50 before the mask, the
logits at 30. The scale of scores is a number of its own, in 27B not that of its heads.
"""

from __future__ import annotations

from llmlab.mixers.attention import Attention, Causal
from llmlab.models.block import Block, Sandwich
from llmlab.models.decoder import Decoder, Model
from llmlab.names import tensor
from llmlab.nn.embed import TiedHead
from llmlab.nn.position import Rotary
from llmlab.presets.family import ConfigError, Family, Settings, activation_name, trunk_of
from llmlab.presets.gated import (
    ATTENTION,
    GATED,
    INIT,
    classes,
    decoder,
    gated,
    layers_of,
    names,
    read_attention,
    read_decoder,
    write_decoder,
)  # fmt: skip
from llmlab.presets.gemma import NORM, read_parts
from llmlab.presets.rope import read_rotary, write_rotary

LOCAL, WHOLE = "sliding_attention", "full_attention"


def gemma2(layers: int, width: int, hidden: int, heads: tuple[int, int, int], scalar: float) -> Decoder:
    """A decoder of this class. heads: their number, that of keys and values, their size. scalar: scale ** -2."""

    def block(window: int | None) -> Block:
        count, kv, size = heads
        attention = Attention(
            heads=count,
            kv_heads=kv,
            head_size=size,
            view=Causal(window=window),
            position=Rotary(theta=10_000.0),
            scale=scalar**-0.5,
            softcap=50.0,
            init=INIT,
            out_init=INIT,
        )
        return Block(mixer=attention, ffn=gated(hidden, "gelu_tanh"), norm=NORM, wiring=Sandwich())

    return decoder([block(4096), block(None)] * (layers // 2), width, NORM, 256_000, TiedHead(softcap=30.0), power=0.5)


def gemma2_2b() -> Decoder:
    return gemma2(26, 2304, 9216, (8, 4, 256), scalar=256)


def gemma2_9b() -> Decoder:
    return gemma2(42, 3584, 14_336, (16, 8, 256), scalar=256)


def gemma2_27b() -> Decoder:
    return gemma2(46, 4608, 36_864, (32, 16, 128), scalar=144)


def read_kinds(settings: Settings, period: int) -> list[str]:
    """LOCAL or WHOLE for each layer. period: where a config does not say it, each so many-th layer sees all."""
    count = settings.count("num_hidden_layers")
    usual = [LOCAL if (layer + 1) % period else WHOLE for layer in range(count)]
    kinds = settings.get("layer_types", default=usual)
    if len(kinds) != count or set(kinds) - {LOCAL, WHOLE}:
        raise ConfigError(
            f"{settings.where}: layer_types is {kinds!r}; it is {LOCAL!r} or {WHOLE!r} for {count} layers"
        )
    return kinds


def write_kinds(model: Model) -> dict:
    """The reverse of `read_kinds`, with the window."""
    windows = [layer.mixer.view.window for layer in layers_of(model)]
    return {
        "sliding_window": next(filter(None, windows), None),
        "layer_types": [WHOLE if window is None else LOCAL for window in windows],
    }


def read(settings: Settings) -> Model:
    """The model of a config.json."""
    norm, ffn = read_parts(settings, "hidden_activation")
    window = settings.nullable(settings.count, "sliding_window", 4096)
    views = {LOCAL: Causal(window=window), WHOLE: Causal()}
    attention = dict(
        head_size=settings.count("head_dim", default=256),
        scale=settings.number("query_pre_attn_scalar", default=256) ** -0.5,
        softcap=settings.nullable(settings.number, "attn_logit_softcapping", 50.0),
        position=read_rotary(settings),
    )
    layers = [
        Block(mixer=read_attention(settings, view=views[kind], **attention), ffn=ffn, norm=norm, wiring=Sandwich())
        for kind in read_kinds(settings, 2)
    ]
    softcap = settings.nullable(settings.number, "final_logit_softcapping", 30.0)
    return read_decoder(settings, layers, norm, tied=True, power=0.5, softcap=softcap)


def write(model: Model) -> dict:
    """The reverse of `read`."""
    block = layers_of(model)[0]
    attention = block.mixer
    return {
        **write_decoder(model),
        **write_kinds(model),
        **write_rotary(attention.position),
        "hidden_activation": activation_name(block.ffn.activation),
        "query_pre_attn_scalar": scalar(attention),
        "attn_logit_softcapping": attention.softcap,
        "final_logit_softcapping": trunk_of(model).head.softcap,
    }


def scalar(attention: Attention) -> int | float:
    """The scale of scores as the files say it: scale ** -2, which they want whole."""
    found = attention.scale**-2 if attention.scale else attention.head_size
    return round(found) if round(found) ** -0.5 == attention.scale else found


NORMS = (
    tensor("model.layers.{N}.input_layernorm.weight", "wiring.before.0.scale: D"),
    tensor("model.layers.{N}.post_attention_layernorm.weight", "wiring.after.0.scale: D"),
    tensor("model.layers.{N}.pre_feedforward_layernorm.weight", "wiring.before.1.scale: D"),
    tensor("model.layers.{N}.post_feedforward_layernorm.weight", "wiring.after.1.scale: D"),
)
FAMILY = Family(
    kind="gemma2",
    read=read,
    write=write,
    table=names(*ATTENTION, *GATED, *NORMS),
    prefixes=("model.",),
    architecture=classes("Gemma2", "sequence", "token"),
)
