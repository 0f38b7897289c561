"""A task turns a model and a batch into a loss and the sums that metrics are made of."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from llmlab.config import Config, config
from llmlab.cost import Shape
from llmlab.data import Supply
from llmlab.data.pipeline import Example, stack
from llmlab.nn.parts import Context

Arrays = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Outcome:
    """loss: to be minimised after division by `weight` (both summed over the batch). sums: what adds up over batches.

    stats: new statistics of the model, by path.
    """

    loss: jax.Array
    weight: jax.Array
    sums: Arrays
    stats: dict


@dataclasses.dataclass(frozen=True)
class Question:
    """A prompt as a model of some task is asked: what an encoder reads, what the decoder goes on from, what ends it."""

    tokens: list[int]
    source: list[int] | None = None
    stop: tuple[int, ...] = ()


@config
class Task(Config):
    """What a model is trained to do.

    auxiliary: what parts of the model add to the loss, by the names under which they give it, and how much of it, such
    as (("load_balance", 0.01),); each is the mean of the layers that give it.
    """

    auxiliary: tuple[tuple[str, float], ...] = ()

    extra = 0  # ids that the task adds after those of the data; the model's vocabulary is the sum

    def prepare(self, example: Example, random: np.random.Generator, pieces: tuple[bytes, ...]) -> Example:
        """What the task makes of an example of the data, in numpy. pieces: the bytes of each id of the data."""
        return example

    def context(self, model, batch: Arrays, key: jax.Array | None, dtype) -> tuple[Context, dict]:
        """(what the layers are told, aux of an encoder); key: of dropout, None to evaluate."""
        return row_context(batch, key, dtype), {}

    def loss(self, model, batch: Arrays, key: jax.Array | None, dtype) -> Outcome:
        raise TypeError(f"{type(self).__name__} must define loss(model, batch, key, dtype)")

    def shape(self, batch: Mapping[str, np.ndarray]) -> Shape:
        """The work that a batch is for the model."""
        return Shape(*read(batch).shape[:2])

    def ask(self, prompt: list[int], vocab: int) -> Question:
        """How a prompt is given to a model that was trained on this task. vocab: ids of the data."""
        return Question(prompt)

    def report(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Metrics of sums over any number of batches: loss in nats, accuracy, and bits per byte of text if known."""
        weight = max(sums["weight"], 1.0)
        found = {"loss": sums["nll"] / weight, "accuracy": sums["correct"] / weight}
        if sums.get("bytes"):
            found["bits_per_byte"] = sums["nll"] / math.log(2) / sums["bytes"]
        if sums.get("rows"):
            found["sequence_accuracy"] = sums["whole"] / sums["rows"]
        known = ("weight", "nll", "correct", "bytes", "rows", "whole")
        return found | {name: value / weight for name, value in sums.items() if name not in known}

    def outcome(self, loss, weight, sums: Arrays, aux: dict) -> Outcome:
        """The outcome with what the parts of the model add. `aux` is averaged over batches by their weight."""
        aux = dict(aux)
        stats = aux.pop("stats", {})
        for name, coefficient in self.auxiliary:
            if name not in aux:
                given = ", ".join(sorted(aux)) or "none"
                raise ValueError(f"task.auxiliary weighs {name!r}, and the parts of the model give {given}")
            loss += weight * coefficient * aux[name]
        return Outcome(loss, weight, {**sums, **{name: weight * value for name, value in aux.items()}}, stats)


def read(batch: Arrays) -> jax.Array:
    """What a model reads: ids (tokens_BL), or frames of numbers (features_BLJ)."""
    return batch["tokens_BL"] if "tokens_BL" in batch else batch["features_BLJ"]


def row_context(batch: Arrays, key: jax.Array | None, dtype) -> Context:
    """The context of rows; what the batch does not say has its plain value."""
    rows, length = read(batch).shape[:2]
    positions_BL = batch.get("positions_BL")
    return Context(
        positions_BL=jnp.broadcast_to(jnp.arange(length), (rows, length)) if positions_BL is None else positions_BL,
        segments_BL=batch.get("segments_BL"),
        prefix_BL=batch.get("prefix_BL"),
        types_BL=batch.get("types_BL"),
        key=key,
        training=key is not None,
        dtype=dtype,
    )


def example_batch(task: Task, data: Supply, vocab: int, rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    """A random batch of the shapes and types that `task.loss` takes, for checks and plans; no data is opened.

    vocab: of the model.
    """
    random = np.random.default_rng(seed)
    pieces = (b"?",) * (vocab - task.extra)
    return stack([task.prepare(data.sample(random, len(pieces)), random, pieces) for _ in range(rows)])


def whole_rows(hits_BL, weights_BL) -> Arrays:
    """{"rows": rows that have a target, "whole": those of them where every target is hit}."""
    asked_BL = weights_BL > 0
    rows_B = asked_BL.any(1)
    return {"rows": rows_B.sum(), "whole": (rows_B & (hits_BL | ~asked_BL).all(1)).sum()}


def predict(task: Task, model, batch: Arrays, key, dtype, count=lambda hits_BL, weights_BL: {}, **form) -> Outcome:
    """The loss of `targets_BL` at `tokens_BL`. count: further sums of where targets are hit, such as `whole_rows`.

    form: smoothing and z_loss.
    """
    ctx, found = task.context(model, batch, key, dtype)
    hidden_BLD, aux = model(batch["tokens_BL"], ctx)
    weights_BL = batch["weights_BL"]
    loss, sums = model.nll(hidden_BLD, batch["targets_BL"], weights_BL, **form)
    sums |= count(sums.pop("hits_BL"), weights_BL)
    if "bytes_BL" in batch:
        sums["bytes"] = batch["bytes_BL"].sum()
    return task.outcome(loss, weights_BL.sum(), sums, join(found, aux))


def join(first: dict, second: dict) -> dict:
    """What two parts of a model found: the mean of scalars of one name, new statistics side by side."""
    joined = {**first, **second}
    for name in first.keys() & second.keys():
        joined[name] = {**first[name], **second[name]} if name == "stats" else (first[name] + second[name]) / 2
    return joined


@config
class CausalLM(Task):
    """Predict the next token. smoothing: of labels (Szegedy et al., 2016). z_loss: weight of log(Z)^2 (PaLM, 2022)."""

    smoothing: float = 0.0
    z_loss: float = 0.0

    def loss(self, model, batch, key, dtype):
        return predict(self, model, batch, key, dtype, smoothing=self.smoothing, z_loss=self.z_loss)


@config
class Answers(Task):
    """Predict the targets that the data gives, at its own positions: a synthetic problem, or labels of tokens.

    A row counts as whole where all its targets are hit.
    """

    def loss(self, model, batch, key, dtype):
        return predict(self, model, batch, key, dtype, whole_rows)


@config
class PrefixLM(Task):
    """Predict what follows a prefix that every token of its document may see (Raffel et al., 2020).

    A random number of a row's first tokens is prefix; the model's attention has `view=Prefix()`.
    """

    def prepare(self, example, random, pieces):
        length = int((example["segments_L"] > 0).sum())
        cut = int(random.integers(1, max(length, 2)))
        place_L = np.arange(len(example["tokens_L"]))
        weights_L = example["weights_L"] * (place_L >= cut - 1)  # the prefix' last token predicts what follows
        bytes_L = example["bytes_L"] * (place_L >= cut - 1)
        return {**example, "prefix_L": place_L < cut, "weights_L": weights_L, "bytes_L": bytes_L}

    def loss(self, model, batch, key, dtype):
        return predict(self, model, batch, key, dtype)
