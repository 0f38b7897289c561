"""Sequence to sequence: reversal, sorting and addition, for an encoder-decoder or in one row for a decoder.

Letters: T tokens of a question, A of its answer without the end. Ids: `symbols` symbols, then `start` and `end`.
"""

from __future__ import annotations

import zlib
from typing import Literal

import numpy as np

from llmlab.config import config
from llmlab.data.synthetic.problem import Problem, Scored, mark, require_least


@config
class Transduction(Problem):
    """The base. layout: "pair" gives the question to the encoder (source_M) and `start` and the answer to the decoder;
    "row" gives question, `start` and answer to a decoder. The answer and the `end` after it are scored.

    scored: "all" is for the row, where the question's tokens may be targets too.
    """

    layout: Literal["pair", "row"] = "pair"
    scored: Scored = "answers"

    @property
    def symbols(self) -> int:
        """Ids of questions and answers: 0 to symbols - 1."""
        raise TypeError(f"{type(self).__name__} must define symbols")

    @property
    def classes(self) -> int:
        """How many ids can stand in an answer, `end` included."""
        raise TypeError(f"{type(self).__name__} must define classes")

    @property
    def most(self) -> tuple[int, int]:
        """The largest sizes of a question and of its answer."""
        raise TypeError(f"{type(self).__name__} must define most")

    def solve(self, rng: np.random.Generator, split: str) -> tuple[np.ndarray, np.ndarray]:
        """(a random question, its answer)."""
        raise TypeError(f"{type(self).__name__} must define solve(rng, split)")

    def check(self):
        if self.layout == "pair" and self.scored == "all":
            raise ValueError(
                f"{type(self).__name__}.scored is 'all' and layout 'pair'; take 'answers', or layout='row'"
            )

    @property
    def vocab(self):
        return self.symbols + 2

    @property
    def length(self):
        question, answer = self.most
        return answer + 1 + (question if self.layout == "row" else 0)

    @property
    def source_length(self):
        return self.most[0] if self.layout == "pair" else 0

    def draw(self, rng, split):
        question_T, answer_A = self.solve(rng, split)
        size, start, end = len(question_T), self.symbols, self.symbols + 1
        row = np.concatenate([question_T, [start], answer_A, [end]]).astype(np.int32)
        if self.layout == "row":
            scored_L = np.arange(len(row) - 1) >= (size if self.scored == "answers" or split != "train" else 0)
            return padded(row, scored_L, self.length)
        example = padded(row[size:], np.ones(len(answer_A) + 1, bool), self.length)
        source_M = np.zeros(self.source_length, np.int32)
        source_M[:size] = question_T
        return example | {"source_M": source_M, "source_segments_M": mark(slice(size), len(source_M)).astype(np.int32)}

    def levels(self):
        return {"chance": 1 / self.classes, "ceiling": 1.0}


def padded(row_T: np.ndarray, scored_T: np.ndarray, length: int) -> dict[str, np.ndarray]:
    """The example in which each token of a row is the target of the one before it, in `length` positions."""
    size = len(row_T) - 1
    tokens_L, targets_L, segments_L = np.zeros((3, length), np.int32)
    weights_L = np.zeros(length, np.float32)
    tokens_L[:size], targets_L[:size], segments_L[:size] = row_T[:-1], row_T[1:], 1
    weights_L[:size] = scored_T
    return {"tokens_L": tokens_L, "targets_L": targets_L, "weights_L": weights_L, "segments_L": segments_L}


@config
class Rewriting(Transduction):
    """The base of questions that are random symbols. sizes: the least and the largest size, each size as likely."""

    symbols: int = 26
    sizes: tuple[int, int] = (24, 24)

    def check(self):
        super().check()
        require_least(self, symbols=2)
        if not 1 <= self.sizes[0] <= self.sizes[1]:
            raise ValueError(f"{type(self).__name__}.sizes is {self.sizes}; take 1 <= least <= most")

    @property
    def classes(self):
        return self.symbols + 1

    @property
    def most(self):
        return self.sizes[1], self.sizes[1]

    def rewrite(self, question_T: np.ndarray) -> np.ndarray:
        """The answer to a question."""
        raise TypeError(f"{type(self).__name__} must define rewrite(question_T)")

    def solve(self, rng, split):
        question_T = rng.integers(0, self.symbols, rng.integers(self.sizes[0], self.sizes[1] + 1))
        return question_T, self.rewrite(question_T)


@config
class Reversal(Rewriting):
    """The symbols from the last to the first."""

    def rewrite(self, question_T):
        return question_T[::-1]


@config
class Sorting(Rewriting):
    """The symbols in their order."""

    def rewrite(self, question_T):
        return np.sort(question_T)


@config
class Addition(Transduction):
    """The sum of two decimal numbers of `digits` digits, zeros before them included: 0 to 9, id 10 is "+".

    order: of the digits of all three numbers. The sum has digits + 1. One pair of numbers in ten is for validation
    alone, by a hash of the pair, so that a sum that is scored was never learned.
    """

    symbols = classes = 11
    digits: int = 3
    order: Literal["greatest first", "least first"] = "greatest first"

    def check(self):
        super().check()
        if not 1 <= self.digits <= 9:
            raise ValueError(f"Addition.digits is {self.digits}; take 1 to 9")

    @property
    def most(self):
        return 2 * self.digits + 1, self.digits + 1

    def solve(self, rng, split):
        while True:
            first, second = rng.integers(0, 10**self.digits, 2).tolist()
            if held_out(first, second) == (split != "train"):
                break
        first_T, second_T = (self._digits(value, self.digits) for value in (first, second))
        return np.array([*first_T, 10, *second_T]), np.array(self._digits(first + second, self.digits + 1))

    def _digits(self, value: int, count: int) -> list[int]:
        digits = [int(digit) for digit in f"{value:0{count}d}"]
        return digits if self.order == "greatest first" else digits[::-1]


def held_out(first: int, second: int) -> bool:
    """True for one pair of numbers in ten, by its hash."""
    return zlib.crc32(b"%d+%d" % (first, second)) % 10 == 0
