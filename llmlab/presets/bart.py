"""BART (Lewis et al., 2019): an encoder-decoder that restores broken texts.

Post-norm with biases; learned positions, whose table has two more rows before the first; a norm on the embeddings of
each half; one table of tokens for source, target and output. Parameters: base 139,420,416; large 406,291,456. Targets
begin with the end token. A file may add `final_logits_bias` to the output, which transformers does not train and we do.
Under heads for classes and for answers, both halves read the text.
"""

from __future__ import annotations

from llmlab.models.decoder import Model
from llmlab.models.encdec import EncoderDecoder, Reread
from llmlab.models.heads import Last, Pooled, Tagged, Transform
from llmlab.names import tensor
from llmlab.nn.einsum import ZEROS
from llmlab.nn.embed import Embedding, SharedEmbedding, TiedHead
from llmlab.nn.init import Normal
from llmlab.nn.position import Learned
from llmlab.nn.stack import repeat
from llmlab.presets.family import Family, Settings, core_of, head_settings
from llmlab.presets.pairs import COPIES, NORM, Common, Half, names, read_common, read_half, write_pair

INIT = Normal(std=0.02)


def bart(
    width: int,
    encoder: Half,
    decoder: Half,
    common: Common = Common("gelu", INIT),
    vocab: int = 50_265,
    positions: int = 1024,
    power: float = 0.0,
    head: TiedHead = TiedHead(),
) -> EncoderDecoder:
    """A model of this class."""
    own = {"position": Learned(length=positions, offset=2, init=INIT), "norm": NORM, "power": power, "init": INIT}
    own["dropout"] = common.dropout
    return EncoderDecoder(
        vocab=vocab,
        width=width,
        embed=Embedding(**own),
        source_embed=SharedEmbedding(**own),
        encoder=repeat(common.block(encoder, decoder=False), encoder.layers),
        stack=repeat(common.block(decoder, decoder=True), decoder.layers),
        norm=None,
        source_norm=None,
        head=head,
    )


def bart_base() -> EncoderDecoder:
    return bart(768, Half(6, 12, 3072), Half(6, 12, 3072))


def bart_large() -> EncoderDecoder:
    return bart(1024, Half(12, 16, 4096), Half(12, 16, 4096))


def read(settings: Settings) -> Model:
    """The model of a config.json. A classifier reads the last token of a text, which is the end."""
    settings.refuse_heads("", "lm", "sequence", "question")
    biased = settings.head() == "lm" and settings.flag("final_logits_bias", True)
    model = bart(
        settings.count("d_model"),
        read_half(settings, "encoder"),
        read_half(settings, "decoder"),
        read_common(settings, INIT),
        vocab=settings.count("vocab_size"),
        positions=settings.count("max_position_embeddings", default=1024),
        power=0.5 if settings.flag("scale_embedding", False) else 0.0,
        head=TiedHead(bias=ZEROS if biased else None),
    )
    if settings.head() in ("", "lm"):
        return model
    trunk = Reread(trunk=model, start=settings.get("decoder_start_token_id", default=2))
    if settings.head() == "question":
        return Tagged(trunk=trunk, classes=2)
    return Pooled(trunk=trunk, pooling=Last(), transform=Transform(init=INIT), classes=settings.classes())


def write(model: Model) -> dict:
    """The reverse of `read`; `final_logits_bias` is a key of ours, which other tools pass over."""
    pair, start = core_of(model), {"decoder_start_token_id": model.trunk.start} if hasattr(model, "trunk") else {}
    return {
        **write_pair(pair),
        **head_settings(model),
        **start,
        "max_position_embeddings": pair.embed.position.length,
        "final_logits_bias": pair.head.bias is not None,
    }


def ends(side: str, path: str):
    stem = f"model.{side}."
    return (
        tensor(f"{stem}embed_positions.weight", f"{path}.position.table: l D"),
        tensor(f"{stem}layernorm_embedding.weight", f"{path}.norm.scale: D"),
        tensor(f"{stem}layernorm_embedding.bias", f"{path}.norm.bias: D"),
    )


CLASSIFIER = (
    tensor("classification_head.dense.weight", "transform.dense.w: d D"),
    tensor("classification_head.dense.bias", "transform.dense.bias: d"),
    tensor("classification_head.out_proj.weight", "out.w: J D"),
    tensor("classification_head.out_proj.bias", "out.bias: J"),
)
ANSWER = (tensor("qa_outputs.weight", "out.w: J D"), tensor("qa_outputs.bias", "out.bias: J"))
TAGGED = ("token", "question")  # a head for tokens is one for answers: there is no other
FAMILY = Family(
    kind="bart",
    read=read,
    write=write,
    table=names(
        *ends("encoder", "source_embed"),
        *ends("decoder", "embed"),
        sequence=CLASSIFIER,
        **dict.fromkeys(TAGGED, ANSWER),
    ),
    prefixes=("model.",),
    ignored=COPIES,
    architecture={
        "lm": "BartForConditionalGeneration",
        "": "BartModel",
        "sequence": "BartForSequenceClassification",
        **dict.fromkeys(TAGGED, "BartForQuestionAnswering"),
    },
)
