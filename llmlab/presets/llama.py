"""LLaMA 1 to 3 (Touvron et al., 2023; Grattafiori et al., 2024) and models of the same class, such as SmolLM2.

Pre-norm decoder: RMSNorm, rotary positions in halves, gated feed-forward with SiLU, no biases. Sizes and parameters:
7B 6,738,415,616; 13B 13,015,864,320; 65B 65,285,660,672; 2 70B 68,976,648,192; 3 8B 8,030,261,248, 70B 70,553,706,496,
3.1 405B 405,853,388,800; 3.2 1B 1,235,814,400, 3B 3,212,749,824; SmolLM2 135M 134,515,008.
"""

from __future__ import annotations

from llmlab.ffn.dense import Gated
from llmlab.mixers.attention import Attention, Causal
from llmlab.models.block import Block
from llmlab.models.decoder import Decoder
from llmlab.names import Table, tensor
from llmlab.nn.einsum import ZEROS
from llmlab.nn.embed import Embedding, LinearHead, TiedHead
from llmlab.nn.init import Normal
from llmlab.nn.norm import RMSNorm
from llmlab.nn.position import Rotary
from llmlab.nn.rotary import Llama3
from llmlab.nn.stack import repeat
from llmlab.presets.family import Family, Settings, activation_name, head_settings, headed, kind_of, trunk_of
from llmlab.presets.rope import read_rotary, write_rotary

INIT = Normal(std=0.02)


def llama(
    layers: int,
    width: int,
    hidden: int,
    attention: Attention,
    vocab: int = 32_000,
    eps: float = 1e-5,
    tied: bool = False,
) -> Decoder:
    """A decoder of this class."""
    block = Block(mixer=attention, ffn=Gated(hidden=hidden, init=INIT, out_init=INIT), norm=RMSNorm(eps=eps))
    return Decoder(
        vocab=vocab,
        width=width,
        embed=Embedding(init=INIT),
        stack=repeat(block, layers),
        norm=RMSNorm(eps=eps),
        head=TiedHead() if tied else LinearHead(init=INIT),
    )


def heads(count: int, kv: int | None = None, size: int = 128, position: Rotary = Rotary()) -> Attention:
    return Attention(heads=count, kv_heads=kv or count, head_size=size, position=position, init=INIT, out_init=INIT)


THREE = Rotary(theta=500_000.0)


def stretched(factor: float) -> Rotary:
    """Positions of Llama 3.1 (factor 8) and 3.2 (factor 32): from 8,192 to 131,072."""
    return Rotary(theta=500_000.0, scaling=Llama3(factor=factor))


def llama_7b() -> Decoder:
    return llama(32, 4096, 11_008, heads(32), eps=1e-6)


def llama_13b() -> Decoder:
    return llama(40, 5120, 13_824, heads(40), eps=1e-6)


def llama_65b() -> Decoder:
    return llama(80, 8192, 22_016, heads(64))


def llama2_7b() -> Decoder:
    return llama(32, 4096, 11_008, heads(32))


def llama2_70b() -> Decoder:
    return llama(80, 8192, 28_672, heads(64, 8))


def llama3_8b(position: Rotary = THREE) -> Decoder:
    return llama(32, 4096, 14_336, heads(32, 8, position=position), vocab=128_256)


def llama3_70b(position: Rotary = THREE) -> Decoder:
    return llama(80, 8192, 28_672, heads(64, 8, position=position), vocab=128_256)


def llama31_8b() -> Decoder:
    return llama3_8b(stretched(8.0))


def llama31_70b() -> Decoder:
    return llama3_70b(stretched(8.0))


def llama31_405b() -> Decoder:
    return llama(126, 16_384, 53_248, heads(128, 8, position=stretched(8.0)), vocab=128_256)


def llama32_1b() -> Decoder:
    return llama(16, 2048, 8192, heads(32, 8, 64, stretched(32.0)), vocab=128_256, tied=True)


def llama32_3b() -> Decoder:
    return llama(28, 3072, 8192, heads(24, 8, 128, stretched(32.0)), vocab=128_256, tied=True)


def smollm2_135m() -> Decoder:
    return llama(30, 576, 1536, heads(9, 3, 64, Rotary(theta=100_000.0)), vocab=49_152, tied=True)


def read(settings: Settings):
    """The model of a config.json."""
    settings.refuse("pretraining_tp", 1, None)
    width, count = settings.count("hidden_size"), settings.count("num_attention_heads")
    size = settings.count("head_dim", default=width // count)
    biased, eps = settings.flag("attention_bias", False), settings.number("rms_norm_eps", default=1e-6)
    attention = Attention(
        heads=count,
        kv_heads=settings.count("num_key_value_heads", default=count),
        head_size=size,
        view=Causal(),
        position=read_rotary(settings),
        bias=ZEROS if biased else None,
        out_bias=ZEROS if biased else None,
    )
    ffn = Gated(
        hidden=settings.count("intermediate_size"),
        activation=settings.activation("hidden_act", default="silu"),
        bias=ZEROS if settings.flag("mlp_bias", False) else None,
    )
    trunk = Decoder(
        vocab=settings.count("vocab_size"),
        width=width,
        stack=repeat(Block(mixer=attention, ffn=ffn, norm=RMSNorm(eps=eps)), settings.count("num_hidden_layers")),
        norm=RMSNorm(eps=eps),
        head=TiedHead() if settings.flag("tie_word_embeddings", False) or settings.head() != "lm" else LinearHead(),
    )
    return headed(settings, trunk)


def write(model) -> dict:
    """The reverse of `read`."""
    trunk = trunk_of(model)
    block = trunk.stack.segments[0].pattern[0]
    attention, ffn = block.mixer, block.ffn
    return {
        "architectures": [FAMILY.architecture[kind_of(model)]],
        "vocab_size": trunk.vocab,
        "hidden_size": trunk.width,
        "intermediate_size": ffn.hidden,
        "num_hidden_layers": trunk.stack.depth,
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads or attention.heads,
        "head_dim": attention.head_size or trunk.width // attention.heads,
        "hidden_act": activation_name(ffn.activation),
        "rms_norm_eps": trunk.norm.eps,
        "attention_bias": attention.bias is not None,
        "mlp_bias": ffn.bias is not None,
        "tie_word_embeddings": isinstance(trunk.head, TiedHead),
        **write_rotary(attention.position),
        **head_settings(model),
    }


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
    tensor("score.weight", "out.w: J D"),
)
FAMILY = Family(
    kind="llama",
    read=read,
    write=write,
    table=Table(model=ENDS, layers={"stack": ATTENTION + GATED + NORMS}),
    prefixes=("model.",),
    architecture={"lm": "LlamaForCausalLM", "sequence": "LlamaForSequenceClassification"},
)
