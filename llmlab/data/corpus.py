"""The token cache: a split's documents as token ids on disk, made once and mapped into memory.

A folder of the cache holds tokens.bin (uint16, or uint32 for vocabularies above 65,536; every document is followed by
the tokenizer's end, if it has one), offsets.bin (int64, where each document starts, and the end), bytes.bin (int32,
bytes of text of each id of the vocabulary) and meta.json (sizes, which are checked when it is opened).
Letters: T tokens of the split, P documents and one more, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from llmlab.config import digest
from llmlab.data.cache import discard, publish
from llmlab.data.encoder import Encoder
from llmlab.data.sources import DataError, Source

FORMAT = 1  # raise it when the files change, and old caches are left behind


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The documents of one split as ids. text_bytes: bytes of the text itself."""

    tokens_T: np.ndarray
    offsets_P: np.ndarray
    bytes_V: np.ndarray
    text_bytes: int
    folder: Path | None = None

    def __reduce__(self):
        # A worker process maps the files again instead of receiving a copy of all tokens.
        arrays = (self.tokens_T, self.offsets_P, self.bytes_V, self.text_bytes)
        return (Corpus, arrays) if self.folder is None else (load_corpus, (self.folder,))

    @property
    def documents(self) -> int:
        return len(self.offsets_P) - 1

    def sizes(self) -> dict[str, float]:
        """Counts of the split; bytes per token is over all tokens, ends of documents among them."""
        tokens = len(self.tokens_T)
        return {
            "documents": self.documents,
            "tokens": tokens,
            "bytes": self.text_bytes,
            "bytes_per_token": self.text_bytes / tokens,
        }


def open_corpus(
    source: Source, fingerprint: str, encoder: Encoder, split: str, cache: Path, report: Callable = print
) -> Corpus:
    """The corpus of a split from the cache, encoded first when it is not there or broken.

    fingerprint: the source's, which is costly, so it is asked for once. report: is told in words what takes time.
    """
    folder = cache / "corpora" / digest(FORMAT, fingerprint, encoder.fingerprint, split)
    if folder.exists():
        try:
            return load_corpus(folder)
        except DataError as error:
            warnings.warn(f"{error}; it is made again", RuntimeWarning, stacklevel=2)
            discard(folder)
    report(f"encoding the {split} split")
    publish(lambda temporary: write_corpus(temporary, source, split, encoder), folder)
    return load_corpus(folder)


def write_corpus(folder: Path, source: Source, split: str, encoder: Encoder) -> None:
    """Encodes document after document to the files of `folder`, in memory for one document."""
    folder.mkdir()
    dtype = np.dtype("<u2" if encoder.vocab <= 1 << 16 else "<u4")
    end = np.array([] if encoder.end is None else [encoder.end], dtype)
    offsets, text_bytes, covered = [0], 0, 0
    with (folder / "tokens.bin").open("wb") as file:
        for number, text in enumerate(source.documents(split)):
            try:
                ids_T = encoder.encode(text)
            except DataError as error:
                raise DataError(f"document {number} of the {split} split: {error}") from error
            file.write(ids_T.astype(dtype).tobytes())
            file.write(end.tobytes())
            offsets.append(offsets[-1] + len(ids_T) + len(end))
            text_bytes += len(text)
            # The space that some models put before a document is no text, and is never a target.
            covered += int(encoder.bytes_V[ids_T].sum()) - encoder.indent
    if covered != text_bytes:
        warnings.warn(
            f"the tokenizer changes the text: its ids of the {split} split stand for {covered} bytes, the text has "
            f"{text_bytes}, so bits per byte are off by the factor {covered / text_bytes:.4f}",
            RuntimeWarning,
            stacklevel=2,
        )
    (folder / "offsets.bin").write_bytes(np.array(offsets, "<i8").tobytes())
    (folder / "bytes.bin").write_bytes(encoder.bytes_V.astype("<i4").tobytes())
    meta = {"dtype": dtype.str, "text_bytes": text_bytes, "sizes": {f.name: f.stat().st_size for f in folder.iterdir()}}
    (folder / "meta.json").write_text(json.dumps(meta))


def load_corpus(folder: Path) -> Corpus:
    """Maps the files of a cached corpus. Raises DataError when one is missing, cut or of another size."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        for name, size in meta["sizes"].items():
            found = (folder / name).stat().st_size
            if found != size:
                raise ValueError(f"{name} has {found} bytes instead of {size}")
        dtypes = {"tokens.bin": meta["dtype"], "offsets.bin": "<i8", "bytes.bin": "<i4"}
        # As plain arrays over the mapped files: slicing a memmap costs ten times as much.
        mapped = (np.asarray(np.memmap(folder / name, dtype, "r")) for name, dtype in dtypes.items())
        tokens_T, offsets_P, bytes_V = mapped
        if offsets_P[-1] != len(tokens_T):
            raise ValueError(f"offsets.bin ends at {offsets_P[-1]}, tokens.bin at {len(tokens_T)}")
        return Corpus(tokens_T, offsets_P, bytes_V, meta["text_bytes"], folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"the cached corpus {folder} is broken ({error})") from error
