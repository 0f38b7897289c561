"""Texts with a class each, from lines of JSON: {"text": ..., "label": ...}."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path

import numpy as np

from llmlab.config import REQUIRED, config, digest
from llmlab.data.cache import cache_folder
from llmlab.data.encoder import Encoder
from llmlab.data.packing import Example
from llmlab.data.pipeline import Dataset, Supply, unchanged
from llmlab.data.sources import SPLITS, DataError, check_share, content_hash, read_file
from llmlab.data.tokenizers import Bytes, Tokenizer


@config
class Labelled(Supply):
    """path: a file of lines. labels: their names; a class is the place of its label. length: positions of an example;
    longer texts are cut.

    validation: the share of lines, chosen by a hash of their texts, that is held out; with `validation_path` all of
    `path` trains. The tokenizer puts its special ids around each text. seed: of the order.
    """

    path: str = REQUIRED
    labels: tuple[str, ...] = ("0", "1")
    validation: float = 0.1
    validation_path: str | None = None
    tokenizer: Tokenizer = Bytes()
    batch: int = 32
    length: int = 128
    seed: int = 0

    def check(self):
        check_share(self.validation, "Labelled.validation")
        if len(set(self.labels)) != len(self.labels) or len(self.labels) < 2:
            raise ValueError(f"Labelled.labels is {self.labels}; it is 2 or more different names")

    @property
    def vocab(self) -> int:
        return self.tokenizer.vocab

    @property
    def classes(self) -> int:
        return len(self.labels)

    def open(self, prepare=unchanged, cache=None, report=print):
        encoder = self.tokenizer.load(None, cache_folder(cache), report)
        lines = self.read()
        examples = {split: Rows.of(lines[split], encoder, self, split) for split in SPLITS}
        fingerprint = digest("labelled", lines, encoder.fingerprint, self.labels, self.length, self.seed)
        return Dataset(self, encoder, examples, fingerprint, prepare)

    def read(self) -> dict[str, list[tuple[str, str]]]:
        """{split: [(text, label)]}."""
        lines = self.lines(self.path)
        if self.validation_path is not None:
            return {"train": lines, "validation": self.lines(self.validation_path)}
        held = [int(content_hash(text.encode())[:8], 16) / 2**32 < self.validation for text, _ in lines]
        pick = lambda wanted: [line for line, out in zip(lines, held) if out == wanted]
        return {"train": pick(False), "validation": pick(True)}

    def lines(self, path: str) -> list[tuple[str, str]]:
        if path == REQUIRED:
            raise DataError('the path of the texts is not given; pass --data.path FILE of {"text", "label"} lines')
        file, found = Path(path).expanduser(), []
        for number, line in enumerate(read_file(file).splitlines(), 1):
            if not line.strip():
                continue
            try:
                one = json.loads(line)
                text, label = one["text"], str(one["label"])
            except (ValueError, TypeError, KeyError) as error:
                raise DataError(f"{file}, line {number}: no JSON with `text` and `label` ({error!r})") from error
            if label not in self.labels or not isinstance(text, str):
                raise DataError(
                    f"{file}, line {number}: the label {label!r} is not among {', '.join(self.labels)}; "
                    "set --data.labels"
                )
            found.append((text, label))
        return found

    def sample(self, random, vocab):
        real = int(random.integers(1, self.length + 1))
        row = Rows.row(random.integers(0, vocab, real), self.length)
        return {**row, "label": np.int32(random.integers(len(self.labels)))}

    def short(self, length):
        return dataclasses.replace(self, length=length)


@dataclasses.dataclass(frozen=True)
class Rows:
    """The examples of a split."""

    ids: tuple[np.ndarray, ...]
    labels: tuple[int, ...]
    length: int

    endless = False

    @classmethod
    def of(cls, lines: list[tuple[str, str]], encoder: Encoder, data: Labelled, split: str) -> Rows:
        """Encodes the lines of a split. Raises DataError where there are none."""
        if not lines:
            raise DataError(f"there is no text in the {split} split of {data.path}; give more lines, or another share")
        room = data.length - len(encoder.specials.before) - len(encoder.specials.after)
        if room < 1:
            raise DataError(f"Labelled.length is {data.length}, which has no place for text; make it longer")
        rows = [encoder.encode(text) for text, _ in lines]
        long = sum(len(row) > room for row in rows)
        if long:
            message = f"{long} of {len(rows)} texts of the {split} split are longer than {room} tokens and are cut"
            warnings.warn(f"{message}; --data.length says how long they may be", RuntimeWarning, stacklevel=3)
        ids = tuple(encoder.frame(row[:room]) for row in rows)
        return cls(ids, tuple(data.labels.index(label) for _, label in lines), data.length)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index: int) -> Example:
        return {**self.row(self.ids[index], self.length), "label": np.int32(self.labels[index])}

    @staticmethod
    def row(ids: np.ndarray, length: int) -> Example:
        """tokens, segments and positions of one text, padded to `length`."""
        return {
            "tokens_L": np.pad(ids, (0, length - len(ids))).astype(np.int32),
            "segments_L": (np.arange(length) < len(ids)).astype(np.int32),
            "positions_L": np.arange(length, dtype=np.int32),
        }
