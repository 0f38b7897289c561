"""In muP activations keep their size with width; in the standard parametrisation what training moves grows."""

import pytest

from llmlab.data import Bytes, Data
from llmlab.ffn import Gated, MoE
from llmlab.mixers import Attention, Mamba
from llmlab.models import Block, Decoder
from llmlab.nn import repeat
from llmlab.optim import AdamW, Constant
from llmlab.testing.coordinates import KINDS, check, slope, wider
from llmlab.train import Experiment, Train

BLOCKS = {
    "decoder": Block(mixer=Attention(heads=2), ffn=Gated(hidden=128)),
    "experts": Block(mixer=Attention(heads=2), ffn=MoE(experts=4, expert=Gated(hidden=64))),
    "Mamba": Block(mixer=Mamba(), ffn=None),
}


def experiment(block: Block) -> Experiment:
    return Experiment(
        model=Decoder(vocab=257, width=64, stack=repeat(block, 2)),
        data=Data(tokenizer=Bytes(), batch=4, length=32),
        optim=AdamW(peak=1e-2, schedule=Constant()),
        train=Train(steps=10, precision="float32"),
    )


def test_every_width_grows_and_heads_keep_their_size():
    grouped = Block(mixer=Attention(heads=2, kv_heads=1), ffn=Gated(hidden=64))
    block = wider(experiment(grouped), 4).model.stack.segments[0].pattern[0]
    assert (block.mixer.heads, block.mixer.kv_heads, block.ffn.hidden) == (8, 4, 256)
    experts = wider(experiment(BLOCKS["experts"]), 2).model.stack.segments[0].pattern[0].ffn
    assert (experts.experts, experts.top_k, experts.expert.hidden) == (4, 2, 128)
    wide = wider(experiment(BLOCKS["Mamba"]), 2).model
    assert (wide.width, wide.stack.segments[0].pattern[0].mixer.conv.width) == (128, 4)


def test_the_slope_is_that_of_logarithms():
    assert slope([1, 2, 4], [3.0, 6.0, 12.0]) == pytest.approx(1) and slope([1, 2], [5.0, 5.0]) == pytest.approx(0)


@pytest.mark.soak
@pytest.mark.parametrize("name", BLOCKS)
def test_what_training_moves_keeps_its_size_in_mup_alone(name, capfd):
    found = check(experiment(BLOCKS[name]))
    with capfd.disabled():
        print(f"\n{name}: {found}")
    assert all(abs(found["muP"][kind]) <= 0.1 for kind in KINDS)
    assert max(found["standard"][kind] for kind in KINDS) > 0.3
