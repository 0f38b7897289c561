"""Files of tensors (safetensors): a header of JSON, then the bytes. Read one tensor at a time; written so too.

Format: 8 bytes with the length of the header, the header {name: {dtype, shape, data_offsets}}, the data. A directory
has one such file, or several with an index {weight_map: {name: file}}. The header is checked before anything is read,
so that a damaged or hostile file gives one error that names the tensor; nothing is ever unpickled.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import ml_dtypes
import numpy as np

HEADER = 100 << 20  # bytes of a header at most, as in the reference implementation
SHARD = 5 << 30  # bytes of a file at most when a model is written
FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
PART = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class FileError(ValueError):
    """A checkpoint that cannot be used as it is."""

    exit_code = 65


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor of a file, and how its values are read."""

    file: Path
    shape: tuple[int, ...]
    dtype: str
    load: Callable[[], np.ndarray]


def read_directory(directory: str | Path) -> dict[str, Stored]:
    """{name: tensor} of a directory with model.safetensors, or with several files and their index.

    Raises FileError for a missing or malformed file.
    """
    directory = Path(directory)
    if (directory / INDEX).is_file():
        return _read_shards(directory)
    files = [directory / FILE] if (directory / FILE).is_file() else sorted(directory.glob("*.safetensors"))
    if len(files) == 1:
        return read_header(files[0])
    if files:
        raise FileError(f"{directory} has {len(files)} safetensors files and no {INDEX} that says what is in which")
    pickled = sorted(path.name for ending in ("bin", "pt", "pth") for path in directory.glob(f"*.{ending}"))
    if pickled:
        raise FileError(
            f"{directory} has {', '.join(pickled)}, which are pickles and are not loaded; "
            "save the model with `save_pretrained(..., safe_serialization=True)` of transformers first"
        )
    raise FileError(f"{directory} has no {FILE} and no {INDEX}")


