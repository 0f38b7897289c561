"""What a loaded tokenizer is: text to ids and back, and the ids that are no text.

A special id, such as the end of a turn, has a written form. The text of a user may contain that form and is text all
the same: only `encode_marked`, which chat templates use, reads it as the id.
Letters: V vocabulary, T tokens of a text.
"""

from __future__ import annotations

import codecs
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property

import numpy as np


@dataclasses.dataclass(frozen=True)
class Mark:
    """The written form of one id. control: it is read as the id only where that is asked for, otherwise always.

    left, right: spaces on that side belong to it. whole: not within a word.
    """

    text: str
    id: int
    control: bool = True
    left: bool = False
    right: bool = False
    whole: bool = False

    @property
    def pattern(self) -> str:
        text = rf"\b{re.escape(self.text)}\b" if self.whole else re.escape(self.text)
        spaces = r"\s*"
        return f"({spaces * self.left}{text}{spaces * self.right})"


@dataclasses.dataclass(frozen=True)
class Marks:
    """Written forms of ids, found in a text."""

    all: tuple[Mark, ...] = ()

    @cached_property
    def ids(self) -> dict[str, int]:
        return {mark.text: mark.id for mark in self.all}

    @cached_property
    def _found(self) -> tuple[re.Pattern, list[int]]:
        longest_first = sorted(self.all, key=lambda mark: -len(mark.text))
        return re.compile("|".join(mark.pattern for mark in longest_first)), [mark.id for mark in longest_first]

    def split(self, text: str) -> Iterator[str | int]:
        """The text in parts that are not empty: text, and the ids of marks between.

        >>> list(Marks((Mark("<s>", 1), Mark("</s>", 2))).split("<s>one</s> two"))
        [1, 'one', 2, ' two']
        """
        start = 0
        if self.all:
            pattern, ids = self._found
            for match in pattern.finditer(text):
                if match.start() > start:
                    yield text[start : match.start()]
                yield ids[match.lastindex - 1]
                start = match.end()
        if start < len(text):
            yield text[start:]


@dataclasses.dataclass(frozen=True)
class Specials:
    """What a published tokenizer has beside text.

    marks: its special ids by their written forms. roles: the written form of "bos", "eos", "pad" and others that it
    names. before, after: ids that it puts around a text. follow: encodes text that does not begin a document, where
    that differs (no space is put before it).
    """

    marks: Marks = Marks()
    roles: Mapping[str, str] = dataclasses.field(default_factory=dict)
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    follow: Callable[[bytes], np.ndarray] | None = None

    def id(self, role: str) -> int | None:
        """The id that has a role, None where the tokenizer names none."""
        return self.marks.ids.get(self.roles.get(role))


@dataclasses.dataclass(frozen=True)
class Encoder:
    """What turns text into ids and back.

    pieces: the bytes of each id, b"" for special ones. end: the id that ends a document, or None.
    indent: ids begin with a space that the text has not (the "dummy prefix" of some SentencePiece models).
    """

    encode_text: Callable[[bytes], np.ndarray]
    pieces: tuple[bytes, ...]
    end: int | None
    fingerprint: str
    indent: bool = False
    specials: Specials = Specials()

    @property
    def vocab(self) -> int:
        return len(self.pieces)

    @cached_property
    def bytes_V(self) -> np.ndarray:
        """int32, how many bytes of text each id stands for: a loss in nats becomes one in bits per byte."""
        return np.array([len(piece) for piece in self.pieces], np.int32)

    def encode(self, text: bytes | str, special: bool = False) -> np.ndarray:
        """int32 ids of the text, without an end of document. special: with the ids that the tokenizer puts around it.

        Written forms of special ids in the text are text.
        """
        ids_T = self.encode_text(text.encode() if isinstance(text, str) else text)
        return self.frame(ids_T) if special else ids_T

    def frame(self, ids_T) -> np.ndarray:
        """The ids with those that the tokenizer puts around a text."""
        return np.array([*self.specials.before, *ids_T, *self.specials.after], np.int32)

    def encode_marked(self, text: str, plain: Callable[[str], str] = lambda part: part) -> np.ndarray:
        """int32 ids of a text whose special ids are written out. plain: what becomes of the parts between them."""
        encode, found = self.encode_text, [np.zeros(0, np.int32)]
        for part in self.specials.marks.split(text):
            found.append(np.array([part]) if isinstance(part, int) else encode(plain(part).encode()))
            encode = self.specials.follow or self.encode_text
        return np.concatenate(found).astype(np.int32)

    def decode(self, ids) -> str:
        """The text of the ids; bytes that are no UTF-8 become U+FFFD, special ids and those of a task nothing."""
        return self.stream().push(ids, final=True)

    def stream(self, before=()) -> Stream:
        """A reader of ids that follow those of `before`."""
        stream = Stream(self)
        stream.push(before)
        return stream


class Stream:
    """Decodes ids as they are generated, and holds back the first bytes of a character until the rest has come.

    >>> from llmlab.data.tokenizers import Bytes
    >>> stream = Bytes().load().stream()
    >>> stream.push([0xC3]), stream.push([0xA9])
    ('', 'é')
    """

    def __init__(self, encoder: Encoder):
        self._pieces, self._indent = encoder.pieces, encoder.indent
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids, final: bool = False) -> str:
        """The text that these further ids complete; with `final` also U+FFFD for a character cut short."""
        known = [index for index in np.asarray(ids, np.int64).tolist() if index < len(self._pieces)]
        text = b"".join(self._pieces[index] for index in known)
        if self._indent and text:
            text, self._indent = text.removeprefix(b" "), False
        return self._decoder.decode(text, final)
