"""Tables of an operation modulo a prime, half of them to learn from (Power et al., 2022, "Grokking")."""

from __future__ import annotations

import functools
from typing import Literal

import numpy as np

from llmlab.config import config
from llmlab.data.synthetic.problem import Problem

OPERATIONS = {
    "x+y": lambda x, y, p: (x + y) % p,
    "x-y": lambda x, y, p: (x - y) % p,
    "x*y": lambda x, y, p: x * y % p,
    "x/y": lambda x, y, p: x * pow(y, -1, p) % p,
    "x^2+y^2": lambda x, y, p: (x * x + y * y) % p,
    "x^2+xy+y^2": lambda x, y, p: (x * x + x * y + y * y) % p,
    "x^3+xy": lambda x, y, p: (x**3 + x * y) % p,
}


@config
class ModularTable(Problem):
    """The row x, operation, y, = and then x∘y modulo `modulus`, a prime, to be said at the last position.

    Ids: the numbers, the operation, "=". share: of all pairs (x, y), y above 0 in "x/y", that are for training; which
    ones is a pure function of `seed`, and validation draws from the others alone.
    """

    modulus: int = 97
    operation: Literal["x+y", "x-y", "x*y", "x/y", "x^2+y^2", "x^2+xy+y^2", "x^3+xy"] = "x+y"
    share: float = 0.5
    seed: int = 0
    length = 4

    def check(self):
        if self.modulus < 3 or any(self.modulus % divisor == 0 for divisor in range(2, int(self.modulus**0.5) + 1)):
            raise ValueError(f"ModularTable.modulus is {self.modulus}; take a prime from 3 on")
        if not 0 < self.share < 1:
            raise ValueError(f"ModularTable.share is {self.share}; take a share between 0 and 1, such as 0.5")

    @property
    def vocab(self):
        return self.modulus + 2

    def draw(self, rng, split):
        table = entries(self)[split == "train"]
        x, y, answer = table[rng.integers(len(table))]
        tokens_L = np.array([x, self.modulus, y, self.modulus + 1], np.int32)
        targets_L, weights_L = np.zeros(4, np.int32), np.zeros(4, np.float32)
        targets_L[-1], weights_L[-1] = answer, 1
        return {"tokens_L": tokens_L, "targets_L": targets_L, "weights_L": weights_L}

    def levels(self):
        return {"chance": 1 / self.modulus, "ceiling": 1.0}


@functools.lru_cache(maxsize=8)
def entries(table: ModularTable) -> tuple[np.ndarray, np.ndarray]:
    """(validation, training) rows of x, y and x∘y."""
    p, operation = table.modulus, OPERATIONS[table.operation]
    rows = [(x, y, operation(x, y, p)) for x in range(p) for y in range(table.operation == "x/y", p)]
    mixed = np.random.default_rng(table.seed).permutation(np.array(rows, np.int32))
    count = round(table.share * len(mixed))
    return mixed[count:], mixed[:count]
