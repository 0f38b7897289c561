"""BERT (Devlin et al., 2018), its small sizes (Turc et al., 2019), and encoders of its class such as MiniLM's.

Post-norm encoder with biases: learned positions, kinds of tokens, a norm on the embeddings; epsilon 1e-12. `gelu` is
that of the error function, as in transformers; the authors' code has the tanh form. Parameters of the model with its
pooler, as transformers counts them: tiny 4,385,920; mini 11,170,560; small 28,763,648; base 109,482,240; large
335,141,888. Under the head for masked tokens the pooler is not there; next sentences are not predicted. Initial values
are normal; the authors cut them at two deviations.
"""

from __future__ import annotations

import dataclasses

from llmlab.ffn.dense import Mlp
from llmlab.mixers.attention import Attention, Bidirectional
from llmlab.models.block import Block, PostNorm
from llmlab.models.decoder import Model
from llmlab.models.encoder import Encoder
from llmlab.models.heads import First, Last, Mean, Pooled, Transform
from llmlab.names import Table, tensor
from llmlab.nn.einsum import ZEROS
from llmlab.nn.embed import Embedding, TiedHead, TransformHead
from llmlab.nn.init import Normal
from llmlab.nn.norm import LayerNorm
from llmlab.nn.position import Learned
from llmlab.nn.stack import repeat
from llmlab.presets.family import Family, Settings, activation_name, head_settings, headed, trunk_of

