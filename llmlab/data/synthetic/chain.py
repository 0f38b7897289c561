"""A first-order Markov language of known entropies, and the problem of filling its gaps. Letters: S states."""

from __future__ import annotations

import bisect
import functools
import math
from typing import NamedTuple

import numpy as np

from llmlab.config import Config, config
from llmlab.data.synthetic.problem import Problem, require_least


@config
class Chain(Config):
    """A Markov chain that starts in its stationary distribution. The rows of its transition matrix are drawn from a
    Dirichlet distribution of that concentration, a pure function of `seed`; a lower one is more predictable."""

    states: int = 8
    concentration: float = 0.3
    seed: int = 0

    def check(self):
        require_least(self, states=2, concentration=0.05)  # below that a probability may be 0 in floating point

    def walk(self, rng: np.random.Generator, size: int) -> np.ndarray:
        """int32, `size` states one after the other."""
        laws, states, state = laws_of(self), [], -1  # the last row of the sums is the start
        for draw in rng.random(size).tolist():
            state = bisect.bisect_right(laws.sums[state], draw)
            states.append(state)
        return np.array(states, np.int32)

    def entropies(self, most: int) -> np.ndarray:
        """H(x_t | x_(t-n)) in nats for n from 1 to `most`, after H(x_t) at index 0, which is that of n without end."""
        laws = laws_of(self)
        found, power_SS = [entropy(laws.stationary_S)], np.eye(self.states)
        for _ in range(most):
            power_SS = power_SS @ laws.transition_SS
            found.append(laws.stationary_S @ entropy(power_SS))
        return np.array(found)


class Laws(NamedTuple):
    """transition_SS: from row to column. sums: cumulated rows of it, and at the end of the stationary distribution."""

    transition_SS: np.ndarray
    stationary_S: np.ndarray
    sums: list[list[float]]


@functools.lru_cache(maxsize=8)
def laws_of(chain: Chain) -> Laws:
    size = chain.states
    transition_SS = np.random.default_rng(chain.seed).dirichlet(np.full(size, chain.concentration), size)
    balance = np.vstack([transition_SS.T - np.eye(size), np.ones(size)])
    stationary_S = np.linalg.lstsq(balance, np.eye(size + 1)[-1])[0]
    sums = np.vstack([transition_SS, stationary_S]).cumsum(axis=1)
    sums[:, -1] = 1.0  # whatever rounding made of it, no draw lies beyond
    return Laws(transition_SS, stationary_S, sums.tolist())


def entropy(p) -> np.ndarray:
    """Of distributions over the last axis, in nats."""
    return -(p * np.log(np.where(p > 0, p, 1))).sum(axis=-1)


@config
class MaskedMarkov(Problem):
    """The states of a chain, each hidden with probability `rate` under the id `states`; what is hidden is to be said.

    A model that sees both sides reaches the `ceiling`, one that sees only what was before, the level `causal`.
    """

    metric = "loss"
    chain: Chain = Chain()
    length: int = 64
    rate: float = 0.15

    def check(self):
        require_least(self, length=1)
        if not 0 < self.rate < 1:
            raise ValueError(f"MaskedMarkov.rate is {self.rate}; take a share between 0 and 1, such as 0.15")

    @property
    def vocab(self):
        return self.chain.states + 1

    def draw(self, rng, split):
        targets_L = self.chain.walk(rng, self.length)
        hidden_L = rng.random(self.length) < self.rate
        tokens_L = np.where(hidden_L, np.int32(self.chain.states), targets_L)
        return {"tokens_L": tokens_L, "targets_L": targets_L, "weights_L": hidden_L.astype(np.float32)}

    def levels(self):
        """Of a hidden position, on average over places and masks, exactly. plateau: from the frequencies alone;
        isolated: H(x_t | x_(t-1), x_(t+1)), between two visible neighbours; causal: from what was before."""
        one, two = self.chain.entropies(2)[1:].tolist()
        ceiling, causal = gap_losses(self.chain.entropies(self.length), self.length, self.rate)
        return {
            "chance": math.log(self.chain.states),
            "plateau": float(self.chain.entropies(0)[0]),
            "causal": causal,
            "ceiling": ceiling,
            "isolated": 2 * one - two,
        }


def gap_losses(entropies: np.ndarray, length: int, rate: float) -> tuple[float, float]:
    """The expected best loss of a hidden position that knows (the visible ones on both sides, those before it).

    entropies: h_n = H(x_t | x_(t-n)) = H(x_t | x_(t+n)) for n from 1 on, and H(x_t) at index 0.

    Only the nearest visible ones matter, at distances a before and b after, and H(x_t | x_(t-a), x_(t+b)) is
    h_a + h_b - h_(a+b) by the chain rule. It is h_a or h_b where one side shows nothing, and H(x_t) where both do not.
    A distance is n with probability (1 - rate) rate^(n-1), unless the row ends before.
    """
    free, steps = entropies[0], np.arange(1, length)
    near = (1 - rate) * rate ** (steps - 1.0)
    both = one_side = 0.0
    for a, near_a in zip(steps, near):
        h_a, b = entropies[a], np.arange(1, length - a)
        both += near_a * ((length - a - b) * near[b - 1] * (h_a + entropies[b] - entropies[a + b])).sum()
        # The position is a or more from the row's start, and all to its end is hidden.
        one_side += near_a * h_a * (rate ** np.arange(length - a)).sum()
    causal = ((length - steps) * near * entropies[1:length]).sum() + free * (rate ** np.arange(length)).sum()
    ceiling = both + 2 * one_side + length * rate ** (length - 1) * free
    return float(ceiling / length), float(causal / length)
