"""What the decoders of LLaMA's class share: RMSNorm, rotary positions, gated feed-forward, and the names of these.

Readers take the keys of a config that all of them have; what is a family's own stays in its file.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmlab.ffn.dense import Gated
from llmlab.mixers.attention import Attention
from llmlab.models.block import Block
from llmlab.models.decoder import Decoder, Model
from llmlab.names import Table, Tensor, tensor
from llmlab.nn.einsum import ZEROS
from llmlab.nn.embed import Embedding, Head, LinearHead, TiedHead
from llmlab.nn.init import Normal
from llmlab.nn.parts import Layer, Norm
from llmlab.nn.stack import arrange
from llmlab.presets.family import Settings, activation_name, head_settings, headed, trunk_of

INIT = Normal(std=0.02)
UNTIED = LinearHead(init=INIT)


def gated(hidden: int, activation: str = "silu") -> Gated:
    return Gated(hidden=hidden, activation=activation, init=INIT, out_init=INIT)


def decoder(
    layers: Sequence[Layer], width: int, norm: Norm, vocab: int, head: Head = UNTIED, power: float = 0.0
) -> Decoder:
    """A decoder of a published size. norm: the last one. power: of the width, on the embedding."""
    embed = Embedding(init=INIT, power=power)
    return Decoder(vocab=vocab, width=width, embed=embed, stack=arrange(layers), norm=norm, head=head)


def read_attention(settings: Settings, **own) -> Attention:
    """Heads and biases of a config. own: what a family reads itself."""
    width, count = settings.count("hidden_size"), settings.count("num_attention_heads")
    bias = ZEROS if settings.flag("attention_bias", False) else None
    shared = {
        "heads": count,
        "kv_heads": settings.count("num_key_value_heads", default=count),
        "head_size": settings.count("head_dim", default=width // count),
        "bias": bias,
        "out_bias": bias,
    }
    return Attention(**{**shared, **own})


def read_decoder(
    settings: Settings,
    layers: Sequence[Layer],
    norm: Norm,
    tied: bool = False,
    power: float = 0.0,
    softcap: float | None = None,
) -> Model:
    """The model of a config, under the head that it names. tied: what a config means that does not say it."""
    whole = settings.flag("tie_word_embeddings", tied) or settings.head() != "lm"
    trunk = Decoder(
        vocab=settings.count("vocab_size"),
        width=settings.count("hidden_size"),
        embed=Embedding(power=power),
        stack=arrange(layers),
        norm=norm,
        head=TiedHead(softcap=softcap) if whole else LinearHead(softcap=softcap),
    )
    return headed(settings, trunk)


def write_decoder(model: Model) -> dict:
    """The keys of a config that these families share."""
    trunk, block = trunk_of(model), layers_of(model)[0]
    attention, ffn = block.mixer, getattr(block.ffn, "expert", block.ffn)
    return {
        "vocab_size": trunk.vocab,
        "hidden_size": trunk.width,
        "num_hidden_layers": trunk.stack.depth,
        "intermediate_size": ffn.hidden,
        "hidden_act": activation_name(ffn.activation),
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads or attention.heads,
        "head_dim": attention.head_size or trunk.width // attention.heads,
        "attention_bias": attention.bias is not None,
        "rms_norm_eps": trunk.norm.eps,
        "tie_word_embeddings": isinstance(trunk.head, TiedHead),
        **head_settings(model),
    }


def layers_of(model: Model) -> list[Block]:
    """All layers in their order."""
    return [layer for one in trunk_of(model).stack.segments for layer in one.pattern * one.repeats]


ATTENTION = (
    tensor("model.layers.{N}.self_attn.q_proj.weight", "mixer.q.w: HK D"),
    tensor("model.layers.{N}.self_attn.k_proj.weight", "mixer.k.w: GK D"),
    tensor("model.layers.{N}.self_attn.v_proj.weight", "mixer.v.w: GK D"),
    tensor("model.layers.{N}.self_attn.o_proj.weight", "mixer.out.w: D HK"),
    tensor("model.layers.{N}.self_attn.q_proj.bias", "mixer.q.bias: HK"),
    tensor("model.layers.{N}.self_attn.k_proj.bias", "mixer.k.bias: GK"),
    tensor("model.layers.{N}.self_attn.v_proj.bias", "mixer.v.bias: GK"),
    tensor("model.layers.{N}.self_attn.o_proj.bias", "mixer.out.bias: D"),
)
GATED = (
    tensor("model.layers.{N}.mlp.gate_proj.weight", "ffn.gate.w: F D"),
    tensor("model.layers.{N}.mlp.up_proj.weight", "ffn.up.w: F D"),
    tensor("model.layers.{N}.mlp.down_proj.weight", "ffn.down.w: D F"),
    tensor("model.layers.{N}.mlp.gate_proj.bias", "ffn.gate.bias: F"),
    tensor("model.layers.{N}.mlp.up_proj.bias", "ffn.up.bias: F"),
    tensor("model.layers.{N}.mlp.down_proj.bias", "ffn.down.bias: D"),
)
NORMS = (
    tensor("model.layers.{N}.input_layernorm.weight", "wiring.before.0.scale: D"),
    tensor("model.layers.{N}.post_attention_layernorm.weight", "wiring.before.1.scale: D"),
)
ENDS = (
    tensor("model.embed_tokens.weight", "embed.table: V D"),
    tensor("model.norm.weight", "norm.scale: D"),
    tensor("lm_head.weight", "head.table: V D"),
)
QUESTION = (tensor("qa_outputs.weight", "out.w: J D"), tensor("qa_outputs.bias", "out.bias: J"))
HEADS = {
    "sequence": (tensor("score.weight", "out.w: J D"),),
    "token": (tensor("score.weight", "out.w: J D"), tensor("score.bias", "out.bias: J")),
    "question": QUESTION,
}


def names(*layers: Tensor) -> Table:
    """The names of a family whose layers have these."""
    return Table(model=ENDS, layers={"stack": layers}, heads=HEADS)


def classes(stem: str, *kinds: str) -> dict[str, str]:
    """The classes of transformers that begin with `stem`. kinds: of heads besides that of language."""
    known = {
        "sequence": "ForSequenceClassification",
        "token": "ForTokenClassification",
        "question": "ForQuestionAnswering",
    }
    return {"lm": f"{stem}ForCausalLM"} | {kind: stem + known[kind] for kind in kinds}
