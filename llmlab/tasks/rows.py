"""Tasks of whole rows: classification, and embeddings that tell which texts belong together.

Letters of this file: J, classes; b, the rows that are compared with a row.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from llmlab.config import config
from llmlab.tasks.task import Outcome, Task, read


@config
class Classification(Task):
    """The class of a row (`label` of the data), by a model with a pooled head (llmlab/models/heads.py)."""

    def prepare(self, example, random, pieces):
        if "label" not in example:
            raise ValueError(f"Classification needs data whose examples have a label; this has {', '.join(example)}")
        return {**example, "weight": np.float32(1)}

    def loss(self, model, batch, key, dtype):
        ctx, _ = self.context(model, batch, key, dtype)
        hidden_BLD, aux = model(read(batch), ctx)
        return classify(self, model.classify(hidden_BLD, ctx), batch["label_B"], batch["weight_B"], aux)


def classify(task: Task, logits_BJ, labels_B, weights_B, aux) -> Outcome:
    """The outcome of a choice among classes, by weighted rows."""
    nll_B = -jnp.take_along_axis(jax.nn.log_softmax(logits_BJ), labels_B[:, None], 1)[:, 0]
    loss, hits_B = (nll_B * weights_B).sum(), logits_BJ.argmax(-1) == labels_B
    return task.outcome(loss, weights_B.sum(), {"nll": loss, "correct": (hits_B * weights_B).sum()}, aux)


@config
class Contrastive(Task):
    """Two crops of one text are nearer to each other than to those of other texts of the batch (InfoNCE; crops as in
    Izacard et al., 2021). The model has a pooled head; accuracy is that of finding the partner.

    temperature: of the cosine similarities.
    """

    temperature: float = 0.05

    def check(self):
        if self.temperature <= 0:
            raise ValueError(f"Contrastive.temperature is {self.temperature}; it is above 0")

    def prepare(self, example, random, pieces):
        size = len(example["tokens_L"]) // 2
        real = max(int((example["segments_L"] > 0).sum()), 1)
        found = {"weight": np.float32(real > 1)}
        for name, first in (("tokens", 0), ("partner", real // 2)):
            count = min(size, real - real // 2)
            found[f"{name}_L"] = np.pad(example["tokens_L"][first : first + count], (0, size - count))
        segments_L = (np.arange(size) < min(size, real - real // 2)).astype(np.int32)
        return found | {"segments_L": segments_L}

    def loss(self, model, batch, key, dtype):
        ctx, _ = self.context(model, batch, key, dtype)
        other = None if key is None else jax.random.fold_in(key, 1 << 20)
        first_BLD, aux = model(batch["tokens_BL"], ctx)
        second_BLD, again = model(batch["partner_BL"], dataclasses.replace(ctx, key=other))
        first_BD, second_BD = model.pool(first_BLD, ctx), model.pool(second_BLD, ctx)
        logits_Bb = unit(first_BD) @ unit(second_BD).T / self.temperature
        weights_B = batch["weight_B"]
        logits_Bb = jnp.where(weights_B > 0, logits_Bb, -1e30)  # rows that only fill the batch are no distractors
        return classify(self, logits_Bb, jnp.arange(len(weights_B)), weights_B, aux)


def unit(x_BD):
    """Rows of length 1, in float32."""
    x_BD = x_BD.astype(jnp.float32)
    return x_BD * jax.lax.rsqrt(jnp.square(x_BD).sum(-1, keepdims=True) + 1e-12)
