"""The six tasks of mechanistic architecture design (Poli et al., 2024), with the settings of its baseline.

`MAD` has them by name. Rows of recall are trained on every next token and scored, as in the paper's code, where a key
comes that was there before. Letters: P pairs of a row, K keys, U values.
"""

from __future__ import annotations

import functools

import numpy as np

from llmlab.config import config
from llmlab.data.synthetic.problem import Problem, Scored, mark, next_tokens, require_least


@config
class InContextRecall(Problem):
    """Pairs of a key and its value by a map that is random in each row; scored is the value of each key that was there
    before. The last pair's key always was. The last position has no target.

    noise: the share of pairs that are two random ids of `noise_vocab`, the last ids of `vocab`, instead. The first half
    of the other ids are keys.
    """

    vocab: int = 16
    length: int = 128
    noise: float = 0.0
    noise_vocab: int = 0
    scored: Scored = "all"

    def check(self):
        require_least(self, length=4, noise_vocab=0, vocab=4 + self.noise_vocab)
        if self.length % 2:
            raise ValueError(f"InContextRecall.length is {self.length}; take an even number")
        if not 0 <= self.noise < 1 or (self.noise > 0 and self.noise_vocab == 0):
            raise ValueError(
                f"InContextRecall.noise is {self.noise} and noise_vocab {self.noise_vocab}; "
                "take a share from 0 to below 1, and at least one id for noise above 0"
            )

    def draw(self, rng, split):
        ids, pairs = self.vocab - self.noise_vocab, self.length // 2
        keys, last = ids // 2, pairs - 1
        keys_P = rng.integers(0, keys, pairs)
        values_K = rng.integers(keys, ids, keys)
        noisy_P = rng.random(pairs) < self.noise
        noisy_P[rng.integers(0, last)] = noisy_P[-1] = False
        keys_P[-1] = rng.choice(np.unique(keys_P[:-1][~noisy_P[:-1]]))
        first_K = np.full(keys, pairs)
        np.minimum.at(first_K, keys_P[~noisy_P], np.flatnonzero(~noisy_P))
        again_P = ~noisy_P & (first_K[keys_P] < np.arange(pairs))
        row_P2 = np.stack([keys_P, values_K[keys_P]], axis=1)
        if noisy_P.any():
            row_P2[noisy_P] = rng.integers(ids, self.vocab, (noisy_P.sum(), 2))
        answers_L = np.stack([again_P, np.zeros(pairs, bool)], axis=1).reshape(-1)
        example = next_tokens(np.append(row_P2, 0), answers_L, self.scored, split)
        example["weights_L"][-1] = 0
        return example

    def levels(self):
        ids = self.vocab - self.noise_vocab
        return {"chance": 1 / (ids - ids // 2), "ceiling": 1.0}


@config
class FuzzyRecall(Problem):
    """In-context recall whose keys and values are motifs of 1 to `motif` different ids; keys of validation have all
    `motif`. Ids: keys, as many values or one more, and the last to pad the start of the row."""

    vocab: int = 16
    length: int = 128
    motif: int = 3
    scored: Scored = "all"

    def check(self):
        require_least(self, motif=1, vocab=2 * self.motif + 1, length=4 * self.motif)

    def draw(self, rng, split):
        keys, values, most = (self.vocab - 1) // 2, self.vocab // 2, self.length // 2
        # Ids in a random order, of which a motif takes the first.
        keys_PK = rng.random((most, keys)).argsort(axis=1).tolist()
        values_PU = (keys + rng.random((most, values)).argsort(axis=1)).tolist()
        sizes_P2 = rng.integers(1, self.motif + 1, (most, 2))
        if split != "train":
            sizes_P2[:, 0] = self.motif
        row, answers, known = [], [], {}
        for key, value, (size_key, size_value) in zip(keys_PK, values_PU, sizes_P2.tolist()):
            if len(row) + 4 * self.motif > self.length + 1:  # this pair and the last one must fit
                break
            extend(row, answers, known, tuple(key[:size_key]), value[:size_value])
        last = list(known)[rng.integers(len(known))]
        extend(row, answers, known, last, [])
        padding = self.length + 1 - len(row)
        row_T = np.array([self.vocab - 1] * padding + row)
        return next_tokens(row_T, np.array([False] * padding + answers)[1:], self.scored, split)

    def levels(self):
        return {"chance": 1 / (self.vocab // 2), "ceiling": 1.0}


def extend(row: list[int], answers: list[bool], known: dict, key: tuple[int, ...], value: list[int]) -> None:
    """Adds a key and its value to the row: the value that is known, or else the one given, known from then on."""
    again = key in known
    value = known.setdefault(key, value)
    row += [*key, *value]
    answers += [False] * len(key) + [again] * len(value)


@config
class BlankedCopying(Problem):
    """MAD's selective copying: `count` symbols with blanks (id vocab - 2) before each, a copy mark (id vocab - 1), then
    `count` blanks at which the symbols are to be said in order."""

    vocab: int = 16
    length: int = 256
    count: int = 16

    def check(self):
        require_least(self, vocab=4, count=1, length=2 * self.count + 1)

    def draw(self, rng, split):
        symbols, context = self.vocab - 2, self.length - self.count - 1
        # Each blank chooses the symbol before which it stands.
        before = np.bincount(rng.integers(0, self.count, context - self.count), minlength=self.count)
        tokens_L, targets_L = np.full(self.length, symbols, np.int32), np.zeros(self.length, np.int32)
        targets_L[-self.count :] = rng.integers(0, symbols, self.count)
        tokens_L[np.cumsum(before + 1) - 1] = targets_L[-self.count :]
        tokens_L[context] = self.vocab - 1
        weights_L = mark(slice(context + 1, None), self.length).astype(np.float32)
        return {"tokens_L": tokens_L, "targets_L": targets_L, "weights_L": weights_L}

    def levels(self):
        return {"chance": 1 / (self.vocab - 2), "ceiling": 1.0}


@config
class Compression(Problem):
    """Random symbols and a compression token (the last id). The target of a position is its own token, so the problem
    is for a model whose head reads the *last* position alone, and where it is to look: any other one just copies."""

    vocab: int = 16
    length: int = 32

    def check(self):
        require_least(self, vocab=3, length=2)

    def draw(self, rng, split):
        tokens_L = rng.integers(0, self.vocab - 1, self.length, np.int32)
        tokens_L[-1] = self.vocab - 1
        weights_L = mark(slice(-1), self.length).astype(np.float32)
        return {"tokens_L": tokens_L, "targets_L": tokens_L.copy(), "weights_L": weights_L}

    def levels(self):
        return {"chance": 1 / (self.vocab - 1), "ceiling": 1.0}


@config
class Memorization(Problem):
    """Keys, each followed by an insertion token (the last id) at which its value is to be said, by one map for all rows
    and both splits, a pure function of `seed`. The first half of the other ids are keys."""

    vocab: int = 256
    length: int = 32
    seed: int = 12345

    def check(self):
        require_least(self, vocab=4, length=2)
        if self.length % 2:
            raise ValueError(f"Memorization.length is {self.length}; take an even number")

    def draw(self, rng, split):
        values_K = values_of(self.vocab, self.seed)
        keys_P = rng.integers(0, len(values_K), self.length // 2)
        tokens_L, targets_L = np.full(self.length, self.vocab - 1, np.int32), np.zeros(self.length, np.int32)
        tokens_L[::2], targets_L[1::2] = keys_P, values_K[keys_P]
        weights_L = mark(slice(1, None, 2), self.length).astype(np.float32)
        return {"tokens_L": tokens_L, "targets_L": targets_L, "weights_L": weights_L}

    def levels(self):
        return {"chance": 1 / ((self.vocab - 1) // 2), "ceiling": 1.0}


@functools.lru_cache(maxsize=8)
def values_of(vocab: int, seed: int) -> np.ndarray:
    """The value of each key of `Memorization`, all different."""
    keys = (vocab - 1) // 2
    return np.random.default_rng(seed).permutation(np.arange(keys, vocab - 1))[:keys]


MAD = {
    "in-context recall": InContextRecall(),
    "noisy recall": InContextRecall(vocab=32, noise=0.2, noise_vocab=16),
    "fuzzy recall": FuzzyRecall(),
    "selective copying": BlankedCopying(),
    "compression": Compression(),
    "memorization": Memorization(),
}
