"""A tiny experiment on a text made here, and what compares two runs of it."""

import json
import random

import pytest

from llmlab.config import put
from llmlab.data import Bytes, Data, TextFiles
from llmlab.ffn import Mlp
from llmlab.mixers import Attention
from llmlab.models import Block, Decoder
from llmlab.nn import Embedding, TiedHead, repeat
from llmlab.optim import AdamW, Constant
from llmlab.train import Experiment, Train

TIMES = ("tokens_per_second", "mfu", "seconds_per_step", "data_share")


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """The path of a text of 40 made-up words."""
    choose = random.Random(0)
    words = ["".join(choose.choices("abcdefgh", k=choose.randint(2, 6))) for _ in range(40)]
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(" ".join(choose.choices(words, k=1500)))
    return path


@pytest.fixture(scope="session")
def tiny(text):
    """tiny({dotted path: value}) -> Experiment: every size is divided by 8, so that any rule applies."""

    def make(changes=(), **settings):
        block = Block(mixer=Attention(heads=8), ffn=Mlp(hidden=32))
        experiment = Experiment(
            model=Decoder(
                vocab=257,
                width=32,
                embed=Embedding(multiple=8),
                stack=repeat(block, 2),
                head=TiedHead(),
            ),
            data=Data(source=TextFiles(path=str(text)), tokenizer=Bytes(), batch=8, length=16),
            optim=AdamW(peak=1e-2, schedule=Constant(warmup=2)),
            train=Train(steps=6, log_every=1, precision="float32", **settings),
        )
        for path, value in dict(changes).items():
            experiment = put(experiment, path, value)
        return experiment

    return make


@pytest.fixture(scope="session")
def logged():
    """logged(directory) -> the lines of metrics.jsonl without what depends on the clock."""

    def read(directory):
        lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
        return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]

    return read
