"""Convolutions of windows and of whole rows, against loops in numpy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmlab.config import put
from llmlab.cost import Shape
from llmlab.mixers.conv import Convolution, Hyena, convolve, windows
from llmlab.nn import Context, Normal
from llmlab.nn.module import Rngs, split
from llmlab.testing.contract import Subject, small

WIDTH, BATCH, LENGTH = 4, 2, 9
X = np.random.default_rng(0).normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)
POSITIONS_BL = np.tile(np.arange(LENGTH), (BATCH, 1))
SEGMENTS_BL = np.array([[1] * 4 + [2] * 5, [1, 2, 2, 2, 2, 3, 3, 0, 0]])
LONG = Hyena(longest=32, features=5, rank=8, init=Normal(std=1.0))


def build(cfg):
    return cfg.build({"D": WIDTH, "N": 1}, Rngs(params=0))


@pytest.mark.parametrize("place, groups", [("causal", 1), ("centre", 1), ("centre", 2)])
def test_a_convolution_sums_over_the_window_inside_a_document(place, groups):
    cfg = Convolution(width=3, place=place, groups=groups, activation="relu", bias=Normal(std=1.0))
    layer = build(cfg)
    w, bias = (np.asarray(a[...]) for a in (layer.taps.w, layer.taps.bias))
    w_GJKK = w[None] if groups == 1 else w
    expected = np.tile(bias.reshape(-1), (BATCH, LENGTH, 1))
    first, size = (-2 if place == "causal" else -1), WIDTH // groups
    for b, at, j, g in np.ndindex(BATCH, LENGTH, 3, groups):
        other, own = at + first + j, slice(g * size, (g + 1) * size)
        if 0 <= other < LENGTH and SEGMENTS_BL[b, at] == SEGMENTS_BL[b, other]:
            expected[b, at, own] += X[b, other, own] @ w_GJKK[g, j]
    y_BLD, aux = jax.jit(layer)(X, Context(positions_BL=POSITIONS_BL, segments_BL=SEGMENTS_BL))
    np.testing.assert_allclose(y_BLD, np.maximum(expected, 0), rtol=1e-4, atol=1e-5)
    assert aux == {}


def test_windows_end_where_the_row_does():
    x_111D = windows(jnp.arange(3.0)[None, :, None], 1, 1)
    assert x_111D[0, :, :, 0].tolist() == [[0, 0, 1], [0, 1, 2], [1, 2, 0]]


@pytest.mark.parametrize("order", [2, 3])
def test_hyena_is_gates_and_sums_over_the_past(order):
    cfg = dataclasses.replace(LONG, order=order)
    layer = build(cfg)
    params = jax.tree.map(np.asarray, split(layer)[1])
    a = np.einsum("bld,doc->bloc", X, params["read"]["w"]) + params["read"]["bias"]
    short = sum(params["short"]["taps"][j] * np.pad(a, ((0, 0), (j, 0), (0, 0), (0, 0)))[:, :LENGTH] for j in range(3))
    short = short + params["short"]["bias"]
    *gates, v_BLC = np.moveaxis(short, 2, 0)
    filter_LOC = written_out(cfg, params["filters"])
    for o, gate_BLC in enumerate(gates[:0:-1]):
        v_BLC = v_BLC * gate_BLC
        v_BLC = params["skip_bias"][o] * v_BLC + np.stack(
            [sum(filter_LOC[at - m, o] * v_BLC[:, m] for m in range(at + 1)) for at in range(LENGTH)], axis=1
        )
    expected = (v_BLC * gates[0]) @ params["out"]["w"] + params["out"]["bias"]
    y_BLD, _ = jax.jit(layer)(X, Context(positions_BL=POSITIONS_BL))
    np.testing.assert_allclose(y_BLD, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def written_out(cfg, params):
    """The filters of HyenaFilter in the paper's code: features, sines, and a window that falls exponentially."""
    place, found = np.arange(LENGTH), []
    for at in place:
        bands = np.linspace(1e-4, 1, 2)
        wave = np.exp(-1j * bands * 2 * np.pi * at / cfg.longest)
        h = np.concatenate([[at / (cfg.longest - 1)], wave.real, wave.imag])
        for name in sorted(params["layers"]):
            h = np.sin(params["frequency"] * (h @ params["layers"][name]["w"] + params["layers"][name]["bias"]))
        falls = np.abs(np.linspace(np.log(1e-2) / 1.5, np.log(1e-2) / 0.3, WIDTH))
        found.append(np.einsum("r,roc->oc", h, params["out"]["w"]) * np.exp(-at / (cfg.longest - 1) * falls))
    return np.array(found)


def test_a_filter_does_not_depend_on_the_length_of_the_row_nor_come_round():
    layer = build(LONG)
    np.testing.assert_allclose(layer.filters(5), layer.filters(32)[:5], rtol=1e-5, atol=1e-6)
    late = jnp.zeros((1, 8, 1)).at[0, 7].set(1.0)
    y_1L1 = convolve(late, jnp.arange(1.0, 9)[:, None])
    np.testing.assert_allclose(y_1L1[0, :, 0], [0] * 7 + [1], atol=1e-6)


def test_hyena_looks_ahead_by_rounding_alone():
    reach_lM = Subject(put(small(16), "stack.segments.0.pattern.0.mixer", LONG)).reach()
    assert np.triu(reach_lM, 1).max() < 1e-6 * reach_lM.max()


def test_what_holds_is_declared():
    assert Convolution().declared().isolated and Convolution().declared().decodable
    assert not Convolution(place="centre").declared().causal
    assert Hyena().declared().causal and Hyena().declared().decodable and not Hyena().declared().isolated


def test_cost():
    shape = Shape(2, 8)
    assert build(Convolution(width=3)).cost(shape).executed == 16 * 2 * 3 * WIDTH**2
    assert build(Convolution(width=3, groups=2)).cost(shape).executed == 16 * 3 * WIDTH**2
    assert build(Convolution(width=3)).cost(shape).state == 2 * 2 * WIDTH * 4
    cost, longer = (build(LONG).cost(Shape(2, length)) for length in (8, 16))
    assert cost.algorithmic > cost.executed and longer.state - cost.state == 8 * WIDTH * (2 + 2) * 4


def test_values_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="Convolution.width is 4; a window around its centre is odd"):
        Convolution(width=4, place="centre")
    with pytest.raises(ValueError, match="Convolution: width 0 and groups 1 are 1 or more"):
        Convolution(width=0)
    with pytest.raises(ValueError, match="Convolution.groups is 3, which does not divide the width 4"):
        build(Convolution(groups=3))
    with pytest.raises(ValueError, match="Hyena.features is 4; it is odd"):
        Hyena(features=4)
    with pytest.raises(ValueError, match="Hyena: order 1 and longest 1024 are 2 or more"):
        Hyena(order=1)
    with pytest.raises(ValueError, match=r"33 positions, but Hyena\(longest=32\) has filters of 32"):
        build(LONG).start(1, 33, Context(positions_BL=POSITIONS_BL))
