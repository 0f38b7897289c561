"""GPT-1 (Radford et al., 2018): the post-norm decoder that was trained on text and then tuned for each task.

116,534,784 parameters. Norms stand behind each sum and none behind the last layer; `gelu` in its files is the tanh
form. Transformers keeps no cache of it.
"""

from __future__ import annotations

from llmlab.models.block import Block, PostNorm
from llmlab.models.decoder import Decoder, Model
from llmlab.names import Table, tensor
from llmlab.nn.norm import LayerNorm
from llmlab.presets.family import ConfigError, Family, Settings
from llmlab.presets.gated import HEADS, layers_of
from llmlab.presets.gpt_2 import INIT, NORM, PARTS, decoder, heads, mlp, read_decoder, sizes

ACTIVATIONS = {"gelu": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu"}


def gpt() -> Decoder:
    attention, ffn = heads(12, init=INIT, out_init=INIT, dropout=0.1), mlp(3072, init=INIT, out_init=INIT)
    block = Block(mixer=attention, ffn=ffn, norm=NORM, wiring=PostNorm(), dropout=0.1)
    return decoder([block] * 12, 768, vocab=40_478, length=512, norm=None)


def read(settings: Settings) -> Model:
    """The model of a config.json."""
    width, count = settings.count("n_embd", default=768), settings.count("n_head", default=12)
    name = settings.get("afn", default="gelu")
    if name not in ACTIVATIONS:
        raise ConfigError(f"{settings.where}: afn is {name!r}; known are {', '.join(ACTIVATIONS)}")
    norm = LayerNorm(eps=settings.number("layer_norm_epsilon", default=1e-5))
    block = Block(mixer=heads(count), ffn=mlp(4 * width, ACTIVATIONS[name]), norm=norm, wiring=PostNorm())
    layers = [block] * settings.count("n_layer", default=12)
    return read_decoder(settings, layers, None, settings.count("n_positions", default=512), width)


def write(model: Model) -> dict:
    """The reverse of `read`."""
    activation = layers_of(model)[0].ffn.activation
    name = next((theirs for theirs, ours in ACTIVATIONS.items() if ours == activation), None)
    if name is None:
        raise ConfigError(f"the activation {activation!r} is none of GPT-1's, {', '.join(ACTIVATIONS.values())}")
    return {**sizes(model), "afn": name}


NORMS = (
    tensor("transformer.h.{N}.ln_1.weight", "wiring.after.0.scale: D"),
    tensor("transformer.h.{N}.ln_1.bias", "wiring.after.0.bias: D"),
    tensor("transformer.h.{N}.ln_2.weight", "wiring.after.1.scale: D"),
    tensor("transformer.h.{N}.ln_2.bias", "wiring.after.1.bias: D"),
)
ENDS = (
    tensor("transformer.tokens_embed.weight", "embed.table: V D"),
    tensor("transformer.positions_embed.weight", "embed.position.table: l D"),
)
FAMILY = Family(
    kind="openai-gpt",
    read=read,
    write=write,
    table=Table(model=ENDS, layers={"stack": PARTS + NORMS}, heads={"sequence": HEADS["sequence"]}),
    prefixes=("transformer.",),
    ignored=(r"\.attn\.bias$", r"(^|\.)position_ids$"),
    architecture={"lm": "OpenAIGPTLMHeadModel", "sequence": "OpenAIGPTForSequenceClassification"},
)
