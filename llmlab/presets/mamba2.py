"""Mamba-2 (Dao & Gu, 2024): a decoder of state spaces with one decay for each head.

As Mamba's, with the vocabulary padded to a multiple of 16. Parameters: 130m 128,989,632; 370m 368,346,624; 780m
780,161,280; 1.3b 1,343,757,312; 2.7b 2,702,599,680; Codestral Mamba 7B (8 groups, an output table of its own)
7,285,403,648. One matrix of the file holds gate, values, b, c and step; one convolution passes over values, b and c.
"""

from __future__ import annotations

import math

from llmlab.mixers.mamba2 import Mamba2
from llmlab.models.decoder import Decoder
from llmlab.names import Table, tensor
from llmlab.nn.conv import ShortConv, UniformFanIn
from llmlab.nn.einsum import ZEROS
from llmlab.nn.embed import LinearHead
from llmlab.presets.family import ConfigError, Family, Settings
from llmlab.presets.mamba import (
    ENDS,
    EPS,
    INIT,
    NORM,
    RENAMED,
    STEM,
    original,
    read_bias,
    read_conv,
    read_expand,
    read_original,
    read_states,
    refuse_unknown,
    states,
    write_states,
)  # fmt: skip


def mamba2(layers: int, width: int) -> Decoder:
    """A size of the paper."""
    return states(layers, width, 50_288, Mamba2())


def mamba2_130m() -> Decoder:
    return mamba2(24, 768)


def mamba2_370m() -> Decoder:
    return mamba2(48, 1024)


def mamba2_780m() -> Decoder:
    return mamba2(48, 1536)


def mamba2_1_3b() -> Decoder:
    return mamba2(48, 2048)


def mamba2_2_7b() -> Decoder:
    return mamba2(64, 2560)


def codestral_mamba_7b() -> Decoder:
    return states(64, 4096, 32_768, Mamba2(groups=8), head=LinearHead(init=INIT))


def read(settings: Settings) -> Decoder:
    """The model of a config.json."""
    if original(settings.values):
        return read_original(settings, read_ssm)
    settings.refuse_heads("", "lm")
    mixer = Mamba2(
        expand=read_expand(settings),
        state=settings.count("state_size", default=128),
        head_size=settings.count("head_dim", default=64),
        groups=settings.count("n_groups", default=8),
        conv=read_conv(settings),
        steps=read_limits(settings, "time_step_limit"),
        chunk=settings.count("chunk_size", default=256),
        eps=settings.number("layer_norm_epsilon", default=EPS),
        bias=read_bias(settings),
    )
    width, heads = settings.count("hidden_size"), settings.count("num_heads", default=128)
    if heads * mixer.head_size != mixer.expand * width:
        raise ConfigError(
            f"{settings.where}: num_heads {heads} x head_dim {mixer.head_size} is not expand {mixer.expand} x "
            f"hidden_size {width}"
        )
    return read_states(settings, mixer, tied=False)


def read_limits(settings: Settings, key: str) -> tuple[float, float]:
    """The least and the largest step; JSON has several words for no limit."""
    told = settings.get(key, default=(0.0, math.inf))
    try:
        low, high = (float(one["__float__"] if isinstance(one, dict) else one) for one in told)
    except (TypeError, ValueError, KeyError) as error:
        raise ConfigError(f"{settings.where}: {key} is {told!r}; it is a pair of numbers") from error
    return low, high


def read_ssm(settings: Settings) -> Mamba2:
    known = {"d_state", "d_conv", "expand", "headdim", "ngroups", "dt_limit", "conv_bias", "bias", "chunk_size"}
    refuse_unknown(settings, known | {"A_init_range"})
    return Mamba2(
        expand=read_expand(settings),
        state=settings.count("d_state", default=128),
        head_size=settings.count("headdim", default=64),
        groups=settings.count("ngroups", default=1),
        conv=ShortConv(
            width=settings.count("d_conv", default=4), bias=UniformFanIn() if settings.flag("conv_bias", True) else None
        ),
        steps=read_limits(settings, "dt_limit"),
        chunk=settings.count("chunk_size", default=256),
        bias=ZEROS if settings.flag("bias", False) else None,
    )


def write(model: Decoder) -> dict:
    """The reverse of `read`, in the form of transformers."""
    mixer = model.stack.segments[0].pattern[0].mixer
    if mixer.eps != model.norm.eps:
        raise ConfigError(f"the epsilon of the mixer is {mixer.eps} and that of the norms {model.norm.eps}")
    return {
        **write_states(model),
        "state_size": mixer.state,
        "num_heads": mixer.expand * model.width // mixer.head_size,
        "head_dim": mixer.head_size,
        "n_groups": mixer.groups,
        "chunk_size": mixer.chunk,
        "time_step_limit": list(mixer.steps),
    }


MIXER = f"{STEM}mixer."
JOINED = ("gate.{}: +HK D", "value.{}: +HK D", "b.{}: +GS D", "c.{}: +GS D", "step.{}: +H D")
CONVOLVED = (("value_conv", "HK"), ("b_conv", "GS"), ("c_conv", "GS"))
LAYER = (
    NORM,
    tensor(f"{MIXER}in_proj.weight", *(f"mixer.{one.format('w')}" for one in JOINED)),
    tensor(f"{MIXER}in_proj.bias", *(f"mixer.{one.format('bias').removesuffix(' D')}" for one in JOINED)),
    tensor(f"{MIXER}conv1d.weight", *(f"mixer.{name}.taps: +{letters} 1 <J" for name, letters in CONVOLVED)),
    tensor(f"{MIXER}conv1d.bias", *(f"mixer.{name}.bias: +{letters}" for name, letters in CONVOLVED)),
    tensor(f"{MIXER}dt_bias", "mixer.step_bias: H"),
    tensor(f"{MIXER}A_log", "mixer.log_rate: H"),
    tensor(f"{MIXER}D", "mixer.skip_scale: H"),
    tensor(f"{MIXER}norm.weight", "mixer.norm_scale: HK"),
    tensor(f"{MIXER}out_proj.weight", "mixer.out.w: D HK"),
    tensor(f"{MIXER}out_proj.bias", "mixer.out.bias: D"),
)
FAMILY = Family(
    kind="mamba2",
    read=read,
    write=write,
    table=Table(model=ENDS, layers={"stack": LAYER}),
    prefixes=("backbone.",),
    renamed=RENAMED,
    architecture={"lm": "Mamba2ForCausalLM", "": "Mamba2Model"},
    signs=lambda values: original(values) and values["ssm_cfg"].get("layer") == "Mamba2",
)