INIT = Normal(std=0.02)
POOLINGS = {"first": First(), "last": Last(), "mean": Mean()}  # in place of the pooler, by a key of ours


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What a config of this class says; the defaults are those of BERT."""

    layers: int
    width: int
    heads: int
    hidden: int
    vocab: int = 30_522
    positions: int = 512
    types: int = 2
    eps: float = 1e-12
    activation: str = "gelu"
    dropout: float = 0.1
    attention_dropout: float = 0.1

    def model(self, masked: bool = True) -> Encoder:
        """The encoder, with the head for masked tokens or with none."""
        norm = LayerNorm(eps=self.eps)
        mixer = Attention(
            heads=self.heads, view=Bidirectional(), position=None, bias=ZEROS, out_bias=ZEROS, init=INIT, out_init=INIT,
            dropout=self.attention_dropout,
        )  # fmt: skip
        ffn = Mlp(hidden=self.hidden, activation=self.activation, bias=ZEROS, init=INIT, out_init=INIT)
        block = Block(mixer=mixer, ffn=ffn, norm=norm, wiring=PostNorm(), dropout=self.dropout)
        position = Learned(length=self.positions, init=INIT)
        return Encoder(
            vocab=self.vocab,
            width=self.width,
            embed=Embedding(position=position, norm=norm, types=self.types, dropout=self.dropout, init=INIT),
            stack=repeat(block, self.layers),
            head=TransformHead(activation=self.activation, norm=norm, init=INIT) if masked else TiedHead(),
        )


def bert(layers: int, width: int) -> Encoder:
    """A size of the papers: heads of 64, a feed-forward of four widths."""
    return Sizes(layers, width, width // 64, 4 * width).model()


def bert_tiny() -> Encoder:
    return bert(2, 128)


def bert_mini() -> Encoder:
    return bert(4, 256)


def bert_small() -> Encoder:
    return bert(4, 512)


def bert_base() -> Encoder:
    return bert(12, 768)


def bert_large() -> Encoder:
    return bert(24, 1024)


def pooled(trunk: Encoder) -> Pooled:
    """The encoder with its pooler in place of the head for masked tokens: BertModel of transformers."""
    return Pooled(trunk=dataclasses.replace(trunk, head=TiedHead()), pooling=First(), transform=Transform(init=INIT))


def read(settings: Settings) -> Model:
    """The model of a config.json."""
    settings.refuse("pooling", None, *POOLINGS)
    settings.refuse("position_embedding_type", "absolute", None)
    settings.refuse("is_decoder", False, None)
    settings.refuse("tie_word_embeddings", True, None)
    sizes = Sizes(
        layers=settings.count("num_hidden_layers"),
        width=settings.count("hidden_size"),
        heads=settings.count("num_attention_heads"),
        hidden=settings.count("intermediate_size"),
        vocab=settings.count("vocab_size"),
        positions=settings.count("max_position_embeddings", default=512),
        types=settings.count("type_vocab_size", default=2),
        eps=settings.number("layer_norm_eps", default=1e-12),
        activation=settings.activation("hidden_act", default="gelu"),
        dropout=settings.number("hidden_dropout_prob", default=0.1),
        attention_dropout=settings.number("attention_probs_dropout_prob", default=0.1),
    )
    kind = settings.head()
    if kind == "":
        model, pooling = pooled(sizes.model(masked=False)), settings.get("pooling")
        return model if pooling is None else dataclasses.replace(model, pooling=POOLINGS[pooling], transform=None)
    model = headed(settings, sizes.model(masked=kind == "lm"), First(), bias=ZEROS, dense=True)
    return dataclasses.replace(model, dropout=sizes.dropout) if hasattr(model, "classes") else model


def write(model: Model) -> dict:
    """The reverse of `read`."""
    trunk = trunk_of(model)
    block = trunk.stack.segments[0].pattern[0]
    plain = isinstance(model, Pooled) and model.transform is None and model.classes is None
    pooling = {kind: name for name, kind in POOLINGS.items()}.get(model.pooling) if plain else None
    return {
        "vocab_size": trunk.vocab,
        "hidden_size": trunk.width,
        "num_hidden_layers": trunk.stack.depth,
        "num_attention_heads": block.mixer.heads,
        "intermediate_size": block.ffn.hidden,
        "hidden_act": activation_name(block.ffn.activation),
        "max_position_embeddings": trunk.embed.position.length,
        "type_vocab_size": trunk.embed.types,
        "layer_norm_eps": block.norm.eps,
        "hidden_dropout_prob": block.dropout,
        "attention_probs_dropout_prob": block.mixer.dropout,
        **({} if pooling is None else {"pooling": pooling}),
        **head_settings(model),
    }


LAYER = "bert.encoder.layer.{N}."
LAYERS = (
    tensor(f"{LAYER}attention.self.query.weight", "mixer.q.w: HK D"),
    tensor(f"{LAYER}attention.self.query.bias", "mixer.q.bias: HK"),
    tensor(f"{LAYER}attention.self.key.weight", "mixer.k.w: GK D"),
    tensor(f"{LAYER}attention.self.key.bias", "mixer.k.bias: GK"),
    tensor(f"{LAYER}attention.self.value.weight", "mixer.v.w: GK D"),
    tensor(f"{LAYER}attention.self.value.bias", "mixer.v.bias: GK"),
    tensor(f"{LAYER}attention.output.dense.weight", "mixer.out.w: D HK"),
    tensor(f"{LAYER}attention.output.dense.bias", "mixer.out.bias: D"),
    tensor(f"{LAYER}attention.output.LayerNorm.weight", "wiring.after.0.scale: D"),
    tensor(f"{LAYER}attention.output.LayerNorm.bias", "wiring.after.0.bias: D"),
    tensor(f"{LAYER}intermediate.dense.weight", "ffn.up.w: F D"),
    tensor(f"{LAYER}intermediate.dense.bias", "ffn.up.bias: F"),
    tensor(f"{LAYER}output.dense.weight", "ffn.down.w: D F"),
    tensor(f"{LAYER}output.dense.bias", "ffn.down.bias: D"),
    tensor(f"{LAYER}output.LayerNorm.weight", "wiring.after.1.scale: D"),
    tensor(f"{LAYER}output.LayerNorm.bias", "wiring.after.1.bias: D"),
)
ENDS = (
    tensor("bert.embeddings.word_embeddings.weight", "embed.table: V D"),
    tensor("bert.embeddings.position_embeddings.weight", "embed.position.table: l D"),
    tensor("bert.embeddings.token_type_embeddings.weight", "embed.types: e D"),
    tensor("bert.embeddings.LayerNorm.weight", "embed.norm.scale: D"),
    tensor("bert.embeddings.LayerNorm.bias", "embed.norm.bias: D"),
    tensor("bert.pooler.dense.weight", "transform.dense.w: d D"),
    tensor("bert.pooler.dense.bias", "transform.dense.bias: d"),
    tensor("cls.predictions.transform.dense.weight", "head.dense.w: d D"),
    tensor("cls.predictions.transform.dense.bias", "head.dense.bias: d"),
    tensor("cls.predictions.transform.LayerNorm.weight", "head.norm.scale: D"),
    tensor("cls.predictions.transform.LayerNorm.bias", "head.norm.bias: D"),
    tensor("cls.predictions.bias", "head.head.bias: v"),
)
CLASSES = (tensor("classifier.weight", "out.w: J D"), tensor("classifier.bias", "out.bias: J"))
QUESTION = (tensor("qa_outputs.weight", "out.w: J D"), tensor("qa_outputs.bias", "out.bias: J"))
FAMILY = Family(
    kind="bert",
    read=read,
    write=write,
    table=Table(
        model=ENDS, layers={"stack": LAYERS}, heads={"sequence": CLASSES, "token": CLASSES, "question": QUESTION}
    ),
    prefixes=("bert.",),
    # Heads of another task than that of the model, and copies of the table and its bias.
    ignored=(r"position_ids$", r"^pooler\.|^bert\.pooler\.", r"^cls\."),
    renamed=((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")),
    architecture={
        "": "BertModel",
        "lm": "BertForMaskedLM",
        "sequence": "BertForSequenceClassification",
        "token": "BertForTokenClassification",
        "question": "BertForQuestionAnswering",
    },
)
