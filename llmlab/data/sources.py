"""Sources: where documents come from, split into train and validation.

A source yields documents as bytes of UTF-8 text in a fixed order, and has a fingerprint of its content, which is the
key of everything that is cached about it. A new source inherits `Source` and defines `read` and `fingerprint`.
"""

from __future__ import annotations

import glob
import os
import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from llmlab.config import REQUIRED, Config, config, digest

SPLITS = ("train", "validation")
EDGE = 1 << 20  # bytes hashed at each end of a shard, whose footer holds the place of every chunk


class DataError(ValueError):
    """A corpus that cannot be used as it is."""

    exit_code = 65


class Source(Config):
    """The slot of a source."""

    def read(self, split: str) -> Iterator[tuple[str, bytes]]:
        """(name for messages, text) of every document of the split, in a fixed order."""
        raise TypeError(f"{type(self).__name__} must define read(split)")

    def fingerprint(self) -> str:
        """Changes when the documents would; the same on every machine that has the same documents."""
        raise TypeError(f"{type(self).__name__} must define fingerprint()")

    def documents(self, split: str) -> Iterator[bytes]:
        """The texts of "train" or "validation". Raises DataError where one is not UTF-8 or where there is none."""
        if split not in SPLITS:
            raise ValueError(f"no split {split!r}; a source has {' and '.join(SPLITS)}")
        empty = True
        for name, text in self.read(split):
            decode(name, text)
            if text:
                empty = False
                yield text
        if empty:
            raise DataError(f"{type(self).__name__} gives no text in its {split} split: {self}")


def decode(name: str, text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name}: byte {text[error.start]:#04x} at offset {error.start} is not UTF-8; convert the text "
            "(iconv -f latin1 -t utf-8) or leave it out"
        ) from error


@config
class Stdlib(Source):
    """The running Python's own standard library, which every install has: its .py files without the tests.

    validation: the share of files, chosen by a hash of their names, that is held out.
    """

    validation: float = 0.08

    def check(self):
        check_share(self.validation, "Stdlib.validation")

    def read(self, split):
        files = self.files()
        held = held_out([name for name, _ in files], self.validation)
        for name, text in files:
            if (name in held) == (split == "validation"):
                yield name, text

    def fingerprint(self):
        content = [(name, content_hash(text)) for name, text in self.files()]
        return digest("stdlib", platform.python_version(), self.validation, content)

    def files(self) -> list[tuple[str, bytes]]:
        """Sorted; without tests, installed packages, what depends on the build, and what is not UTF-8."""
        root = Path(sysconfig.get_path("stdlib"))
        left_out = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
        files = []
        for folder, inner, names in os.walk(root):
            inner[:] = [name for name in inner if name not in left_out and not name.startswith("config-")]
            for name in names:
                if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                    path = Path(folder, name)
                    files.append((path.relative_to(root).as_posix(), path.read_bytes()))
        if not files:
            raise DataError(
                f"the standard library at {root} has no .py sources in this install; "
                "give a text: source=TextFiles(path=FILE)"
            )
        return sorted((name, text) for name, text in files if is_utf8(text))


@config
class TextFiles(Source):
    """A text file, a folder (every file below it that is not hidden) or a glob such as "books/**/*.txt".

    One file is one document, split by position: its first characters train, the last `validation` of them validate.
    Several files are a document each, split by a hash of their names. With `validation_path` (file, folder or glob)
    all of `path` trains and `validation` is not used.
    """

    path: str = REQUIRED
    validation: float = 0.1
    validation_path: str | None = None

    def check(self):
        check_share(self.validation, "TextFiles.validation")

    def read(self, split):
        if self.validation_path is not None:
            path = self.path if split == "train" else self.validation_path
            yield from ((str(file), read_file(file)) for _, file in list_files(path))
            return
        files = list_files(self.path)
        if len(files) == 1:
            yield self._part(files[0][1], split)
            return
        held = held_out([name for name, _ in files], self.validation)
        for name, file in files:
            if (name in held) == (split == "validation"):
                yield str(file), read_file(file)

    def _part(self, file: Path, split: str) -> tuple[str, bytes]:
        text = decode(str(file), read_file(file))
        cut = int(len(text) * (1 - self.validation))
        return str(file), (text[:cut] if split == "train" else text[cut:]).encode()

    def fingerprint(self):
        paths = [self.path] if self.validation_path is None else [self.path, self.validation_path]
        content = [[(name, content_hash(read_file(file))) for name, file in list_files(path)] for path in paths]
        if self.validation_path is None and len(content[0]) == 1:
            content = content[0][0][1]  # the name of a single file decides nothing
        return digest("text", self.validation if self.validation_path is None else None, content)


