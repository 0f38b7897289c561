"""The contract on every mixer, every feed-forward and every kind of model: found by their class, not listed.

A new part in a file of its own is tested here without an edit. SMALL has sizes for those whose own do not fit a width
of 32 or would run a single chunk, and variants beside the plain form. The default run takes the plain form and the
checks that say most; the variants and the rest of the contract are `make soak`.
"""

import dataclasses
import importlib
import pkgutil

import pytest

import llmlab
from llmlab.data import Data
from llmlab.ffn import Capacity, ExpertChoice, Gated, Mlp, MoE, Sigmoid
from llmlab.mixers import (
    GRU,
    LSTM,
    Attention,
    Bahdanau,
    Bidirectional,
    Both,
    Causal,
    Convolution,
    CrossAttention,
    DeltaNet,
    Differential,
    Fixed,
    Hyena,
    LatentAttention,
    LinearAttention,
    Mamba,
    Mamba2,
    Selective,
    Summary,
    gated_delta_net,
    gated_linear_attention,
    retention,
)
from llmlab.mixers.decay import PerHead
from llmlab.models import Block, Decoder, Encoder, EncoderDecoder
from llmlab.nn import FeedForward, Mixer, Normal, RMSNorm, repeat
from llmlab.nn.parts import Part
from llmlab.tasks import CausalLM, Continuation, MaskedLM, SpanCorruption
from llmlab.testing.contract import CHECKS, check_ffn, check_mixer, check_model

QUICK = ("causality", "packing isolation", "decode = teacher forcing", "executed = traced FLOPs", "finite gradients")
REST = tuple(name for name in CHECKS if name not in QUICK)
FFN = Mlp(hidden=48)
SOURCE = repeat(Block(mixer=Attention(heads=4, view=Bidirectional()), ffn=FFN), 2)
MODELS = {
    "decoder": (Decoder(vocab=64, width=32, stack=repeat(Block(mixer=Attention(heads=4), ffn=FFN), 2)), CausalLM()),
    "encoder": (Encoder(vocab=64, width=32, stack=SOURCE), MaskedLM()),
    "encoder-decoder": (
        EncoderDecoder(
            vocab=64,
            width=32,
            encoder=SOURCE,
            stack=repeat(Block(mixer=Attention(heads=4), cross=CrossAttention(heads=4), ffn=FFN), 2),
        ),
        SpanCorruption(sentinels=10),
    ),
}


SMALL = {
    Attention: (Attention(heads=4, kv_heads=2, view=Causal(window=5), sink=Normal(std=1.0)), Attention(heads=4)),
    Bahdanau: (Bahdanau(score_init=Normal(std=0.3)),),  # the paper starts it at 0, without a gradient
    Convolution: (Convolution(), Convolution(place="centre", groups=2)),
    CrossAttention: (CrossAttention(heads=4),),
    DeltaNet: (DeltaNet(heads=4, chunk=4), dataclasses.replace(gated_delta_net(heads=4), chunk=4)),
    Differential: (Differential(heads=2, kv_heads=1, view=Causal(window=5)), Differential(heads=2)),
    GRU: (GRU(), GRU(reset="before"), GRU(direction=Both()), GRU(initial=Summary())),
    Gated: (Gated(hidden=48),),
    Hyena: (Hyena(longest=32, rank=8),),
    LSTM: (LSTM(), LSTM(hidden=16)),
    LatentAttention: (LatentAttention(heads=4, rank=8, head_size=8, turned_size=4, value_size=8, q_rank=12),),
    LinearAttention: (
        LinearAttention(heads=4, chunk=4),
        dataclasses.replace(retention(heads=4), chunk=4),
        gated_linear_attention(heads=4),
        LinearAttention(heads=4, chunk=4, decay=PerHead()),
    ),
    MoE: (
        MoE(experts=4, expert=Gated(hidden=16), shared=Gated(hidden=16)),
        MoE(experts=4, expert=Gated(hidden=16), router=Sigmoid(), form=Capacity(factor=1.0)),
        MoE(experts=4, expert=Mlp(hidden=16), router=ExpertChoice()),
    ),
    Mamba: (
        Mamba(state=4, chunk=4),
        Mamba(state=4, chunk=4, selection=Fixed()),
        Mamba(state=4, chunk=4, selection=Selective(norm=RMSNorm(), rank=3)),
    ),
    Mamba2: (Mamba2(state=8, head_size=8, groups=2, chunk=4),),
    Mlp: (Mlp(hidden=48),),
}


def parts(slot: type[Part]) -> list:
    """Every part of a slot that the package has, with the sizes of SMALL or its own."""
    for module in pkgutil.walk_packages(llmlab.__path__, "llmlab."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found, todo = [], [slot]
    while todo:
        cls = todo.pop()
        todo += cls.__subclasses__()
        if cls.__module__.startswith("llmlab.") and (cls in SMALL or not cls.__subclasses__()):  # others are bases
            chosen = SMALL.get(cls) or (cls(),)
            found.append(pytest.param(chosen[0], id=cls.__name__))
            for number, one in enumerate(chosen[1:], 1):
                found.append(pytest.param(one, id=f"{cls.__name__}{number}", marks=pytest.mark.soak))
    return sorted(found, key=lambda param: param.id)


def reads_memory(mixer: Mixer) -> bool:
    return isinstance(mixer, CrossAttention | Bahdanau) or getattr(mixer, "initial", None) is not None


def check(part, only) -> dict[str, str]:
    """The contract of a part in the smallest model that can hold it."""
    if isinstance(part, FeedForward):
        return check_ffn(part, only=only)
    if not reads_memory(part):
        return check_mixer(part, only=only)
    cross = isinstance(part, CrossAttention)
    block = Block(mixer=Attention(heads=4), cross=part, ffn=FFN) if cross else Block(mixer=part, ffn=FFN)
    model = EncoderDecoder(vocab=64, width=32, encoder=SOURCE, stack=repeat(block, 2))
    return check_model(model, Continuation(), only=only, data=Data(length=27))  # 14 are read and 14 written


@pytest.mark.parametrize("part", parts(Mixer) + parts(FeedForward))
def test_every_part_keeps_the_contract(part):
    found = check(part, QUICK)
    assert found["finite gradients"].endswith("parameters") and not found["executed = traced FLOPs"].startswith("not")
    declared = part.declared()
    for name, holds in (("causality", declared.causal), ("decode = teacher forcing", declared.decodable)):
        assert found[name].startswith("not applicable") != holds


@pytest.mark.soak
@pytest.mark.parametrize("part", parts(Mixer) + parts(FeedForward))
def test_every_part_keeps_the_rest_of_the_contract(part):
    found = check(part, REST)
    assert not found["sharded = single device"].startswith("not") and "not divided" not in found[REST[1]]


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model_keeps_the_contract(name):
    model, task = MODELS[name]
    found = check_model(model, task, only=QUICK, data=Data(length=32))
    missing = {check for check, text in found.items() if text.startswith("not applicable")}
    assert missing == ({"causality", "decode = teacher forcing"} if name == "encoder" else set())


@pytest.mark.soak
@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model_keeps_the_rest_of_the_contract(name):
    model, task = MODELS[name]
    found = check_model(model, task, only=REST, data=Data(length=32))
    assert not any(text.startswith("not applicable") for text in found.values())
