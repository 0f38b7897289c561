"""OpenELM (Mehta et al., 2024, arXiv 2404.14619): heads and feed-forwards that grow from layer to layer.

Parameters, tied: 270M 271,527,168; 450M 457,179,136; 1.1B 1,079,891,456; 3B 3,036,647,424. Pre-norm with RMSNorm, also
of each query and key head, rotary positions, SwiGLU, no biases; a quarter as many heads of keys. Its files are read in
the layout of the hub, for which transformers has no class.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from llmlab.ffn.dense import Gated
from llmlab.mixers.attention import Attention
from llmlab.models.block import Block
from llmlab.models.decoder import Decoder, Model
from llmlab.names import Table, tensor
from llmlab.nn.embed import Embedding, LinearHead, TiedHead
from llmlab.nn.init import FanIn, PerDepth
from llmlab.nn.norm import RMSNorm
from llmlab.nn.position import Rotary
from llmlab.nn.stack import arrange
from llmlab.presets.family import ConfigError, Family, Settings, activation_name
from llmlab.presets.gated import layers_of

NORM = RMSNorm(eps=1e-6)
DIVISOR, GROUPS = 256, 4  # of feed-forwards; heads of queries to one of keys
OUT = PerDepth(init=FanIn())


def divisible(value: float, divisor: int) -> int:
    """The multiple of `divisor` that is nearest to a size, not below 0.9 of it."""
    near = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return near + divisor if near < 0.9 * value else near


def block(count: int, kv: int, size: int, hidden: int, theta: float = 10_000.0) -> Block:
    """count, kv: heads of queries, and of keys and values. size: of one. hidden: of the feed-forward."""
    attention = Attention(
        heads=count, kv_heads=kv, head_size=size, norm=NORM, position=Rotary(theta=theta), out_init=OUT
    )
    return Block(mixer=attention, ffn=Gated(hidden=hidden, out_init=OUT), norm=NORM)


def openelm(layers: int, width: int, size: int) -> Decoder:
    """size: of heads. Heads grow from half of the width to all of it, feed-forwards from half of it to four times."""
    blocks = []
    for wide, deep in zip(np.linspace(0.5, 1.0, layers).round(2), np.linspace(0.5, 4.0, layers).round(2)):
        count = divisible(width * wide, size * GROUPS) // size
        blocks.append(block(count, count // GROUPS, size, divisible(width * deep, DIVISOR)))
    embed = Embedding(init=FanIn())
    return Decoder(vocab=32_000, width=width, embed=embed, stack=arrange(blocks), norm=NORM, head=TiedHead())


def openelm_270m() -> Decoder:
    return openelm(16, 1280, 64)


def openelm_450m() -> Decoder:
    return openelm(20, 1536, 64)


def openelm_1b1() -> Decoder:
    return openelm(28, 2048, 64)


def openelm_3b() -> Decoder:
    return openelm(36, 3072, 128)


def read(settings: Settings) -> Model:
    """The model of a config.json."""
    settings.refuse("ffn_with_glu", True)
    settings.refuse("normalization_layer_name", "rms_norm")
    depth, width = settings.count("num_transformer_layers"), settings.count("model_dim")
    divisor, theta = (
        settings.count("ffn_dim_divisor", default=DIVISOR),
        settings.number("rope_freq_constant", default=1e4),
    )
    lists = [settings.get(key, default=()) for key in ("num_query_heads", "num_kv_heads", "ffn_multipliers")]
    if any(len(one) != depth for one in lists):
        raise ConfigError(
            f"{settings.where}: num_query_heads, num_kv_heads and ffn_multipliers have {[len(one) for one in lists]} "
            f"entries; each has one for each of the {depth} layers"
        )
    normed = settings.flag("normalize_qk_projections", True)
    activation = settings.activation("activation_fn_name", default="swish")
    blocks = []
    for count, kv, deep in zip(*lists):
        one = block(count, kv, settings.count("head_dim"), divisible(width * deep, divisor), theta)
        mixer = one.mixer if normed else dataclasses.replace(one.mixer, norm=None)
        blocks.append(dataclasses.replace(one, mixer=mixer, ffn=dataclasses.replace(one.ffn, activation=activation)))
    return Decoder(
        vocab=settings.count("vocab_size"),
        width=width,
        stack=arrange(blocks),
        norm=NORM,
        head=TiedHead() if settings.flag("share_input_output_layers", True) else LinearHead(),
    )


def write(model: Model) -> dict:
    """The reverse of `read`."""
    layers = layers_of(model)
    first = layers[0]
    counts = [layer.mixer.heads for layer in layers]
    return {
        "vocab_size": model.vocab,
        "model_dim": model.width,
        "num_transformer_layers": len(layers),
        "head_dim": first.mixer.head_size,
        "num_query_heads": counts,
        "num_kv_heads": [layer.mixer.kv_heads or layer.mixer.heads for layer in layers],
        "num_gqa_groups": counts[0] // (first.mixer.kv_heads or counts[0]),
        "ffn_multipliers": [layer.ffn.hidden / model.width for layer in layers],
        "ffn_dim_divisor": math.gcd(DIVISOR, *(layer.ffn.hidden for layer in layers)),
        "ffn_with_glu": True,
        "activation_fn_name": "swish" if first.ffn.activation == "silu" else activation_name(first.ffn.activation),
        "normalization_layer_name": "rms_norm",
        "normalize_qk_projections": first.mixer.norm is not None,
        "rope_freq_constant": first.mixer.position.theta,
        "share_input_output_layers": isinstance(model.head, TiedHead),
    }


PARTS = (
    tensor("transformer.layers.{N}.attn.qkv_proj.weight", "mixer.q.w: +HK D", "mixer.k.w: +GK D", "mixer.v.w: +GK D"),
    tensor("transformer.layers.{N}.attn.out_proj.weight", "mixer.out.w: D HK"),
    tensor("transformer.layers.{N}.attn.q_norm.weight", "mixer.q_norm.scale: K"),
    tensor("transformer.layers.{N}.attn.k_norm.weight", "mixer.k_norm.scale: K"),
    tensor("transformer.layers.{N}.ffn.proj_1.weight", "ffn.gate.w: +F D", "ffn.up.w: +F D"),
    tensor("transformer.layers.{N}.ffn.proj_2.weight", "ffn.down.w: D F"),
    tensor("transformer.layers.{N}.attn_norm.weight", "wiring.before.0.scale: D"),
    tensor("transformer.layers.{N}.ffn_norm.weight", "wiring.before.1.scale: D"),
)
ENDS = (
    tensor("transformer.token_embeddings.weight", "embed.table: V D"),
    tensor("transformer.norm.weight", "norm.scale: D"),
    tensor("lm_head.weight", "head.table: V D"),
)
FAMILY = Family(
    kind="openelm",
    read=read,
    write=write,
    table=Table(model=ENDS, layers={"stack": PARTS}),
    prefixes=("transformer.",),
    architecture={"lm": "OpenELMForCausalLM"},
)
