"""A study that trains in seconds, in a directory of its own."""

import random

import pytest

from llmlab.config import put
from llmlab.data import Bytes, Data, TextFiles
from llmlab.ffn import Mlp
from llmlab.mixers import Attention
from llmlab.models import Block, Decoder
from llmlab.nn import TiedHead, repeat
from llmlab.optim import AdamW, Constant
from llmlab.study.cells import Cells
from llmlab.study.group import Place
from llmlab.study.matching import Every, match
from llmlab.study.record import Row
from llmlab.study.runner import Worker
from llmlab.study.study import Study, one_at_a_time
from llmlab.train import Experiment, Train

FFN = "model.stack.segments.0.pattern.0.ffn"


@pytest.fixture(scope="session")
def row() -> Row:
    """A row of a replicate that is done."""
    return Row(
        study="s",
        arm="base",
        phase="replicate",
        replicate=1,
        trial={"optim.peak": 1e-3},
        seeds={"init": 1, "data": 2, "dropout": 3},
        key="0123",
        state="done",
        metrics={"loss": 1.5},
        curve=[{"step": 4, "tokens": 64, "flops": 1e6, "seconds": 0.5, "loss": 1.5}],
        axes={"parameters": 10, "active": 10, "flops": 1e6, "tokens": 64, "state_bytes": None, "seconds": 0.5},
        task="CausalLM",
        metric="loss",
        tokenizer="Bytes",
        evaluation={"fingerprint": "f", "tokens": 64.0, "bytes": 64.0},
        code="c",
        hardware="cpu",
    )


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """The path of a text of 40 made-up words."""
    choose = random.Random(0)
    words = ["".join(choose.choices("abcdefgh", k=choose.randint(2, 6))) for _ in range(40)]
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(" ".join(choose.choices(words, k=400)))
    return path


@pytest.fixture(scope="session")
def tiny(text):
    """tiny(**settings) -> Study: three arms, the twin among them, of two seeds and a few steps."""

    def make(changes=(), **settings) -> Study:
        block = Block(mixer=Attention(heads=2), ffn=Mlp(hidden=16))
        base = Experiment(
            model=Decoder(vocab=257, width=8, stack=repeat(block, 1), head=TiedHead()),
            data=Data(source=TextFiles(path=str(text)), tokenizer=Bytes(), batch=4, length=8),
            optim=AdamW(peak=1e-2, schedule=Constant()),
            train=Train(steps=6, precision="float32", eval_every=3, eval_batches=2),
        )
        for path, value in dict(changes).items():
            base = put(base, path, value)
        arms = one_at_a_time(base, {"silu": {f"{FFN}.activation": "silu"}})
        plain = {"question": "?", "base": base, "arms": arms, "name": "tiny", "seeds": 2, "free": (Every(),)}
        return Study(**plain | settings)

    return make


@pytest.fixture(scope="session")
def make_worker():
    """make_worker(study, directory) -> Worker over it, with the code "code"."""

    def make(study: Study, directory, code="code") -> Worker:
        experiments = match(study).experiments
        cells = Cells(study, experiments, {name: "text" for name in experiments}, code)
        return Worker(Place(directory, None, code), cells, say=lambda _: None, beat=0.2, patience=2.0)

    return make


@pytest.fixture
def worker(make_worker, tmp_path):
    """The same, in the test's own directory where none is given."""
    return lambda study, directory=tmp_path, **settings: make_worker(study, directory, **settings)


@pytest.fixture(scope="module", autouse=True)
def compile_once(caches):
    """Every test here trains."""
