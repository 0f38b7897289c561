"""Formal languages: a string, then blanks at which its answer is read off (Delétang et al., 2023, "Neural networks and
the Chomsky hierarchy"). Trained on short strings, scored on long ones.

The answer never stands among the tokens: one blank for each of its positions, all the same id. Where the size of the
answer depends on more than the size of the string, it ends with an id of its own, and blanks after that are not scored.
formal.py and arithmetic.py have the languages. Letters: T tokens of the string, A positions of the answer.
"""

from __future__ import annotations

import numpy as np

from llmlab.config import config
from llmlab.data.synthetic.problem import Problem, by_powers


@config
class Language(Problem):
    """The base of the languages. train_sizes, test_sizes: least and largest size of the strings of either split, each
    size as likely; a size that has no string is that of the nearest that has one.

    The weights of an answer sum to 1, so that an accuracy is the mean over strings, and over sizes.
    """

    train_sizes: tuple[int, int] = (1, 40)
    test_sizes: tuple[int, int] = (41, 500)

    @property
    def symbols(self) -> int:
        """Ids of strings and answers: 0 to symbols - 1."""
        raise TypeError(f"{type(self).__name__} must define symbols")

    @property
    def classes(self) -> int:
        """How many symbols can stand in an answer."""
        raise TypeError(f"{type(self).__name__} must define classes")

    def solve(self, rng: np.random.Generator, size: int) -> tuple:
        """(a random string of at most the size, or of the least size there is; its answer), both sequences of ids."""
        raise TypeError(f"{type(self).__name__} must define solve(rng, size)")

    def blanks(self, size: int) -> int:
        """Blanks after a string of that size."""
        return 1

    def check(self):
        for name in ("train_sizes", "test_sizes"):
            least, most = getattr(self, name)
            if not 1 <= least <= most:
                raise ValueError(f"{type(self).__name__}.{name} is {(least, most)}; take 1 <= least <= most")

    @property
    def vocab(self):
        return self.symbols + 1

    @property
    def length(self):
        return self._positions(self.train_sizes)

    @property
    def test_length(self):
        return self._positions(self.test_sizes)

    def _positions(self, sizes: tuple[int, int]) -> int:
        most = max(sizes[1], 3)  # no language has a least size above 3
        return most + self.blanks(most)

    def draw(self, rng, split):
        least, most = self.train_sizes if split == "train" else self.test_sizes
        string_T, answer_A = self.solve(rng, int(rng.integers(least, most + 1)))
        start = len(string_T)
        end, stop = start + len(answer_A), start + self.blanks(start)
        length = self.length if split == "train" else self.test_length
        tokens_L, targets_L, segments_L = np.zeros((3, length), np.int32)
        weights_L = np.zeros(length, np.float32)
        tokens_L[:start], tokens_L[start:stop] = string_T, self.symbols
        targets_L[start:end], weights_L[start:end] = answer_A, 1 / len(answer_A)
        segments_L[:stop] = 1
        return {"tokens_L": tokens_L, "targets_L": targets_L, "weights_L": weights_L, "segments_L": segments_L}

    def levels(self):
        return {"chance": 1 / self.classes, "ceiling": 1.0}

    def slices(self, example):
        """By the size of the string."""
        scored_L = example["weights_L"] > 0
        return by_powers("size", np.full(len(scored_L), int(np.argmax(scored_L))), scored_L)
