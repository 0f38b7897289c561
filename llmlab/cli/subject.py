"""What a command generates with: the model of a run or of a checkpoint, its tokenizer, and how it is asked."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from llmlab.data import Encoder
from llmlab.generate import Generator
from llmlab.tasks.task import Question


@dataclasses.dataclass(frozen=True)
class Subject:
    """ask: how ids of a prompt are given to the model. before, after: ids around a prompt. ends: ids that end a row.

    context: the positions that the model was made for, None where nothing says. chat: the chat template of a name.
    """

    generator: Generator
    encoder: Encoder
    name: str
    ask: Callable[[list[int]], Question]
    chat: Callable
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()
    context: int | None = None

    def ids(self, text: str) -> list[int]:
        """The ids of a prompt as the model is used to them."""
        return [*self.before, *self.encoder.encode(text).tolist(), *self.after]


def of_run(directory: Path, experiment, step: int | None = None) -> Subject:
    """The subject of a run's newest good checkpoint, or of that of a step."""
    from llmlab.interop.tokenizers import home_of
    from llmlab.train.restore import restore_model

    home = home_of(getattr(experiment.data, "tokenizer", None), directory)
    program, state, step = restore_model(directory, experiment, step)
    encoder = experiment.open_data(lambda text: print(text, file=sys.stderr)).encoder
    return Subject(
        Generator.of(program, state),
        encoder,
        f"step {step}",
        lambda ids: experiment.task.ask(ids, experiment.data.vocab),
        lambda name: find_chat(home, encoder, name),
        ends=() if encoder.end is None else (encoder.end,),
        context=program.model.longest or experiment.data.length,
    )


def of_checkpoint(directory: Path) -> Subject:
    """The subject of a published checkpoint."""
    from llmlab.pretrained import PretrainedPair, from_pretrained

    model = from_pretrained(directory)
    encoder, generator = model.tokenizer, model.generator
    specials, pair = encoder.specials, isinstance(model, PretrainedPair)

    def ask(ids: list[int]) -> Question:
        rows, sources = model.prompts(np.array([ids]), None)
        return Question(rows[0], sources and sources[0])

    return Subject(
        generator,
        encoder,
        directory.name,
        ask,
        lambda name: find_chat(model.place.directory, encoder, name),
        before=specials.before,
        after=specials.after if pair else (),  # a decoder's prompt goes on
        ends=tuple({*model.ends, *(() if encoder.end is None else (encoder.end,))}),
        context=model.context,
    )


def find_chat(directory: Path, encoder: Encoder, name: str):
    """The chat template of a name, of the file of this name, or the plain one, if that is the name."""
    from llmlab.interop.chat import PLAIN, Chat, compile_template, load_chat

    if name == "plain":
        return Chat(compile_template(PLAIN, "plain"), encoder, "the plain template")
    if Path(name).is_file():
        return Chat(compile_template(Path(name).read_text(encoding="utf-8"), name), encoder, name)
    return load_chat(directory, encoder, name)
