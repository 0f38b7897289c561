"""Files of llama.cpp (GGUF): metadata and tensors in one file, the tensors often in blocks of few bits.

Format: "GGUF", the version, the numbers of tensors and of keys; the keys with typed values; name, sizes (last one
first), type and offset of each tensor; the data, aligned. All is checked before anything is read. What blocks mean is
read through the `gguf` package.
"""

from __future__ import annotations

import dataclasses
import io
import math
import struct
from pathlib import Path

import numpy as np

from llmlab.interop.safetensors import FileError, Read, Stored, check_apart

MAGIC, VERSIONS = b"GGUF", (2, 3)
HEADER = 100 << 20  # bytes before the data at most
DIMENSIONS = 4
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, ARRAY = 8, 9
TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")


@dataclasses.dataclass(frozen=True)
class Gguf:
    """values: the metadata. tensors: by the names of the file, in float32 when they are loaded."""

    file: Path
    values: dict[str, object]
    tensors: dict[str, Stored]


def read_gguf(file: Path) -> Gguf:
    """What a file holds, without its weights. Raises FileError where it is not whole."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        given = Header(stream, file, min(size, HEADER), size)
        if given.take(4) != MAGIC:
            raise FileError(f"{file} is no GGUF file; it does not begin with {MAGIC.decode()}")
        version = given.number("I")
        if version not in VERSIONS:
            raise FileError(f"{file} has version {version} of GGUF; known are {' and '.join(map(str, VERSIONS))}")
        tensors, keys = given.number("Q"), given.number("Q")
        values = {}
        for _ in range(given.fits(keys, 13)):
            name = given.text()
            values[name] = given.value(given.number("I"), name)
        entries = [given.tensor() for _ in range(given.fits(tensors, 25))]
        step = values.get("general.alignment", 32)
        if not isinstance(step, int) or step < 1 or step & (step - 1):
            raise FileError(f"{file}: general.alignment is {step!r}; it is a power of two")
        return Gguf(file, values, _place(file, entries, -(-stream.tell() // step) * step, size))


def _place(file: Path, entries: list[tuple], start: int, size: int) -> dict[str, Stored]:
    """{name: tensor} of the entries of a header, whose data begins at `start`."""
    known, found, spans = _types(file), {}, []
    for name, shape, number, offset in entries:
        if number not in known:
            raise FileError(f"{file}: {name!r} has the type {_name(number)}; known are {', '.join(TYPES)}")
        kind, block, width = known[number]
        if name in found:
            raise FileError(f"{file} has {name!r} twice")
        if not shape or shape[-1] % block:
            raise FileError(f"{file}: {name!r} of shape {shape} does not fill blocks of {block}, as {kind.name} has")
        stored = (*shape[:-1], shape[-1] // block * width)
        count = math.prod(stored)
        if start + offset + count > size:
            raise FileError(
                f"{file}: {name!r} of shape {shape} and type {kind.name} takes {count} bytes from byte "
                f"{start + offset} on, and the file has {size}; it is cut off"
            )
        spans.append((offset, offset + count, name))
        raw = Read(file, start + offset, np.dtype(np.uint8), stored)
        found[name] = Stored(file, shape, kind.name, Unpack(raw, kind))
    check_apart(file, spans)
    return found


@dataclasses.dataclass(frozen=True)
class Unpack:
    """Reads a tensor and gives its values in float32."""

    read: Read
    kind: object

    def __call__(self) -> np.ndarray:
        import gguf

        return gguf.dequantize(self.read(), self.kind)


@dataclasses.dataclass
class Header:
    """Reads the part before the data. limit: bytes that it has at most."""

    stream: io.BufferedReader
    file: Path
    limit: int
    size: int

    def take(self, count: int) -> bytes:
        """The next bytes. Raises FileError when the file has fewer."""
        if count > self.limit - self.stream.tell():
            raise FileError(
                f"{self.file}: {count} more bytes of its header are announced at byte {self.stream.tell()}, and the "
                + (f"file has {self.size}; it is cut off" if self.limit == self.size else f"most is {HEADER}")
            )
        return self.stream.read(count)

    def fits(self, count: int, each: int) -> int:
        """The count, where so many things of at least `each` bytes can follow."""
        if count * each > self.limit - self.stream.tell():
            raise FileError(f"{self.file}: {count} entries are announced at byte {self.stream.tell()}, too many for it")
        return count

    def number(self, form: str):
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))[0]

    def text(self) -> str:
        raw = self.take(self.number("Q"))
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise FileError(f"{self.file}: {raw[:40]!r} before byte {self.stream.tell()} is no text") from error

    def value(self, kind: int, name: str):
        """A value of the metadata: a number, a text, or a list of them."""
        if kind == TEXT:
            return self.text()
        if kind in SCALARS:
            found = self.number(SCALARS[kind])
            return float(str(np.float32(found))) if SCALARS[kind] == "f" else found  # 1e-5, not 9.99999974e-6
        inner = self.number("I") if kind == ARRAY else None
        if inner == TEXT:
            return [self.text() for _ in range(self.fits(self.number("Q"), 8))]
        if inner in SCALARS:
            width = struct.calcsize("<" + SCALARS[inner])
            count = self.fits(self.number("Q"), width)
            return list(struct.unpack(f"<{count}{SCALARS[inner]}", self.take(count * width)))
        raise FileError(
            f"{self.file}: {name!r} has a value of type {kind if inner is None else [inner]}; none is known"
        )

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """(name, shape, number of its type, offset) of a tensor."""
        name, count = self.text(), self.number("I")
        if count > DIMENSIONS:
            raise FileError(f"{self.file}: {name!r} has {count} dimensions; {DIMENSIONS} is the most")
        shape = tuple(self.number("Q") for _ in range(count))[::-1]
        return name, shape, self.number("I"), self.number("Q")


def _types(file: Path) -> dict[int, tuple]:
    """{number: (type, values of a block, its bytes)}."""
    try:
        import gguf
    except ImportError as error:
        raise ImportError(f"{file} is read through the package gguf; pip install 'llmlab[hf]'") from error
    kinds = [gguf.GGMLQuantizationType[name] for name in TYPES]
    return {kind.value: (kind, *gguf.GGML_QUANT_SIZES[kind]) for kind in kinds}


def _name(number: int) -> str:
    import gguf

    return next((kind.name for kind in gguf.GGMLQuantizationType if kind.value == number), str(number))
