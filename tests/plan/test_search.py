"""The search over layouts: what it tries, how it ranks, and that what it returns compiles and fits."""

import dataclasses

import jax
import pytest

from llmlab.chips import find
from llmlab.data import Bytes, Data
from llmlab.ffn import Gated, MoE
from llmlab.mesh import Mesh
from llmlab.mixers import Attention
from llmlab.models import Block, Decoder
from llmlab.nn import repeat
from llmlab.plan.report import traffic
from llmlab.plan.search import guesses, meshes, pareto, profile, recomputed, search, stored_bytes, told
from llmlab.plan.topology import Topology
from llmlab.train import Experiment
from llmlab.train.program import Program


@pytest.fixture(scope="module")
def experiment():
    block = Block(mixer=Attention(heads=4), ffn=Gated(hidden=64))
    data = Data(tokenizer=Bytes(), batch=8, length=64)
    return Experiment(model=Decoder(vocab=257, width=32, stack=repeat(block, 2)), data=data)


def target(slices=1):
    return Topology("cpu:8", find("TPU v5e"), slices, tuple(jax.devices()[:8]))


def specs(experiment):
    return Program(experiment, Mesh().build(jax.devices()[:1])).specs


def test_recomputation_trades_work_for_memory(experiment):
    plain, full = (profile(recomputed(experiment, policy)) for policy in ("none", "full"))
    assert full.flops > 1.1 * plain.flops and full.kept + full.wide < plain.kept + plain.wide
    assert full.kept == (2 + 2) * 64 * 32 * 2  # each layer's input, the head's and its gradient, in 16 bits


def test_meshes_make_the_devices_and_slices_share_data(experiment):
    found = list(meshes(specs(experiment), target(slices=2)))
    assert all(mesh.resolve(8) and mesh.data % 2 == 0 and mesh.expert == 1 for mesh in found)
    assert {(mesh.data, mesh.fsdp, mesh.tensor) for mesh in found} == {
        (8, 1, 1),
        (4, 2, 1),
        (2, 4, 1),
        (4, 1, 2),
        (2, 2, 2),
        (2, 1, 4),
    }
    block = Block(ffn=MoE(experts=4, expert=Gated(hidden=16)))
    experts = dataclasses.replace(experiment, model=Decoder(vocab=257, width=32, stack=repeat(block, 2)))
    assert {mesh.expert for mesh in meshes(specs(experts), target())} == {1, 2, 4}


def test_the_model_prefers_less_memory_with_more_sharing_and_less_work_without_recomputation(experiment):
    found = {told(guess.experiment, 8): guess for guess in guesses(experiment, target())}
    assert found["fsdp 8, remat full"].memory < found["data 8, remat full"].memory
    assert found["fsdp 8, remat full"].memory < found["fsdp 8, remat none"].memory
    assert not [name for name in found if name.startswith("tensor 8")]  # four heads are not divided by 8


def test_a_guess_is_bound_by_the_traffic_of_memory_and_each_part_of_the_batch_costs_its_own(experiment):
    experiment = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, batch=16))
    program = Program(experiment, Mesh().build(jax.devices()[:1]))
    found = {told(guess.experiment, 8): guess for guess in guesses(experiment, target())}
    whole, halves = (found[f"data 4 x fsdp 2, remat none{parts}"] for parts in ("", ", 2 parts"))
    moved = [traffic(one.experiment, program.model, one.experiment.mesh.sizes, 1e6, 2e6) for one in (whole, halves)]
    bytes_of = lambda rows: program.model.cost(experiment.shape(rows, 2)).bytes
    weights = 2 * bytes_of(1) - bytes_of(2)  # what does not grow with the rows
    assert moved[1] - moved[0] == 3 * weights + 2 * 2 * 1e6  # read by each part; gradients are summed
    stored = stored_bytes(experiment, program.specs, whole.experiment.mesh.sizes)["parameters"]
    moved = traffic(whole.experiment, program.model, whole.experiment.mesh.sizes, stored, 2 * stored)
    assert whole.seconds > moved / target().chip.bandwidth and halves.seconds > whole.seconds


def test_what_is_returned_compiles_and_fits_and_is_no_worse_in_both(experiment):
    said = []
    found = search(experiment, target(), tries=2, report=said.append)
    assert found and all(one.fits and one.times.step > 0 for one in found)
    steps, peaks = [one.times.step for one in found], [one.memory.peak for one in found]
    assert steps == sorted(steps) and peaks == sorted(peaks, reverse=True)
    assert "layouts" in said[0] and len(said) == 3
    assert pareto([*found, dataclasses.replace(found[0])]) == found
    assert search(experiment, target(), memory=10.0, tries=2, report=said.append) == []


def test_a_topology_without_a_data_sheet_is_refused(experiment):
    with pytest.raises(ValueError, match="no data sheet"):
        search(experiment, dataclasses.replace(target(), chip=None))
