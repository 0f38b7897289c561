"""Statistics of initial values."""

import jax
import numpy as np
import pytest

from llmlab.nn import FanIn, Fill, Init, Normal, PerDepth

KEY, SHAPE = jax.random.key(0), (200, 200)


@pytest.mark.parametrize(
    ("init", "deviation"),
    [
        (Normal(std=0.3), 0.3),
        (FanIn(), 0.1),
        (FanIn(scale=2.0), 0.2),
        (PerDepth(init=Normal(std=0.4)), 0.1),  # 8 layers: sqrt(16)
        (PerDepth(init=FanIn()), 0.025),
    ],
)
def test_mean_and_deviation(init, deviation):
    values = np.asarray(init(KEY, SHAPE, 100, 8))
    assert values.dtype == np.float32 and abs(values.std() / deviation - 1) < 0.03
    assert abs(values.mean()) < 4 * deviation / 200


def test_fan_in_is_cut_at_three_deviations():
    assert 0.29 < np.abs(FanIn()(KEY, SHAPE, 100, 1)).max() <= 0.3
    assert np.abs(Normal(std=0.1)(KEY, SHAPE, 100, 1)).max() > 0.35


def test_fill_and_the_abstract_base():
    assert np.all(Fill(value=3.0)(KEY, (2, 2), 1, 1) == 3)
    with pytest.raises(TypeError, match="Init must define __call__"):
        Init()(KEY, SHAPE, 1, 1)
