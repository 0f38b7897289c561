"""Packing: how a corpus of documents becomes examples of one length.

An example is a pure function of its index: tokens_L, targets_L (the next token), weights_L (1.0, but 0.0 where the
target lies in another document or there is only padding), segments_L (1, 2, ... for the documents of the row, 0 for
padding), positions_L (from 0 in each segment) and bytes_L (bytes of text of each target, 0 where the weight is).
A new packing inherits `Packing` and defines `build`. Letters: T tokens of the corpus, P documents, R rows planned.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from typing import Protocol

import numpy as np

from llmlab.config import Config, config
from llmlab.data.corpus import Corpus
from llmlab.data.sources import DataError

Example = dict[str, np.ndarray]


class Examples(Protocol):
    endless: bool  # True where any index is a new draw, so that there are no epochs to shuffle

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


class Packing(Config):
    """The slot of a packing."""

    def build(self, corpus: Corpus, length: int, seed: int) -> Examples:
        """Examples of `length` tokens. Raises DataError when the corpus gives none."""
        raise TypeError(f"{type(self).__name__} must define build(corpus, length, seed)")


@config
class Chunks(Packing):
    """Documents one after the other, cut every `length` tokens: windows overlap by one token, so that every token but
    the corpus' first is a target exactly once. The last window is padded. A document that began in an earlier window
    starts at position 0 in this one."""

    def build(self, corpus, length, seed):
        return ChunkExamples(corpus, length)


class ChunkExamples:
    endless = False

    def __init__(self, corpus: Corpus, length: int):
        require_tokens(corpus, 2, "an example")
        self.corpus, self.length = corpus, length

    def __len__(self):
        return -(-(len(self.corpus.tokens_T) - 1) // self.length)

    def __getitem__(self, index):
        return window(self.corpus, index * self.length, self.length)


@config
class RandomWindows(Packing):
    """A window at a random place of the corpus, each place as likely, for ever and with replacement (nanoGPT)."""

    def build(self, corpus, length, seed):
        return RandomExamples(corpus, length, seed)


class RandomExamples:
    endless = True

    def __init__(self, corpus: Corpus, length: int, seed: int):
        require_tokens(corpus, length + 1, f"a window of length {length}")
        self.corpus, self.length, self.seed = corpus, length, seed

    def __len__(self):
        """How many windows hold as many tokens as the corpus; any index from 0 on is good."""
        return (len(self.corpus.tokens_T) - 1) // self.length

    def __getitem__(self, index):
        draw = hashlib.blake2b(f"{self.seed} {index}".encode(), digest_size=8).digest()
        places = len(self.corpus.tokens_T) - self.length
        return window(self.corpus, int.from_bytes(draw, "little") * places >> 64, self.length)


@config
class Planned(Packing):
    """Whole documents packed into rows by best fit, largest first, planned ahead; longer ones are cut every `length`
    tokens. Every token but the first of its document is a target exactly once, and no position is spent on a document's
    last token, which has nothing to predict."""

    def build(self, corpus, length, seed):
        return PlannedExamples(corpus, length)


class PlannedExamples:
    endless = False

    def __init__(self, corpus: Corpus, length: int):
        starts_P, sizes_P = cut_documents(np.diff(corpus.offsets_P) - 1, corpus.offsets_P[:-1], length)
        if not len(sizes_P):
            raise DataError("no document of the corpus has two tokens, so there is nothing to predict")
        rows_P = best_fit(sizes_P, length)
        order_P = np.argsort(rows_P, kind="stable")
        self.corpus, self.length = corpus, length
        self.starts_P, self.sizes_P = starts_P[order_P], sizes_P[order_P]
        self.first_R = np.searchsorted(rows_P[order_P], np.arange(rows_P.max() + 2))

    def __len__(self):
        return len(self.first_R) - 1

    def __getitem__(self, index):
        first, last = self.first_R[index : index + 2].tolist()
        example, at = empty_example(self.length), 0
        for segment, piece in enumerate(range(first, last), 1):
            start, size = int(self.starts_P[piece]), int(self.sizes_P[piece])
            ids = self.corpus.tokens_T[start : start + size + 1]
            place = slice(at, at + size)
            example["tokens_L"][place], example["targets_L"][place] = ids[:-1], ids[1:]
            example["segments_L"][place] = segment
            example["positions_L"][place] = np.arange(size)
            at += size
        example["weights_L"][:at] = 1
        example["bytes_L"][:at] = self.corpus.bytes_V[example["targets_L"][:at]]
        return example


def require_tokens(corpus: Corpus, least: int, what: str) -> None:
    if len(corpus.tokens_T) < least:
        raise DataError(
            f"the corpus has {len(corpus.tokens_T)} tokens and {what} needs {least}; "
            "give more text or lower --data.length"
        )


def empty_example(length: int) -> Example:
    """An example that is all padding."""
    names = ("tokens_L", "targets_L", "segments_L", "positions_L", "bytes_L")
    return {name: np.zeros(length, np.int32) for name in names} | {"weights_L": np.zeros(length, np.float32)}


def window(corpus: Corpus, start: int, length: int) -> Example:
    """The example whose first token is number `start` of the corpus, padded where the corpus ends."""
    stop = min(start + length + 1, len(corpus.tokens_T))
    count = stop - start - 1  # targets
    ids = corpus.tokens_T[start:stop].astype(np.int32)
    low, high = np.searchsorted(corpus.offsets_P, (start, stop - 1), side="right")
    begins = corpus.offsets_P[low:high] - start  # where in the window further documents begin: 1 to count
    example = empty_example(length)
    example["tokens_L"][:count], example["targets_L"][:count] = ids[:-1], ids[1:]
    example["weights_L"][:count] = 1
    example["bytes_L"][:count] = corpus.bytes_V[ids[1:]]
    example["segments_L"][:count] = 1
    example["positions_L"][:count] = np.arange(count)
    if len(begins):
        example["weights_L"][begins - 1] = 0
        example["bytes_L"][begins - 1] = 0
        begins = begins[begins < count]
        first_L = np.zeros(count, np.int32)  # where the document of each token begins
        first_L[begins] = begins
        example["positions_L"][:count] -= np.maximum.accumulate(first_L)
        example["segments_L"][:count] += np.cumsum(first_L > 0, dtype=np.int32)
    return example


def cut_documents(sizes_P: np.ndarray, starts_P: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(starts, sizes) of the pieces of at most `length` targets; documents without a target give none."""
    counts_P = -(-sizes_P // length)
    document = np.repeat(np.arange(len(sizes_P)), counts_P)
    number = np.arange(len(document)) - np.repeat(np.cumsum(counts_P) - counts_P, counts_P)  # piece of its document
    before = number * length
    return starts_P[document] + before, np.minimum(sizes_P[document] - before, length)


def best_fit(sizes_P: np.ndarray, length: int) -> np.ndarray:
    """The row of each piece: largest first, into the row with the least space that suffices (Johnson 1973).

    All pieces of one size are placed at once, so the cost is that of the distinct sizes, not of the pieces.
    """
    rows_P = np.empty(len(sizes_P), np.int64)
    opened, rows = defaultdict(list), 0  # rows with space left, in arrays by that space
    order_P = np.argsort(-sizes_P, kind="stable")
    for pieces in np.split(order_P, np.flatnonzero(np.diff(sizes_P[order_P])) + 1):
        size = int(sizes_P[pieces[0]])
        for space in [*sorted(space for space in opened if space >= size), length]:
            each = space // size
            wanted = -(-len(pieces) // each)
            if space in opened:
                found = np.concatenate(opened.pop(space))
                taken, rest = found[:wanted], found[wanted:]
                if len(rest):
                    opened[space].append(rest)
            else:
                taken = np.arange(rows, rows + wanted)
                rows += wanted
            placed = min(len(pieces), len(taken) * each)
            rows_P[pieces[:placed]] = taken[np.arange(placed) // each]
            pieces = pieces[placed:]
            last = placed - (len(taken) - 1) * each  # the last row taken may have room for more of them
            for filled, left in ((taken[:-1], space - each * size), (taken[-1:], space - last * size)):
                if len(filled) and left:
                    opened[left].append(filled)
            if not len(pieces):
                break
    return rows_P
