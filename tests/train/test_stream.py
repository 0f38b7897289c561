"""The stream shared over `tensor`: the same losses as on one device, and positions that are cut where the width is."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from llmlab import axes
from llmlab.data import Bytes, Data
from llmlab.ffn import Gated, MoE
from llmlab.mesh import Mesh
from llmlab.mixers import Attention, Mamba, Mamba2
from llmlab.models import Block, Decoder
from llmlab.models.block import Parallel
from llmlab.nn import Segment, Stack
from llmlab.train import Experiment
from llmlab.train.program import Program

RULES = axes.every() * axes.stream()
PATTERN = (
    Block(mixer=Attention(heads=4, kv_heads=2), ffn=MoE(experts=4, expert=Gated(hidden=16))),
    Block(mixer=Mamba(), ffn=Gated(hidden=32), wiring=Parallel()),
    Block(mixer=Mamba2(head_size=8), ffn=None),
)


def program(mesh: Mesh, devices: int) -> Program:
    stack = Stack(segments=(Segment(pattern=PATTERN, repeats=2),), remat="full")
    data = Data(tokenizer=Bytes(), batch=8, length=32)
    experiment = Experiment(model=Decoder(vocab=260, width=16, stack=stack), data=data, mesh=mesh, rules=RULES)
    return Program(experiment, mesh.build(jax.devices()[:devices]))


def losses(mesh: Mesh, devices: int) -> np.ndarray:
    made, found = program(mesh, devices), []
    state, batch = made.init(), made.experiment.example(rows=8, seed=1)
    for _ in range(3):
        state, metrics = made.step(state, made.put(batch, np.arange(8), 8))
        found.append((metrics["objective"], metrics["grad_norm"]))
    return np.array(jax.device_get(found))


@pytest.fixture(scope="module")
def alone():
    return losses(Mesh(), 1)


@pytest.mark.parametrize("sizes", [{"data": 2, "tensor": 4}, {"expert": 2, "sequence": 2, "tensor": 2}], ids=str)
def test_no_loss_changes(sizes, alone):
    np.testing.assert_allclose(losses(Mesh(**{"data": 1, **sizes}), 8), alone, rtol=2e-5)


def test_positions_are_cut_where_an_array_has_the_width_and_nowhere_else():
    sizes = {"data": 2, "fsdp": 1, "expert": 1, "sequence": 2, "tensor": 2}
    cut = lambda letters, *shape: axes.spec(letters, shape, RULES.live, sizes)
    assert cut("BLD", 4, 8, 16) == P("data", ("sequence", "tensor"), None)
    assert cut("BLD", 4, 2, 16) == P("data", "sequence", None)  # two positions are not divided by four devices
    assert cut("BLd", 4, 8, 16) == P("data", "sequence", None)
    assert cut("BLHK", 4, 8, 4, 4) == P("data", "sequence", "tensor", None)
    assert cut("BL", 4, 8) == P("data", "sequence")
    assert dataclasses.replace(RULES, live=RULES.relaxed("L").live) != RULES
