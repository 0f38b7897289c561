"""Data that is drawn, not read: the examples of a synthetic problem."""

from __future__ import annotations

import dataclasses

import numpy as np

from llmlab.config import config, digest
from llmlab.data.encoder import Encoder
from llmlab.data.packing import Example
from llmlab.data.pipeline import Dataset, Supply, generator, unchanged
from llmlab.data.sources import SPLITS
from llmlab.data.synthetic.problem import Problem


@config
class Synthetic(Supply):
    """Examples of a problem. Those of validation are drawn apart from those of training, and are `tests` in number.

    examples: how many different ones training has, in epochs; None for a new one each time. seed: of both splits.
    """

    problem: Problem
    batch: int = 64
    examples: int | None = None
    tests: int = 1024
    seed: int = 0

    def check(self):
        for name in ("batch", "examples", "tests"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"Synthetic.{name} is {value}; it must be at least 1")

    length = property(lambda self: self.problem.length)
    vocab = property(lambda self: self.problem.vocab)

    def open(self, prepare=unchanged, cache=None, report=print):
        """Nothing is read or kept: `cache` and `report` are not used."""
        counts = {"train": self.examples, "validation": self.tests}
        drawn = {split: Drawn(self.problem, split, self.seed, counts[split]) for split in SPLITS}
        fingerprint = digest("synthetic", self.problem, self.examples, self.seed)
        return Dataset(self, numbers(self.vocab), drawn, fingerprint, prepare)

    def sample(self, random, vocab):
        return Drawn(self.problem, "train", self.seed, None)[int(random.integers(1 << 32))]


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Example `index` of a split is a pure function of (seed, split, index); count None: as many as one likes."""

    problem: Problem
    split: str
    seed: int
    count: int | None

    @property
    def endless(self) -> bool:
        return self.count is None

    def __len__(self):
        return 0 if self.count is None else self.count

    def __getitem__(self, index: int) -> Example:
        example = self.problem.draw(generator(self.seed, f"drawn {self.split}", index), self.split)
        length = len(example["tokens_L"] if "tokens_L" in example else example["features_LJ"])
        plain = {"segments_L": np.ones(length, np.int32), "positions_L": np.arange(length, dtype=np.int32)}
        return plain | example


def numbers(vocab: int) -> Encoder:
    """Ids as text: numbers with spaces between them.

    >>> numbers(20).encode("3 17").tolist(), numbers(20).decode([3, 17])
    ([3, 17], '3 17 ')
    """

    def encode(text: bytes) -> np.ndarray:
        words = text.decode().split()
        wrong = [word for word in words if not word.isdigit() or int(word) >= vocab]
        if wrong:
            raise ValueError(f"{wrong[0]!r} is no id; the ids of this problem are 0 to {vocab - 1}, as in '3 17'")
        return np.array([int(word) for word in words], np.int32)

    return Encoder(encode, tuple(f"{index} ".encode() for index in range(vocab)), end=None, fingerprint="numbers")
