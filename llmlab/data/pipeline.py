"""The data of an experiment: source, tokenizer and packing become batches of fixed shape.

Batches are plain dicts of numpy arrays whose names end in their letters: tokens_BL, targets_BL, segments_BL,
positions_BL, bytes_BL (int32) and weights_BL (float32), unless the task makes others of them; packing.py says what they
mean. The order of training examples, and what is drawn for each, are pure functions of (seed, global example index):
neither processes nor workers nor a restart change them, and that index is all that a checkpoint keeps.
"""

from __future__ import annotations

import dataclasses
import functools
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
from llmlab.data.encoder import Encoder
from llmlab.data.packing import Chunks, Example, Examples, Packing
from llmlab.data.sources import SPLITS, DataError, Source, Stdlib
from llmlab.data.tokenizers import SentencePiece, Tokenizer

Batch = dict[str, np.ndarray]


Prepare = Callable[[Example, np.random.Generator, tuple[bytes, ...]], Example]


def unchanged(example: Example, random: np.random.Generator, pieces: tuple[bytes, ...]) -> Example:
    """The example as it is; a task that makes something else of it gives another function (`Task.prepare`)."""
    return example


class Supply(Config):
    """The slot of an experiment's data. It has the sizes `batch` (examples of a global batch), `length` (positions of
    an example, before a task changes it) and `vocab` (ids that examples use), and a `seed` of the order."""

    def open(self, prepare: Prepare = unchanged, cache: str | Path | None = None, report=print) -> Dataset:
        raise TypeError(f"{type(self).__name__} must define open(prepare, cache, report)")

    def sample(self, random: np.random.Generator, vocab: int) -> Example:
        """A random example of the shapes and types that the data gives, without opening it: for checks and plans."""
        raise TypeError(f"{type(self).__name__} must define sample(random, vocab)")

    def short(self, length: int) -> Supply:
        """The same with examples of so few positions, where that can be chosen: for checks."""
        return self


@config
class Data(Supply):
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

    @property
    def vocab(self) -> int:
        return self.tokenizer.vocab

    def open(self, prepare=unchanged, cache=None, report=print):
        """Trains the tokenizer and encodes both splits where the cache has not got them yet.

        prepare: what the task makes of an example. cache: a folder; None is $LLMLAB_CACHE or ~/.cache/llmlab.
        report: is told in words what takes time.
        """
        folder = cache_folder(cache)
        encoder = self.tokenizer.load(self.source, folder, report)
        source = self.source.fingerprint()
        corpora = {split: open_corpus(self.source, source, encoder, split, folder, report) for split in SPLITS}
        fingerprint = digest(source, encoder.fingerprint, self.packing, self.length, self.seed)
        examples = {
            split: self.pack(self.packing if split == "train" else Chunks(), corpora[split], split) for split in SPLITS
        }
        return Dataset(self, encoder, examples, fingerprint, prepare)

    def short(self, length):
        return dataclasses.replace(self, length=length)

    def pack(self, packing: Packing, corpus: Corpus, split: str) -> Examples:
        """The examples of a split; validation is cut into windows that do not overlap, whatever packing trains."""
        try:
            return packing.build(corpus, self.length, self.seed)
        except DataError as error:
            raise DataError(f"the {split} split: {error}") from error

    def sample(self, random, vocab):
        tokens_l = random.integers(0, vocab, self.length + 1, np.int32)
        ones_L = np.ones(self.length, np.int32)
        return {
            "tokens_L": tokens_l[:-1],
            "targets_L": tokens_l[1:],
            "weights_L": ones_L.astype(np.float32),
            "segments_L": ones_L,
            "positions_L": np.arange(self.length, dtype=np.int32),
            "bytes_L": ones_L,
        }


