"""Problems: the slot of synthetic tasks, whose examples are drawn for ever and whose answers are exact.

An example is a pure function of the random generator that it is drawn from. The caller seeds one for each (seed, split,
index), so that any example stands at any index and the order is the same in every arm of a study. Its arrays have
`length` positions in training and `test_length` in validation:

tokens_L, targets_L: int32; the target of a position is what is to be said there, from the tokens up to it and its own.
weights_L: float32; 0 where nothing is scored.
segments_L: int32, where rows have different sizes: 1, and 0 on the padding at their end (all 1 if it is not given).
source_M, source_segments_M: int32, the encoder's side of a sequence-to-sequence problem.

A new problem inherits `Problem` and defines `vocab`, `length`, `draw` and `levels`.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from llmlab.config import Config

Example = dict[str, np.ndarray]
# What is learned: the answers, or every next token. Validation always scores the answers.
Scored = Literal["answers", "all"]


class Problem(Config):
    """The slot of a problem. metric: what `levels` are levels of, "accuracy" or "loss" (nats a scored position)."""

    metric: ClassVar[Literal["accuracy", "loss"]] = "accuracy"

    @property
    def vocab(self) -> int:
        """Ids are 0 to vocab - 1."""
        raise TypeError(f"{type(self).__name__} must define vocab")

    @property
    def length(self) -> int:
        """Positions of a training example."""
        raise TypeError(f"{type(self).__name__} must define length")

    @property
    def test_length(self) -> int:
        """Positions of a validation example."""
        return self.length

    @property
    def source_length(self) -> int:
        """Positions of source_M; 0 where the problem has none."""
        return 0

    def draw(self, rng: np.random.Generator, split: str) -> Example:
        """One example of "train" or "validation", a pure function of the generator's state."""
        raise TypeError(f"{type(self).__name__} must define draw(rng, split)")

    def levels(self) -> dict[str, float]:
        """Values of the metric that are known. chance: a uniform guess among the possible answers. plateau: of a known
        short cut. ceiling: of the best predictor there can be."""
        raise TypeError(f"{type(self).__name__} must define levels()")

    def slices(self, example: Example) -> dict[str, np.ndarray]:
        """{name: bool_L}, groups of the answers of a validation example, to be reported apart; empty for most."""
        return {}


def next_tokens(row_T: np.ndarray, answers_L: np.ndarray, scored: Scored, split: str) -> Example:
    """The example in which each token of a row is the target of the position before it; T is L + 1.

    answers_L: bool, the positions whose targets are answers.
    """
    row_T = row_T.astype(np.int32)
    every = scored == "all" and split == "train"
    weights_L = np.ones(len(answers_L), np.float32) if every else answers_L.astype(np.float32)
    return {"tokens_L": row_T[:-1], "targets_L": row_T[1:].copy(), "weights_L": weights_L}


def mark(places, length: int) -> np.ndarray:
    """bool_L, True at the places."""
    marked_L = np.zeros(length, bool)
    marked_L[places] = True
    return marked_L


def by_powers(name: str, values_L: np.ndarray, scored_L: np.ndarray) -> dict[str, np.ndarray]:
    """Slices of the scored positions by a number of at least 1 that each has, from one power of 2 to the next."""
    powers_L = np.where(scored_L, np.frexp(values_L)[1] - 1, -1)
    present = (int(power) for power in np.unique(powers_L[scored_L]))
    return {f"{name} {2**power}-{2 ** (power + 1) - 1}": powers_L == power for power in present}


def require_least(cfg: Config, **least: float) -> None:
    """Raises ValueError for the first field that is below its least value."""
    for name, value in least.items():
        if getattr(cfg, name) < value:
            raise ValueError(f"{type(cfg).__name__}.{name} is {getattr(cfg, name)}; take {value} or more")
