"""Stacks: patterns, repeats and tails run as one layer after another; aux, keys, remat, decode state, cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmlab.config import config, put
from llmlab.cost import Cost, Shape, traced_flops
from llmlab.ffn import Mlp
from llmlab.mixers import Attention
from llmlab.models import Block
from llmlab.nn import Context, Declared, Layer, Normal, PerDepth, Segment, Stack, arrange, repeat
from llmlab.nn.module import Module, Param, Rngs, merge, specs, split
from llmlab.nn.stack import POLICIES

DIMS = {"D": 4}
X = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
CTX = Context(positions_BL=np.tile(np.arange(3), (2, 1)), key=jax.random.key(5))


@config
class Affine(Layer):
    """x * a + the index of the layer, with what it saw as aux; `sign` makes a second kind of layer."""

    sign: float = 1.0
    holds: Declared = Declared()

    def declared(self):
        return self.holds

    def build(self, dims, rngs):
        return AffineLayer(self, dims, rngs)


class AffineLayer(Module):
    letters = {"seen": "BD"}

    def __init__(self, cfg, dims, rngs):
        self.cfg = cfg
        self.a = Param(PerDepth(init=Normal(std=1.0))(rngs.params(), (dims["D"],), 1, dims["N"]), axes="D")

    def __call__(self, x_BLD, ctx):
        name = "plus" if self.cfg.sign > 0 else "minus"
        noise = jax.random.normal(ctx.key, ())
        aux = {"layers": jnp.ones(()), name: 1.0 * ctx.layer, "stats": {name: noise}}
        return x_BLD * self.a[...] + self.cfg.sign * ctx.layer, aux

    def start(self, batch, length, ctx):
        return {"seen": jnp.zeros((batch, 4), ctx.dtype)}

    def extend(self, x_BLD, state, ctx):
        return self(x_BLD, ctx)[0], {"seen": state["seen"] + x_BLD.sum(1) + ctx.layer}

    def cost(self, shape):
        return Cost(shape.tokens, 2 * shape.tokens)


HYBRID = Stack(
    segments=(
        Segment(pattern=(Affine(), Affine(sign=-1.0)), repeats=3),
        Segment(pattern=(Affine(sign=-1.0),)),
    )
)
SIGNS = [1, -1, 1, -1, 1, -1, -1]  # of the 7 layers


@pytest.fixture(scope="module")
def hybrid():
    return split(HYBRID.build(DIMS, Rngs(params=0)))


def test_a_pattern_with_a_tail_runs_as_one_layer_after_another(hybrid):
    structure, params, stats = hybrid
    first, tail = params["segments"]["0"], params["segments"]["1"]
    a_ND = [first[str(i % 2)]["a"][i // 2] for i in range(6)] + [tail["0"]["a"][0]]
    expected = X
    for layer, (a_D, sign) in enumerate(zip(a_ND, SIGNS)):
        expected = expected * a_D + sign * layer

    def run(unroll):
        stack = merge(structure, params, stats)
        stack.cfg = put(HYBRID, "unroll", unroll)
        return stack(X, CTX)

    found = jax.jit(lambda: {turns: run(turns) for turns in (0, 1, 2)})()
    for unroll, (y_BLD, aux) in found.items():
        np.testing.assert_allclose(y_BLD, expected, rtol=1e-5, atol=1e-5, err_msg=f"unroll {unroll}")
        new = aux.pop("stats")["segments"]
        assert {name: float(value) for name, value in aux.items()} == {"layers": 1, "plus": 2, "minus": 15 / 4}
        keys = [jax.random.fold_in(CTX.key, layer) for layer in range(7)]
        noise_N = [float(jax.random.normal(key, ())) for key in keys]  # each layer has a key of its own
        np.testing.assert_allclose(new["0"]["0"]["plus"], noise_N[0:6:2], rtol=1e-5)
        np.testing.assert_allclose(new["0"]["1"]["minus"], noise_N[1:6:2], rtol=1e-5)
        np.testing.assert_allclose(new["1"]["0"]["minus"], noise_N[6:], rtol=1e-5)


def test_layers_differ_have_the_letter_n_and_know_the_depth(hybrid):
    found = specs(HYBRID.build(DIMS, Rngs(params=0)))
    assert {".".join(path): (spec.axes, spec.shape) for path, spec in found.items()} == {
        "segments.0.0.a": ("ND", (3, 4)),
        "segments.0.1.a": ("ND", (3, 4)),
        "segments.1.0.a": ("ND", (1, 4)),
    }
    values = np.concatenate([np.ravel(a) for a in jax.tree.leaves(hybrid[1])])
    assert len(set(values.tolist())) == 28  # no two layers began alike
    wide = HYBRID.build({"D": 3000}, Rngs(params=0))
    assert abs(float(wide.segments[0][0].a[...].std()) * 14**0.5 - 1) < 0.05  # 2 x 7 layers, not 3


def test_decode_state_goes_through_the_layers(hybrid):
    stack = merge(*hybrid)
    state = stack.start(2, 9, CTX)
    assert jax.tree.map(jnp.shape, state) == [[{"seen": (3, 2, 4)}] * 2, [{"seen": (2, 4)}]]
    assert stack.letters == [[{"seen": "NBD"}] * 2, [{"seen": "BD"}]]  # what stands once is not stacked

    def run(x_BLD):
        y_BLD, new = merge(*hybrid).extend(x_BLD, merge(*hybrid).start(2, 9, CTX), CTX)
        return y_BLD, new, merge(*hybrid)(x_BLD, CTX)[0]

    y_BLD, new, whole_BLD = jax.jit(run)(X)
    np.testing.assert_allclose(y_BLD, whole_BLD, rtol=1e-6)
    np.testing.assert_allclose(new[0][0]["seen"][0], X.sum(1), rtol=1e-5)  # layer 0 saw the input itself
    assert not np.allclose(new[0][0]["seen"][1], X.sum(1))


def test_cost_and_declarations_are_those_of_all_layers(hybrid):
    assert merge(*hybrid).cost(Shape(2, 3)) == Cost(42, 84) and HYBRID.depth == 7
    assert HYBRID.declared() == Declared()
    for name in ("causal", "isolated", "decodable"):
        odd = put(HYBRID, "segments.1.pattern.0.holds", Declared(**{name: False}))
        assert odd.declared() == Declared(**{name: False})


def test_an_empty_segment_is_refused():
    for values in (dict(pattern=()), dict(pattern=(Affine(),), repeats=0)):
        with pytest.raises(ValueError, match="holds no layer"):
            Segment(**values)


def test_every_remat_policy_gives_the_same_gradient():
    block = Block(mixer=Attention(heads=2, position=None), ffn=Mlp(hidden=8, activation="relu2"))
    structure, params, stats = split(repeat(block, 2).build(DIMS, Rngs(params=0)))

    def gradient(params, remat):
        def loss(params, x_BLD):
            stack = merge(structure, params, stats)
            stack.cfg = repeat(block, 2, remat)
            return (stack(x_BLD, CTX)[0] ** 2).sum()

        return jax.value_and_grad(loss, (0, 1))(params, X)

    compiled = ("none", "full", "mixed")
    found = jax.jit(lambda params: {remat: gradient(params, remat) for remat in compiled})(params)
    for remat in compiled[1:]:
        close = lambda a, b, remat=remat: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=remat)
        jax.tree.map(close, found[remat], found["none"])
    flops = {remat: traced_flops(lambda params, remat=remat: gradient(params, remat), params) for remat in POLICIES}
    assert flops["full"] > flops["projections"] > flops["mixed"] > flops["none"]
    assert flops["mixed"] > flops["dots"] > flops["none"]  # dots recomputes only the products inside attention


def test_layers_are_arranged_as_their_shortest_pattern_and_a_tail():
    plus, minus = Affine(), Affine(sign=-1.0)
    shapes = lambda layers: [(len(one.pattern), one.repeats) for one in arrange(layers).segments]
    assert shapes([plus] * 3) == [(1, 3)]
    assert shapes([plus, plus, minus, plus, plus, minus, plus]) == [(3, 2), (1, 1)]
    assert shapes([plus, minus, minus]) == [(3, 1)]
    stack = arrange([plus, minus, plus], remat="full")
    assert [layer for one in stack.segments for layer in one.pattern * one.repeats] == [plus, minus, plus]
    assert stack.remat == "full"
