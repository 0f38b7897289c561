"""Blocks: how sublayers are wired, what they report, and a decoder around them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmlab.config import config
from llmlab.cost import Cost, Shape
from llmlab.models import Bare, Block, Decoder, Model, Parallel, PostNorm, PreNorm, Renormed, Sandwich
from llmlab.nn import Context, Declared, FeedForward, Mixer, RMSNorm, TiedHead, repeat
from llmlab.nn.module import Module, Rngs, abstract, specs

DIMS = {"D": 4, "N": 1}
X = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
CTX = Context(positions_BL=np.tile(np.arange(3), (2, 1)))


@config
class Past(Mixer):
    """The sum of what came before, with a statistic of its own."""

    def declared(self):
        return Declared(isolated=False)

    def build(self, dims, rngs):
        return PastLayer()


class PastLayer(Module):
    letters = {"sum": "BD"}

    def __call__(self, x_BLD, ctx):
        return x_BLD.cumsum(1), {"seen": jnp.asarray(3.0), "parts": jnp.ones(()), "stats": {"mean": x_BLD.mean()}}

    def start(self, batch, length, ctx):
        return {"sum": jnp.zeros((batch, 4), ctx.dtype)}

    def extend(self, x_BLD, state, ctx):
        y_BLD = x_BLD.cumsum(1) + state["sum"][:, None]
        return y_BLD, {"sum": y_BLD[:, -1]}

    def cost(self, shape):
        return Cost(1, 2, 3, 4)


@config
class Cube(FeedForward):
    """x cubed."""

    def declared(self):
        return Declared(causal=False)

    def build(self, dims, rngs):
        return CubeLayer()


class CubeLayer(Module):
    def __call__(self, x_BLD, ctx):
        return x_BLD**3, {"load": jnp.asarray(5.0), "parts": jnp.ones(()), "stats": {"bias": x_BLD.max()}}

    def cost(self, shape):
        return Cost(10, 20)


def norm(x):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)


def past(x):
    return x.cumsum(1)


def pre(x, f, g):
    x = x + f(norm(x))
    return x + g(norm(x))


def post(x, f, g):
    x = norm(x + f(x))
    return norm(x + g(x))


def sandwich(x, f, g):
    x = x + norm(f(norm(x)))
    return x + norm(g(norm(x)))


def bare(x, f, g):
    return g(f(x))


def parallel(x, f, g):
    return x + f(norm(x)) + g(norm(x))


def renormed(x, f, g):
    x = norm(x) + f(norm(x))
    return norm(x) + g(norm(x))


WIRINGS = [
    (PreNorm(), pre, 2),
    (PostNorm(), post, 2),
    (Sandwich(), sandwich, 4),
    (Parallel(), parallel, 1),
    (Renormed(), renormed, 2),
    (Bare(), bare, 0),
]


@pytest.mark.parametrize(("wiring", "formula", "norms"), WIRINGS, ids=lambda v: getattr(v, "__name__", ""))
def test_wiring(wiring, formula, norms):
    block = Block(mixer=Past(), ffn=Cube(), wiring=wiring).build(DIMS, Rngs(params=0))

    @jax.jit
    def run(x_BLD):
        first, state = block.extend(x_BLD[:, :2], block.start(2, 3, CTX), CTX)
        last, _ = block.extend(x_BLD[:, 2:], state, CTX)
        return block(x_BLD, CTX), jnp.concatenate([first, last], 1)

    (y_BLD, aux), stepped_BLD = run(X)
    expected_BLD = formula(X, past, lambda x: x**3)
    np.testing.assert_allclose(y_BLD, expected_BLD, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stepped_BLD, expected_BLD, rtol=1e-4, atol=1e-5)
    assert len(specs(block)) == norms and block.letters == {"mixer": {"sum": "BD"}}
    assert (aux["seen"], aux["load"], aux["parts"]) == (3, 5, 2)  # one name of both is summed


def test_without_feed_forward_a_block_is_its_mixer():
    block = Block(mixer=Past(), ffn=None).build(DIMS, Rngs(params=0))
    np.testing.assert_allclose(jax.jit(block)(X, CTX)[0], X + past(norm(X)), rtol=1e-4, atol=1e-5)
    assert len(specs(block)) == 1 and block.cost(Shape(2, 3)) == Cost(1, 2, 3, 4)


def test_cost_and_declarations_are_those_of_both_parts():
    block = Block(mixer=Past(), ffn=Cube())
    assert block.build(DIMS, Rngs(params=0)).cost(Shape(2, 3)) == Cost(11, 22, 3, 4)
    assert block.declared() == Declared(causal=False, isolated=False)
    assert Block(mixer=Past(), ffn=None).declared() == Declared(isolated=False)
    assert Decoder(stack=repeat(block, 2)).declared() == block.declared()


def test_new_statistics_stand_under_the_path_of_their_part():
    """Both parts report statistics; neither hides the other's."""
    _, aux = jax.eval_shape(Block(mixer=Past(), ffn=Cube()).build(DIMS, Rngs(params=0)), X, CTX)
    assert jax.tree.structure(aux["stats"]) == jax.tree.structure({"mixer": {"mean": 0}, "ffn": {"bias": 0}})


