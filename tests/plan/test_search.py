"""The search over layouts: what it tries, how it ranks, and that what it returns compiles and fits."""

import dataclasses
import shlex

import jax
import pytest

from llmlab import axes
from llmlab.chips import find
from llmlab.cli.arguments import override
from llmlab.cli.plan import Flags
from llmlab.config import config
from llmlab.data import Bytes, Data
from llmlab.ffn import Gated, MoE
from llmlab.mesh import Mesh
from llmlab.mixers import Attention
from llmlab.models import Block, Decoder, EncoderDecoder
from llmlab.nn import Embedding, repeat
from llmlab.nn.module import Module
from llmlab.nn.parts import FeedForward
from llmlab.plan.report import traffic
from llmlab.plan.search import (
    flags,
    guesses,
    meshes,
    pareto,
    profile,
    recomputed,
    search,
    stored_bytes,
    told,
    variants,
)
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
    plain, full = (profile(recomputed(experiment, policy), target()) for policy in ("none", "full"))
    assert full.flops > 1.1 * plain.flops and full.kept + full.wide < plain.kept + plain.wide
    assert full.kept == (2 + 2) * 64 * 32 * 2  # each layer's input, the head's and its gradient, in 16 bits


def test_meshes_make_the_devices_and_slices_share_data(experiment):
    found = list(meshes(specs(experiment), target(slices=2)))
    assert all(mesh.resolve(8) and mesh.data % 2 == 0 and mesh.expert == 1 for mesh in found)
    assert {(mesh.data, mesh.fsdp, mesh.tensor) for mesh in found if mesh.sequence == 1} == {
        (8, 1, 1),
        (4, 2, 1),
        (2, 4, 1),
        (4, 1, 2),
        (2, 2, 2),
        (2, 1, 4),
    }
    assert {(mesh.sequence, mesh.tensor) for mesh in found} == {
        (s, t) for s in (1, 2, 4) for t in (1, 2, 4) if s * t < 8
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
    stored = stored_bytes(experiment.rules, program.specs, whole.experiment.mesh)["parameters"]
    moved = traffic(whole.experiment, program.model, whole.experiment.mesh.sizes, stored, 2 * stored)
    assert whole.seconds > moved / target().chip.bandwidth and halves.seconds > whole.seconds


def with_experts(experiment, **settings):
    block = Block(mixer=Attention(heads=4), ffn=MoE(experts=4, top_k=2, expert=Gated(hidden=16)), **settings)
    return dataclasses.replace(experiment, model=Decoder(vocab=257, width=32, stack=repeat(block, 2)))


def test_what_experts_exchange_is_counted_in_the_traced_program(experiment):
    experts, apart = with_experts(experiment), Mesh(data=1, expert=2)
    kinds = {policy: profile(recomputed(experts, policy), target(), apart) for policy in ("none", "full")}
    once = 2 * 64 * 2 * 32 * 2  # of one row and two layers: both choices of each token, in 16 bits
    assert profile(experts, target()).received == 0
    assert 4 * once <= kinds["none"].received < 4 * 1.6 * once  # there and back, twice; with some room
    assert kinds["full"].received > kinds["none"].received + once  # there once more
    assert kinds["none"].kept > profile(experts, target()).kept  # places for more than what was chosen
    assert profile(experiment, target(), apart).received < once  # tokens and their embedding


def test_layouts_with_experts_wait_for_their_exchanges(experiment):
    found = {told(guess.experiment, 8): guess for guess in guesses(with_experts(experiment), target())}
    shared, whole = found["data 4 x expert 2, remat full"], found["data 4 x fsdp 2, remat full"]
    row = profile(recomputed(with_experts(experiment), "full"), target(), Mesh(data=1, expert=2))
    sent = 8 / 8 * row.received * (1 - 1 / 2) / target().chip.link  # one row of eight, half of it for others
    assert shared.seconds - whole.seconds > 0.5 * sent and shared.memory > whole.memory


class Halves(Module):
    """A user's feed-forward that sends half of each row to the other device and back, in a shard_map of its own."""

    def __init__(self, ffn, written: bool):
        self.ffn, self.written = ffn, written

    def __call__(self, x_BLD, ctx):
        found = axes.scope()
        if self.written and found and found[0].shape["expert"] > 1:
            spec = jax.sharding.PartitionSpec("expert")
            send = lambda x: jax.lax.all_to_all(x, "expert", 1, 1, tiled=True)
            x_BLD = jax.shard_map(send, mesh=found[0], in_specs=spec, out_specs=spec, check_vma=False)(x_BLD)
        return self.ffn(x_BLD, ctx)

    def cost(self, shape):
        return self.ffn.cost(shape)


@config
class Sent(FeedForward):
    written: bool = True

    def build(self, dims, rngs):
        return Halves(Gated(hidden=16).build(dims, rngs), self.written)


def test_a_part_of_ones_own_counts_as_it_is_written(experiment):
    def received(written, policy):
        block = Block(mixer=Attention(heads=4), ffn=Sent(written=written))
        own = dataclasses.replace(experiment, model=Decoder(vocab=257, width=32, stack=repeat(block, 2)))
        return profile(recomputed(own, policy), target(), Mesh(data=1, expert=2)).received

    row = 2 * 64 * 32 * 2  # of two layers
    assert received(True, "none") - received(False, "none") == 2 * row
    assert received(True, "full") - received(False, "full") == 3 * row


def test_what_is_held_whole_along_shared_positions_is_counted(experiment):
    shared = profile(recomputed(experiment, "full"), target(), Mesh(data=2, sequence=2))
    keys = 2 * 2 * 2 * 64 * 32 * 2  # keys and values of two layers, on both devices that share a row
    assert shared.received == 3 * keys  # forward, again, and their gradients
    found = {told(guess.experiment, 8): guess for guess in guesses(experiment, target())}
    apart, cut = found["data 8, remat full"], found["data 4 x sequence 2, remat full"]
    assert cut.seconds > apart.seconds and cut.memory == apart.memory
    odd = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, length=66))
    assert {guess.experiment.mesh.sequence for guess in guesses(odd, target())} == {1, 2}


