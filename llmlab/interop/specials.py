"""What a checkpoint says of its tokenizer beside the vocabulary: roles of ids, added tokens, what stands around a text.

It stands in tokenizer_config.json, special_tokens_map.json and added_tokens.json, in today's and in older forms.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from llmlab.data.encoder import Encoder, Mark, Marks
from llmlab.data.sources import DataError
from llmlab.interop.safetensors import parse_json

CONFIG = "tokenizer_config.json"
ROLES = ("bos", "eos", "pad", "unk", "cls", "sep", "mask")
EXTRA = 'published tokenizers need further packages: pip install "llmlab[hf]"'


@dataclasses.dataclass(frozen=True)
class Settings:
    """raw: tokenizer_config.json. roles: {"bos": its written form, ...}. marks: added tokens with their ids."""

    raw: dict = dataclasses.field(default_factory=dict)
    roles: dict[str, str] = dataclasses.field(default_factory=dict)
    marks: tuple[Mark, ...] = ()

    @property
    def kind(self) -> str:
        """The class that transformers would take, in its plain form."""
        return str(self.raw.get("tokenizer_class", "")).removesuffix("Fast")

    def finish(self, encoder: Encoder) -> Encoder:
        """The encoder with these roles, and with the ids around a text that the checkpoint asks for."""
        specials = dataclasses.replace(encoder.specials, roles={**encoder.specials.roles, **self.roles})
        around = {"before": ("add_bos_token", "bos"), "after": ("add_eos_token", "eos")}
        for side, (key, role) in around.items():
            if isinstance(self.raw.get(key), bool):
                found = [specials.id(role)] if self.raw[key] else []
                specials = dataclasses.replace(specials, **{side: tuple(id for id in found if id is not None)})
        end = specials.id("eos") if specials.id("eos") is not None else specials.id("sep")
        return dataclasses.replace(encoder, specials=specials, end=encoder.end if end is None else end)


def read_settings(directory: Path) -> Settings:
    """The settings that lie in a directory; those of files that are not there are empty."""
    raw = read_json(directory / CONFIG)
    named = {**read_json(directory / "special_tokens_map.json"), **raw}
    roles = {role: written(named[f"{role}_token"]) for role in ROLES if named.get(f"{role}_token")}
    special = {*roles.values(), *map(written, named.get("additional_special_tokens") or ())}
    added = {text: Mark(text, id, text in special) for text, id in read_json(directory / "added_tokens.json").items()}
    try:
        for id, token in (raw.get("added_tokens_decoder") or {}).items():
            flags = [bool(token.get(key)) for key in ("lstrip", "rstrip", "single_word")]
            control = bool(token.get("special")) or token["content"] in special
            added[token["content"]] = Mark(token["content"], int(id), control, *flags)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{directory / CONFIG}: added_tokens_decoder is no table of tokens ({error!r})") from error
    return Settings(raw, roles, tuple(sorted(added.values(), key=lambda mark: mark.id)))


def read_json(file: Path) -> dict:
    """The table in a file, empty where there is no file."""
    return parse_json(file) if file.is_file() else {}


def written(token) -> str:
    """The written form of a token, which files give as text or as a table with `content`."""
    return token["content"] if isinstance(token, dict) else str(token)


def add_marks(encoder: Encoder, marks: Iterable[Mark]) -> Encoder:
    """The encoder with further special ids, or with other flags of those that it has."""
    marks = {**{mark.text: mark for mark in encoder.specials.marks.all}, **{mark.text: mark for mark in marks}}
    pieces = list(encoder.pieces)
    for mark in marks.values():
        pieces += [b""] * (mark.id + 1 - len(pieces))
        pieces[mark.id] = b"" if mark.control else mark.text.encode()
    always = Marks(tuple(mark for mark in marks.values() if not mark.control))
    first, then = encoder.encode_text, encoder.specials.follow
    specials = dataclasses.replace(encoder.specials, marks=Marks(tuple(marks.values())))
    if always.all:
        specials = dataclasses.replace(specials, follow=reading(always, then or first, then or first))
        first = reading(always, first, then or first)
    return dataclasses.replace(encoder, encode_text=first, pieces=tuple(pieces), specials=specials)


Encode = Callable[[bytes], np.ndarray]


def reading(marks: Marks, first: Encode, then: Encode) -> Encode:
    """An encoding that reads marks wherever they stand; `then` encodes what follows the first part."""

    def encode(text: bytes) -> np.ndarray:
        parts = list(marks.split(text.decode())) or [""]
        encoders = [first] + [then] * (len(parts) - 1)
        found = [np.array([p]) if isinstance(p, int) else own(p.encode()) for p, own in zip(parts, encoders)]
        return np.concatenate(found).astype(np.int32)

    return encode
