"""An experiment: everything that decides a run, as one value."""

from __future__ import annotations

from typing import Literal

from llmlab import axes
from llmlab.axes import Rules
from llmlab.config import Config, config
from llmlab.data import Data
from llmlab.mesh import Mesh
from llmlab.models.decoder import Decoder, Model
from llmlab.optim import AdamW, Optimizer
from llmlab.tasks import CausalLM, Task


class Guard(Config):
    """What to do when a loss or a gradient is not finite. Such an update is never applied."""


@config
class Stop(Guard):
    """End the run with an error that names the step and the parameters."""


@config
class Skip(Guard):
    """Go on with the next batch; stop after `limit` skipped steps in all."""

    limit: int = 10


@config
class Train(Config):
    """steps: updates. Every `..._every` counts steps; None means only at the end.

    eval_batches: of the validation split, None for the whole of it. accumulate: parts into which a batch is cut, one
    after the other, to save memory. precision: of activations; "auto" is bfloat16 on accelerators, float32 on CPU.
    prompt: text that the trained model continues at the end, None for none.
    """

    steps: int = 1000
    accumulate: int = 1
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    guard: Guard = Stop()
    log_every: int = 10
    eval_every: int | None = None
    eval_batches: int | None = None
    save_every: int | None = None
    keep: int = 2
    prompt: str | None = None

    def check(self):
        for name in ("steps", "accumulate", "log_every", "eval_every", "save_every", "eval_batches", "keep"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"Train.{name} is {value}; it must be at least 1")


@config
class Experiment(Config):
    """seed: of initial parameters and dropout; `data.seed` decides the order of the data."""

    model: Model = Decoder()
    task: Task = CausalLM()
    data: Data = Data()
    optim: Optimizer = AdamW()
    train: Train = Train()
    mesh: Mesh = Mesh()
    rules: Rules = axes.every()
    seed: int = 0

    def check(self):
        if self.data.batch % self.train.accumulate:
            raise ValueError(
                f"train.accumulate is {self.train.accumulate}, which does not divide data.batch = {self.data.batch}"
            )
