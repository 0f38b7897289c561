"""Formal languages that calculate: modulo a small number, and in binary (Delétang et al., 2023; see language.py).

Letters: T tokens of the string, W bits of a number.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from typing import ClassVar

import numpy as np

from llmlab.config import config
from llmlab.data.synthetic.language import Language
from llmlab.data.synthetic.problem import require_least

OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


@config
class Modular(Language):
    """The base of calculations modulo `modulus`. Ids are the digits, then `marks` in their order."""

    modulus: int = 5
    marks: ClassVar[str]

    def check(self):
        super().check()
        require_least(self, modulus=2)

    @property
    def symbols(self):
        return self.modulus + len(self.marks)

    @property
    def classes(self):
        return self.modulus

    def ids(self, text: list[str | int]) -> list[int]:
        """Ids of digits, given as numbers, and of marks."""
        return [self.modulus + self.marks.index(part) if isinstance(part, str) else part for part in text]


@config
class ModularArithmetic(Modular):
    """The value of digits with +, - and * between them, products first, modulo `modulus`. Sizes are odd. Regular."""

    marks = "+-*"

    def solve(self, rng, size):
        digits = rng.integers(0, self.modulus, (size + 1) // 2).tolist()
        marks = [self.marks[i] for i in rng.integers(0, 3, len(digits) - 1).tolist()]
        total, term = 0, digits[0]
        for mark, digit in zip(marks, digits[1:]):
            if mark == "*":
                term = term * digit % self.modulus
            else:
                total, term = total + term, digit if mark == "+" else -digit
        text = [part for pair in zip(marks, digits[1:]) for part in pair]
        return self.ids([digits[0], *text]), [(total + term) % self.modulus]


@config
class BracketArithmetic(Modular):
    """The value of an expression in brackets with +, - and *, modulo `modulus`. Deterministic context-free."""

    marks = "+-*()"

    def solve(self, rng, size):
        text, value = expression(uniform(rng, size), size, self.modulus, "+-*")
        return self.ids(text), [value]


@config
class SolveEquation(Modular):
    """Which digit is x in an expression in brackets with + and - that equals a given value, modulo `modulus`?
    There is one answer, as nothing is multiplied. Deterministic context-free."""

    marks = "+-()x="

    def solve(self, rng, size):
        size = max(size, 3) - 2
        text, value = expression(uniform(rng, size), size, self.modulus, "+-")
        digits = [place for place, part in enumerate(text) if not isinstance(part, str)]
        # The first digit from a random place on, around the end: not quite each as likely, as in the paper's code.
        hidden = digits[np.searchsorted(digits, rng.integers(0, size)) % len(digits)]
        answer, text[hidden] = text[hidden], "x"
        return self.ids([*text, "=", value]), [answer]


def uniform(rng: np.random.Generator, size: int) -> Iterator[float]:
    """As many numbers as an expression of that size takes at most."""
    return iter(rng.random(size).tolist())


def expression(draws: Iterator[float], size: int, modulus: int, marks: str) -> tuple[list[str | int], int]:
    """(a random expression of exactly the size, its value): d, -d, (d) or (-d) up to a size of 4, else (left op right)
    with each division of the remaining size and each operation as likely."""
    if size < 5:
        digit = int(next(draws) * modulus)
        text, value = ([digit], digit) if size % 2 else (["-", digit], -digit % modulus)
        return (["(", *text, ")"] if size > 2 else text), value
    size_left = 1 + int(next(draws) * (size - 4))
    mark = marks[int(next(draws) * len(marks))]
    left, value_left = expression(draws, size_left, modulus, marks)
    right, value_right = expression(draws, size - 3 - size_left, modulus, marks)
    return ["(", *left, mark, *right, ")"], OPERATIONS[mark](value_left, value_right) % modulus


@config
class Binary(Language):
    """The base of operations on two numbers in binary, least bit first, with a 2 between them. Neither is 0. The answer
    has no superfluous zeros and an end (id 3)."""

    symbols = 4
    classes = 3
    operation: ClassVar[Callable[[int, int], int]]

    def blanks(self, size):
        return size

    def solve(self, rng, size):
        size = max(size, 3)
        first_W = positive(rng, int(rng.integers(1, size - 1)))
        second_W = positive(rng, size - 1 - len(first_W))
        value = type(self).operation(number(first_W), number(second_W))
        return np.concatenate([first_W, [2], second_W]), [*bits(value), 3]


@config
class BinaryAddition(Binary):
    """The sum of two numbers. Context-sensitive."""

    operation = operator.add

    def blanks(self, size):
        return size + 1


@config
class BinaryMultiplication(Binary):
    """The product of two numbers. Context-sensitive."""

    operation = operator.mul


@config
class BinarySquareRoot(Language):
    """The whole part of the square root of a number above 0, in half as many bits; both have the greatest bit first.
    Context-sensitive."""

    symbols = classes = 2

    def blanks(self, size):
        return (size + 1) // 2

    def solve(self, rng, size):
        string_W = positive(rng, size)
        root = bits(math.isqrt(number(string_W)))
        return string_W[::-1], [0] * (self.blanks(size) - len(root)) + root[::-1]


def positive(rng: np.random.Generator, size: int) -> np.ndarray:
    """Random bits of a number above 0, each such number as likely."""
    while True:
        bits_W = rng.integers(0, 2, size)
        if bits_W.any():
            return bits_W


def number(bits_W: np.ndarray) -> int:
    """The number whose bits are given, least first."""
    return int.from_bytes(np.packbits(bits_W.astype(np.uint8), bitorder="little").tobytes(), "little")


def bits(value: int) -> list[int]:
    """The bits of a number, least first, without superfluous zeros."""
    return [int(bit) for bit in f"{value:b}"[::-1]]
