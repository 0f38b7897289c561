"""Mamba: the whole layer against a loop, its initial values, the contract, cost and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmlab.cost import Shape
from llmlab.mixers.mamba import Fixed, Mamba, Selective
from llmlab.nn import Context, Normal, RMSNorm
from llmlab.nn.module import Rngs, specs

DIMS, BATCH, LENGTH = {"D": 8, "N": 4}, 2, 7
X = np.random.default_rng(0).normal(size=(BATCH, LENGTH, 8)).astype(np.float32)
CONTEXT = Context(positions_BL=np.tile(np.arange(LENGTH), (BATCH, 1)))


def make(**values):
    return Mamba(**{"chunk": 3, "state": 3} | values).build(DIMS, Rngs(params=0))


def loop(layer, x_BLD):
    """The paper's equations, position by position; one document a row."""
    weight = lambda part: part.w[...]
    silu, size = jax.nn.silu, lambda x: jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    value_BLC, gate_BLC = x_BLD @ weight(layer.value), x_BLD @ weight(layer.gate)
    if layer.value.bias is not None:
        value_BLC, gate_BLC = value_BLC + layer.value.bias[...], gate_BLC + layer.gate.bias[...]
    past_BLC = jnp.pad(value_BLC, ((0, 0), (3, 0), (0, 0)))
    choose = layer.selection

    def step(h_BCS, i):
        window_BJC = jax.lax.dynamic_slice_in_dim(past_BLC, i, 4, 1)
        u_BC = silu((window_BJC * layer.conv.taps[...][::-1]).sum(1) + layer.conv.bias[...])
        low_BR, b_BS, c_BS = u_BC @ weight(choose.low), u_BC @ weight(choose.b), u_BC @ weight(choose.c)
        if choose.low_norm is not None:
            norms = choose.low_norm, choose.b_norm, choose.c_norm
            low_BR, b_BS, c_BS = (a / size(a) * n.scale[...] for a, n in zip((low_BR, b_BS, c_BS), norms))
        step_BC = jnp.log1p(jnp.exp(low_BR @ weight(choose.step) + choose.bias[...]))
        decay_BCS = jnp.exp(-step_BC[..., None] * jnp.exp(layer.log_rate[...]))
        h_BCS = decay_BCS * h_BCS + (step_BC * u_BC)[..., None] * b_BS[:, None]
        return h_BCS, ((h_BCS * c_BS[:, None]).sum(-1) + layer.skip_scale[...] * u_BC) * silu(gate_BLC[:, i])

    empty_BCS = jnp.zeros((x_BLD.shape[0], *layer.log_rate.shape))
    y_LBC = jax.lax.scan(step, empty_BCS, jnp.arange(x_BLD.shape[1]))[1]
    y_BLD = jnp.moveaxis(y_LBC, 0, 1) @ weight(layer.out)
    return y_BLD if layer.out.bias is None else y_BLD + layer.out.bias[...]


@pytest.mark.parametrize(
    "values", [{}, {"selection": Selective(norm=RMSNorm(), rank=5), "bias": Normal(std=1.0)}], ids=["mamba", "jamba"]
)
def test_values_and_gradients_are_those_of_the_paper(values):
    layer = make(**values)
    weights_BLD = np.random.default_rng(1).normal(size=X.shape).astype(np.float32)
    run = lambda layer, x: layer(x, CONTEXT)[0]

    @jax.jit
    def both(layer):
        pairs = [jax.vjp(lambda p, f=f: f(p, X), layer) for f in (run, loop)]
        return [(y_BLD, pull(weights_BLD)) for y_BLD, pull in pairs]

    (y_BLD, grads), (expected_BLD, expected) = both(layer)
    np.testing.assert_allclose(y_BLD, expected_BLD, rtol=1e-4, atol=1e-5)
    for found, value in zip(jax.tree.leaves(grads), jax.tree.leaves(expected)):
        np.testing.assert_allclose(found, value, rtol=2e-3, atol=1e-4)


def test_without_selection_the_layer_is_a_convolution():
    """Fixed: the response to a sum is the sum of the responses, and it moves with its input."""
    layer = make(selection=Fixed())
    u_BLC = np.random.default_rng(2).normal(size=(2, LENGTH, 16)).astype(np.float32)
    respond = jax.jit(lambda u: layer.mix(u, *layer.selection(u))[0])
    np.testing.assert_allclose(respond(u_BLC[:1] + u_BLC[1:]), respond(u_BLC).sum(0)[None], rtol=1e-4, atol=1e-5)
    late_BLC = np.pad(u_BLC, ((0, 0), (2, 0), (0, 0)))[:, :LENGTH]
    np.testing.assert_allclose(respond(late_BLC)[:, 2:], respond(u_BLC)[:, :-2], rtol=1e-4, atol=1e-5)
    selective = make()
    respond = jax.jit(lambda u: selective.mix(u, *selective.selection(u))[0])
    assert not np.allclose(respond(u_BLC[:1] + u_BLC[1:]), respond(u_BLC).sum(0)[None], atol=0.1)


def test_initial_values_are_those_of_the_authors_code():
    layer = Mamba().build({"D": 256, "N": 4}, Rngs(params=0))
    table = specs(layer)
    shapes = {".".join(path): (spec.shape, spec.axes) for path, spec in table.items()}
    assert shapes["selection.low.w"] == ((512, 16), "CR") and shapes["log_rate"] == ((512, 16), "CS")
    np.testing.assert_allclose(np.exp(layer.log_rate[...]), np.tile(np.arange(1, 17), (512, 1)), rtol=1e-6)
    step_C = jax.nn.softplus(layer.selection.bias[...])
    assert 0.001 <= step_C.min() < 0.0011 and 0.095 < step_C.max() < 0.1001
    assert abs(float(jnp.log(step_C).mean()) - np.log(0.01)) < 0.2
    assert (layer.skip_scale[...] == 1).all()
    edges = {"value": 256**-0.5, "out": 512**-0.5 / 2}  # out: 4 layers
    for name, edge in edges.items():
        assert 0.99 * edge < jnp.abs(getattr(layer, name).w[...]).max() <= edge * 1.0001
    assert 0.99 / 4 < jnp.abs(layer.selection.step.w[...]).max() <= 1 / 4


def test_cost_and_state_of_the_published_size():
    """Mamba-130M: 7.71 MFLOP a token and layer, 2.9 % of them in the scan; a state of channels x (16 + 3) numbers."""
    layer = Mamba().build({"D": 768, "N": 24}, Rngs(params=0))
    cost = layer.cost(Shape(1, 1))
    scan = 9 * 1536 * 16
    assert round(cost.algorithmic / 1e6, 2) == 7.71 and round(100 * scan / cost.algorithmic, 1) == 2.9
    assert cost.executed == cost.algorithmic - scan - 2 * 1536 - 2 * 4 * 1536
    state = layer.start(2, 5, CONTEXT)
    assert cost.state * 2 == sum(a.nbytes for a in state.values()) == 2 * 4 * 1536 * 19


def test_wrong_values_are_refused():
    with pytest.raises(ValueError, match="Mamba.state is 0; it is 1 or more"):
        Mamba(state=0)
    with pytest.raises(ValueError, match="Selective.rank is 0; it is 1 or more, or None for width / 16"):
        Selective(rank=0)
