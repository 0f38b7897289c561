"""Mamba (Gu & Dao, 2023): a decoder of selective state spaces alone.

Each layer is one mixer behind a RMSNorm; the table of tokens, padded to a multiple of 8, is the output too. Parameters:
130m 129,135,360; 370m 371,516,416; 790m 793,204,224; 1.4b 1,372,178,432; 2.8b 2,768,345,600. Files are those of
transformers, or those of the authors, whose config.json has no `model_type` and counts the vocabulary unpadded.
"""

from __future__ import annotations

from llmlab.mixers.mamba import Mamba, Selective
from llmlab.models.block import Block
from llmlab.models.decoder import Decoder
from llmlab.names import Table, tensor
from llmlab.nn.conv import ShortConv, UniformFanIn
from llmlab.nn.einsum import ZEROS
from llmlab.nn.embed import Embedding, Head, LinearHead, TiedHead
from llmlab.nn.init import Normal
from llmlab.nn.norm import RMSNorm
from llmlab.nn.parts import Mixer
from llmlab.nn.stack import repeat
from llmlab.presets.family import ConfigError, Family, Settings, activation_name

INIT = Normal(std=0.02)
EPS = 1e-5
TIED = TiedHead()


def states(layers: int, width: int, vocab: int, mixer: Mixer, eps: float = EPS, head: Head = TIED) -> Decoder:
    """A decoder whose layers are mixers alone."""
    norm = RMSNorm(eps=eps)
    stack = repeat(Block(mixer=mixer, ffn=None, norm=norm), layers)
    return Decoder(vocab=vocab, width=width, embed=Embedding(init=INIT), stack=stack, norm=norm, head=head)


def mamba(layers: int, width: int) -> Decoder:
    """A size of the paper."""
    return states(layers, width, 50_280, Mamba())


def mamba_130m() -> Decoder:
    return mamba(24, 768)


def mamba_370m() -> Decoder:
    return mamba(48, 1024)


def mamba_790m() -> Decoder:
    return mamba(48, 1536)


def mamba_1_4b() -> Decoder:
    return mamba(48, 2048)


def mamba_2_8b() -> Decoder:
    return mamba(64, 2560)


def read(settings: Settings) -> Decoder:
    """The model of a config.json."""
    if original(settings.values):
        return read_original(settings, read_ssm)
    settings.refuse_heads("", "lm")
    return read_states(settings, read_mixer(settings), tied=True)


def read_states(settings: Settings, mixer: Mixer, tied: bool) -> Decoder:
    """tied: what a config means that does not say it."""
    return states(
        settings.count("num_hidden_layers"),
        settings.count("hidden_size"),
        settings.count("vocab_size"),
        mixer,
        eps=settings.number("layer_norm_epsilon", default=EPS),
        head=TIED if settings.flag("tie_word_embeddings", tied) else LinearHead(init=INIT),
    )


def read_mixer(settings: Settings) -> Mamba:
    rank = settings.get("time_step_rank", default="auto")
    return Mamba(
        expand=read_expand(settings),
        state=settings.count("state_size", default=16),
        conv=read_conv(settings),
        selection=Selective(rank=None if rank == "auto" else settings.count("time_step_rank")),
        bias=read_bias(settings),
    )


def read_conv(settings: Settings) -> ShortConv:
    return ShortConv(
        width=settings.count("conv_kernel", default=4),
        bias=UniformFanIn() if settings.flag("use_conv_bias", True) else None,
        activation=settings.activation("hidden_act", default="silu"),
    )


def read_bias(settings: Settings):
    return ZEROS if settings.flag("use_bias", False) else None


def read_expand(settings: Settings) -> int:
    expand = settings.number("expand", default=2)
    if expand != int(expand):
        raise ConfigError(f"{settings.where}: expand is {expand}; the channels are a whole multiple of the width")
    return int(expand)


def original(values: dict) -> bool:
    """Whether a config is of the authors' code."""
    return "model_type" not in values and {"d_model", "n_layer", "ssm_cfg"} <= values.keys()


