"""Formal languages on strings: regular ones, a stack, and rearrangements (Delétang et al., 2023; see language.py).

Letters: T tokens of the string.
"""

from __future__ import annotations

import numpy as np

from llmlab.config import config
from llmlab.data.synthetic.language import Language
from llmlab.data.synthetic.problem import require_least


@config
class Parity(Language):
    """Is the number of 1s odd? Regular."""

    symbols = classes = 2

    def solve(self, rng, size):
        string_T = rng.integers(0, 2, size)
        return string_T, [string_T.sum() % 2]


@config
class EvenPairs(Language):
    """Is the number of 01s and 10s odd? That is, do the ends differ? Regular."""

    symbols = classes = 2

    def solve(self, rng, size):
        string_T = rng.integers(0, 2, size)
        return string_T, [(string_T[1:] != string_T[:-1]).sum() % 2]


@config
class CycleNavigation(Language):
    """Where does a walk end on a circle, after steps back (0), none (1) and forward (2) from place 0? Regular."""

    cycle: int = 5

    def check(self):
        super().check()
        require_least(self, cycle=2)

    @property
    def symbols(self):
        return max(3, self.cycle)

    @property
    def classes(self):
        return self.cycle

    def solve(self, rng, size):
        string_T = rng.integers(0, 3, size)
        return string_T, [(string_T.sum() - size) % self.cycle]


@config
class StackManipulation(Language):
    """A stack of bits from its bottom, then actions: 2 pops (nothing from an empty stack), 3 pushes 0, 4 pushes 1. The
    answer is the last stack from its top, and an end (id 5). Deterministic context-free."""

    symbols = 6
    classes = 3

    def blanks(self, size):
        return size + 1

    def solve(self, rng, size):
        depth = int(rng.integers(1, max(2, size)))
        string_T = np.concatenate([rng.integers(0, 2, depth), rng.integers(2, 5, size - depth)])
        stack = string_T[:depth].tolist()
        for action in string_T[depth:].tolist():
            if action > 2:
                stack.append(action - 3)
            elif stack:
                stack.pop()
        return string_T, [*stack[::-1], 5]


@config
class MissingDuplicate(Language):
    """A string of bits twice, one bit hidden by a 2: which was it? A 3 fills up an odd size. Context-sensitive."""

    symbols = 4
    classes = 2

    def solve(self, rng, size):
        half = max(1, size // 2)
        string_T = np.full(max(size, 2), 3)
        string_T[:half] = string_T[half : 2 * half] = rng.integers(0, 2, half)
        hidden = rng.integers(0, 2 * half)
        answer = string_T[hidden]
        string_T[hidden] = 2
        return string_T, [answer]


@config
class Rearrangement(Language):
    """The base of languages whose answer has the symbols of the string in another order, out of an `alphabet`."""

    alphabet: int = 2

    def check(self):
        super().check()
        require_least(self, alphabet=2)

    @property
    def symbols(self):
        return self.alphabet

    @property
    def classes(self):
        return self.alphabet

    def blanks(self, size):
        return size

    def rearrange(self, string_T: np.ndarray) -> np.ndarray:
        """The answer to a string."""
        raise TypeError(f"{type(self).__name__} must define rearrange(string_T)")

    def solve(self, rng, size):
        string_T = rng.integers(0, self.alphabet, size)
        return string_T, self.rearrange(string_T)


@config
class Reverse(Rearrangement):
    """The string from its end to its start. Deterministic context-free."""

    def rearrange(self, string_T):
        return string_T[::-1]


@config
class OddsFirst(Rearrangement):
    """The first, third, fifth ... symbol of the string, then the second, fourth, sixth ... Context-sensitive."""

    def rearrange(self, string_T):
        return np.concatenate([string_T[::2], string_T[1::2]])


@config
class BucketSort(Rearrangement):
    """The symbols of the string in their order. Context-sensitive."""

    alphabet: int = 5

    def rearrange(self, string_T):
        return np.sort(string_T)


@config
class Duplicate(Rearrangement):
    """The string twice. Context-sensitive."""

    def blanks(self, size):
        return 2 * size

    def rearrange(self, string_T):
        return np.tile(string_T, 2)
