"""Recall: what stood beside a token the last time it was seen.

Multi-query associative recall (Arora et al., 2023, "Zoology"), the induction head (Olsson et al., 2022, as in Gu & Dao,
2023) and associative recall (Ba et al., 2016; Fu et al., 2023). Letters: P pairs of the context, G gaps, K keys.
"""

from __future__ import annotations

import functools
from typing import Literal

import numpy as np

from llmlab.config import config
from llmlab.data.synthetic.problem import Problem, Scored, by_powers, mark, next_tokens, require_least


@config
class Mqar(Problem):
    """Multi-query associative recall: `pairs` keys and their values, then each key once more, its value to be said.

    Keys are distinct ids of [1, vocab / 2), values distinct ids of [vocab / 2, vocab). The query of the p-th key stands
    at 2 pairs + 2 g_p. The gaps g are drawn one after the other, without replacement, from [0, length / 2 - pairs) with
    probability in proportion to (g + 1)^(power - 1). Answers do not stand in the row. filler: the other positions.
    """

    vocab: int = 8192
    length: int = 64
    pairs: int = 4
    power: float = 0.01
    filler: Literal["zero", "random"] = "zero"
    scored: Scored = "answers"

    def check(self):
        require_least(self, pairs=1)
        if self.vocab % 2 or self.vocab < 2 * self.pairs + 2:
            raise ValueError(f"Mqar.vocab is {self.vocab}; take an even number, {2 * self.pairs + 2} or more")
        if self.length < 4 * self.pairs:
            raise ValueError(
                f"Mqar.length is {self.length}, and {self.pairs} pairs with their queries need {4 * self.pairs}"
            )

    def draw(self, rng, split):
        half, context = self.vocab // 2, 2 * self.pairs
        row_T = np.zeros(self.length + 1, np.int32)
        if self.filler == "random":
            row_T[context:] = rng.integers(0, self.vocab, len(row_T) - context)
        keys_P = 1 + rng.choice(half - 1, self.pairs, replace=False)
        values_P = half + rng.choice(half, self.pairs, replace=False)
        weights_G = gap_weights((self.length - context) // 2, self.power)
        # Exponential times in the order in which they end are draws without replacement, one after the other.
        gaps_P = np.argsort(rng.standard_exponential(len(weights_G)) / weights_G)[: self.pairs]
        queries_P = context + 2 * gaps_P
        row_T[0:context:2] = row_T[queries_P] = keys_P
        row_T[1:context:2] = values_P
        example = next_tokens(row_T, mark(queries_P, self.length), self.scored, split)
        example["targets_L"][queries_P] = values_P
        return example

    def levels(self):
        """plateau: a guess among the values of the row."""
        return {"chance": 2 / self.vocab, "plateau": 1 / self.pairs, "ceiling": 1.0}

    def slices(self, example):
        """By the distance from a query to where its key stood."""
        tokens_L, scored_L = example["tokens_L"], example["weights_L"] > 0
        keys_P = tokens_L[0 : 2 * self.pairs : 2]
        distance_L = np.ones(self.length, int)
        for place in np.flatnonzero(scored_L):
            distance_L[place] = max(1, place - 2 * int(np.argmax(keys_P == tokens_L[place])))
        return by_powers("distance", distance_L, scored_L)


@functools.cache
def gap_weights(count: int, power: float) -> np.ndarray:
    """power * i^(power - 1) for i = 1 to count."""
    return power * np.arange(1, count + 1) ** (power - 1.0)


@config
class InductionHead(Problem):
    """Random symbols, one of them marked by the special id `symbols` before it; the row ends with the special id, and
    the marked symbol is to be said. The mark stands anywhere from the first to the third position from the end."""

    symbols: int = 16
    length: int = 256
    scored: Scored = "answers"

    def check(self):
        require_least(self, symbols=2, length=3)

    @property
    def vocab(self):
        return self.symbols + 1

    def draw(self, rng, split):
        row_T = rng.integers(0, self.symbols, self.length + 1)
        place = rng.integers(0, self.length - 2)
        row_T[place] = row_T[-2] = self.symbols
        row_T[-1] = row_T[place + 1]
        return next_tokens(row_T, mark(-1, self.length), self.scored, split)

    def levels(self):
        return {"chance": 1 / self.symbols, "ceiling": 1.0}

    def slices(self, example):
        """By the distance from the end to the mark."""
        place = int(np.argmax(example["tokens_L"] == self.symbols))
        distance_L = np.full(self.length, self.length - 1 - place)
        return by_powers("distance", distance_L, mark(-1, self.length))


@config
class AssociativeRecall(Problem):
    """`pairs` of a key and its value by a map that is random in each row, then one of the keys, its value to be said.

    Keys are ids of [0, vocab / 2), drawn with replacement, values ids of [vocab / 2, vocab). The query is any of the
    keys present, each as likely.
    """

    vocab: int = 10
    pairs: int = 10
    scored: Scored = "answers"

    def check(self):
        require_least(self, vocab=4, pairs=1)
        if self.vocab % 2:
            raise ValueError(f"AssociativeRecall.vocab is {self.vocab}; take an even number")

    @property
    def length(self):
        return 2 * self.pairs + 1

    def draw(self, rng, split):
        half = self.vocab // 2
        values_K = half + rng.integers(0, half, half)
        keys_P = rng.integers(0, half, self.pairs)
        query = rng.choice(np.unique(keys_P))
        row_T = np.empty(self.length + 1, np.int32)
        row_T[0:-2:2], row_T[1:-2:2] = keys_P, values_K[keys_P]
        row_T[-2:] = query, values_K[query]
        return next_tokens(row_T, mark(-1, self.length), self.scored, split)

    def levels(self):
        return {"chance": 2 / self.vocab, "ceiling": 1.0}
