"""experiments/plugin_mixer.py with its own mixer, of a size and on a text for tests."""

import dataclasses
from pathlib import Path

from llmlab.config import REQUIRED
from llmlab.data import Bytes, Data, TextFiles
from llmlab.models import Block, Decoder
from llmlab.nn import Embedding, TiedHead, repeat
from llmlab.optim import AdamW, Constant
from llmlab.train import Experiment, Train
from llmlab.train.files import import_file

plugin = import_file(Path(__file__).parents[2] / "experiments" / "plugin_mixer.py")


def config() -> Experiment:
    shipped = plugin.config()
    block = shipped.model.stack.segments[0].pattern[0]
    assert isinstance(block.mixer, plugin.MinGru)
    small = Block(mixer=plugin.MinGru(channels=32), ffn=dataclasses.replace(block.ffn, hidden=32))
    return dataclasses.replace(
        shipped,
        model=Decoder(vocab=257, width=32, embed=Embedding(multiple=8), stack=repeat(small, 2), head=TiedHead()),
        data=Data(source=TextFiles(path=REQUIRED), tokenizer=Bytes(), batch=8, length=16),
        optim=AdamW(peak=1e-2, schedule=Constant()),
        train=Train(steps=4, log_every=1, prompt="ab"),
    )
