"""Gemma 3, text (Gemma Team, 2025, arXiv 2503.19786): five layers with a window, then one without; normalised heads.

Parameters, tied: 270M 268,098,176; 1B 999,885,952; 4B 3,880,263,168; 12B 11,766,034,176; 27B 27,009,346,304. Layers
with a window have shorter waves; from 4B on the others' are stretched by 8. Nothing is capped. What a config says of
capped scores is not read, as in transformers. The 4B and larger ones were published with a vision tower, which is not
built here; their table has 64 rows more than the tokenizer has ids.
"""

from __future__ import annotations

from llmlab.mixers.attention import Attention, Causal
from llmlab.models.block import Block, Sandwich
from llmlab.models.decoder import Decoder, Model
from llmlab.names import tensor
from llmlab.nn.embed import TiedHead
from llmlab.nn.position import Rotary
from llmlab.nn.rotary import Linear
from llmlab.presets.family import Family, Settings, activation_name, trunk_of
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
from llmlab.presets.gemma2 import LOCAL, NORMS, WHOLE, read_kinds, scalar, write_kinds
from llmlab.presets.rope import read_rotary, write_rotary

NEAR, FAR = Rotary(theta=10_000.0), Rotary(theta=1e6)
STRETCHED = Rotary(theta=1e6, scaling=Linear(factor=8.0))


def gemma3(
    layers: int,
    width: int,
    hidden: int,
    heads: tuple[int, int, int],
    window: int = 1024,
    far: Rotary = STRETCHED,
    vocab: int = 262_208,
    pre: float = 256,
) -> Decoder:
    """A decoder of this class. heads: their number, that of keys and values, their size. pre: scale of scores ** -2."""

    def block(view: Causal, position: Rotary) -> Block:
        count, kv, size = heads
        attention = Attention(
            heads=count,
            kv_heads=kv,
            head_size=size,
            view=view,
            position=position,
            norm=NORM,
            scale=pre**-0.5,
            init=INIT,
            out_init=INIT,
        )
        return Block(mixer=attention, ffn=gated(hidden, "gelu_tanh"), norm=NORM, wiring=Sandwich())

    pattern = [block(Causal(window=window), NEAR)] * 5 + [block(Causal(), far)]
    return decoder((pattern * layers)[:layers], width, NORM, vocab, TiedHead(), power=0.5)


def gemma3_270m() -> Decoder:
    return gemma3(18, 640, 2048, (4, 1, 256), window=512, far=FAR, vocab=262_144)


def gemma3_1b() -> Decoder:
    return gemma3(26, 1152, 6912, (4, 1, 256), window=512, far=FAR, vocab=262_144)


def gemma3_4b() -> Decoder:
    return gemma3(34, 2560, 10_240, (8, 4, 256))


def gemma3_12b() -> Decoder:
    return gemma3(48, 3840, 15_360, (16, 8, 256))


def gemma3_27b() -> Decoder:
    return gemma3(62, 5376, 21_504, (32, 16, 128), pre=168)


def read_rotaries(settings: Settings) -> dict[str, Rotary]:
    """Rotary positions of each kind of layer, of today's configs (one table for each) and of the hub's."""
    tables = settings.get("rope_parameters", default={})
    if LOCAL in tables or WHOLE in tables:
        kinds = {LOCAL: 10_000.0, WHOLE: 1e6}
        return {kind: read_rotary(settings, tables.get(kind) or {}, theta=theta) for kind, theta in kinds.items()}
    near = Rotary(theta=settings.number("rope_local_base_freq", default=10_000.0))
    return {LOCAL: near, WHOLE: read_rotary(settings, theta=1e6)}


def read(settings: Settings) -> Model:
    """The model of a config.json."""
    norm, ffn = read_parts(settings, "hidden_activation")
    window = settings.nullable(settings.count, "sliding_window", 4096)
    views, positions = {LOCAL: Causal(window=window), WHOLE: Causal()}, read_rotaries(settings)
    attention = dict(
        head_size=settings.count("head_dim", default=256),
        scale=settings.number("query_pre_attn_scalar", default=256) ** -0.5,
        norm=norm,
    )

    def block(kind: str) -> Block:
        mixer = read_attention(settings, view=views[kind], position=positions[kind], **attention)
        return Block(mixer=mixer, ffn=ffn, norm=norm, wiring=Sandwich())

    period = settings.count("sliding_window_pattern", "_sliding_window_pattern", default=6)
    softcap = settings.nullable(settings.number, "final_logit_softcapping", None)
    layers = [block(kind) for kind in read_kinds(settings, period)]
    return read_decoder(settings, layers, norm, tied=True, power=0.5, softcap=softcap)


def write(model: Model) -> dict:
    """The reverse of `read`, in the form of the hub."""
    layers = layers_of(model)
    near = next((one.mixer.position for one in layers if one.mixer.view.window), NEAR)
    far = next((one.mixer.position for one in layers if not one.mixer.view.window), FAR)
    return {
        **write_decoder(model),
        **write_kinds(model),
        **write_rotary(far),
        "rope_parameters": None,
        "rope_local_base_freq": near.theta,
        "hidden_activation": activation_name(layers[0].ffn.activation),
        "query_pre_attn_scalar": scalar(layers[0].mixer),
        "final_logit_softcapping": trunk_of(model).head.softcap,
    }


HEAD_NORMS = (
    tensor("model.layers.{N}.self_attn.q_norm.weight", "mixer.q_norm.scale: K"),
    tensor("model.layers.{N}.self_attn.k_norm.weight", "mixer.k_norm.scale: K"),
)
FAMILY = Family(
    kind="gemma3_text",
    read=read,
    write=write,
    table=names(*ATTENTION, *HEAD_NORMS, *GATED, *NORMS),
    prefixes=("model.",),
    architecture=classes("Gemma3", "sequence") | {"sequence": "Gemma3TextForSequenceClassification"},
)