def read_original(settings: Settings, read_ssm) -> Decoder:
    """The model of a config of the authors' code. read_ssm: the mixer of its `ssm_cfg`."""
    settings.refuse("rms_norm", True)
    settings.refuse("attn_layer_idx", [], None)
    settings.refuse("d_intermediate", 0, None)
    vocab, multiple = settings.count("vocab_size"), settings.count("pad_vocab_size_multiple", default=8)
    told = {name: value for name, value in settings.get("ssm_cfg", default={}).items() if name != "layer"}
    mixer = read_ssm(Settings(told, f"{settings.where}: ssm_cfg"))
    head = TIED if settings.flag("tie_embeddings", True) else LinearHead(init=INIT)
    return states(
        settings.count("n_layer"), settings.count("d_model"), -(-vocab // multiple) * multiple, mixer, head=head
    )


def read_ssm(settings: Settings) -> Mamba:
    known = {"d_state", "d_conv", "expand", "dt_rank", "conv_bias", "bias"}
    refuse_unknown(settings, known)
    rank = settings.get("dt_rank", default="auto")
    return Mamba(
        expand=read_expand(settings),
        state=settings.count("d_state", default=16),
        conv=ShortConv(
            width=settings.count("d_conv", default=4), bias=UniformFanIn() if settings.flag("conv_bias", True) else None
        ),
        selection=Selective(rank=None if rank == "auto" else settings.count("dt_rank")),
        bias=ZEROS if settings.flag("bias", False) else None,
    )


def refuse_unknown(settings: Settings, known: set[str]) -> None:
    """Values of a mixer's beginning may stand there; others change what it computes."""
    left = sorted(settings.values.keys() - known - {"dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor"})
    if left:
        raise ConfigError(f"{settings.where} says {', '.join(left)}; known are {', '.join(sorted(known))}")


def write(model: Decoder) -> dict:
    """The reverse of `read`, in the form of transformers."""
    mixer = model.stack.segments[0].pattern[0].mixer
    return {**write_states(model), "state_size": mixer.state, "time_step_rank": mixer.selection.rank or "auto"}


def write_states(model: Decoder) -> dict:
    mixer = model.stack.segments[0].pattern[0].mixer
    return {
        "vocab_size": model.vocab,
        "hidden_size": model.width,
        "num_hidden_layers": model.stack.depth,
        "expand": mixer.expand,
        "conv_kernel": mixer.conv.width,
        "use_conv_bias": mixer.conv.bias is not None,
        "use_bias": mixer.bias is not None,
        "hidden_act": activation_name(mixer.conv.activation),
        "layer_norm_epsilon": model.norm.eps,
        "tie_word_embeddings": isinstance(model.head, TiedHead),
    }


def mixer_names(stem: str):
    """The names of a mixer behind `stem`."""
    return (
        tensor(f"{stem}in_proj.weight", "mixer.value.w: +C D", "mixer.gate.w: +C D"),
        tensor(f"{stem}in_proj.bias", "mixer.value.bias: +C", "mixer.gate.bias: +C"),
        tensor(f"{stem}conv1d.weight", "mixer.conv.taps: C 1 <J"),
        tensor(f"{stem}conv1d.bias", "mixer.conv.bias: C"),
        tensor(
            f"{stem}x_proj.weight",
            "mixer.selection.low.w: +R C", "mixer.selection.b.w: +S C", "mixer.selection.c.w: +S C",
        ),
        tensor(f"{stem}dt_proj.weight", "mixer.selection.step.w: C R"),
        tensor(f"{stem}dt_proj.bias", "mixer.selection.bias: C"),
        tensor(f"{stem}A_log", "mixer.log_rate: C S"),
        tensor(f"{stem}D", "mixer.skip_scale: C"),
        tensor(f"{stem}out_proj.weight", "mixer.out.w: D C"),
        tensor(f"{stem}out_proj.bias", "mixer.out.bias: D"),
    )  # fmt: skip


STEM = "backbone.layers.{N}."
ENDS = (
    tensor("backbone.embeddings.weight", "embed.table: V D"),
    tensor("backbone.norm_f.weight", "norm.scale: D"),
    tensor("lm_head.weight", "head.table: V D"),
)
NORM = tensor(f"{STEM}norm.weight", "wiring.before.0.scale: D")
RENAMED = ((r"^backbone\.embedding\.", "backbone.embeddings."),)
FAMILY = Family(
    kind="mamba",
    read=read,
    write=write,
    table=Table(model=ENDS, layers={"stack": (NORM, *mixer_names(f"{STEM}mixer."))}),
    prefixes=("backbone.",),
    renamed=RENAMED,
    architecture={"lm": "MambaForCausalLM", "": "MambaModel"},
    signs=lambda values: original(values) and values["ssm_cfg"].get("layer", "Mamba1") == "Mamba1",
)
