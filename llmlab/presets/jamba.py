"""Jamba v0.1 (Lieber et al., 2024): Mamba, with attention in every eighth layer and experts in every second.

Attention has no positions; Mamba has norms on step, b and c; the weights of the two chosen experts are those of the
softmax over all 16, and do not add up to 1. Parameters: 51,570,323,328.
"""

from __future__ import annotations

import dataclasses

from llmlab.ffn.dense import Gated
from llmlab.ffn.moe import MoE
from llmlab.ffn.router import TopK
from llmlab.mixers.attention import Attention
from llmlab.mixers.mamba import Mamba, Selective
from llmlab.models.block import Block
from llmlab.models.decoder import Decoder, Model
from llmlab.names import Table, tensor
from llmlab.nn.conv import ShortConv, UniformFanIn
from llmlab.nn.einsum import ZEROS
from llmlab.nn.embed import Embedding, Head, LinearHead, TiedHead
from llmlab.nn.init import Normal
from llmlab.nn.norm import RMSNorm
from llmlab.nn.stack import arrange
from llmlab.presets.family import ConfigError, Family, Settings, activation_name, head_settings, headed, trunk_of
from llmlab.presets.mamba import mixer_names

INIT = Normal(std=0.02)
UNTIED = LinearHead(init=INIT)


