"""Masked language modelling (Devlin et al., 2018, section 3.1): some tokens are hidden, and the model says which.

Letters of this file: T, places of a row that are predicted; only they go through the head.
"""

from __future__ import annotations

import math
from typing import Literal

import jax.numpy as jnp
import numpy as np

from llmlab.config import config
from llmlab.cost import Shape
from llmlab.tasks.task import Task


@config
class MaskedLM(Task):
    """rate: share of tokens that are predicted; of them `masked` become the mask, `replaced` another token, the rest
    stay. units: what is chosen at once; a word begins where a piece begins with white space, or follows some.
    mask: its id, None for one after the ids of the data.
    """

    rate: float = 0.15
    masked: float = 0.8
    replaced: float = 0.1
    units: Literal["tokens", "words"] = "tokens"
    mask: int | None = None

    def check(self):
        if not 0 < self.rate < 1:
            raise ValueError(f"MaskedLM.rate is {self.rate}; it is a share of the tokens, between 0 and 1")
        if not (self.masked >= 0 and self.replaced >= 0 and self.masked + self.replaced <= 1):
            raise ValueError(f"MaskedLM: masked {self.masked} and replaced {self.replaced} are shares of one whole")

    @property
    def extra(self) -> int:
        return 1 if self.mask is None else 0

    def places(self, length: int) -> int:
        """Places of a row that are predicted at most: a multiple of 8, so that a mesh divides them."""
        return min(8 * math.ceil(self.rate * length / 8), length)

    def prepare(self, example, random, pieces):
        tokens_L = example["tokens_L"]
        size = self.places(len(tokens_L))
        chosen = self.choose(example, random, pieces, size)
        hidden_L, draw = tokens_L.copy(), random.random(len(chosen))
        hidden_L[chosen[draw < self.masked]] = len(pieces) if self.mask is None else self.mask
        other = chosen[(draw >= self.masked) & (draw < self.masked + self.replaced)]
        hidden_L[other] = random.integers(0, len(pieces), len(other))
        fill = lambda values, dtype: np.pad(values, (0, size - len(chosen))).astype(dtype)
        return {
            "tokens_L": hidden_L,
            "segments_L": example["segments_L"],
            "positions_L": example["positions_L"],
            "places_T": fill(chosen, np.int32),
            "targets_T": fill(tokens_L[chosen], np.int32),
            "weights_T": fill(np.ones(len(chosen)), np.float32),
        }

    def choose(self, example, random, pieces, most: int) -> np.ndarray:
        """The places that are predicted, in order; whole units until their share is reached."""
        tokens = example["tokens_L"].tolist()
        real = [at for at in np.flatnonzero(example["segments_L"] > 0).tolist() if pieces[tokens[at]]]
        if not real:
            return np.zeros(0, np.int64)
        first = {at for at in real if self.units == "tokens" or begins_word(tokens, at, pieces)} | {real[0]}
        number = np.cumsum([at in first for at in real]) - 1  # the unit of each real place
        wanted = min(most, max(1, round(self.rate * len(real))))
        sizes = np.bincount(number)
        order = random.permutation(len(sizes))
        taken = order[np.cumsum(sizes[order]) <= wanted]
        if not len(taken):  # every unit is longer than all that may be hidden: a part of one
            return np.array(real)[number == order[0]][:wanted]
        return np.array(real)[np.isin(number, taken)]

    def loss(self, model, batch, key, dtype):
        ctx, _ = self.context(model, batch, key, dtype)
        hidden_BLD, aux = model(batch["tokens_BL"], ctx)
        hidden_BTD = jnp.take_along_axis(hidden_BLD, batch["places_BT"][..., None], axis=1)
        weights_BT = batch["weights_BT"]
        loss, sums = model.nll(hidden_BTD, batch["targets_BT"], weights_BT)
        del sums["hits_BL"]
        return self.outcome(loss, weights_BT.sum(), sums, aux)

    def shape(self, batch):
        return Shape(*batch["tokens_BL"].shape, outputs=batch["places_BT"].shape[1])


def begins_word(tokens: list[int], at: int, pieces: tuple[bytes, ...]) -> bool:
    """Whether the token at a place begins with white space, or follows a token that ends with some."""
    return pieces[tokens[at]][:1].isspace() or at == 0 or pieces[tokens[at - 1]][-1:].isspace()