def test_dropout_acts_on_what_each_sublayer_adds():
    block = Block(mixer=Past(), ffn=Cube(), wiring=Parallel(), dropout=0.5).build(DIMS, Rngs(params=0))
    still = jax.eval_shape(block, X, CTX)
    noisy = Context(positions_BL=CTX.positions_BL, key=jax.random.key(1))
    y_BLD = np.asarray(jax.jit(block)(X, noisy)[0])
    parts = 2 * past(norm(X)), 2 * norm(X) ** 3
    choices = [X, X + parts[0], X + parts[1], X + parts[0] + parts[1]]
    near = np.stack([np.isclose(y_BLD, choice, rtol=1e-4, atol=1e-4) for choice in choices])
    assert near.any(0).all() and near.any((1, 2, 3)).all() and still[0].shape == X.shape
    with pytest.raises(ValueError, match="Block.dropout is -0.1"):
        Block(dropout=-0.1)


def test_a_decoder_is_embedding_stack_norm_and_head():
    tied = Decoder(vocab=11, width=4, stack=repeat(Block(mixer=Past(), ffn=None), 2), head=TiedHead())
    model = tied.build(Rngs(params=0))
    tokens_BL = np.array([[1, 2, 3], [4, 5, 10]])
    hidden_BLD, logits_BLV = jax.jit(lambda: _both(model, tokens_BL))()
    table_VD = np.asarray(model.embed.table[...])
    expected = table_VD[tokens_BL]
    for _ in range(2):
        expected = expected + past(norm(expected))
    np.testing.assert_allclose(hidden_BLD, norm(expected), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(logits_BLV, hidden_BLD @ table_VD.T, rtol=1e-4, atol=1e-5)
    assert model.cost(Shape(2, 3)).executed == 2 * 2 + 2 * 6 * 4 * 11
    count = lambda cfg: sum(spec.size for spec in specs(abstract(cfg.build)).values())
    free = Decoder(vocab=11, width=4, stack=tied.stack, norm=None)
    assert count(tied) == 44 + 2 * 4 + 4 and count(free) == 44 + 2 * 4 + 44
    assert specs(abstract(free.build))["stack", "segments", "0", "0", "wiring", "before", "0", "scale"].axes == "ND"


def _both(model, tokens_BL):
    hidden_BLD, _ = model(tokens_BL, CTX)
    return hidden_BLD, model.logits(hidden_BLD)


def test_a_model_without_build_says_so():
    with pytest.raises(TypeError, match=r"Model must define build\(rngs\)"):
        Model().build(None)
    assert isinstance(Block().norm, RMSNorm)
