"""LLaMA 1 to 3 (Touvron et al., 2023; Grattafiori et al., 2024) and models of the same class, such as SmolLM2.

Pre-norm decoder: RMSNorm, rotary positions in halves, gated feed-forward with SiLU, no biases. Sizes and parameters:
7B 6,738,415,616; 13B 13,015,864,320; 65B 65,285,660,672; 2 70B 68,976,648,192; 3 8B 8,030,261,248, 70B 70,553,706,496,
3.1 405B 405,853,388,800; 3.2 1B 1,235,814,400, 3B 3,212,749,824; SmolLM2 135M 134,515,008.
"""

from __future__ import annotations

from llmlab.ffn.dense import Gated
from llmlab.mixers.attention import Attention
from llmlab.models.block import Block
from llmlab.models.decoder import Decoder, Model
from llmlab.nn.einsum import ZEROS
from llmlab.nn.embed import TiedHead
from llmlab.nn.norm import RMSNorm
from llmlab.nn.position import Rotary
from llmlab.nn.rotary import Llama3
from llmlab.presets.family import Family, Settings
from llmlab.presets.gated import (
    ATTENTION,
    GATED,
    INIT,
    NORMS,
    UNTIED,
    classes,
    decoder,
    gated,
    layers_of,
    names,
    read_attention,
    read_decoder,
    write_decoder,
)  # fmt: skip
from llmlab.presets.rope import read_rotary, write_rotary


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
    norm = RMSNorm(eps=eps)
    block = Block(mixer=attention, ffn=gated(hidden), norm=norm)
    return decoder([block] * layers, width, norm, vocab, TiedHead() if tied else UNTIED)


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


def read(settings: Settings) -> Model:
    """The model of a config.json."""
    settings.refuse("pretraining_tp", 1, None)
    norm = RMSNorm(eps=settings.number("rms_norm_eps", default=1e-6))
    ffn = Gated(
        hidden=settings.count("intermediate_size"),
        activation=settings.activation("hidden_act", default="silu"),
        bias=ZEROS if settings.flag("mlp_bias", False) else None,
    )
    block = Block(mixer=read_attention(settings, position=read_rotary(settings)), ffn=ffn, norm=norm)
    return read_decoder(settings, [block] * settings.count("num_hidden_layers"), norm)


def write(model: Model) -> dict:
    """The reverse of `read`."""
    block = layers_of(model)[0]
    return {**write_decoder(model), "mlp_bias": block.ffn.bias is not None, **write_rotary(block.mixer.position)}


FAMILY = Family(
    kind="llama",
    read=read,
    write=write,
    table=names(*ATTENTION, *GATED, *NORMS),
    prefixes=("model.", "transformer."),
    architecture=classes("Llama", "sequence", "token", "question"),
    stems={"question": "transformer."},
)
