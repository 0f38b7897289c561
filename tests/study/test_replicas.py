"""Replicas of one program are the separate runs; a diverged one is frozen and the others go on."""

import dataclasses

import jax
import numpy as np
import pytest

from llmlab.config import put
from llmlab.data import Data
from llmlab.data.tokenizers import Bytes
from llmlab.ffn import Gated, MoE
from llmlab.mixers import Attention, Mamba
from llmlab.models import Block, Decoder
from llmlab.nn import FanIn, repeat
from llmlab.optim import AdamW, Constant
from llmlab.study.replicas import Replicas, bind, differing
from llmlab.train import Experiment, Skip, Train
from llmlab.train.program import Program

PEAK, DECAY, DROPOUT = "optim.peak", "optim.decay", "model.stack.segments.0.pattern.0.dropout"
SCALE = "model.stack.segments.0.pattern.0.mixer.init.scale"
STEPS = 3


def experiment(block=Block(mixer=Attention(heads=2), ffn=Gated(hidden=24)), **changes) -> Experiment:
    found = Experiment(
        model=Decoder(vocab=257, width=16, stack=repeat(block, 2)),
        data=Data(tokenizer=Bytes(), batch=2, length=8),
        optim=AdamW(peak=1e-2, schedule=Constant(), eps=1e-3),  # Adam's quotient of tiny gradients blows rounding up
        train=Train(steps=STEPS, precision="float32"),
    )
    for path, value in changes.items():
        found = put(found, path, value)
    return found


def seeds(count: int) -> list[dict[str, int]]:
    return [{"init": 10 + i, "dropout": 20 + i} for i in range(count)]


def batches(one: Experiment, count: int):
    """[step][replica] -> batch."""
    return [[one.example(2, seed=100 * step + i) for i in range(count)] for step in range(STEPS)]


def stacked(rows):
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def separate(one: Experiment, seed, rows):
    """(state, losses) of a run by itself, with its numbers in its config."""
    program = Program(one, one.mesh.build(jax.devices()[:1]))
    state = {**program._init(jax.random.key(seed["init"])), "rng": jax.random.key_data(jax.random.key(seed["dropout"]))}
    losses = []
    for batch in rows:
        state, metrics = program.step(state, batch)
        losses.append(float(metrics["objective"]))
    return state, losses


def close(a, b, tolerance=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b)


def together(experiments, form, devices=1):
    replicas = Replicas(experiments, seeds(len(experiments)), form, jax.devices()[:devices])
    state, losses = replicas.start(), []
    for rows in batches(experiments[0], len(experiments)):
        state, metrics = replicas.step(state, stacked(rows), replicas.numbers)
        losses.append(np.asarray(metrics["objective"]))
    return replicas, jax.device_get(state), np.array(losses)


NUMBERS = [{PEAK: 3e-2}, {DECAY: 0.0, DROPOUT: 0.5}]


@pytest.mark.parametrize(("form", "devices"), [("map", 2), ("vmap", 1)])
def test_replicas_are_the_separate_runs_with_seeds_and_numbers_of_their_own(form, devices):
    base = experiment(**{DROPOUT: 0.2})
    variants = [put_all(base, numbers) for numbers in NUMBERS]
    replicas, state, losses = together(variants, form, devices)
    assert set(replicas.numbers) == {PEAK, DECAY, DROPOUT} and replicas.mesh.size == devices
    for i, one in enumerate(variants):
        alone, expected = separate(one, seeds(2)[i], [rows[i] for rows in batches(base, 2)])
        np.testing.assert_allclose(losses[:, i], expected, rtol=1e-5)
        close(replicas.one(state, i)["params"], jax.device_get(alone["params"]))
    assert len({float(x) for x in losses[-1]}) == 2


def put_all(one, numbers):
    for path, value in numbers.items():
        one = put(one, path, value)
    return one


def test_the_scale_of_initial_values_is_a_number_too():
    block = Block(mixer=Attention(heads=2, init=FanIn(scale=1.0)), ffn=Gated(hidden=24))
    variants = [experiment(block), experiment(block, **{SCALE: 0.5})]
    replicas, state, _ = together(variants, "map")
    assert list(replicas.numbers) == [SCALE]
    for i, one in enumerate(variants):
        alone, _ = separate(one, seeds(2)[i], [rows[i] for rows in batches(one, 2)])
        close(replicas.one(state, i)["params"], jax.device_get(alone["params"]))


@pytest.mark.parametrize(
    "block",
    [
        Block(mixer=Mamba(state=4), ffn=None),
        Block(mixer=Attention(heads=2), ffn=MoE(experts=4, expert=Gated(hidden=8))),
    ],
    ids=["mamba", "moe"],
)
def test_other_families_too(block):
    one = experiment(block)
    replicas, state, losses = together([one] * 2, "vmap")
    alone, expected = separate(one, seeds(2)[1], [rows[1] for rows in batches(one, 2)])
    np.testing.assert_allclose(losses[:, 1], expected, rtol=1e-5)
    close(replicas.one(state, 1)["params"], jax.device_get(alone["params"]))


def run(replicas, broken, steps=4):
    """States after each step, of which replica 1 gets weights that are not finite in the steps `broken`."""
    state, seen = replicas.start(), []
    for step in range(steps):
        batch = stacked([replicas.experiment.example(2, seed=step) for _ in range(replicas.count)])
        if step in broken:
            batch["weights_BL"][1] = np.inf
        state, _ = replicas.step(state, batch, replicas.numbers)
        seen.append(jax.device_get(state))
    return seen


def test_a_diverged_replica_is_frozen_and_the_others_go_on():
    one = experiment()
    replicas = Replicas([one, one], seeds(2), "map", jax.devices()[:1])
    broken, whole = run(replicas, {1}), run(replicas, ())
    assert broken[-1]["stopped"].tolist() == [0, 2] and broken[-1]["skipped"].tolist() == [0, 1]
    close(replicas.one(broken[-1], 1)["params"], replicas.one(broken[0], 1)["params"], 0)
    close(replicas.one(broken[-1], 0), replicas.one(whole[-1], 0), 0)


def test_a_guard_that_skips_goes_on_up_to_its_limit():
    one = dataclasses.replace(experiment(), train=Train(steps=STEPS, guard=Skip(limit=1)))
    replicas = Replicas([one, one], seeds(2), "map", jax.devices()[:1])
    assert run(replicas, {1})[-1]["stopped"].tolist() == [0, 0]
    assert run(replicas, {1, 3})[-1]["stopped"].tolist() == [0, 4]


def test_what_is_no_number_is_refused():
    with pytest.raises(ValueError, match="model.width is 16 here and 32 there; replicas of one"):
        differing([experiment(), experiment(**{"model.width": 32})])
    assert differing([experiment(seed=1), experiment(seed=2)]) == {}


def test_a_number_is_bound_without_the_config_s_checks():
    one = experiment()
    assert bind(one, PEAK, "traced").optim.peak == "traced" and one.optim.peak == 1e-2
    assert bind(one, DROPOUT, "traced").model.stack.segments[0].pattern[0].dropout == "traced"
