"""`llmlab embed MODEL`: vectors of texts, how alike they are, and which passages of a folder answer a query."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from llmlab.cli.arguments import parse_model, set_up

BATCH = 16  # texts that are read together
MARGIN = 8  # positions kept for what a tokenizer puts around a text


@dataclasses.dataclass
class Flags:
    """Turn texts into vectors of length 1, or find the passages of a folder that are nearest to a query."""

    texts: tuple[str, ...] = ()
    """Texts; without them and --files, each line of the standard input is one."""
    files: Path | None = None
    """A folder of text files (or one file), cut into passages."""
    query: str | None = None
    """Tells the nearest passages or texts in place of vectors."""
    top: int = 5
    """How many of the nearest."""
    passage: int = 128
    """Tokens of a passage at most."""
    output: Path | None = None
    """Where vectors go: a .npy file of rows, or a .jsonl file with the texts; the standard output by default."""
    cpu_devices: int | None = None
    """Host devices to show jax in place of one CPU."""


@dataclasses.dataclass(frozen=True)
class Passage:
    """A text, and where it stands."""

    text: str
    place: str


def main(arguments: list[str]) -> int:
    flags, _, directory = parse_model("embed", Flags, arguments)
    if flags.output is not None and flags.output.suffix not in (".npy", ".jsonl"):
        raise ValueError(f"--output {flags.output}: vectors go to a .npy or a .jsonl file")
    set_up(flags.cpu_devices)
    from llmlab.pretrained import from_pretrained

    model = from_pretrained(directory)
    passages = [Passage(text, f"text {number}") for number, text in enumerate(flags.texts)]
    if flags.files is not None:
        room = flags.passage if model.context is None else min(flags.passage, model.context - MARGIN)
        passages += cut(model.tokenizer, flags.files, room)
    if not passages:
        lines = [line.strip() for line in sys.stdin]
        passages = [Passage(line, f"line {number}") for number, line in enumerate(lines, 1) if line]
    if not passages:
        raise ValueError("there is nothing to embed; give --texts, --files, or lines on the standard input")
    vectors_BD = vectors(model, [passage.text for passage in passages])
    if flags.query is None:
        give(passages, vectors_BD, flags.output)
        return 0
    likeness_B = vectors_BD @ vectors(model, [flags.query])[0]
    for number in np.argsort(-likeness_B, kind="stable")[: flags.top]:
        found = passages[number]
        print(f"{likeness_B[number]:.4f}  {found.place}\n    {' '.join(found.text.split())[:200]}")
    return 0


def vectors(model, texts: list[str]) -> np.ndarray:
    """vectors_BD; texts of like lengths are read together."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    found: list = [None] * len(texts)
    for first in range(0, len(order), BATCH):
        part = order[first : first + BATCH]
        filled = [texts[i] for i in part] + [texts[part[0]]] * (BATCH - len(part) if len(order) > BATCH else 0)
        for i, vector_D in zip(part, np.asarray(model.embed(filled))):
            found[i] = vector_D
    return np.stack(found)


def give(passages: list[Passage], vectors_BD: np.ndarray, output: Path | None) -> None:
    """Writes vectors: rows of a .npy file, or lines of JSON with their texts."""
    if output is not None and output.suffix == ".npy":
        np.save(output, vectors_BD)
    else:
        rows = zip(passages, vectors_BD)
        lines = [{**dataclasses.asdict(one), "vector": [round(float(x), 6) for x in row]} for one, row in rows]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        print(text, end="") if output is None else output.write_text(text, encoding="utf-8")
    if output is not None:
        print(f"{len(vectors_BD)} vectors of {vectors_BD.shape[1]} numbers written to {output}", file=sys.stderr)


def cut(encoder, place: Path, size: int) -> list[Passage]:
    """The passages of a file, or of every text file below a folder."""
    if not place.exists():
        raise FileNotFoundError(f"--files {place}: there is no such file or folder")
    files = [place] if place.is_file() else sorted(file for file in place.rglob("*") if file.is_file())
    found = []
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            print(f"{file} is left out: it is no UTF-8 text", file=sys.stderr)
            continue
        found += [Passage(part, f"{file}:{line}") for line, part in parts(encoder, text, size)]
    if not found:
        raise ValueError(f"--files {place}: there is no text in it")
    return found


def parts(encoder, text: str, size: int) -> Iterator[tuple[int, str]]:
    """(number of the first line, passage) of a text: lines joined up to `size` tokens; an empty line ends one that is
    half full."""
    held, count, first = "", 0, 1
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        for unit in shorten(encoder, line, size):
            tokens = len(encoder.encode(unit))
            full = count + tokens > size or (not unit.strip() and count > size // 2)
            if full and held:
                yield first, held.strip()
                held, count = "", 0
            if unit.strip() or held:
                first = first if held else number
                held, count = held + unit, count + tokens
    if held:
        yield first, held.strip()


def shorten(encoder, line: str, size: int) -> list[str]:
    """The line, or its halves, quarters, ... of at most `size` tokens; cut at spaces where there are any."""
    if len(encoder.encode(line)) <= size or len(line) < 2:
        return [line]
    middle = line.rfind(" ", 1, len(line) // 2 + 1)
    middle = middle if middle > 0 else len(line) // 2
    return [*shorten(encoder, line[:middle], size), *shorten(encoder, line[middle:], size)]
