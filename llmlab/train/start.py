"""Where a run begins: with parameters drawn anew, or with those of a checkpoint.

An experiment that begins with a checkpoint writes `Loaded()` where the checkpoint's model goes, alone or under a head
of its own, and `Published()` for its tokenizer. `fill` puts values in their places before anything is built, so that
what a run saves is whole.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from llmlab.config import REQUIRED, Config, config, digest, nodes, swap
from llmlab.data import SentencePiece, Tokenizer
from llmlab.data.sources import edges_hash
from llmlab.interop.checkpoint import open_checkpoint
from llmlab.interop.tokenizers import Published
from llmlab.models.decoder import Model
from llmlab.presets.family import trunk_of


class Start(Config):
    """The slot of where a run begins."""

    def fill(self, experiment):
        """The experiment with what it leaves open filled in."""
        return experiment

    def load(self, program) -> dict:
        """What of the state's params and stats is not drawn anew, on the program's devices."""
        return {}


@config
class Fresh(Start):
    """All parameters are drawn anew, as the parts of the model say."""


@config
class Pretrained(Start):
    """With a checkpoint directory or a run. What its model has not, such as a new head, is drawn anew.

    content: names what the checkpoint holds. It is filled in, so that a run and a study see when that has changed.
    """

    path: str = REQUIRED
    content: str = ""

    def fill(self, experiment):
        if self.content:
            return experiment
        if self.path == REQUIRED:
            raise ValueError("the checkpoint to begin with is not given; pass --start.path DIR")
        model, tokenizer = self.origin()
        whole = isinstance(experiment.model, Loaded)
        open_slots = [cfg for _, cfg in nodes(experiment.data) if isinstance(cfg, Published) and not cfg.path]
        if open_slots and tokenizer is None:
            raise ValueError(
                f"the tokenizer of {self.path} was trained on its own text and is no file; give the experiment one, "
                "such as SentencePiece(model=FILE, vocab=...)"
            )
        return dataclasses.replace(
            experiment,
            start=dataclasses.replace(self, content=content_of(Path(self.path))),
            model=model if whole else swap(experiment.model, Loaded, lambda _: trunk_of(model)),
            data=swap(experiment.data, Published, lambda given: given if given.path else tokenizer),
        )

    def origin(self) -> tuple[Model, Tokenizer | None]:
        """(model, tokenizer) of the checkpoint; None for a tokenizer that is trained on a run's own text."""
        if not is_run(self.path):
            model = open_checkpoint(self.path).model
            return model, Published(path=self.path, vocab=model.vocab)
        from llmlab.train.run import load

        run = load(Path(self.path))
        tokenizer = getattr(run.data, "tokenizer", None)
        return run.model, None if isinstance(tokenizer, SentencePiece) and tokenizer.model is None else tokenizer

    def load(self, program):
        model, experiment = program.experiment.model, program.experiment
        if is_run(self.path):
            from llmlab.train.restore import restore_model
            from llmlab.train.run import load

            run = load(Path(self.path))
            _, found, _ = restore_model(Path(self.path), run, mesh=program.mesh)
            if model == run.model:
                return found
            inner = lambda tree: tree if trunk_of(run.model) is run.model else tree.get("trunk", {})
            return {part: {"trunk": inner(tree)} for part, tree in found.items() if inner(tree)}
        checkpoint = open_checkpoint(self.path)
        if model == checkpoint.model:
            return {"params": checkpoint.params(program.mesh, experiment.rules)}
        bare = dataclasses.replace(checkpoint, model=trunk_of(checkpoint.model))
        return {"params": {"trunk": bare.params(program.mesh, experiment.rules)}}


@config
class Loaded(Model):
    """In the place of a model: that of the checkpoint the experiment begins with; under a head, without its own."""

    @property
    def vocab(self):
        raise ValueError(
            "the model is that of a checkpoint; pass --start.path DIR, or in Python take experiment.filled()"
        )


def is_run(path: str) -> bool:
    return (Path(path) / "run.json").is_file()


def content_of(place: Path) -> str:
    """Names what a place holds, by names, sizes and ends of its files: a header says where every tensor lies."""
    kept = ("config.json", "run.json", "tokenizer*", "*.safetensors", "*.gguf", "*.model", "vocab*", "checkpoints/*")
    files = [place] if place.is_file() else sorted({file for pattern in kept for file in place.glob(pattern)})
    told = [(file.relative_to(place).as_posix(), edges_hash(file) if file.is_file() else "") for file in files]
    return digest("checkpoint", told, [file.stat().st_size for file in files if file.is_file()])


def overlay(old: dict, new: dict, path: str = "state") -> dict:
    """`old` with the leaves that `new` has. Raises KeyError for one that `old` lacks: it would be lost."""
    unknown = new.keys() - old.keys()
    if unknown:
        raise KeyError(f"{path}: new values are given for {sorted(unknown)} and the model has {sorted(old)}")
    inner = {name: overlay(old[name], new[name], f"{path}.{name}") for name in new if isinstance(old[name], dict)}
    return {**old, **new, **inner}
