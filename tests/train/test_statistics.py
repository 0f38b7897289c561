"""State that is neither parameter nor optimizer: new statistics of layers reach the state and the checkpoint."""

import jax
import jax.numpy as jnp
import pytest

from llmlab.config import config, put
from llmlab.cost import Cost
from llmlab.nn import FeedForward, Module
from llmlab.nn.module import Statistic
from llmlab.train.program import Program
from llmlab.train.restore import restore_model


@config
class Counting(FeedForward):
    """Passes on what it gets, and counts the updates; `name` is what it calls the count in `aux`."""

    name: str = "count"

    def build(self, dims, rngs):
        return CountingLayer(self)


class CountingLayer(Module):
    def __init__(self, cfg):
        self.cfg = cfg
        self.count = Statistic(jnp.zeros(()), axes="")

    def __call__(self, x_BLD, ctx):
        return x_BLD, {"stats": {self.cfg.name: self.count[...] + 1}}

    def cost(self, shape):
        return Cost()


PLACE = "model.stack.segments.0.pattern.0.ffn"


def test_statistics_are_updated_and_saved_with_the_run(tiny, tmp_path, caches):
    from llmlab.train.loop import train

    experiment = put(tiny({"train.steps": 3}), PLACE, Counting())
    result = train(experiment, tmp_path / "run")
    assert result.state["stats"]["stack"]["segments"]["0"]["0"]["ffn"]["count"].tolist() == [3, 3]
    _, restored, step = restore_model(tmp_path / "run", experiment)
    assert step == 3 and restored["stats"]["stack"]["segments"]["0"]["0"]["ffn"]["count"].tolist() == [3, 3]


def test_a_statistic_that_the_model_has_not_is_refused(tiny):
    experiment = put(tiny(), PLACE, Counting(name="cuont"))
    program = Program(experiment, experiment.mesh.build(jax.devices()[:1]))
    batch = experiment.example(8)
    with pytest.raises(KeyError, match="stats.stack.segments.0.0.ffn: .*'cuont'.*'count'"):
        jax.eval_shape(program._step, program.abstract_state, batch)
