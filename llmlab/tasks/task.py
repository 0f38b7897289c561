"""A task turns a model and a batch into a loss and the sums that metrics are made of."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import jax
import numpy as np

from llmlab.config import Config, config
from llmlab.nn.parts import Context


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Outcome:
    """loss: to be minimised after division by `weight` (both summed over the batch). sums: what adds up over batches.

    stats: new statistics of the model, by path.
    """

    loss: jax.Array
    weight: jax.Array
    sums: dict[str, jax.Array]
    stats: dict


class Task(Config):
    """task.loss(model, batch, key, dtype) -> Outcome; key: of dropout, None to evaluate."""

    def loss(self, model, batch: dict[str, jax.Array], key: jax.Array | None, dtype) -> Outcome:
        raise TypeError(f"{type(self).__name__} must define loss")

    def example(self, seed: int, batch: int, length: int, vocab: int) -> dict[str, np.ndarray]:
        """A random batch of the shapes and types that `loss` takes, for checks and plans."""
        raise TypeError(f"{type(self).__name__} must define example")

    def report(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Metrics of sums over any number of batches: loss in nats, accuracy, and bits per byte of text if known."""
        weight = max(sums["weight"], 1.0)
        found = {"loss": sums["nll"] / weight, "accuracy": sums["correct"] / weight}
        if sums.get("bytes"):
            found["bits_per_byte"] = sums["nll"] / math.log(2) / sums["bytes"]
        known = ("weight", "nll", "correct", "bytes")
        return found | {name: value for name, value in sums.items() if name not in known}


@config
class CausalLM(Task):
    """Predict the next token. smoothing: of labels (Szegedy et al., 2016). z_loss: weight of log(Z)^2 (PaLM, 2022)."""

    smoothing: float = 0.0
    z_loss: float = 0.0

    def example(self, seed, batch, length, vocab):
        tokens_Bl = np.random.default_rng(seed).integers(0, vocab, (batch, length + 1), np.int32)
        return {
            "tokens_BL": tokens_Bl[:, :-1],
            "targets_BL": tokens_Bl[:, 1:],
            "weights_BL": np.ones((batch, length), np.float32),
            "segments_BL": np.ones((batch, length), np.int32),
            "positions_BL": np.tile(np.arange(length, dtype=np.int32), (batch, 1)),
            "bytes_BL": np.ones((batch, length), np.int32),
        }

    def loss(self, model, batch, key, dtype):
        ctx = Context(
            positions_BL=batch["positions_BL"],
            segments_BL=batch.get("segments_BL"),
            prefix_BL=batch.get("prefix_BL"),
            key=key,
            dtype=dtype,
        )
        hidden_BLD, aux = model(batch["tokens_BL"], ctx)
        stats = aux.pop("stats", {})
        weights_BL = batch["weights_BL"]
        loss, sums = model.nll(hidden_BLD, batch["targets_BL"], weights_BL, self.smoothing, self.z_loss)
        weight = weights_BL.sum()
        if "bytes_BL" in batch:
            sums["bytes"] = batch["bytes_BL"].sum()
        return Outcome(loss, weight, {**sums, **aux}, stats)
