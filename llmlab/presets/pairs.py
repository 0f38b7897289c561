"""What encoder-decoders of the original Transformer's class share: post-norm blocks with biases, and their names."""

from __future__ import annotations

import dataclasses

from llmlab.ffn.dense import Mlp
from llmlab.mixers.attention import Attention, Bidirectional
from llmlab.mixers.cross import CrossAttention
from llmlab.models.block import Block, PostNorm
from llmlab.models.encdec import EncoderDecoder
from llmlab.names import Table, Tensor, tensor
from llmlab.nn.einsum import ZEROS
from llmlab.nn.init import Init
from llmlab.nn.norm import LayerNorm
from llmlab.presets.family import Settings, activation_name

NORM = LayerNorm()


@dataclasses.dataclass(frozen=True)
class Half:
    """An encoder's or decoder's blocks."""

    layers: int
    heads: int
    hidden: int


@dataclasses.dataclass(frozen=True)
class Common:
    """What the blocks of both halves have. dropout: of sublayers and embeddings."""

    activation: str
    init: Init
    dropout: float = 0.1
    attention_dropout: float = 0.0

    def block(self, half: Half, decoder: bool) -> Block:
        own = {"heads": half.heads, "bias": ZEROS, "out_bias": ZEROS, "init": self.init, "out_init": self.init}
        own["dropout"] = self.attention_dropout
        own_view = {} if decoder else {"view": Bidirectional()}
        return Block(
            mixer=Attention(position=None, **own, **own_view),
            cross=CrossAttention(**own) if decoder else None,
            ffn=Mlp(hidden=half.hidden, activation=self.activation, bias=ZEROS, init=self.init, out_init=self.init),
            norm=NORM,
            wiring=PostNorm(),
            dropout=self.dropout,
        )


def read_half(settings: Settings, side: str) -> Half:
    """side: "encoder" or "decoder", as keys of the config begin."""
    return Half(
        layers=settings.count(f"{side}_layers"),
        heads=settings.count(f"{side}_attention_heads"),
        hidden=settings.count(f"{side}_ffn_dim"),
    )


def read_common(settings: Settings, init: Init) -> Common:
    for key in ("normalize_before", "add_final_layer_norm"):  # of older files
        settings.refuse(key, False, None)
    settings.refuse("tie_word_embeddings", True, None)
    return Common(
        activation=settings.activation("activation_function", default="gelu"),
        init=init,
        dropout=settings.number("dropout", default=0.1),
        attention_dropout=settings.number("attention_dropout", default=0.0),
    )


def write_pair(model: EncoderDecoder) -> dict:
    """The keys of a config that these families share."""
    encoder, decoder = (stack.segments[0].pattern[0] for stack in (model.encoder, model.stack))
    return {
        "vocab_size": model.vocab,
        "d_model": model.width,
        "encoder_layers": model.encoder.depth,
        "encoder_attention_heads": encoder.mixer.heads,
        "encoder_ffn_dim": encoder.ffn.hidden,
        "decoder_layers": model.stack.depth,
        "decoder_attention_heads": decoder.mixer.heads,
        "decoder_ffn_dim": decoder.ffn.hidden,
        "activation_function": activation_name(decoder.ffn.activation),
        "scale_embedding": model.embed.power == 0.5,
        "dropout": decoder.dropout,
        "attention_dropout": decoder.mixer.dropout,
        "is_encoder_decoder": True,
    }


def names(*ends: Tensor, **heads: tuple[Tensor, ...]) -> Table:
    """The names of a family. ends: of what is its own. heads: of those on its decoder."""
    table = tensor("model.shared.weight", "embed.table: V D")
    bias = tensor("final_logits_bias", "head.bias: 1 v")
    return Table(model=(table, bias, *ends), layers={"encoder": ENCODER, "stack": DECODER}, heads=heads)


def attention(side: str, name: str, path: str) -> tuple[Tensor, ...]:
    stem = f"model.{side}.layers.{{N}}.{name}."
    return tuple(
        tensor(f"{stem}{theirs}_proj.{kind}", f"{path}.{ours}.{letters}")
        for theirs, ours, rows in (("q", "q", "HK"), ("k", "k", "GK"), ("v", "v", "GK"))
        for kind, letters in (("weight", f"w: {rows} D"), ("bias", f"bias: {rows}"))
    ) + (tensor(f"{stem}out_proj.weight", f"{path}.out.w: D HK"), tensor(f"{stem}out_proj.bias", f"{path}.out.bias: D"))


def rest(side: str, *norms: str) -> tuple[Tensor, ...]:
    """Feed-forward and norms of a half. norms: in the order of the sublayers."""
    stem = f"model.{side}.layers.{{N}}."
    found = (
        tensor(f"{stem}fc1.weight", "ffn.up.w: F D"),
        tensor(f"{stem}fc1.bias", "ffn.up.bias: F"),
        tensor(f"{stem}fc2.weight", "ffn.down.w: D F"),
        tensor(f"{stem}fc2.bias", "ffn.down.bias: D"),
    )
    for number, name in enumerate(norms):
        found += (
            tensor(f"{stem}{name}.weight", f"wiring.after.{number}.scale: D"),
            tensor(f"{stem}{name}.bias", f"wiring.after.{number}.bias: D"),
        )
    return found


ENCODER = attention("encoder", "self_attn", "mixer") + rest("encoder", "self_attn_layer_norm", "final_layer_norm")
DECODER = (
    attention("decoder", "self_attn", "mixer")
    + attention("decoder", "encoder_attn", "cross")
    + rest("decoder", "self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm")
)
COPIES = (r"(encoder|decoder)\.embed_tokens\.weight$", r"(^|\.)lm_head\.weight$")  # of the shared table
