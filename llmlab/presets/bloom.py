"""BLOOM (BigScience, 2022, arXiv 2211.05100): ALiBi in place of positions, a norm on the embedding, biases, tied.

Parameters: 560M 559,214,592; 1B1 1,065,314,304; 1B7 1,722,408,960; 3B 3,002,557,440; 7B1 7,069,016,064; 176B
176,247,271,424. Queries, keys and values lie in one matrix, one after the other within each head.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmlab.models.block import Block, PreNorm, Renormed
from llmlab.models.decoder import Decoder, Model
from llmlab.names import Table, tensor
from llmlab.nn.bias import Alibi
from llmlab.nn.embed import Embedding, Head, LinearHead, TiedHead
from llmlab.nn.norm import LayerNorm
from llmlab.nn.parts import Layer
from llmlab.nn.stack import arrange
from llmlab.presets.family import Family, Settings, head_settings, headed, trunk_of
from llmlab.presets.gated import classes, layers_of
from llmlab.presets.gpt_2 import CLASSIFIER, INIT, NORM, OUT, heads, mlp


def decoder(layers: Sequence[Layer], width: int, vocab: int, norm: LayerNorm, head: Head) -> Decoder:
    """A decoder of this class around its layers."""
    stack = arrange(layers, bias=Alibi(heads=layers[0].mixer.heads))
    embed = Embedding(norm=norm, init=INIT)
    return Decoder(vocab=vocab, width=width, embed=embed, stack=stack, norm=norm, head=head)


def bloom(layers: int, width: int, count: int) -> Decoder:
    """count: of heads."""
    attention, ffn = heads(count, init=INIT, out_init=OUT), mlp(4 * width, init=INIT, out_init=OUT)
    return decoder([Block(mixer=attention, ffn=ffn, norm=NORM)] * layers, width, 250_880, NORM, TiedHead())


def bloom_560m() -> Decoder:
    return bloom(24, 1024, 16)


def bloom_1b1() -> Decoder:
    return bloom(24, 1536, 16)


def bloom_1b7() -> Decoder:
    return bloom(24, 2048, 16)


def bloom_3b() -> Decoder:
    return bloom(30, 2560, 32)


def bloom_7b1() -> Decoder:
    return bloom(30, 4096, 32)


def bloom_176b() -> Decoder:
    return bloom(70, 14_336, 112)


def read(settings: Settings) -> Model:
    """The model of a config.json."""
    width = settings.count("n_embed", "hidden_size", "n_embd", default=64)
    norm = LayerNorm(eps=settings.number("layer_norm_epsilon", default=1e-5))
    renormed = settings.flag("apply_residual_connection_post_layernorm", False)
    block = Block(
        mixer=heads(settings.count("n_head", "num_attention_heads", default=8)),
        ffn=mlp(4 * width),
        norm=norm,
        wiring=Renormed() if renormed else PreNorm(),
    )
    layers = [block] * settings.count("n_layer", "num_hidden_layers", default=2)
    tied = settings.flag("tie_word_embeddings", True) or settings.head() != "lm"
    head = TiedHead() if tied else LinearHead()
    return headed(settings, decoder(layers, width, settings.count("vocab_size"), norm, head))


def write(model: Model) -> dict:
    """The reverse of `read`."""
    trunk, block = trunk_of(model), layers_of(model)[0]
    return {
        "vocab_size": trunk.vocab,
        "hidden_size": trunk.width,
        "n_embed": trunk.width,
        "n_layer": trunk.stack.depth,
        "n_head": block.mixer.heads,
        "layer_norm_epsilon": block.norm.eps,
        "apply_residual_connection_post_layernorm": isinstance(block.wiring, Renormed),
        "tie_word_embeddings": isinstance(trunk.head, TiedHead),
        **head_settings(model),
    }


PARTS = (
    tensor(
        "transformer.h.{N}.self_attention.query_key_value.weight",
        "mixer.q.w: H+K D",
        "mixer.k.w: G+K D",
        "mixer.v.w: G+K D",
    ),
    tensor(
        "transformer.h.{N}.self_attention.query_key_value.bias",
        "mixer.q.bias: H+K",
        "mixer.k.bias: G+K",
        "mixer.v.bias: G+K",
    ),
    tensor("transformer.h.{N}.self_attention.dense.weight", "mixer.out.w: D HK"),
    tensor("transformer.h.{N}.self_attention.dense.bias", "mixer.out.bias: D"),
    tensor("transformer.h.{N}.mlp.dense_h_to_4h.weight", "ffn.up.w: F D"),
    tensor("transformer.h.{N}.mlp.dense_h_to_4h.bias", "ffn.up.bias: F"),
    tensor("transformer.h.{N}.mlp.dense_4h_to_h.weight", "ffn.down.w: D F"),
    tensor("transformer.h.{N}.mlp.dense_4h_to_h.bias", "ffn.down.bias: D"),
    tensor("transformer.h.{N}.input_layernorm.weight", "wiring.before.0.scale: D"),
    tensor("transformer.h.{N}.input_layernorm.bias", "wiring.before.0.bias: D"),
    tensor("transformer.h.{N}.post_attention_layernorm.weight", "wiring.before.1.scale: D"),
    tensor("transformer.h.{N}.post_attention_layernorm.bias", "wiring.before.1.bias: D"),
)
ENDS = (
    tensor("transformer.word_embeddings.weight", "embed.table: V D"),
    tensor("transformer.word_embeddings_layernorm.weight", "embed.norm.scale: D"),
    tensor("transformer.word_embeddings_layernorm.bias", "embed.norm.bias: D"),
    tensor("transformer.ln_f.weight", "norm.scale: D"),
    tensor("transformer.ln_f.bias", "norm.bias: D"),
    tensor("lm_head.weight", "head.table: V D"),
)
FAMILY = Family(
    kind="bloom",
    read=read,
    write=write,
    table=Table(model=ENDS, layers={"stack": PARTS}, heads=CLASSIFIER),
    prefixes=("transformer.",),
    architecture=classes("Bloom", "sequence", "token", "question"),
)
