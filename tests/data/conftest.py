"""Sources made of texts in memory, so that no test depends on a file it did not write."""

from collections.abc import Iterator

import numpy as np
import pytest

from llmlab.config import config, digest
from llmlab.data.corpus import Corpus
from llmlab.data.sources import Source


@config
class Texts(Source):
    """Documents given as they are."""

    train: tuple[str, ...]
    validation: tuple[str, ...] = ("a document to validate on",)

    def read(self, split: str) -> Iterator[tuple[str, bytes]]:
        texts = self.train if split == "train" else self.validation
        return ((f"text {number}", text.encode()) for number, text in enumerate(texts))

    def fingerprint(self) -> str:
        return digest("texts", self.train, self.validation)


@pytest.fixture
def texts():
    return Texts


@pytest.fixture
def corpus_of():
    def make(*documents: list[int]) -> Corpus:
        """A corpus of hand-made documents; id i stands for i bytes."""
        offsets_P = np.cumsum([0, *map(len, documents)])
        return Corpus(np.concatenate(documents).astype(np.uint16), offsets_P, np.arange(100, dtype=np.int32), 0)

    return make