@dataclasses.dataclass(frozen=True)
class Place:
    """Which layers have a part: number `offset` of every `period`."""

    period: int
    offset: int

    def holds(self, layer: int) -> bool:
        return layer % self.period == self.offset


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What a config of this class says."""

    layers: int
    width: int
    attention: Attention
    mamba: Mamba
    dense: Gated
    experts: int = 16
    top_k: int = 2
    attends: Place = Place(8, 4)
    routes: Place = Place(2, 1)
    vocab: int = 65_536
    eps: float = 1e-6
    head: Head = UNTIED

    def model(self) -> Decoder:
        norm = RMSNorm(eps=self.eps)
        routed = self.dense
        if self.experts > 1:
            router = TopK(over="all", init=INIT)
            routed = MoE(experts=self.experts, top_k=self.top_k, expert=self.dense, router=router)
        layers = [
            Block(
                mixer=self.attention if self.attends.holds(layer) else self.mamba,
                ffn=routed if self.routes.holds(layer) else self.dense,
                norm=norm,
            )
            for layer in range(self.layers)
        ]
        return Decoder(
            vocab=self.vocab,
            width=self.width,
            embed=Embedding(init=INIT),
            stack=arrange(layers),
            norm=norm,
            head=self.head,
        )


def jamba_v0_1() -> Decoder:
    attention = Attention(heads=32, kv_heads=8, head_size=128, position=None, init=INIT, out_init=INIT)
    mamba = Mamba(selection=Selective(norm=RMSNorm(eps=1e-6)))
    return Sizes(32, 4096, attention, mamba, Gated(hidden=14_336, init=INIT, out_init=INIT)).model()


def read(settings: Settings) -> Model:
    """The model of a config.json."""
    heads, eps = settings.count("num_attention_heads"), settings.number("rms_norm_eps", default=1e-6)
    rank = settings.get("mamba_dt_rank", default="auto")
    sizes = Sizes(
        layers=settings.count("num_hidden_layers"),
        width=settings.count("hidden_size"),
        attention=Attention(heads=heads, kv_heads=settings.count("num_key_value_heads", default=heads), position=None),
        mamba=Mamba(
            expand=settings.count("mamba_expand", default=2),
            state=settings.count("mamba_d_state", default=16),
            conv=ShortConv(
                width=settings.count("mamba_d_conv", default=4),
                bias=UniformFanIn() if settings.flag("mamba_conv_bias", True) else None,
                activation=settings.activation("hidden_act", default="silu"),
            ),
            selection=Selective(
                rank=None if rank == "auto" else settings.count("mamba_dt_rank"), norm=RMSNorm(eps=eps)
            ),
            bias=ZEROS if settings.flag("mamba_proj_bias", False) else None,
        ),
        dense=Gated(
            hidden=settings.count("intermediate_size"), activation=settings.activation("hidden_act", default="silu")
        ),
        experts=settings.count("num_experts", "num_local_experts", default=16),
        top_k=settings.count("num_experts_per_tok", default=2),
        attends=read_place(settings, "attn_layer", 8, 4),
        routes=read_place(settings, "expert_layer", 2, 1),
        vocab=settings.count("vocab_size"),
        eps=eps,
        head=TiedHead() if settings.flag("tie_word_embeddings", False) or settings.head() != "lm" else UNTIED,
    )
    return headed(settings, sizes.model())


def read_place(settings: Settings, stem: str, period: int, offset: int) -> Place:
    """The keys STEM_period and STEM_offset."""
    period, place = settings.count(f"{stem}_period", default=period), settings.get(f"{stem}_offset", default=offset)
    if not isinstance(place, int) or not 0 <= place < period:
        raise ConfigError(f"{settings.where}: {stem}_offset is {place!r}; it is 0 or more and below {period}")
    return Place(period, place)


def write(model: Model) -> dict:
    """The reverse of `read`."""
    trunk = trunk_of(model)
    layers = [layer for one in trunk.stack.segments for layer in one.pattern * one.repeats]
    attends = [isinstance(layer.mixer, Attention) for layer in layers]
    routes = [isinstance(layer.ffn, MoE) for layer in layers]
    attention, mamba = layers[attends.index(True)].mixer, layers[attends.index(False)].mixer
    routed = layers[routes.index(True)].ffn if any(routes) else None
    dense = routed.expert if routed else layers[0].ffn
    return {
        "vocab_size": trunk.vocab,
        "hidden_size": trunk.width,
        "intermediate_size": dense.hidden,
        "num_hidden_layers": len(layers),
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads or attention.heads,
        "hidden_act": activation_name(dense.activation),
        "rms_norm_eps": trunk.norm.eps,
        "num_experts": routed.experts if routed else 1,
        "num_experts_per_tok": routed.top_k if routed else 1,
        **write_place("attn_layer", attends),
        **(write_place("expert_layer", routes) if routed else {}),
        "mamba_d_state": mamba.state,
        "mamba_d_conv": mamba.conv.width,
        "mamba_expand": mamba.expand,
        "mamba_dt_rank": mamba.selection.rank or "auto",
        "mamba_conv_bias": mamba.conv.bias is not None,
        "mamba_proj_bias": mamba.bias is not None,
        "tie_word_embeddings": isinstance(trunk.head, TiedHead),
        **head_settings(model),
    }


def write_place(stem: str, marks: list[bool]) -> dict:
    """Period and offset of what is marked; of one mark alone, the period is the number of layers."""
    first = marks.index(True)
    second = marks.index(True, first + 1) if sum(marks) > 1 else len(marks) + first
    return {f"{stem}_period": second - first, f"{stem}_offset": first}


STEM = "model.layers.{N}."
EXPERT = f"{STEM}feed_forward.experts.{{E}}."
LAYER = (
    tensor(f"{STEM}input_layernorm.weight", "wiring.before.0.scale: D"),
    tensor(f"{STEM}pre_ff_layernorm.weight", "wiring.before.1.scale: D"),
    tensor(f"{STEM}self_attn.q_proj.weight", "mixer.q.w: HK D"),
    tensor(f"{STEM}self_attn.k_proj.weight", "mixer.k.w: GK D"),
    tensor(f"{STEM}self_attn.v_proj.weight", "mixer.v.w: GK D"),
    tensor(f"{STEM}self_attn.o_proj.weight", "mixer.out.w: D HK"),
    *mixer_names(f"{STEM}mamba."),
    tensor(f"{STEM}mamba.dt_layernorm.weight", "mixer.selection.low_norm.scale: R"),
    tensor(f"{STEM}mamba.b_layernorm.weight", "mixer.selection.b_norm.scale: S"),
    tensor(f"{STEM}mamba.c_layernorm.weight", "mixer.selection.c_norm.scale: S"),
    tensor(f"{STEM}feed_forward.gate_proj.weight", "ffn.gate.w: F D"),
    tensor(f"{STEM}feed_forward.up_proj.weight", "ffn.up.w: F D"),
    tensor(f"{STEM}feed_forward.down_proj.weight", "ffn.down.w: D F"),
    tensor(f"{STEM}feed_forward.router.weight", "ffn.router.score.w: e D"),
    tensor(f"{EXPERT}gate_proj.weight", "ffn.experts.gate.w: F D"),
    tensor(f"{EXPERT}up_proj.weight", "ffn.experts.up.w: F D"),
    tensor(f"{EXPERT}down_proj.weight", "ffn.experts.down.w: D F"),
)
ENDS = (
    tensor("model.embed_tokens.weight", "embed.table: V D"),
    tensor("model.final_layernorm.weight", "norm.scale: D"),
    tensor("lm_head.weight", "head.table: V D"),
)
FAMILY = Family(
    kind="jamba",
    read=read,
    write=write,
    table=Table(model=ENDS, layers={"stack": LAYER}, heads={"sequence": (tensor("score.weight", "out.w: J D"),)}),
    prefixes=("model.",),
    architecture={"lm": "JambaForCausalLM", "": "JambaModel", "sequence": "JambaForSequenceClassification"},
)
