"""The manifest of a checkpoint: what makes it count, and what proves that its bytes are those that were written.

Orbax commits a checkpoint atomically but has no checksums: a flipped bit restores silently. `COMMITTED.json` is written
last into the directory of a step, with the size and hash of every file, the shapes of every array and the loop's own
values; a step without it was never finished, and one whose files differ from it is bad.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import re
from pathlib import Path

import xxhash

NAME = "COMMITTED.json"
CHUNK = 1 << 22  # bytes read at once
READERS = 4  # threads; hashing runs outside the interpreter's lock
SHOWN = 12  # arrays listed in an error
LEFTOVER = re.compile(r"\d+(\.orbax-checkpoint-tmp.*)?")  # names of what an unfinished save or deletion leaves


class CheckpointError(RuntimeError):
    """What can go wrong with checkpoints; each kind is a subclass."""

    exit_code = 65


class CorruptError(CheckpointError):
    """A checkpoint whose bytes are not those that were written."""


class MismatchError(CheckpointError):
    """A checkpoint has other arrays than the model and optimizer at hand."""


def write(directory: Path, arrays: dict[str, str], meta: dict) -> None:
    """Makes the checkpoint in `directory` count: every file is on disk and hashed before the manifest appears.

    `arrays` is {path: "float32[2,3]"}, `meta` any JSON values. Raises OSError when the disk is full.
    """
    content = {"files": _describe(directory), "arrays": arrays, "meta": meta}
    text = json.dumps({**content, "xxh3": _seal(content)}, indent=1)
    temporary = directory / f"{NAME}.tmp"
    with open(temporary, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, directory / NAME)
    for folder in (directory, directory.parent):
        _sync(folder)


def read(directory: Path) -> dict:
    """The manifest: files, arrays, meta. Raises CorruptError when it is not as it was written."""
    path = directory / NAME
    try:
        content = json.loads(path.read_bytes())
        seal = content.pop("xxh3")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CorruptError(f"{path} is no manifest ({error}); the checkpoint cannot be trusted") from error
    if seal != _seal(content):
        raise CorruptError(f"{path} has changed since it was written: hash {_seal(content)}, written {seal}")
    return content


def find_problems(directory: Path, hashes: bool = True) -> list[str]:
    """What is wrong with a committed checkpoint: files missing, of another size or (with `hashes`) of other bytes."""
    try:
        files = read(directory)["files"]
    except (CorruptError, OSError) as error:
        return [str(error)]
    found = []
    for name, expected in files.items():
        path = directory / name
        if not path.is_file():
            found.append(f"{path} is missing; {expected['bytes']} bytes were written")
        elif path.stat().st_size != expected["bytes"]:
            found.append(f"{path} has {path.stat().st_size} bytes; {expected['bytes']} were written")
    if found or not hashes:
        return found
    with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
        digests = pool.map(lambda name: _hash(directory / name), files)
        for (name, expected), digest in zip(files.items(), digests, strict=True):
            if digest != expected["xxh3"]:
                found.append(f"{directory / name} has hash {digest}; {expected['xxh3']} was written")
    return found


def compare(directory: Path, saved: dict[str, str], wanted: dict[str, str]) -> None:
    """Raises MismatchError with the paths whose shapes or types differ; both are {path: "float32[2,3]"}."""
    paths = [path for path in {**saved, **wanted} if saved.get(path) != wanted.get(path)]
    if not paths:
        return
    lines = [f"  {path}: {saved.get(path, 'absent')} saved, {wanted.get(path, 'absent')} wanted" for path in paths]
    rest = [f"  and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    raise MismatchError(
        "\n".join(
            [f"{directory} is a checkpoint of another config; {len(paths)} arrays differ:", *lines[:SHOWN], *rest]
            + ["use the config that it was saved with, or another directory"]
        )
    )


def committed(directory: Path) -> list[int]:
    """The steps that have a manifest, oldest first; whether they verify is not looked at."""
    if not directory.is_dir():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit() and (path / NAME).is_file())


def leftovers(directory: Path) -> list[Path]:
    """What unfinished saves and deletions left: temporary directories, and steps without a manifest."""
    paths = sorted(directory.iterdir()) if directory.is_dir() else []
    return [path for path in paths if LEFTOVER.fullmatch(path.name) and not (path / NAME).is_file()]


def verify(directory: str | Path) -> list[str]:
    """Everything wrong in a directory of checkpoints, read byte by byte; nothing is changed."""
    directory = Path(directory)
    steps = committed(directory)
    found = [] if steps else [f"{directory} has no checkpoint"]
    for step in steps:
        found += find_problems(directory / str(step))
    found += [f"{path} was not finished; the next save deletes it" for path in leftovers(directory)]
    return found + [f"{path} was found bad and set aside" for path in sorted(directory.glob("*.bad*"))]


def _describe(directory: Path) -> dict[str, dict]:
    """{relative name: size and hash} of every file, each made durable first."""
    paths = sorted(path for path in directory.rglob("*") if path.name not in (NAME, f"{NAME}.tmp"))
    for path in paths:
        _sync(path)
    files = [path for path in paths if path.is_file()]
    with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
        digests = list(pool.map(_hash, files))
    return {
        path.relative_to(directory).as_posix(): {"bytes": path.stat().st_size, "xxh3": digest}
        for path, digest in zip(files, digests, strict=True)
    }


def _hash(path: Path) -> str:
    digest = xxhash.xxh3_64()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _seal(content: dict) -> str:
    return xxhash.xxh3_64(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