class Dataset:
    """Opened data: examples of both splits and what the task makes of them.

    fingerprint: of everything that decides which example stands at which index; the same on machines with the same
    data. Raises DataError when the training split does not fill one batch.
    """

    def __init__(
        self, data: Supply, encoder: Encoder, examples: dict[str, Examples], fingerprint: str, prepare: Prepare
    ):
        self.data, self.encoder, self.fingerprint = data, encoder, fingerprint
        prepared = lambda split: Prepared(examples[split], prepare, encoder.pieces, data.seed, split)
        self.examples = {split: prepared(split) for split in SPLITS}
        if len(examples["train"]) < data.batch and not examples["train"].endless:
            raise DataError(
                f"the train split gives {len(examples['train'])} examples of length {data.length}, fewer than one "
                f"batch of {data.batch}; lower --data.batch or --data.length, or give more text"
            )

    def train(self, start: int = 0, rows: Sequence[int] | None = None) -> Batches:
        """Batches from the global example index `start` on, for ever; `rows` of each global batch, all by default.

        Each epoch is shuffled anew. Close the iterator, or use it in a `with`, so that its workers end.
        """
        import grain

        rows, workers = self.rows(rows), getattr(self.data, "workers", 0)
        examples = self.examples["train"]
        assemble = Assemble(examples, order_of(examples, self.data.seed), start, self.data.batch, rows)
        batches = grain.MapDataset.range(sys.maxsize // self.data.batch).map(assemble)
        batches = batches.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        if workers:
            from absl import flags

            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # Grain reads flags, which nobody parses outside absl's own main
            options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
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
        """The validation split once, in order. The last batch is filled up with rows of zeros, whose weight is 0.

        limit: at most so many batches. rows: as of `train`.
        """
        batch, rows, examples = self.data.batch, self.rows(rows), self.examples["validation"]
        padding = {name: np.zeros_like(array) for name, array in examples.at(0, 0).items()}
        for first in range(0, len(examples), batch)[:limit]:
            numbers = [first + row for row in rows]
            yield stack([examples.at(i, i) if i < len(examples) else padding for i in numbers])


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Examples as the task wants them; what it draws is a pure function of (seed, split, global index)."""

    examples: Examples
    prepare: Prepare
    pieces: tuple[bytes, ...]
    seed: int
    split: str

    def __len__(self):
        return len(self.examples)

    @property
    def endless(self) -> bool:
        return self.examples.endless

    def at(self, number: int, index: int) -> Example:
        """Example `number`, as it is drawn at the global index `index`: in each epoch anew."""
        return self.prepare(self.examples[number], generator(self.seed, self.split, index), self.pieces)


def generator(seed: int, split: str, index: int) -> np.random.Generator:
    """Random numbers of their own for each (seed, split, index), without order among them."""
    return np.random.Generator(np.random.Philox(key=keys(seed, split), counter=[index, 0, 0, 0]))


@functools.cache
def keys(seed: int, split: str) -> int:
    return int(digest("examples", seed, split), 16)


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

    examples: Prepared
    order: Sequence[int]
    start: int
    batch: int
    rows: Sequence[int]

    def __call__(self, number: int) -> Batch:
        first = self.start + number * self.batch
        return stack([self.examples.at(self.order[first + row], first + row) for row in self.rows])


def order_of(examples: Prepared, seed: int) -> Sequence[int]:
    """The example at each global index: shuffled anew in each epoch, or itself where every index is a new draw."""
    import grain

    if examples.endless:
        return range(sys.maxsize)
    # Grain numbers the epochs by adding to the seed: digested, neighbouring seeds do not share their epochs.
    seed = int(digest("order", seed), 16) % 2**32
    return grain.MapDataset.range(len(examples)).shuffle(seed=seed).repeat()


def stack(examples: list[Example]) -> Batch:
    """A batch of examples: tokens_L becomes tokens_BL, a name without letters ends in _B."""
    return {batched(name): np.stack([example[name] for example in examples]) for name in examples[0]}


def batched(name: str) -> str:
    stem, _, letters = name.rpartition("_")
    return f"{stem}_B{letters}" if letters.isupper() else f"{name}_B"


def follow_parent(worker: int, workers: int) -> None:
    """Ends this worker process soon after its parent, which may have been killed and could not close it."""
    parent = os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
