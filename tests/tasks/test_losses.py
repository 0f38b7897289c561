"""Losses of tasks on small models: the contract, and what is particular to each."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmlab.data import Data
from llmlab.ffn import Mlp
from llmlab.mixers import Attention
from llmlab.mixers.attention import Bidirectional, Prefix
from llmlab.models import Block, Decoder, Encoder, Pooled, Transform
from llmlab.nn import Embedding, LayerNorm, Learned, repeat
from llmlab.nn.module import Rngs
from llmlab.tasks import Answers, CausalLM, Classification, Contrastive, MaskedLM, PrefixLM, example_batch
from llmlab.tasks.task import Task

BLOCK = Block(mixer=Attention(heads=4, view=Bidirectional(), position=None), ffn=Mlp(hidden=32), norm=LayerNorm())
EMBED = Embedding(position=Learned(length=16), types=2, norm=LayerNorm())
ENCODER = Encoder(vocab=64, width=32, embed=EMBED, stack=repeat(BLOCK, 2), norm=LayerNorm())
DATA = Data(length=16)


def outcome(task: Task, model, batch=None, key=None):
    built = model.build(Rngs(params=0))
    return jax.jit(lambda batch: task.loss(built, batch, key, "float32"))(batch or example_batch(task, DATA, 64, 8))


def test_only_masked_places_are_scored():
    task, model = MaskedLM(), ENCODER.build(Rngs(params=0))
    batch = example_batch(task, DATA, 64, 8)
    found = outcome(task, ENCODER, batch)
    ctx, _ = task.context(model, batch, None, "float32")
    logits_BLV = model.logits(model(batch["tokens_BL"], ctx)[0])
    rows, places = np.nonzero(batch["weights_BT"])
    at = (rows, batch["places_BT"][rows, places])
    nll = -jax.nn.log_softmax(logits_BLV[at])[np.arange(len(rows)), batch["targets_BT"][rows, places]]
    np.testing.assert_allclose(found.sums["nll"], nll.sum(), rtol=1e-5)
    assert found.weight == len(rows) == 8 * 2
    types_BL = np.ones((8, 16), np.int32)
    assert abs(outcome(task, ENCODER, {**batch, "types_BL": types_BL}).loss - found.loss) > 1e-4


def test_a_prefix_is_seen_whole():
    block = dataclasses.replace(BLOCK, mixer=Attention(heads=4, view=Prefix()))
    model = Decoder(vocab=64, width=32, stack=repeat(block, 2))
    task = PrefixLM()
    found = outcome(task, model)
    assert found.weight < 8 * 16 and found.sums["bytes"] == found.weight
    batch = example_batch(task, DATA, 64, 8)
    shorter = {**batch, "prefix_BL": np.zeros_like(batch["prefix_BL"])}
    assert abs(outcome(task, model, shorter).loss - outcome(task, model, batch).loss) > 1e-4


@pytest.mark.parametrize("transform", [None, Transform()])
def test_rows_are_classified(transform):
    model = Pooled(trunk=ENCODER, classes=3, transform=transform)
    batch = {**example_batch(CausalLM(), DATA, 64, 8), "label_B": np.arange(8) % 3, "weight_B": np.ones(8, "f")}
    found = outcome(Classification(), model, batch)
    assert abs(found.loss / 8 - np.log(3)) < 0.2 and found.weight == 8
    half = outcome(Classification(), model, {**batch, "weight_B": (np.arange(8) < 4).astype("f")})
    assert half.weight == 4 and half.loss < found.loss
    with pytest.raises(ValueError, match="Classification needs data whose examples have a label; this has tokens_L"):
        example_batch(Classification(), DATA, 64, 8)


def test_texts_find_their_partner():
    task, model = Contrastive(), Pooled(trunk=ENCODER)
    batch = example_batch(task, DATA, 64, 8)
    same = {**batch, "partner_BL": batch["tokens_BL"]}
    assert outcome(task, model, same).sums["correct"] == 8
    filled = {**same, "weight_B": (np.arange(8) < 5).astype("f")}
    assert outcome(task, model, filled).sums["correct"] == outcome(task, model, filled).weight == 5
    built = model.build(Rngs(params=0))
    with pytest.raises(ValueError, match="this Pooled model gives vectors; set its `classes`"):
        built.classify(jnp.zeros((1, 2, 32)), task.context(built, batch, None, "float32")[0])


def test_pooling_leaves_padding_out():
    from llmlab.models import First, Last, Max, Mean

    hidden_BLD = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 3)).astype("f"))
    real_BL = jnp.array([[True, True, True, False]])
    expected = {First(): hidden_BLD[:, 0], Last(): hidden_BLD[:, 2], Mean(): hidden_BLD[:, :3].mean(1)}
    for pooling, pooled_BD in {**expected, Max(): hidden_BLD[:, :3].max(1)}.items():
        np.testing.assert_allclose(pooling(hidden_BLD, real_BL), pooled_BD, rtol=1e-6)
    np.testing.assert_array_equal(First()(hidden_BLD, real_BL[:, ::-1]), hidden_BLD[:, 1])


def test_rows_with_every_answer_count_as_whole():
    model = Decoder(vocab=64, width=32, stack=repeat(Block(mixer=Attention(heads=4), ffn=Mlp(hidden=32)), 1))
    batch = example_batch(Answers(), DATA, 64, 8)
    built = model.build(Rngs(params=0))
    ctx, _ = Answers().context(built, batch, None, "float32")
    best_BL = np.asarray(built.logits(built(batch["tokens_BL"], ctx)[0]).argmax(-1))
    targets_BL = best_BL.copy()
    targets_BL[2:, 3] += 1  # wrong in six rows, of which one does not score that place and one nothing at all
    weights_BL = np.ones((8, 16), "f")
    weights_BL[6, 3], weights_BL[7] = 0, 0
    found = outcome(Answers(), model, {**batch, "targets_BL": targets_BL % 64, "weights_BL": weights_BL})
    assert (found.sums["rows"], found.sums["whole"]) == (7, 3)
    report = Answers().report({name: float(a) for name, a in found.sums.items()} | {"weight": float(found.weight)})
    assert report["sequence_accuracy"] == 3 / 7 and report["accuracy"] == (7 * 16 - 1 - 4) / (7 * 16 - 1)


def test_the_task_weighs_what_parts_give():
    task = CausalLM(auxiliary=(("balance", 0.5),))
    found = task.outcome(jnp.float32(3), jnp.float32(2), {"nll": jnp.float32(3)}, {"balance": 4.0, "other": 1.0})
    assert found.loss == 3 + 2 * 0.5 * 4 and found.sums["balance"] == 8
    assert task.report({"weight": 2.0, "nll": 3.0, "correct": 0.0, "balance": 8.0})["balance"] == 4
    with pytest.raises(ValueError, match="weighs 'balance', and the parts of the model give other"):
        task.outcome(jnp.float32(3), jnp.float32(2), {}, {"other": 1.0})
