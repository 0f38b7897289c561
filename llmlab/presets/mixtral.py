"""Mixtral (Jiang et al., 2024, arXiv 2401.04088): Mistral's decoder with eight experts in each layer, two a token.

Parameters: 8x7B 46,702,792,704; 8x22B 140,620,634,112. No token is dropped. The loss that balances experts is the
task's to weigh; transformers takes the product of loads and probabilities over the tokens of all layers together, ours
is the mean of the layers'.
"""

from __future__ import annotations

from llmlab.ffn.dense import Gated
from llmlab.ffn.moe import MoE
from llmlab.ffn.router import TopK
from llmlab.models.block import Block
from llmlab.models.decoder import Decoder, Model
from llmlab.names import tensor
from llmlab.nn.norm import RMSNorm
from llmlab.presets import mistral
from llmlab.presets.family import Family, Settings
from llmlab.presets.gated import (
    ATTENTION,
    INIT,
    NORMS,
    classes,
    decoder,
    gated,
    layers_of,
    names,
    read_decoder,
)  # fmt: skip


def mixtral(layers: int, width: int, hidden: int, heads: int) -> Decoder:
    """A decoder of this class."""
    norm, ffn = RMSNorm(eps=1e-5), MoE(experts=8, top_k=2, expert=gated(hidden), router=TopK(init=INIT))
    block = Block(mixer=mistral.heads(heads, 8, 128, theta=1e6), ffn=ffn, norm=norm)
    return decoder([block] * layers, width, norm, vocab=32_000)


def mixtral_8x7b() -> Decoder:
    return mixtral(32, 4096, 14_336, heads=32)


def mixtral_8x22b() -> Decoder:
    return mixtral(56, 6144, 16_384, heads=48)


def read(settings: Settings) -> Model:
    """The model of a config.json."""
    norm = RMSNorm(eps=settings.number("rms_norm_eps", default=1e-5))
    activation = settings.activation("hidden_act", default="silu")
    ffn = MoE(
        experts=settings.count("num_local_experts", default=8),
        top_k=settings.count("num_experts_per_tok", default=2),
        expert=Gated(hidden=settings.count("intermediate_size"), activation=activation),
    )
    block = Block(mixer=mistral.read_mixer(settings, None, 1e6), ffn=ffn, norm=norm)
    return read_decoder(settings, [block] * settings.count("num_hidden_layers"), norm)


def write(model: Model) -> dict:
    """The reverse of `read`."""
    ffn = layers_of(model)[0].ffn
    return {**mistral.write(model), "num_local_experts": ffn.experts, "num_experts_per_tok": ffn.top_k}


EXPERTS = (
    tensor("model.layers.{N}.block_sparse_moe.gate.weight", "ffn.router.score.w: e D"),
    tensor("model.layers.{N}.block_sparse_moe.experts.{E}.w1.weight", "ffn.experts.gate.w: F D"),
    tensor("model.layers.{N}.block_sparse_moe.experts.{E}.w3.weight", "ffn.experts.up.w: F D"),
    tensor("model.layers.{N}.block_sparse_moe.experts.{E}.w2.weight", "ffn.experts.down.w: D F"),
)
FAMILY = Family(
    kind="mixtral",
    read=read,
    write=write,
    table=names(*ATTENTION, *EXPERTS, *NORMS),
    prefixes=("model.",),
    architecture=classes("Mixtral", "sequence", "token", "question"),
)
