"""Tokenizers of published systems, told apart by what their files hold: Llama 3 gives its ranks SentencePiece's name.

tokenizer.json            any tokenizer of the `tokenizers` package
*.model                   SentencePiece (byte pairs or Unigram), or ranks
*.tiktoken, tekken.json   ranks
vocab.json, merges.txt    byte pairs of GPT-2, BART, GPT-1
vocab.txt                 WordPiece of BERT
"""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
from pathlib import Path

from llmlab.config import config
from llmlab.data.encoder import Encoder, Mark
from llmlab.data.sources import DataError, read_file
from llmlab.data.tokenizers import NOTHING, Tokenizer
from llmlab.data.tokenizers import encoder_of as sentencepiece_encoder
from llmlab.interop.gguf import read_gguf
from llmlab.interop.layouts import find_gguf
from llmlab.interop.ranks import read_ranks, read_tekken
from llmlab.interop.specials import Settings, add_marks, read_settings
from llmlab.interop.tokenizer_json import read_tokenizer_json, read_vocab_json, read_vocab_txt

FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "*.model", "*.tiktoken", "tekken.json", "vocab.json")
FILES += ("vocab.txt",)
# What goes along when a model is saved for other tools.
BESIDE = (
    "tokenizer.json", "tokenizer.model", "spiece.model", "vocab.txt", "vocab.json", "merges.txt", "tekken.json",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "generation_config.json",
)  # fmt: skip
RANK = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")


@config
class Published(Tokenizer):
    """The tokenizer of a published system.

    path: a checkpoint's directory, or a file of one. vocab: of the model; ids that the tokenizer has not stand for no
    text. Without both it is that of the checkpoint which the experiment begins with. pattern: the split of a rank file
    whose family is not known.
    """

    path: str = ""
    vocab: int = 0
    pattern: str | None = None

    def check(self):
        if self.path and self.vocab < 1:
            raise ValueError(f"Published.vocab is {self.vocab} with a path; it is the vocabulary of the model")

    def load(self, source=None, cache=None, report=print):
        if not self.path:
            raise DataError("the path of the tokenizer is not given; pass --data.tokenizer.path DIR (or a file)")
        return load_tokenizer(self.path, self.vocab, self.pattern)


def load_tokenizer(place: str | Path, vocab: int | None = None, pattern: str | None = None) -> Encoder:
    """The tokenizer of a checkpoint's directory, of a GGUF file, or of a file of its own.

    vocab: ids of the model, None for those of the tokenizer. pattern: the split of a rank file of no known family.
    Raises DataError when there is no tokenizer, or a damaged one, or one with more ids than the model.
    """
    place = Path(place).expanduser()
    whole = find_gguf(place) if place.is_dir() or place.suffix == ".gguf" else None
    if whole is not None:
        from llmlab.interop.unpack import unpack

        with tempfile.TemporaryDirectory() as folder:
            unpack(read_gguf(whole), Path(folder))
            return load_tokenizer(folder, vocab)
    file = find_file(place)
    encoder = read(file, read_settings(file.parent), pattern)
    if vocab is None:
        return encoder
    if encoder.vocab > vocab:
        raise DataError(f"{file} has {encoder.vocab} ids and the model {vocab}; they do not belong together")
    return dataclasses.replace(encoder, pieces=encoder.pieces + (b"",) * (vocab - encoder.vocab))


def home_of(tokenizer: Tokenizer | None, directory: Path) -> Path:
    """Where the settings of a run's tokenizer lie: with the published tokenizer, if it is one, or in `directory`."""
    place = Path(tokenizer.path) if isinstance(tokenizer, Published) and tokenizer.path else directory
    return place.parent if place.is_file() else place


def find_file(place: Path) -> Path:
    """The file of a tokenizer: the place itself, or the first of FILES in a directory."""
    if place.is_file():
        return place
    if not place.is_dir():
        raise DataError(f"there is no tokenizer {str(place)!r}; give a checkpoint's directory or a tokenizer's file")
    found = [file for name in FILES for file in sorted(place.glob(name))]
    if not found:
        raise DataError(f"{place} has no tokenizer; looked for {', '.join(FILES)}")
    return found[0]


def read(file: Path, settings: Settings, pattern: str | None) -> Encoder:
    """The encoder of a file, whatever its name is."""
    content = read_file(file)
    if content[:1] == b"{":
        return read_json_file(content, file, settings)
    if RANK.match(content):
        return read_ranks(content, file, settings, pattern)
    if content[:1] == b"\n":  # the first field of the protobuf message that SentencePiece writes
        return read_sentencepiece(content, file, settings)
    if re.search(rb"^\[UNK\]\r?$", content, re.MULTILINE):
        return read_vocab_txt(content, file, settings)
    raise DataError(f"{file} is no tokenizer that is known: no JSON, no ranks, no SentencePiece model, no WordPiece")


def read_json_file(content: bytes, file: Path, settings: Settings) -> Encoder:
    try:
        data = json.loads(content)
    except ValueError as error:
        raise DataError(f"{file} is damaged: it begins as JSON and is none ({error})") from error
    if isinstance(data.get("model"), dict):
        return read_tokenizer_json(content, file, settings)
    if isinstance(data.get("vocab"), list):
        return read_tekken(content, file, settings)
    if data and all(isinstance(index, int) for index in data.values()):
        return read_vocab_json(content, file, settings)
    raise DataError(f"{file} is JSON, and no tokenizer.json, tekken.json or vocab.json; it has {', '.join(data)[:200]}")


def read_sentencepiece(content: bytes, file: Path, settings: Settings) -> Encoder:
    """The encoder of a SentencePiece model as the published systems use it: LLaMA's begin with bos, T5's end in eos."""
    controls = {mark.text for mark in settings.marks if mark.control}
    encoder = sentencepiece_encoder(content, str(file), controls)
    encoder = dataclasses.replace(encoder, encode_text=dataclasses.replace(encoder.encode_text, bytes_of_space=NOTHING))
    marks = settings.marks
    if settings.kind == "T5Tokenizer" and not marks:
        count, size = settings.raw.get("extra_ids", 100), encoder.vocab
        marks = tuple(Mark(f"<extra_id_{number}>", size + count - 1 - number) for number in range(count))
    native = lambda mark: encoder.pieces[mark.id : mark.id + 1] == (mark.text.encode(),)
    encoder = add_marks(encoder, [mark for mark in marks if mark.control or not native(mark)])
    bos, eos = encoder.specials.id("bos"), encoder.specials.id("eos")
    around = {"before": (bos,)} if bos is not None else {"after": () if eos is None else (eos,)}
    return settings.finish(dataclasses.replace(encoder, specials=dataclasses.replace(encoder.specials, **around)))
