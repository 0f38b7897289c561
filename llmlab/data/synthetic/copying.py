"""Selective copying (Arjovsky et al., 2016, with tokens at random places as in Gu & Dao, 2023)."""

from __future__ import annotations

import numpy as np

from llmlab.config import config
from llmlab.data.synthetic.problem import Problem, require_least


@config
class SelectiveCopying(Problem):
    """`count` tokens at random places, in order, among `noise` positions of id 0; then `count` markers (id vocab - 1),
    at which the tokens are to be said in order. Tokens are ids of [1, vocab - 1)."""

    vocab: int = 16
    noise: int = 4096
    count: int = 16

    def check(self):
        require_least(self, vocab=3, noise=0, count=1)

    @property
    def length(self):
        return self.noise + 2 * self.count

    def draw(self, rng, split):
        context = self.noise + self.count
        places = np.sort(rng.choice(context, self.count, replace=False, shuffle=False))
        tokens_L, targets_L = np.zeros((2, self.length), np.int32)
        weights_L = np.zeros(self.length, np.float32)
        targets_L[context:] = tokens_L[places] = rng.integers(1, self.vocab - 1, self.count)
        tokens_L[context:] = self.vocab - 1
        weights_L[context:] = 1
        return {"tokens_L": tokens_L, "targets_L": targets_L, "weights_L": weights_L}

    def levels(self):
        return {"chance": 1 / (self.vocab - 2), "ceiling": 1.0}
