"""Rotary scalings against the frequencies of transformers 5.23, and how they turn."""

import jax.numpy as jnp
import numpy as np
import pytest

from llmlab.nn import Rotary
from llmlab.nn.rotary import Dynamic, Linear, Llama3, LongRope, Scaling, Yarn

SHORT, LONG = (1.0, 1.1, 1.2, 1.3), (1.0, 2.0, 4.0, 7.5)
PHI = LongRope(short=SHORT, long=LONG, factor=8.0, original=64)
KNOWN = [  # scaling, width, theta, length, frequencies, factor
    (Linear(factor=4.0), 8, 1e4, 9, [0.25, 0.025, 0.0025, 0.00025], 1.0),
    (Dynamic(factor=2.0, original=64), 8, 1e4, 48, [1, 0.1, 0.01, 0.001], 1.0),
    (Dynamic(factor=2.0, original=64), 16, 1e4, 200,
     [1.0, 0.2495285, 0.06226445, 0.01553675, 0.003876863, 0.0009673875, 0.0002413907, 6.023386e-05], 1.0),
    (Yarn(factor=4.0, original=64), 16, 1e4, 9,
     [1.0, 0.2371708, 0.05, 0.007905695, 0.0025, 0.0007905695, 0.00025, 7.905695e-05], 1.138629436111989),
    (Yarn(factor=4.0, original=64, fast=8.0, slow=2.0, attention=1.0, whole=False), 16, 1e4, 9,
     [1.0, 0.1605892, 0.025, 0.007905695, 0.0025, 0.0007905695, 0.00025, 7.905695e-05], 1.0),
    (Llama3(), 32, 5e5, 9,
     [1.0, 0.4403666, 0.1939228, 0.0853971, 0.03760603, 0.01656044, 0.007292665, 0.003211446, 0.000524846,
      7.784655e-05, 3.428102e-05, 1.509622e-05, 6.64787e-06, 2.9275e-06, 1.289173e-06, 5.677088e-07], 1.0),
    (PHI, 8, 1e4, 64, [1.0, 0.09090909, 0.008333333, 0.0007692308], 1.224744871391589),
    (PHI, 8, 1e4, 65, [1.0, 0.05, 0.0025, 0.0001333333], 1.224744871391589),
]  # fmt: skip


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: f"{type(known[0]).__name__}-{known[3]}")
def test_frequencies_are_those_that_models_were_published_with(known):
    scaling, width, theta, length, expected_J, factor = known
    waves, found = scaling.waves(width, theta, jnp.array([length]))
    np.testing.assert_allclose(np.broadcast_to(waves, (1, width // 2))[0], expected_J, rtol=2e-6)
    assert found == pytest.approx(factor, rel=1e-12)


def test_a_scaling_turns_with_its_frequencies_and_its_factor():
    x_BLHK = np.ones((1, 1, 1, 8), np.float32)
    turned = np.asarray(Rotary(scaling=PHI).build({}, None)(x_BLHK, np.array([[63]]))).ravel()
    angles_J = 63 * np.array(KNOWN[6][4])
    np.testing.assert_allclose(turned[:4], 1.2247449 * (np.cos(angles_J) - np.sin(angles_J)), rtol=1e-4)
    part = np.asarray(Rotary(fraction=0.5, scaling=Linear(factor=3.0)).build({}, None)(x_BLHK, np.array([[6]])))
    np.testing.assert_allclose(part.ravel()[:4], Rotary().build({}, None)(x_BLHK[..., :4], np.array([[2]])).ravel())
    np.testing.assert_array_equal(part.ravel()[4:], 1)


def test_the_length_is_that_of_the_row_alone_and_of_all_its_positions():
    layer = Rotary(theta=100.0, scaling=Dynamic(factor=4.0, original=8)).build({}, None)
    plain = Rotary(theta=100.0).build({}, None)
    x_BLHK = np.random.default_rng(0).normal(size=(2, 3, 1, 8)).astype(np.float32)
    positions_BL = np.array([[5, 6, 7], [6, 7, 8]])
    found_BLHK, plain_BLHK = layer(x_BLHK, positions_BL), plain(x_BLHK, positions_BL)
    np.testing.assert_array_equal(found_BLHK[0], plain_BLHK[0])  # whatever its neighbour's length
    assert (np.abs(found_BLHK[1] - plain_BLHK[1]).max((1, 2)) > 1e-3).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Linear(factor=0.5), "Linear.factor is 0.5; it stretches positions, so it is 1 or more"),
        (lambda: Dynamic(factor=2.0, original=0), "Dynamic.original is 0; it is the length of training"),
        (lambda: Yarn(factor=2.0, fast=1.0), "Yarn.fast is 1.0 and slow 1.0"),
        (lambda: Llama3(low=5.0), "Llama3.high is 4.0 and low 5.0"),
        (lambda: PHI.waves(6, 1e4, jnp.array([1])), "LongRope.short has 4 factors, .* has 3 waves; give one for each"),
        (lambda: Rotary(scaling=Linear), "Rotary.scaling is .*; it takes"),
    ],
)
def test_wrong_values_are_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()
    with pytest.raises(TypeError, match="Scaling must define waves"):
        Scaling().waves(8, 1e4, jnp.array([1]))
