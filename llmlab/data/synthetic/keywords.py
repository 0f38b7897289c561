"""Key words in noise: frames of features, as of audio, in which one of a few fixed patterns stands somewhere.

Letters: J, the numbers of a frame; P, the frames of a pattern.
"""

from __future__ import annotations

import functools

import numpy as np

from llmlab.config import config
from llmlab.data.synthetic.problem import Problem, require_least


@config
class Keywords(Problem):
    """Say which of `words` patterns a row of `length` noisy frames has; each is up to a quarter faster or slower.

    Gives features_LJ (float32, `features` numbers a frame) and a label in place of tokens. frames: of a pattern.
    noise: deviation of the noise; the patterns' is 1. seed: of the patterns, which are the same in both splits.
    """

    words: int = 8
    length: int = 64
    features: int = 16
    frames: int = 24
    noise: float = 1.0
    seed: int = 0

    vocab = 0

    def check(self):
        require_least(self, words=2, features=1, frames=2)
        if self.length < self.frames * 5 // 4:
            raise ValueError(f"Keywords.length is {self.length}; the slowest word has {self.frames * 5 // 4} frames")

    def draw(self, rng, split):
        label = int(rng.integers(self.words))
        size = int(rng.integers(self.frames * 4 // 5, self.frames * 5 // 4 + 1))
        word_PJ = stretch(patterns(self)[label], size)
        features_LJ = self.noise * rng.standard_normal((self.length, self.features), np.float32)
        first = int(rng.integers(self.length - size + 1))
        features_LJ[first : first + size] += word_PJ
        return {"features_LJ": features_LJ, "label": np.int32(label)}

    def levels(self):
        return {"chance": 1 / self.words, "ceiling": 1.0}


def stretch(pattern_PJ: np.ndarray, size: int) -> np.ndarray:
    """The pattern over another number of frames, by linear interpolation."""
    at = np.linspace(0, len(pattern_PJ) - 1, size)
    low = np.minimum(at.astype(int), len(pattern_PJ) - 2)
    share = (at - low)[:, None].astype(np.float32)
    return (1 - share) * pattern_PJ[low] + share * pattern_PJ[low + 1]


@functools.cache
def patterns(problem: Keywords) -> np.ndarray:
    """Smooth random paths of deviation 1, one for each word."""
    rng = np.random.default_rng(problem.seed)
    steps = rng.standard_normal((problem.words, problem.frames + 4, problem.features))
    smooth = sum(steps[:, i : i + problem.frames] for i in range(5)) / 5**0.5
    return smooth.astype(np.float32)
