"""muP reads the letters: which rates, initial values and multipliers follow from a base."""

import pytest

from llmlab.ffn import Gated, MoE
from llmlab.mixers import Attention, Mamba
from llmlab.models import Block, Decoder
from llmlab.nn import TiedHead, repeat
from llmlab.nn.module import abstract, specs
from llmlab.optim import AdamW, Muon
from llmlab.optim.groups import assign
from llmlab.optim.mup import mup


def model(width=16, hidden=32, heads=2, layers=2, head=None, block=None) -> Decoder:
    block = block or Block(mixer=Attention(heads=heads), ffn=Gated(hidden=hidden))
    return Decoder(vocab=32, width=width, stack=repeat(block, layers), **({"head": head} if head else {}))


def rates(large, small, optim=AdamW()):
    """{dotted path: (multiple of the rate, of the decay)}."""
    made, tuned = mup(large, optim, small)
    table = specs(abstract(made.build))
    return made, {".".join(path): (g.peak, g.decay) for path, g in assign(tuned.groups, table).items()}


def test_matrices_learn_at_one_over_their_fan_in_and_vectors_as_they_did():
    _, found = rates(model(64, 128, 8), model(16, 32, 2))
    layer = "stack.segments.0.0"
    assert found[f"{layer}.mixer.query.w" if f"{layer}.mixer.query.w" in found else f"{layer}.mixer.q.w"] == (0.25, 4.0)
    assert found[f"{layer}.ffn.down.w"] == (0.25, 4.0) and found["head.table"] == (0.25, 4.0)
    assert found["embed.table"] == (1.0, 1.0) and found["norm.scale"] == (1.0, 0.0)


def test_heads_and_scores_have_their_multipliers():
    made, _ = rates(model(64, 128, 2), model(16, 32, 2))
    assert made.head.init.factor == 0.25
    scale = (
        made.stack.segments[0].pattern[0].mixer.scale
    )  # heads of 32 in place of 8: 1 / K with the base's own 1 / sqrt 8
    assert scale == pytest.approx(8**0.5 / 32)
    tied, _ = rates(model(64, 128, 8, head=TiedHead()), model(16, 32, 2, head=TiedHead()))
    assert 64**tied.head.power == pytest.approx(0.25)
    assert tied.stack.segments[0].pattern[0].mixer.scale is None


def test_depth_divides_what_writes_into_the_stream():
    made, found = rates(model(layers=8), model(layers=2))
    layer = "stack.segments.0.0"
    assert found[f"{layer}.ffn.up.w"] == (0.5, 2.0) and found[f"{layer}.ffn.down.w"] == (0.25, 4.0)
    assert made.stack.segments[0].pattern[0].ffn.out_init.factor == 0.5


def test_the_base_itself_is_left_as_it_is():
    small = model()
    made, found = rates(small, small)
    assert made == small and {peak for peak, _ in found.values()} == {1.0}


@pytest.mark.parametrize(
    "block", [Block(mixer=Mamba(), ffn=None), Block(mixer=Attention(heads=2), ffn=MoE(expert=Gated(hidden=8)))]
)
def test_every_parameter_of_other_families_has_a_rate(block):
    _, found = rates(model(32, block=block), model(16, block=block))
    assert {peak for peak, _ in found.values()} >= {0.5, 1.0}


def test_what_it_does_not_know_is_refused():
    with pytest.raises(ValueError, match="knows the rules of Adam and Lion, not those of Muon"):
        mup(model(), Muon(), model())
    with pytest.raises(ValueError, match="differ in more than sizes"):
        mup(model(head=TiedHead()), AdamW(), model())
