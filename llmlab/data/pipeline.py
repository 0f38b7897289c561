"""The data of an experiment: source, tokenizer and packing become batches of fixed shape.

Batches are plain dicts of numpy arrays: tokens_BL, targets_BL, segments_BL, positions_BL, bytes_BL (int32) and
weights_BL (float32); packing.py says what they mean. The order of training examples is a pure function of (seed, global
example index): neither processes nor workers nor a restart change it, and that index is all that a checkpoint keeps.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from llmlab.config import Config, config, digest
from llmlab.data.cache import cache_folder
from llmlab.data.corpus import Corpus, open_corpus
from llmlab.data.packing import Chunks, Example, Examples, Packing, empty_example
from llmlab.data.sources import SPLITS, DataError, Source, Stdlib
from llmlab.data.tokenizers import Encoder, SentencePiece, Tokenizer

Batch = dict[str, np.ndarray]


@config
class Data(Config):
    """What is learned from, and in which batches.

    batch: examples of a global batch, over all processes. length: tokens of an example. seed: of the order.
    workers: processes that prepare batches ahead; 0 prepares them in this one, which is enough for most models.
    """

    source: Source = Stdlib()
    tokenizer: Tokenizer = SentencePiece()
    packing: Packing = Chunks()
    batch: int = 32
    length: int = 256
    seed: int = 0
    workers: int = 0

    def check(self):
        for name, least in (("batch", 1), ("length", 1), ("seed", 0), ("workers", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"Data.{name} is {getattr(self, name)}; it must be at least {least}")

    def open(self, cache: str | Path | None = None, report: Callable[[str], None] = print) -> Dataset:
        """Trains the tokenizer and encodes both splits where the cache has not got them yet.

        cache: a folder; None is $LLMLAB_CACHE or ~/.cache/llmlab. report: is told in words what takes time.
        """
        folder = cache_folder(cache)
        encoder = self.tokenizer.load(self.source, folder, report)
        fingerprint = self.source.fingerprint()
        corpora = {split: open_corpus(self.source, fingerprint, encoder, split, folder, report) for split in SPLITS}
        return Dataset(self, encoder, corpora, fingerprint)


class Dataset:
    """Opened data. Raises DataError when the training split does not fill one batch."""

    def __init__(self, data: Data, encoder: Encoder, corpora: dict[str, Corpus], source_fingerprint: str):
        self.data, self.encoder, self.corpora = data, encoder, corpora
        self.examples = self._pack(data.packing, "train")
        self.windows = self._pack(Chunks(), "validation")
        self._source_fingerprint = source_fingerprint
        if len(self.examples) < data.batch and not data.packing.endless:
            raise DataError(
                f"the train split gives {len(self.examples)} examples of length {data.length}, fewer than one batch of "
                f"{data.batch}; lower --data.batch or --data.length, or give more text"
            )

    def _pack(self, packing: Packing, split: str) -> Examples:
        try:
            return packing.build(self.corpora[split], self.data.length, self.data.seed)
        except DataError as error:
            raise DataError(f"the {split} split: {error}") from error

    def fingerprint(self) -> str:
        """Of everything that decides which example stands at which index; the same on machines with the same text."""
        data = self.data
        return digest(self._source_fingerprint, self.encoder.fingerprint, data.packing, data.length, data.seed)

    def sizes(self) -> dict[str, dict[str, float]]:
        """Documents, tokens, bytes, bytes per token and examples (of an epoch) of each split."""
        examples = {"train": self.examples, "validation": self.windows}
        return {split: self.corpora[split].sizes() | {"examples": len(examples[split])} for split in SPLITS}

    def train(self, start: int = 0, rows: Sequence[int] | None = None) -> Batches:
        """Batches from the global example index `start` on, for ever; `rows` of each global batch, all by default.

        Each epoch is shuffled anew. Close the iterator, or use it in a `with`, so that its workers end.
        """
        import grain

        rows = self.rows(rows)
        assemble = Assemble(self.examples, order_of(self.examples, self.data), start, self.data.batch, rows)
        batches = grain.MapDataset.range(sys.maxsize // self.data.batch).map(assemble)
        batches = batches.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        if self.data.workers:
            from absl import flags

            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # Grain reads flags, which nobody parses outside absl's own main
            options = grain.MultiprocessingOptions(num_workers=self.data.workers, per_worker_buffer_size=2)
            batches = batches.mp_prefetch(options, worker_init_fn=follow_parent)
        return Batches(iter(batches), start, self.data.batch)

    def rows(self, given: Sequence[int] | None) -> Sequence[int]:
        """Rows of the global batch; all for None. Raises ValueError for one that the batch does not have."""
        given = range(self.data.batch) if given is None else given
        outside = [row for row in given if not 0 <= row < self.data.batch]
        if outside:
            raise ValueError(f"a batch of {self.data.batch} has no row {outside[0]}; rows count from 0")
        return given

    def validation(self, limit: int | None = None, rows: Sequence[int] | None = None) -> Iterator[Batch]:
        """The validation split once, in order, in windows that do not overlap, whatever packing trains.

        The last batch is filled up with rows of weight 0. limit: at most so many batches. rows: as of `train`.
        """
        batch, rows = self.data.batch, self.rows(rows)
        padding = empty_example(self.data.length)
        for first in range(0, len(self.windows), batch)[:limit]:
            numbers = (first + row for row in rows)
            yield stack([self.windows[i] if i < len(self.windows) else padding for i in numbers])


class Batches:
    """Iterator over training batches. next_index: the global example index after those handed out, its whole state."""

    def __init__(self, batches: Iterator[Batch], start: int, batch: int):
        self.next_index = start
        self._batch = batch
        self._held = [batches]
        # Also when nobody closes it: workers that are alive at exit print tracebacks and leak shared memory.
        self._finalize = weakref.finalize(self, release, self._held)

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Batch:
        if not self._held:
            raise ValueError("this iterator over batches is closed; call train(start) for another")
        batch = next(self._held[0])
        self.next_index += self._batch
        # Copied, since what workers send lies in shared memory that they reuse.
        return {name: np.array(array) for name, array in batch.items()}

    def close(self) -> None:
        """Ends the worker processes."""
        self._finalize()

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *_):
        self.close()


def release(held: list) -> None:
    """Closes the iterator and drops it, because its own finaliser fails late in the exit of Python."""
    held.pop().close()


@dataclasses.dataclass(frozen=True)
class Assemble:
    """Number of a batch since `start` -> the batch's rows that belong to this process."""

    examples: Examples
    order: Sequence[int]
    start: int
    batch: int
    rows: Sequence[int]

    def __call__(self, number: int) -> Batch:
        first = self.start + number * self.batch
        return stack([self.examples[self.order[first + row]] for row in self.rows])


def order_of(examples: Examples, data: Data) -> Sequence[int]:
    """The example at each global index: shuffled anew in each epoch, or itself where every index is a new draw."""
    import grain

    if data.packing.endless:
        return range(sys.maxsize)
    # Grain numbers the epochs by adding to the seed: digested, neighbouring seeds do not share their epochs.
    seed = int(digest("order", data.seed), 16) % 2**32
    return grain.MapDataset.range(len(examples)).shuffle(seed=seed).repeat()


def stack(examples: list[Example]) -> Batch:
    names = examples[0]
    return {name.removesuffix("_L") + "_BL": np.stack([example[name] for example in examples]) for name in names}


def follow_parent(worker: int, workers: int) -> None:
    """Ends this worker process soon after its parent, which may have been killed and could not close it."""
    parent = os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
