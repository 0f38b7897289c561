"""A small model's parameters, as the tests of optimizers need them: a stack, experts, an embedding, gains."""

import numpy as np
import pytest

from llmlab.nn.module import Spec
from llmlab.optim.optimizers import nest

SHAPES = {  # dotted path: (letters, shape, contracted letters)
    "embed.table": ("VD", (32, 16), ""),
    "layers.q.w": ("NDHK", (2, 16, 4, 8), "D"),
    "layers.out.w": ("NHKD", (2, 4, 8, 16), "HK"),
    "layers.moe.up.w": ("NEDF", (2, 4, 16, 24), "D"),
    "layers.norm.scale": ("ND", (2, 16), ""),
    "square.w": ("DF", (16, 16), "D"),
    "head.bias": ("V", (32,), ""),
}


@pytest.fixture
def specs():
    """{path: Spec} of the model."""
    paths = {name: tuple(name.split(".")) for name in SHAPES}
    return {
        paths[name]: Spec(paths[name], shape, np.float32, letters, inputs)
        for name, (letters, shape, inputs) in SHAPES.items()
    }


@pytest.fixture
def tree(specs):
    """tree(seed): normal values for every parameter."""

    def make(seed: int) -> dict:
        random = np.random.default_rng(seed)
        return nest({path: random.normal(size=spec.shape).astype(np.float32) for path, spec in specs.items()})

    return make
