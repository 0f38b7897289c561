"""Streams whose best loss is known exactly: in seconds they show shifted labels and leaks of the future.

A loss below the `ceiling` means that the model sees what it must not; one that stays above it, that it does not see
what it should.
"""

from __future__ import annotations

import math

import numpy as np

from llmlab.config import config
from llmlab.data.synthetic.chain import Chain
from llmlab.data.synthetic.problem import Problem, next_tokens, require_least


@config
class UniformStream(Problem):
    """Independent tokens, each as likely: nothing is better than ln(vocab)."""

    metric = "loss"
    vocab: int = 16
    length: int = 64

    def check(self):
        require_least(self, vocab=2, length=1)

    def draw(self, rng, split):
        row_T = rng.integers(0, self.vocab, self.length + 1)
        return next_tokens(row_T, np.ones(self.length, bool), "answers", split)

    def levels(self):
        return {"chance": math.log(self.vocab), "ceiling": math.log(self.vocab)}


@config
class MarkovStream(Problem):
    """The states of a Markov chain, each to be predicted from the one before it: the best loss is the entropy rate."""

    metric = "loss"
    chain: Chain = Chain()
    length: int = 64

    def check(self):
        require_least(self, length=1)

    @property
    def vocab(self):
        return self.chain.states

    def draw(self, rng, split):
        row_T = self.chain.walk(rng, self.length + 1)
        return next_tokens(row_T, np.ones(self.length, bool), "answers", split)

    def levels(self):
        """plateau: of the frequencies alone."""
        entropy, rate = self.chain.entropies(1)
        return {"chance": math.log(self.vocab), "plateau": float(entropy), "ceiling": float(rate)}


@config
class CopyStream(Problem):
    """Independent tokens; the target is the token `delay` positions before, which a model that looks back always knows
    and one whose labels are shifted never does."""

    metric = "loss"
    vocab: int = 16
    length: int = 64
    delay: int = 1

    def check(self):
        require_least(self, vocab=2, delay=1, length=self.delay + 1)

    def draw(self, rng, split):
        tokens_L = rng.integers(0, self.vocab, self.length, np.int32)
        targets_L, weights_L = np.zeros(self.length, np.int32), np.zeros(self.length, np.float32)
        targets_L[self.delay :], weights_L[self.delay :] = tokens_L[: -self.delay], 1
        return {"tokens_L": tokens_L, "targets_L": targets_L, "weights_L": weights_L}

    def levels(self):
        return {"chance": math.log(self.vocab), "ceiling": 0.0}
