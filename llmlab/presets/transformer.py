"""The original Transformer (Vaswani et al., 2017); its files are those of Marian (Junczys-Dowmunt et al., 2018).

Post-norm with biases and ReLU; fixed waves as positions; embeddings times sqrt(width); one table of tokens for source,
target and output. Parameters at the papers' vocabulary of 37,000: base 63,082,496; big 214,245,376. The paper's waves
are interleaved, those of Marian's files stand in halves, and the models are otherwise the same.
"""

from __future__ import annotations

from typing import Literal

from llmlab.models.encdec import EncoderDecoder
from llmlab.nn.einsum import ZEROS
from llmlab.nn.embed import Embedding, TiedHead
from llmlab.nn.init import Normal
from llmlab.nn.position import Sinusoidal
from llmlab.nn.stack import repeat
from llmlab.presets.family import ConfigError, Family, Settings
from llmlab.presets.pairs import COPIES, Common, Half, names, read_common, read_half, write_pair


def transformer(
    width: int,
    encoder: Half,
    decoder: Half,
    common: Common,
    vocab: int,
    layout: Literal["interleaved", "halves"] = "interleaved",
    power: float = 0.5,
    head: TiedHead = TiedHead(),
) -> EncoderDecoder:
    """A model of this class."""
    position = Sinusoidal(layout=layout)
    return EncoderDecoder(
        vocab=vocab,
        width=width,
        embed=Embedding(position=position, power=power, dropout=common.dropout, init=common.init),
        encoder=repeat(common.block(encoder, decoder=False), encoder.layers),
        stack=repeat(common.block(decoder, decoder=True), decoder.layers),
        norm=None,
        source_norm=None,
        head=head,
    )


def published(width: int, heads: int, dropout: float, vocab: int) -> EncoderDecoder:
    """A size of the paper. The table begins at 1 / sqrt(width), which the embedding makes up for."""
    half, common = Half(6, heads, 4 * width), Common("relu", Normal(std=width**-0.5), dropout)
    return transformer(width, half, half, common, vocab)


def transformer_base(vocab: int = 37_000) -> EncoderDecoder:
    return published(512, 8, 0.1, vocab)


def transformer_big(vocab: int = 37_000) -> EncoderDecoder:
    return published(1024, 16, 0.3, vocab)


def read(settings: Settings) -> EncoderDecoder:
    """The model of a config.json."""
    settings.refuse_heads("", "lm")
    settings.refuse("share_encoder_decoder_embeddings", True, None)
    settings.refuse("static_position_embeddings", True, None)
    settings.refuse("normalize_embedding", False, None)
    vocab = settings.count("vocab_size")
    if settings.count("decoder_vocab_size", default=vocab) != vocab:
        raise ConfigError(f"{settings.where}: decoder_vocab_size is not vocab_size, and source and target share one")
    biased = settings.head() == "lm" and settings.flag("final_logits_bias", True)
    return transformer(
        settings.count("d_model"),
        read_half(settings, "encoder"),
        read_half(settings, "decoder"),
        read_common(settings, Normal(std=settings.number("init_std", default=0.02))),
        vocab,
        layout="halves",
        power=0.5 if settings.flag("scale_embedding", False) else 0.0,
        head=TiedHead(bias=ZEROS if biased else None),
    )


def write(model: EncoderDecoder) -> dict:
    """The reverse of `read`; `final_logits_bias` is a key of ours, which other tools pass over."""
    return {**write_pair(model), "final_logits_bias": model.head.bias is not None}


FAMILY = Family(
    kind="marian",
    read=read,
    write=write,
    table=names(),
    prefixes=("model.",),
    ignored=(*COPIES, r"embed_positions\.weight$"),
    architecture={"lm": "MarianMTModel", "": "MarianModel"},
)