def _read_shards(directory: Path) -> dict[str, Stored]:
    places = parse_json(directory / INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise FileError(f"{directory / INDEX}: weight_map is no table of names and files")
    found: dict[str, Stored] = {}
    for file in dict.fromkeys(places.values()):
        if Path(file).name != file or not file.endswith(".safetensors") or len(file) > 255:
            raise FileError(
                f"{directory / INDEX} names the file {file[:300]!r}; "
                "those of an index are .safetensors and lie beside it"
            )
        if not (directory / file).is_file():
            raise FileError(f"{directory / INDEX} names {file}, which is not there; the checkpoint is not whole")
        found |= read_header(directory / file)
    missing = [name for name in places if name not in found]
    if missing:
        raise FileError(f"{directory / INDEX} says that {places[missing[0]]} has {missing[0]!r}, and it has not")
    return found


def read_header(file: Path) -> dict[str, Stored]:
    """{name: tensor} of one file. Raises FileError when the header is not one, or does not fit the data."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            raise FileError(f"{file}: its header is said to have {length} bytes and the file has {size}; it is cut off")
        if length > HEADER:
            raise FileError(f"{file}: its header is said to have {length} bytes, more than the {HEADER} that are read")
        header = _json(stream.read(length), f"{file}: its header")
    if not isinstance(header, dict):
        raise FileError(f"{file}: its header is a {type(header).__name__}, not a table of tensors")
    start, found, spans = 8 + length, {}, []
    for name, entry in header.items():
        if name != "__metadata__":
            first, last, dtype, shape = _check(file, name, entry, size - start)
            spans.append((first, last, name))
            found[name] = Stored(file, shape, dtype, Read(file, start + first, DTYPES[dtype], shape))
    check_apart(file, spans)
    return found


def check_apart(file: Path, spans: list[tuple[int, int, str]]) -> None:
    """Raises FileError where two tensors, (first byte, last byte, name), share bytes."""
    for (_, stop, before), (begin, _, after) in itertools.pairwise(sorted(spans)):
        if begin < stop:
            raise FileError(f"{file}: the bytes of {before!r} and {after!r} overlap")


def _check(file: Path, name: str, entry, room: int) -> tuple[int, int, str, tuple[int, ...]]:
    """(first byte, last byte, dtype, shape) of an entry of a header."""
    try:
        dtype, shape, (first, last) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in (*shape, first, last))
    except (TypeError, KeyError, ValueError) as error:
        raise FileError(f"{file}: the entry of {name!r} has not dtype, shape and data_offsets: {entry}") from error
    if not whole:
        raise FileError(f"{file}: the entry of {name!r} has sizes that are no counts: {entry}")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise FileError(f"{file}: {name!r} has the type {dtype!r}; known are {', '.join(DTYPES)}")
    needed = math.prod(shape) * DTYPES[dtype].itemsize
    if last - first != needed:
        raise FileError(
            f"{file}: {name!r} of shape {shape} and type {dtype} takes {needed} bytes, and its place has {last - first}"
        )
    if last > room:
        raise FileError(f"{file}: {name!r} ends at byte {last} of the data, which has {room}; the file is cut off")
    return first, last, dtype, shape


@dataclasses.dataclass(frozen=True)
class Read:
    """Reads one tensor when called. Its bytes are mapped, and stay in memory as long as the array that is given."""

    file: Path
    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]

    def __call__(self) -> np.ndarray:
        if not math.prod(self.shape):
            return np.zeros(self.shape, self.dtype)
        return np.memmap(self.file, self.dtype, "r", self.offset, self.shape).view(np.ndarray)


def parse_json(file: Path) -> dict:
    """The table in a JSON file. Raises FileError when there is none."""
    if not file.is_file():
        raise FileError(f"there is no {file}")
    found = _json(file.read_bytes(), str(file))
    if not isinstance(found, dict):
        raise FileError(f"{file} holds a {type(found).__name__}, not a table")
    return found


def _json(text: bytes, what: str):
    """What JSON says. Raises FileError where it is none, or says a name twice."""

    def table(pairs: list[tuple]) -> dict:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            raise FileError(f"{what} has {next(name for name in names if names.count(name) > 1)!r} twice")
        return found

    try:
        return json.loads(text, object_pairs_hook=table)
    except FileError:
        raise
    except (ValueError, RecursionError) as error:
        raise FileError(f"{what} is no JSON: {error}") from error


Make = tuple[str, tuple[int, ...], Callable[[], np.ndarray]]  # name, shape, and what gives the values


def write_directory(directory: Path, tensors: list[Make], dtype: np.dtype, shard: int = SHARD) -> list[Path]:
    """Writes tensors, one in memory at a time, into files of at most `shard` bytes, with an index if there are several.

    They are written under other names first, so that what the directory held is whole until all of them are there.
    Files of an earlier save with other parts are removed. Returns the files.
    """
    parts, filled = [[]], 0
    for one in tensors:
        size = math.prod(one[1]) * dtype.itemsize
        if parts[-1] and filled + size > shard:
            parts.append([])
            filled = 0
        parts[-1].append(one)
        filled += size
    name = lambda i: FILE if len(parts) == 1 else f"model-{i + 1:05d}-of-{len(parts):05d}.safetensors"
    files = [directory / name(i) for i in range(len(parts))]
    partial = {file: file.with_name(file.name + ".partial") for file in files}
    try:
        for file, part in zip(files, parts):
            _write(partial[file], part, dtype)
        for file, written in partial.items():  # only when all are there: what was in the directory is whole until now
            written.replace(file)
    finally:
        for written in partial.values():
            written.unlink(missing_ok=True)
    (directory / INDEX).unlink(missing_ok=True)
    if len(parts) > 1:
        places = {one[0]: file.name for file, part in zip(files, parts) for one in part}
        total = sum(math.prod(one[1]) * dtype.itemsize for one in tensors)
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (directory / INDEX).write_text(json.dumps(index, indent=2))
    for other in directory.glob("model*.safetensors"):  # of an earlier save, with other parts
        if other not in files and (other.name == FILE or PART.fullmatch(other.name)):
            other.unlink()
    return files


def _write(file: Path, tensors: Iterable[Make], dtype: np.dtype) -> None:
    header, offset, tensors = {"__metadata__": {"format": "pt"}}, 0, list(tensors)
    for name, shape, _ in tensors:
        stop = offset + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data is aligned
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, shape, make in tensors:
            values = np.asarray(make(), dtype)
            if values.shape != shape:
                raise ValueError(f"{name} has the shape {values.shape}, and {shape} was announced")
            stream.write(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
