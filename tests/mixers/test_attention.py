"""The attention layer: projections, norms and biases against numpy, rings and padding while decoding, cost, errors."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from llmlab.cost import Shape
from llmlab.kernels.attention import BLOCK
from llmlab.mixers import Attention, Bidirectional, Causal, Prefix
from llmlab.models import Block, Decoder
from llmlab.nn import Context, Fill, Normal, RMSNorm, Rotary, Segment, Stack
from llmlab.nn.bias import Alibi
from llmlab.nn.module import Rngs
from llmlab.testing.contract import check_model

DIMS, BATCH, LENGTH = {"D": 8, "N": 1}, 2, 12
X = np.random.default_rng(0).normal(size=(BATCH, LENGTH, 8)).astype(np.float32)
POSITIONS_BL = np.tile(np.arange(LENGTH), (BATCH, 1))


def make(**values):
    return Attention(**{"heads": 4, "kv_heads": 2} | values).build(DIMS, Rngs(params=0))


def test_norms_biases_and_scale_are_where_they_belong():
    bias, norm = Normal(std=1.0), RMSNorm()
    layer = make(position=None, norm=norm, bias=bias, out_bias=Fill(value=3.0), scale=0.9, head_size=3)
    layer.q_norm.scale[...] = jnp.array([1.0, 2.0, 3.0])
    weights = lambda part: (np.asarray(part.w[...]), np.asarray(part.bias[...]))
    project = lambda part: np.tensordot(X, weights(part)[0], 1) + weights(part)[1]
    root = lambda x: x / np.sqrt((x**2).mean(-1, keepdims=True) + norm.eps)
    q_BLHK, k_BLGK, v_BLGK = root(project(layer.q)) * [1, 2, 3], root(project(layer.k)), project(layer.v)
    k_BLHK, v_BLHK = np.repeat(k_BLGK, 2, 2), np.repeat(v_BLGK, 2, 2)  # heads 0, 1 read key head 0
    scores_BHLM = np.exp(0.9 * np.einsum("blhk,bmhk->bhlm", q_BLHK, k_BLHK)) * np.tri(LENGTH)
    mixed_BLHK = np.einsum("bhlm,bmhk->blhk", scores_BHLM / scores_BHLM.sum(-1, keepdims=True), v_BLHK)
    expected_BLD = np.einsum("blhk,hkd->bld", mixed_BLHK, weights(layer.out)[0]) + 3
    y_BLD, aux = jax.jit(layer)(X, Context(positions_BL=POSITIONS_BL))
    np.testing.assert_allclose(y_BLD, expected_BLD, rtol=1e-4, atol=1e-4)
    assert aux == {} and layer.k.w.shape == (8, 2, 3) and layer.k_norm.scale.get_metadata()["axes"] == "K"


CHUNKS = [  # lengths of the calls of extend: a long prefill, one by one, chunks across the ring's edge
    (9, 1, 1, 1),
    (3, 1, 1, 5, 2),
]


@pytest.mark.parametrize("window", [4, None])
def test_decoding_through_a_ring_equals_the_parallel_form(window):
    layer = make(view=Causal(window=window), norm=RMSNorm())
    pad = 2  # the second row begins with padding

    @jax.jit
    def run(x_BLD):
        whole_BLD, _ = layer(x_BLD, Context(positions_BL=POSITIONS_BL))
        moved_BLD = x_BLD.at[1].set(jnp.roll(x_BLD[1], pad, 0).at[:pad].set(99.0))
        positions_BL = jnp.stack([jnp.arange(LENGTH), jnp.maximum(jnp.arange(LENGTH) - pad, -1)])
        found = []
        for lengths in CHUNKS:
            state, at, parts = layer.start(BATCH, LENGTH, Context(positions_BL=POSITIONS_BL)), 0, []
            assert state["k"].shape[2] == (window or LENGTH)
            for length in lengths:
                here = slice(at, at + length)
                ctx = Context(positions_BL=positions_BL[:, here])
                y_BLD, state = layer.extend(moved_BLD[:, here], state, ctx)
                parts.append(y_BLD)
                at += length
            found.append(jnp.concatenate(parts, 1))
        return whole_BLD, found, state["used"]

    whole_BLD, found, used = run(X)
    assert used == LENGTH
    for y_BLD in found:
        np.testing.assert_allclose(y_BLD[0], whole_BLD[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(y_BLD[1, pad:], whole_BLD[1, :-pad], rtol=1e-4, atol=1e-5)


def test_queries_may_begin_by_a_rule_of_their_own():
    layer = make(init=Fill(value=1.0), query_init=Fill(value=3.0))
    assert [float(part.w[...].mean()) for part in (layer.q, layer.k, layer.v)] == [3, 1, 1]


def test_views_declare_what_holds():
    assert Attention().declared().causal and Attention(view=Causal(window=2)).declared().decodable
    for view in (Bidirectional(), Prefix()):
        found = Attention(view=view).declared()
        assert not found.causal and not found.decodable and found.isolated


def test_a_prefix_is_seen_by_all_and_must_be_given():
    layer = make(view=Prefix())
    prefix_BL = np.tile(np.arange(LENGTH) < 3, (BATCH, 1))
    ctx = Context(positions_BL=POSITIONS_BL, prefix_BL=prefix_BL)
    changed = jax.jit(lambda x: layer(x, ctx)[0] - layer(x.at[:, 2].add(1.0).at[:, 5].add(1.0), ctx)[0])(X)
    moved_L = np.abs(changed).max((0, 2)) > 1e-4
    assert moved_L.all()  # position 0 sees position 2
    later = jax.jit(lambda x: layer(x, ctx)[0] - layer(x.at[:, 5].add(1.0), ctx)[0])(X)
    assert (np.abs(later).max((0, 2)) > 1e-4).tolist() == [False] * 5 + [True] * 7
    with pytest.raises(ValueError, match=r"view=Prefix\(\)\) needs a batch with prefix_BL; its task must give one"):
        jax.eval_shape(layer, X, Context(positions_BL=POSITIONS_BL))


def test_dropout_needs_a_rate_and_a_key():
    ctx = Context(positions_BL=POSITIONS_BL, key=jax.random.key(0, impl="rbg"))
    noisy, plain = make(dropout=0.5), make()
    assert len({str(jax.make_jaxpr(lambda x, layer=layer, c=c: layer(x, c)[0])(X)) for layer, c in (
        (plain, ctx), (noisy, Context(positions_BL=POSITIONS_BL)), (plain, Context(positions_BL=POSITIONS_BL)),
    )}) == 1  # fmt: skip
    drawn = jax.make_jaxpr(lambda x: noisy(x, ctx)[0])(X)
    assert "random_bits" in str(drawn) or "rng" in str(drawn)


def sizes(jaxpr: core.Jaxpr):
    """The elements of every array that a program makes."""
    for eqn in jaxpr.eqns:
        yield from (math.prod(v.aval.shape) for v in eqn.outvars)
        for item in jax.tree.leaves(eqn.params, is_leaf=lambda p: isinstance(p, core.Jaxpr | core.ClosedJaxpr)):
            if isinstance(item, core.Jaxpr | core.ClosedJaxpr):
                yield from sizes(getattr(item, "jaxpr", item))


def test_no_array_of_a_long_prefill_has_all_queries_and_all_slots():
    layer, length, slots, heads = make(), 4096, 5000, 4
    ctx = lambda length: Context(positions_BL=jnp.broadcast_to(jnp.arange(length), (BATCH, length)), bias=None)

    def prefill(x_BLD):
        state = layer.start(BATCH, slots, ctx(length))
        return layer.extend(x_BLD, state, ctx(length))

    found = max(sizes(jax.make_jaxpr(prefill)(jnp.ones((BATCH, length, 8))).jaxpr))
    assert found == BATCH * heads * BLOCK * slots


def test_a_sink_takes_its_share_of_each_head():
    layer, plain = make(sink=Normal(std=2.0)), make()
    ctx, sink_H = Context(positions_BL=POSITIONS_BL), np.asarray(layer.sink_bias[...])
    assert layer.sink_bias.get_metadata()["axes"] == "H" and sink_H.std() > 0.5

    @jax.jit
    def run(x_BLD):
        """What the first position reads: itself, as far as its score beats the sink."""
        q_BLHK, k_BLGK, v_BLGK = plain.project(x_BLD, ctx)
        score_BH = jnp.einsum("bhk,bhk->bh", q_BLHK[:, 0], jnp.repeat(k_BLGK[:, 0], 2, 1)) * 2**-0.5
        read_BHK = jax.nn.sigmoid(score_BH - sink_H)[:, :, None] * jnp.repeat(v_BLGK[:, 0], 2, 1)
        return jnp.einsum("bhk,hkd->bd", read_BHK, plain.out.w[...]), layer(x_BLD, ctx)[0][:, 0]

    np.testing.assert_allclose(*run(X), rtol=1e-4, atol=1e-5)


def test_alternating_windows_decode_beyond_their_rings():
    """Local layers (a ring of 4, another base of waves) and global ones, a bias and sinks, over 19 positions."""
    local = Attention(heads=2, view=Causal(window=4), position=Rotary(theta=100.0), sink=Normal(std=1.0))
    blocks = tuple(Block(mixer=mixer, ffn=None) for mixer in (local, Attention(heads=2, kv_heads=1)))
    stack = Stack(segments=(Segment(pattern=blocks, repeats=2), Segment(pattern=blocks[:1])), bias=Alibi(heads=2))
    found = check_model(Decoder(vocab=16, width=8, stack=stack), only=["decode = teacher forcing"])
    assert found["decode = teacher forcing"].startswith("largest difference")


def test_cost_counts_visible_pairs_and_the_ring():
    wide, ring = make(), make(view=Causal(window=4))
    shape = Shape(2, LENGTH, itemsize=2)
    products = 2 * 2 * LENGTH * 8 * (8 + 4 + 4 + 8)
    assert wide.cost(shape).algorithmic == products + 4 * 2 * 8 * 78 and wide.cost(shape).state == 2 * 2 * 12 * 4 * 2
    assert (
        ring.cost(shape).algorithmic == products + 4 * 2 * 8 * (10 + 8 * 4)
        and ring.cost(shape).state == 2 * 2 * 4 * 4 * 2
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(heads=6, kv_heads=4), "Attention.kv_heads is 4, which does not divide heads = 6"),
        (dict(kv_heads=0), "Attention.kv_heads is 0; it is 1 or more"),
        (dict(heads=0), "Attention.heads is 0"),
        (dict(head_size=0), "Attention.head_size is 0"),
        (dict(dropout=1.0), "Attention.dropout is 1.0; it is a share"),
    ],
)
def test_wrong_values_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Attention(**values)
    with pytest.raises(ValueError, match="Causal.window is 0; a query sees at least itself"):
        Causal(window=0)


def test_heads_that_do_not_divide_the_width_are_refused_with_the_mend():
    with pytest.raises(ValueError, match="heads is 3, which does not divide the width 8; .*or give head_size"):
        make(heads=3, kv_heads=None)
    assert make(heads=3, kv_heads=None, head_size=5).out.w.shape == (3, 5, 8)
