"""Embeddings and heads: padding of the vocabulary, positions, scaling, logits and losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmlab.cost import Shape
from llmlab.nn import Context, Embedding, Fill, Learned, LinearHead, RMSNorm, TiedHead
from llmlab.nn.embed import SharedEmbedding
from llmlab.nn.module import Rngs, specs

DIMS = {"V": 13, "D": 8, "N": 2}
TOKENS_BL = np.array([[0, 12, 3], [4, 4, 1]])
CTX = Context(positions_BL=np.array([[0, 1, 2], [0, 1, 0]]))


def test_padding_is_stored_and_not_counted():
    cfg = Embedding(multiple=8)
    spec = specs(cfg.build(DIMS, Rngs(params=0)))["table",]
    assert (spec.shape, spec.unpadded, spec.size, spec.axes, spec.inputs) == ((16, 8), (13, 8), 104, "VD", "D")
    table_VD = np.asarray(cfg.build(DIMS, Rngs(params=0)).table[...])
    assert not table_VD[13:].any() and table_VD[:13].any(-1).all()
    one = Embedding(multiple=1).build(DIMS, Rngs(params=0))
    np.testing.assert_array_equal(one.table[...], table_VD[:13])  # padding changes no initial value
    assert LinearHead().build(DIMS, Rngs(params=0), cfg).table.shape == (16, 8)


def test_vectors_are_looked_up_scaled_placed_and_normalised():
    cfg = Embedding(power=0.5, position=Learned(length=3), norm=RMSNorm(), multiple=8)
    layer = cfg.build(DIMS, Rngs(params=0))
    x_BLD = np.asarray(layer.table[...])[TOKENS_BL] * 8**0.5 + np.asarray(layer.position.table[...])[CTX.positions_BL]
    x_BLD /= np.sqrt((x_BLD**2).mean(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(jax.jit(layer)(TOKENS_BL, CTX), x_BLD, rtol=1e-4, atol=1e-5)


def test_a_shared_table_stands_under_positions_of_its_own():
    table = Embedding().build(DIMS, Rngs(params=0)).table
    layer = SharedEmbedding(position=Learned(length=3), power=0.5).build(DIMS, Rngs(params=1))
    assert set(specs(layer)) == {("position", "table")}
    x_BLD = np.asarray(table[...])[TOKENS_BL] * 8**0.5 + np.asarray(layer.position.table[...])[CTX.positions_BL]
    np.testing.assert_allclose(layer(TOKENS_BL, CTX, table), x_BLD, rtol=1e-5, atol=1e-6)


def test_dropout_needs_a_key_and_keeps_the_mean():
    layer = Embedding(dropout=0.25, init=Fill(value=1.0)).build({"V": 4, "D": 512}, Rngs(params=0))
    np.testing.assert_array_equal(layer(TOKENS_BL % 4, CTX), 1)
    ctx = Context(positions_BL=CTX.positions_BL, key=jax.random.key(0))
    y_BLD = np.asarray(layer(TOKENS_BL % 4, ctx))
    assert np.isin(y_BLD.round(5), [0, np.float32(1.33333)]).all() and abs(y_BLD.mean() - 1) < 0.06


@pytest.mark.parametrize("values", [dict(dropout=1.0), dict(dropout=-0.1), dict(multiple=0)])
def test_wrong_values_are_refused(values):
    with pytest.raises(ValueError, match=f"Embedding.{next(iter(values))} is"):
        Embedding(**values)


def test_heads_give_logits_of_the_real_vocabulary_and_their_loss():
    embedding, cfg = Embedding(multiple=8), TiedHead(bias=Fill(value=0.5), softcap=2.0, power=-0.5)
    table = embedding.build(DIMS, Rngs(params=0))
    tied = cfg.build(DIMS, Rngs(params=1), embedding)
    free = LinearHead().build(DIMS, Rngs(params=1), embedding)
    tied.bias[...] = jnp.arange(13.0) / 10
    x_BLD = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    weights_BL = np.array([[1, 0, 1], [1, 1, 1]], np.float32)

    @jax.jit
    def run(x_BLD):
        heads = tied, free
        return [(head.logits(x_BLD, table), head.nll(x_BLD, table, TOKENS_BL, weights_BL)) for head in heads]

    raw_BLV = x_BLD @ np.asarray(table.table[...])[:13].T * 8**-0.5 + np.arange(13) / 10
    expected = 2 * np.tanh(raw_BLV / 2), x_BLD @ np.asarray(free.table[...])[:13].T
    for logits_BLV, (found_BLV, (loss, sums)) in zip(expected, run(x_BLD), strict=True):
        np.testing.assert_allclose(found_BLV, logits_BLV, rtol=1e-4, atol=1e-5)
        nll_BLV = np.log(np.exp(logits_BLV).sum(-1, keepdims=True)) - logits_BLV
        nll_BL = np.take_along_axis(nll_BLV, TOKENS_BL[..., None], -1)[..., 0]
        np.testing.assert_allclose([loss, sums["nll"]], (nll_BL * weights_BL).sum(), rtol=1e-5)
    assert tied.table is None and not any(path[0] == "table" for path in specs(tied))


def test_cost_counts_the_padding_as_executed_only():
    embedding = Embedding(multiple=8)
    head = LinearHead().build(DIMS, Rngs(params=0), embedding)
    cost = head.cost(Shape(2, 3), head.table)
    assert (cost.algorithmic, cost.executed) == (2 * 6 * 8 * 13, 2 * 6 * 8 * 16)
