"""Cross-attention against numpy: which memory is seen, decoding from keys made once, cost, and what it needs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmlab.cost import Shape, traced_flops
from llmlab.mixers.cross import CrossAttention
from llmlab.nn import Context, Normal, RMSNorm
from llmlab.nn.module import Rngs

BATCH, LENGTH, MEMORY, WIDTH = 2, 5, 7, 8
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)
MEMORY_BMD = RANDOM.normal(size=(BATCH, MEMORY, WIDTH)).astype(np.float32)
POSITIONS_BL = np.tile(np.arange(LENGTH), (BATCH, 1))
SEGMENTS_BL = np.array([[1, 1, 2, 2, 2], [1, 1, 1, 1, 2]])
SOURCES_BM = np.array([[1, 1, 1, 2, 2, 0, 0], [1, 1, 2, 2, 2, 2, 2]])
WHOLE = Context(positions_BL=POSITIONS_BL, memory_BMD=MEMORY_BMD)
CONTEXTS = {  # with what each query sees
    "all": (WHOLE, np.ones((BATCH, LENGTH, MEMORY), bool)),
    "padded": (
        dataclasses.replace(WHOLE, memory_segments_BM=SOURCES_BM),
        np.broadcast_to(SOURCES_BM[:, None] != 0, (BATCH, LENGTH, MEMORY)),
    ),
    "packed": (
        dataclasses.replace(WHOLE, memory_segments_BM=SOURCES_BM, segments_BL=SEGMENTS_BL),
        SEGMENTS_BL[:, :, None] == SOURCES_BM[:, None],
    ),
}


def make(**values):
    cfg = CrossAttention(**{"heads": 4, "kv_heads": 2, "head_size": 3, "bias": Normal(std=1.0)} | values)
    return cfg.build({"D": WIDTH, "N": 1}, Rngs(params=0))


def expected(layer, seen_BLM):
    project = lambda part, x: np.tensordot(x, np.asarray(part.w[...]), 1) + np.asarray(part.bias[...])
    q_BLHK, k_BMGK, v_BMGK = project(layer.q, X), project(layer.k, MEMORY_BMD), project(layer.v, MEMORY_BMD)
    root = lambda x: x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    k_BMHK, v_BMHK = np.repeat(root(k_BMGK), 2, 2), np.repeat(v_BMGK, 2, 2)
    weights = np.exp(np.einsum("blhk,bmhk->bhlm", root(q_BLHK), k_BMHK) * 3**-0.5) * seen_BLM[:, None]
    y_BLHK = np.einsum("bhlm,bmhk->blhk", weights / weights.sum(-1, keepdims=True), v_BMHK)
    return np.einsum("blhk,hkd->bld", y_BLHK, np.asarray(layer.out.w[...]))


def test_each_query_reads_all_that_its_document_has_of_the_memory():
    layer = make(norm=RMSNorm())
    found = jax.jit(lambda x: {name: layer(x, ctx)[0] for name, (ctx, _) in CONTEXTS.items()})(X)
    for name, (_, seen_BLM) in CONTEXTS.items():
        np.testing.assert_allclose(found[name], expected(layer, seen_BLM), rtol=1e-4, atol=1e-5, err_msg=name)
    biased = dataclasses.replace(WHOLE, bias=lambda *orders: pytest.fail("the stack's position bias was asked for"))
    np.testing.assert_array_equal(jax.jit(lambda x: layer(x, biased)[0])(X), found["all"])


def test_decoding_reads_the_keys_that_start_made():
    layer = make(norm=RMSNorm())

    later = Context(positions_BL=POSITIONS_BL[:, :2])  # the memory is not given again

    @jax.jit
    def run(x_BLD):
        found = {}
        for name in ("all", "padded"):
            state = layer.start(BATCH, LENGTH, CONTEXTS[name][0])
            assert jax.tree.map(len, layer.letters) == jax.tree.map(jnp.ndim, state)
            first, state = layer.extend(x_BLD[:, :2], state, later)
            found[name] = jnp.concatenate([first, layer.extend(x_BLD[:, 2:], state, later)[0]], 1)
        return found

    for name, y_BLD in run(X).items():
        np.testing.assert_allclose(y_BLD, expected(layer, CONTEXTS[name][1]), rtol=1e-4, atol=1e-5)
    half = dataclasses.replace(WHOLE, dtype="bfloat16")
    assert jax.eval_shape(lambda: layer.start(BATCH, LENGTH, half))["k"].dtype == "bfloat16"


def test_cost_is_that_of_the_traced_program():
    for length, memory in ((5, 7), (600, 7)):  # short, and scanned in blocks
        ctx = Context(positions_BL=np.zeros((2, length)), memory_BMD=np.zeros((2, memory, WIDTH), np.float32))
        cost = make().cost(Shape(2, length, memory, itemsize=2))
        traced = traced_flops(lambda x, ctx=ctx: make()(x, ctx)[0], np.zeros((2, length, WIDTH), np.float32))
        assert cost.executed == traced and cost.state == 2 * 2 * memory * 2 * 3 * 2
        assert cost.algorithmic == 2 * 2 * (length * 8 * 12 * 2 + memory * 8 * 6 * 2) + 4 * 2 * 12 * length * memory
    with pytest.raises(ValueError, match="needs a Shape with `memory`"):
        make().cost(Shape(2, 5))


def test_a_context_without_memory_is_refused():
    layer, ctx = make(), Context(positions_BL=POSITIONS_BL)
    for call in (lambda: layer(X, ctx), lambda: layer.start(BATCH, LENGTH, ctx)):
        with pytest.raises(ValueError, match="context with memory_BMD, and there is none; it stands in the decoder of"):
            call()
    with pytest.raises(ValueError, match="CrossAttention.heads is 3, which does not divide the width 8"):
        make(heads=3, kv_heads=None, head_size=None)