def list_files(path: str) -> list[tuple[str, Path]]:
    """Sorted (name relative to the folder, path). Raises DataError when there is none."""
    if path == REQUIRED:
        raise DataError("the path of the text is not given; pass --data.source.path FILE (or a folder, or a glob)")
    here = Path(path).expanduser()
    if here.is_file():
        return [(here.name, here)]
    if here.is_dir():
        found = [file for file in here.rglob("*") if file.is_file()]
        names = {file.relative_to(here).as_posix(): file for file in found}
        names = {name: file for name, file in names.items() if not any(p.startswith(".") for p in name.split("/"))}
    elif glob.has_magic(path):
        names = {file: Path(file) for file in glob.glob(str(here), recursive=True) if os.path.isfile(file)}
        start = os.path.commonpath([os.path.dirname(name) for name in names]) if names else ""
        names = {os.path.relpath(name, start): file for name, file in names.items()} if start else names
    else:
        raise DataError(f"no file or folder {path!r} (seen from {os.getcwd()}); pass --data.source.path FILE")
    if not names:
        raise DataError(f"no files in {path!r} (seen from {os.getcwd()}); pass --data.source.path FILE")
    return sorted(names.items())


@config
class Tfds(Source):
    """A prepared TensorFlow dataset, read without TensorFlow, so its files must be ArrayRecord.

    name: "lm1b", or with config and version "my_text/plain:1.0.0"; data_dir: None is TFDS's own default.
    train, validation: splits, also parts of one such as "train[:90%]"; feature: the text among the features.
    """

    name: str = REQUIRED
    data_dir: str | None = None
    feature: str = "text"
    train: str = "train"
    validation: str = "validation"

    def read(self, split):
        part = self.train if split == "train" else self.validation
        builder = self._builder()
        features, splits = builder.info.features, builder.info.splits
        if self.feature not in features:
            raise DataError(
                f"{self.name} has no feature {self.feature!r}; it has {', '.join(features)}: "
                "pass --data.source.feature NAME"
            )
        try:
            examples = builder.as_data_source(split=part)
        except Exception as error:  # TFDS raises its own classes, KeyError or ValueError, by version
            raise DataError(
                f"{self.name} has no split {part!r} that can be read; it has {', '.join(splits)}: "
                f"pass --data.source.{split} NAME, or a part such as 'train[:90%]' ({error})"
            ) from error
        for index in range(len(examples)):
            text = examples[index][self.feature]
            if not isinstance(text, str | bytes):
                raise DataError(f"{self.name} has no text in its feature {self.feature!r} but {type(text).__name__}")
            yield f"{self.name} {part}[{index}]", text.encode() if isinstance(text, str) else text

    def fingerprint(self):
        """Of the shards' names, sizes and ends: an ArrayRecord's footer moves with everything that stands before it."""
        files = sorted(Path(self._builder().data_path).iterdir())
        shards = [(file.name, file.stat().st_size, edges_hash(file)) for file in files if file.suffix != ".json"]
        return digest("tfds", self.feature, self.train, self.validation, shards)

    def _builder(self):
        if self.name == REQUIRED:
            raise DataError("the name of the dataset is not given; pass --data.source.name NAME")
        import tensorflow_datasets as tfds

        place = self.data_dir or "the default data_dir of TFDS"
        try:
            builder = tfds.builder(self.name, data_dir=self.data_dir)
        except Exception as error:  # also an AssertionError for a version that there is not
            raise DataError(f"no dataset {self.name!r} in {place} ({str(error).splitlines()[0]})") from error
        prepare = f"tfds.builder({self.name!r}, data_dir=..., file_format='array_record').download_and_prepare()"
        if not Path(builder.data_path).is_dir():
            raise DataError(f"{self.name} is not prepared in {builder.data_path}; prepare it once with {prepare}")
        found = builder.info.file_format.value
        if found != "array_record":
            raise DataError(
                f"{self.name} in {builder.data_path} is stored as {found}, which only TensorFlow reads; "
                f"prepare it in another data_dir with {prepare}"
            )
        return builder


def read_file(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror})") from error


def check_share(share: float, name: str) -> None:
    if not 0 < share < 1:
        raise ValueError(f"{name} is {share}; it is a share between 0 and 1, such as 0.1")


def held_out(names: list[str], share: float) -> set[str]:
    """The names whose hash falls below `share`, so that a file keeps its side when others come; at least one name,
    and never all of several."""
    place = {name: int(content_hash(name.encode())[:8], 16) / 2**32 for name in names}
    ranked = sorted(names, key=place.get)
    count = sum(place[name] < share for name in names)
    return set(ranked[: max(1, min(count, len(names) - 1))])


def content_hash(text: bytes) -> str:
    import xxhash

    return xxhash.xxh3_128_hexdigest(text)


def edges_hash(file: Path) -> str:
    with file.open("rb") as stream:
        head = stream.read(EDGE)
        stream.seek(max(len(head), file.stat().st_size - EDGE))
        return content_hash(head + stream.read(EDGE))


def is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
