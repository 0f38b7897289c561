"""Rows of generated tokens as text, while they grow."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from llmlab.data import Encoder


class Reading:
    """The text of one row.

    before: the ids that the row goes on from. ends: ids that end it. until: texts that end it and are not part of it.
    done: whether it has ended. count: tokens so far.

    >>> from llmlab.data import Bytes
    >>> reading = Reading(Bytes().load(), until=["stop"])
    >>> [reading.push(text.encode()) for text in ("a s", "to", "ne sto", "p b")], reading.done
    (['a ', '', 'stone ', ''], True)
    """

    def __init__(self, encoder: Encoder, before: Sequence[int] = (), ends: Collection[int] = (), until=()):
        self._stream, self._ends, self._until = encoder.stream(before), set(ends), tuple(until)
        self._held, self.done, self.count = "", False, 0

    def push(self, ids: Iterable[int], final: bool = False) -> str:
        """The text to show after these further ids; what may be the beginning of an end is held back."""
        if self.done:
            return ""
        own = []
        for token in map(int, ids):
            self.done = self.done or token < 0 or token in self._ends
            if self.done:
                break
            own.append(token)
        self.count += len(own)
        final = final or self.done
        text = self._held + self._stream.push(own, final)
        found = [place for place in map(text.find, self._until) if place >= 0]
        if found:
            self.done, self._held = True, ""
            return text[: min(found)]
        kept = 0 if final else max((overlap(text, end) for end in self._until), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]


def overlap(text: str, end: str) -> int:
    """How many characters at the end of `text` are the beginning of `end`."""
    return next((size for size in range(min(len(text), len(end) - 1), 0, -1) if text.endswith(end[:size])), 0)
