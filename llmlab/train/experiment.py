"""An experiment: everything that decides a run, as one value."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from llmlab import axes
from llmlab.axes import Rules
from llmlab.config import Config, config
from llmlab.cost import Shape
from llmlab.data import Data, Dataset, Supply
from llmlab.mesh import Mesh
from llmlab.models.decoder import Decoder, Model
from llmlab.optim import AdamW, Optimizer
from llmlab.tasks import CausalLM, Task, example_batch
from llmlab.train.start import Fresh, Start


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
    kernels: "fast" refuses to run where a fast kernel of the platform does not serve.
    prompt: text that the trained model continues at the end, None for none.
    """

    steps: int = 1000
    accumulate: int = 1
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    kernels: Literal["any", "fast"] = "any"
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
    """seed: of initial parameters and dropout; `data.seed` decides the order of the data. start: with what weights."""

    model: Model = Decoder()
    task: Task = CausalLM()
    data: Supply = Data()
    optim: Optimizer = AdamW()
    train: Train = Train()
    mesh: Mesh = Mesh()
    rules: Rules = axes.every()
    start: Start = Fresh()
    seed: int = 0

    def filled(self) -> Experiment:
        """The experiment with what a checkpoint decides: the model, the tokenizer. Itself where nothing is open."""
        return self.start.fill(self)

    def check(self):
        if self.data.batch % self.train.accumulate:
            raise ValueError(
                f"train.accumulate is {self.train.accumulate}, which does not divide data.batch = {self.data.batch}"
            )

    def open_data(self, report=print) -> Dataset:
        """The data, with examples as the task wants them."""
        return self.data.open(self.task.prepare, report=report)

    def example(self, rows: int, seed: int = 0) -> dict[str, np.ndarray]:
        """A random batch of the shapes and types of training; no data is opened."""
        return example_batch(self.task, self.data, self.data.vocab + self.task.extra, rows, seed)

    def shape(self, rows: int, itemsize: int = 4) -> Shape:
        """The work of a batch of so many rows."""
        one = self.task.shape(self.example(rows=1))
        return dataclasses.replace(one, batch=rows, itemsize=itemsize)


def check_vocab(experiment: Experiment) -> None:
    """Raises ValueError unless the model has exactly the ids of the data and those that the task adds, and its classes.
    Rows that only pad the embedding for the hardware are a setting of the embedding and are not counted."""
    data, task, model = experiment.data, experiment.task, experiment.model
    wanted = data.vocab + task.extra
    if model.vocab != wanted:
        added = f", {type(task).__name__} adds {task.extra}" if task.extra else ""
        source = type(getattr(data, "tokenizer", data)).__name__
        raise ValueError(
            f"{source} has a vocabulary of {data.vocab}{added}, and the model one of {model.vocab}; "
            f"set the model's to {wanted} (--model.vocab {wanted})"
        )
    classes = getattr(data, "classes", None)
    if classes is not None and model.outcomes != classes:
        raise ValueError(
            f"{type(data).__name__} has {classes} classes, and the model {model.outcomes}; --model.classes {classes}"
        )
