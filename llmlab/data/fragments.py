"""Fragments of source code with the package that they come from: a question that every kind of model can be asked.

The packages are folders of the running Python's standard library, those with the most text. A training example is a
window at a random place of a random package's files, each package as likely; the validation examples are windows of
files that are held out, as many of each package. Letters: T tokens of a package.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from llmlab.config import config, digest
from llmlab.data.cache import cache_folder
from llmlab.data.packing import Example
from llmlab.data.pipeline import Dataset, Supply, generator, unchanged
from llmlab.data.sources import SPLITS, DataError, Source, Stdlib, check_share, content_hash, held_out
from llmlab.data.tokenizers import Encoder, SentencePiece, Tokenizer


@config
class Packages(Source):
    """The files of the `count` packages of the standard library that have the most text, as one corpus."""

    count: int = 16
    validation: float = 0.25

    def check(self):
        check_share(self.validation, "Packages.validation")
        if self.count < 2:
            raise ValueError(f"Packages.count is {self.count}; a choice needs 2 or more")

    def read(self, split):
        for files in self.chosen().values():
            yield from self.part(files, split)

    def part(self, files: list[tuple[str, bytes]], split: str) -> Iterator[tuple[str, bytes]]:
        """The files of one package that belong to a split."""
        held = held_out([name for name, _ in files], self.validation)
        return ((name, text) for name, text in files if (name in held) == (split == "validation"))

    def chosen(self) -> dict[str, list[tuple[str, bytes]]]:
        """{package: its files}, in the order of the alphabet; one with a single file has nothing to hold out."""
        found: dict[str, list[tuple[str, bytes]]] = {}
        for name, text in Stdlib().files():
            package, slash, _ = name.partition("/")
            if slash and text:
                found.setdefault(package, []).append((name, text))
        size = {package: sum(len(text) for _, text in files) for package, files in found.items() if len(files) > 2}
        if len(size) < self.count:
            raise DataError(f"the standard library has {len(size)} packages of several files, not {self.count}")
        return {package: found[package] for package in sorted(sorted(size, key=size.get)[-self.count :])}

    def fingerprint(self):
        return digest("packages", self.count, self.validation, Stdlib().fingerprint())


@config
class Fragments(Supply):
    """Windows of `length` tokens and the number of their package. tests: windows of validation, of all packages.

    labels: the packages; seed: of the places that training draws.
    """

    labels: Packages = Packages()
    tokenizer: Tokenizer = SentencePiece(vocab=1024)
    batch: int = 32
    length: int = 64
    tests: int = 1024
    seed: int = 0

    def check(self):
        for name in ("batch", "length", "tests"):
            if getattr(self, name) < 1:
                raise ValueError(f"Fragments.{name} is {getattr(self, name)}; it must be at least 1")

    @property
    def vocab(self) -> int:
        return self.tokenizer.vocab

    def open(self, prepare=unchanged, cache=None, report=print):
        """Trains the tokenizer where the cache has not got it yet, and encodes the files."""
        encoder = self.tokenizer.load(self.labels, cache_folder(cache), report)
        examples = {split: Windows(self, split, self.encoded(encoder, split)) for split in SPLITS}
        content = [content_hash(tokens_T.tobytes()) for split in SPLITS for tokens_T in examples[split].packages]
        fingerprint = digest(content, encoder.fingerprint, self.length, self.tests, self.seed)
        return Dataset(self, encoder, examples, fingerprint, prepare)

    def encoded(self, encoder: Encoder, split: str) -> tuple[np.ndarray, ...]:
        """The tokens of each package's files of a split, one file after the other."""
        found = encode(self.labels, encoder, split)
        short = min(found, key=len)
        if len(short) < self.length:
            raise DataError(f"a package has {len(short)} tokens in its {split} files, fewer than length {self.length}")
        return found

    def short(self, length):
        return dataclasses.replace(self, length=length)

    def sample(self, random, vocab):
        tokens_L = random.integers(0, vocab, self.length, np.int32)
        return example(tokens_L, int(random.integers(self.labels.count)))


ENCODED: dict[tuple, tuple[np.ndarray, ...]] = {}  # of this process, which opens the data once for each seed


def encode(labels: Packages, encoder: Encoder, split: str) -> tuple[np.ndarray, ...]:
    """tokens_T of each package."""
    key = (labels, encoder.fingerprint, split)
    if key not in ENCODED:
        texts = ((text for _, text in labels.part(files, split)) for files in labels.chosen().values())
        ENCODED[key] = tuple(np.concatenate([encoder.encode(text) for text in each]) for each in texts)
    return ENCODED[key]


@dataclasses.dataclass(frozen=True)
class Windows:
    """Example `index` of a split, a pure function of (seed, split, index)."""

    data: Fragments
    split: str
    packages: tuple[np.ndarray, ...]

    @property
    def endless(self) -> bool:
        return self.split == "train"

    def __len__(self):
        return 0 if self.endless else self.data.tests

    def __getitem__(self, index: int) -> Example:
        if self.endless:
            random = generator(self.data.seed, "fragments", index)
            label = int(random.integers(len(self.packages)))
            first = int(random.integers(len(self.packages[label]) - self.data.length + 1))
        else:  # evenly over the packages and their text: the same windows whatever the seed
            label, number = index % len(self.packages), index // len(self.packages)
            each = -(-self.data.tests // len(self.packages))
            first = (len(self.packages[label]) - self.data.length) * number // max(1, each - 1)
        return example(self.packages[label][first : first + self.data.length], label)


def example(tokens_L: np.ndarray, label: int) -> Example:
    ones_L = np.ones(len(tokens_L), np.int32)
    positions_L = np.arange(len(tokens_L), dtype=np.int32)
    return {"tokens_L": tokens_L, "segments_L": ones_L, "positions_L": positions_L, "label": np.int32(label)}


def package_names(data: Fragments) -> list[str]:
    """The packages by their number."""
    return list(data.labels.chosen())
