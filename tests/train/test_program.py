"""One experiment on one device and under every rule and product of two: the same losses, and each device its share."""

import dataclasses
import itertools
import math
from pathlib import Path

import jax
import numpy as np
import pytest

from llmlab import axes
from llmlab.config import put
from llmlab.ffn import Gated, MoE
from llmlab.mesh import Mesh
from llmlab.nn.module import specs
from llmlab.train.feed import Feed
from llmlab.train.files import load_experiment
from llmlab.train.program import Program

RULES = {rule.__name__: rule for rule in (axes.data, axes.fsdp, axes.tensor, axes.sequence, axes.expert)}
PAIRS = itertools.combinations(("data", "fsdp", "tensor", "sequence"), 2)
MESHES = [{name: 8} for name in RULES] + [{first: 2, second: 4} for first, second in PAIRS]
SHARED = {"fsdp": "D", "tensor": "HGFV"}  # mesh axis -> the letters of parameters that it shares
STEPS = 20


def shown(sizes):
    return " x ".join(f"{name} {size}" for name, size in sizes.items())


def program_of(experiment, sizes):
    """The program under the rules of these mesh axes and no others."""
    rules = math.prod((RULES[name]() for name in sizes), start=axes.Rules())
    mesh = Mesh(**{"data": 1, **sizes})
    return Program(dataclasses.replace(experiment, rules=rules), mesh.build(jax.devices()[: math.prod(sizes.values())]))


def run(program, dataset, start, steps=STEPS):
    """(losses and gradient norms of the steps, the last state), from a state in numpy."""
    state, feed, found = jax.device_put(start, program.shardings), Feed(program, dataset, 0), []
    for _ in range(steps):
        state, metrics = program.step(state, feed.next())
        found.append((metrics["objective"], metrics["grad_norm"]))
    feed.close()
    return np.array(jax.device_get(found)), state


def held(tree):
    """Bytes that the first device holds."""
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


@pytest.fixture(scope="module")
def dataset(tiny, tmp_path_factory):
    return tiny().data.open(cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def start(tiny):
    """The initial state of one device."""
    return jax.device_get(program_of(tiny(), {}).init())


@pytest.fixture(scope="module")
def alone(tiny, dataset, start):
    """The losses of one device."""
    return run(program_of(tiny(), {}), dataset, start)[0]


@pytest.mark.parametrize("sizes", MESHES, ids=shown)
def test_a_mesh_changes_no_loss_and_shares_the_state(sizes, tiny, dataset, start, alone, capfd):
    program = program_of(tiny(), sizes)
    found, state = run(program, dataset, start)
    np.testing.assert_allclose(found, alone, rtol=1e-5)
    assert "Involuntary full rematerialization" not in capfd.readouterr().err

    cuts = {letter: sizes.get(axis, 1) for axis, letters in SHARED.items() for letter in letters}
    cuts["D"] *= sizes.get("expert", 1)  # nothing here has experts
    share = lambda spec: math.prod(n // cuts.get(letter, 1) for letter, n in zip(spec.axes, spec.shape))
    expected = sum(4 * share(spec) for spec in specs(program.model).values())
    counters = 2 * 4  # Adam's and the schedule's
    assert held(state["params"]) == expected
    assert held(state["opt"]) == 2 * expected + counters


def test_the_initial_state_does_not_depend_on_the_mesh(tiny, start):
    state = program_of(tiny(), {"fsdp": 2, "tensor": 4}).init()
    assert held(state["opt"]) < 0.3 * sum(leaf.nbytes for leaf in jax.tree.leaves(start["opt"]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), jax.device_get(state), start)


def test_the_sizes_of_the_mesh_alone_choose_among_all_rules(tiny):
    """The default rules lay out state and batches as the rules of the mesh's own axes do."""
    for sizes in MESHES:
        named = program_of(tiny(), sizes)
        every = Program(tiny(), named.mesh)
        assert every.experiment.rules == axes.every()
        assert every.shardings == named.shardings, shown(sizes)
        assert every.batch_sharding("tokens_BL", (8, 16)) == named.batch_sharding("tokens_BL", (8, 16)), shown(sizes)


def test_accumulation_changes_no_loss(tiny, dataset, start, alone):
    found, _ = run(program_of(tiny({"train.accumulate": 2}), {"data": 2, "tensor": 2}), dataset, start, steps=5)
    np.testing.assert_allclose(found, alone[:5], rtol=1e-5)


def test_bfloat16_computes_and_float32_remembers(tiny, dataset, start, alone):
    program = program_of(tiny({"train.precision": "bfloat16"}), {})
    found, state = run(program, dataset, start, steps=5)
    np.testing.assert_allclose(found[:, 0], alone[:5, 0], rtol=1e-2)
    assert np.abs(found[:, 0] / alone[:5, 0] - 1).max() > 1e-6
    kept = {leaf.dtype.name for leaf in jax.tree.leaves((state["params"], state["opt"]))}
    assert kept == {"float32", "int32"}


@pytest.mark.soak
@pytest.mark.parametrize("each", [{"expert": 8}, {"data": 2, "expert": 4}, {"fsdp": 2, "expert": 4}], ids=shown)
def test_experts_over_devices_change_no_loss(each, tiny, dataset, capfd):
    """Tokens travel to the devices of their experts, and back."""
    experts = {"model.stack.segments.0.pattern.0.ffn": MoE(experts=8, expert=Gated(hidden=16))}
    experiment = put(tiny(experts), "task.auxiliary", (("load_balance", 0.01),))
    single = program_of(experiment, {})
    start = jax.device_get(single.init())
    alone, found = run(single, dataset, start)[0], run(program_of(experiment, each), dataset, start)[0]
    np.testing.assert_allclose(found, alone, rtol=1e-5)
    assert "Involuntary full rematerialization" not in capfd.readouterr().err


@pytest.mark.soak
def test_the_shipped_experiment_under_every_rule(text, tmp_path, capfd):
    """nanoGPT's recipe, for the first 20 steps; 4 heads are shared by 4 devices at most, and 16 rows by 8."""
    file = Path(__file__).parents[2] / "experiments" / "nanogpt_char_cpu.py"
    experiment = put(put(load_experiment(file), "data.source.path", str(text)), "data.batch", 16)
    dataset = experiment.data.open(cache=tmp_path)
    single = program_of(experiment, {})
    start = jax.device_get(single.init())
    alone, seen = run(single, dataset, start)[0], []
    for each in MESHES:
        sizes = {"tensor": 4} if each == {"tensor": 8} else each
        found = run(program_of(experiment, sizes), dataset, start)
        seen.append(f"{shown(sizes)}: {np.abs(found[0][:, 0] / alone[:, 0] - 1).max():.1e}")
        np.testing.assert_allclose(found[0], alone, rtol=1e-5, err_msg="; ".join(seen))
        assert "Involuntary full rematerialization" not in capfd.readouterr().err, shown(sizes)
    with capfd.disabled():
        print(f"\nlargest relative difference of 20 losses: {'; '.join(seen)}")