def test_rules_that_share_the_stream_take_less_memory_and_more_messages(experiment):
    padded = dataclasses.replace(experiment.model, embed=Embedding(multiple=8))
    found = guesses(dataclasses.replace(experiment, model=padded), target())
    found = {told(guess.experiment, 8): guess for guess in found}
    for policy in ("none", "full"):
        whole, cut = (found[f"data 4 x tensor 2, {rules}remat {policy}"] for rules in ("", "rules every*stream, "))
        assert cut.memory < whole.memory and cut.seconds > whole.seconds
    assert cut.experiment.rules == axes.every() * axes.stream()
    assert not [name for name in found if "stream" in name and "tensor" not in name]
    mine = dataclasses.replace(axes.data() * axes.tensor(), name="mine")
    assert [rules.name for rules in variants(mine)] == ["mine", "mine*stream"]
    assert variants(axes.every() * axes.stream()) == [axes.every() * axes.stream()]


@pytest.mark.parametrize("rules", [axes.every(), dataclasses.replace(axes.every(), name="mine")], ids=str)
def test_the_flags_that_are_told_make_the_layout(experiment, rules):
    """Of an encoder-decoder, which has two stacks."""
    pair = EncoderDecoder(vocab=257, width=32, encoder=repeat(Block(), 1), stack=repeat(Block(), 1, remat="dots"))
    for one in (experiment, dataclasses.replace(experiment, model=pair)):
        written = dataclasses.replace(one, rules=rules)
        train = dataclasses.replace(one.train, accumulate=4)
        layout = dataclasses.replace(
            recomputed(written, "mixed"),
            mesh=Mesh(data=1, sequence=2, tensor=4),
            train=train,
            rules=variants(rules)[1],
        )
        words = shlex.split(flags(layout, 8))
        assert override("plan", Flags, written, words, demand=False)[1] == layout


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
