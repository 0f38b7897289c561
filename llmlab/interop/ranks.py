"""Rank files: byte-level pieces in the order of their merges, through `tiktoken`.

A `.tiktoken` file has a line "base64 rank" for each piece; Llama 3's tokenizer.model is one too. Mistral's tekken.json
has the same as JSON, after ids for its special tokens. How a text is split before merging is not in a rank file: it
belongs to the family, which is known by the number of ranks.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
from pathlib import Path

import numpy as np

from llmlab.config import digest
from llmlab.data.encoder import Encoder, Mark
from llmlab.data.sources import DataError, content_hash
from llmlab.interop.specials import EXTRA, Settings, add_marks

ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT4 = ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + REST
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@dataclasses.dataclass(frozen=True)
class Family:
    """The split of a text (a regular expression), the special tokens {text: id after the ranks}, and their roles."""

    pattern: str
    specials: dict[str, int]
    roles: dict[str, str]
    before: tuple[str, ...] = ()


def llama3() -> Family:
    """Llama 3.1's names of its 256 special tokens; those of Llama 3 are the same where it has any."""
    named = "begin_of_text end_of_text reserved_special_token_0 reserved_special_token_1 finetune_right_pad_id "
    named += "reserved_special_token_2 start_header_id end_header_id eom_id eot_id python_tag"
    texts = [f"<|{name}|>" for name in named.split()]
    texts += [f"<|reserved_special_token_{number}|>" for number in range(3, 3 + 256 - len(texts))]
    roles = {"bos": texts[0], "eos": texts[1]}
    return Family(GPT4, {text: index for index, text in enumerate(texts)}, roles, before=(texts[0],))


END = "<|endoftext|>"
FAMILIES = {
    50256: Family(GPT2, {END: 0}, {"bos": END, "eos": END}),
    100256: Family(
        GPT4,
        {END: 1, "<|fim_prefix|>": 2, "<|fim_middle|>": 3, "<|fim_suffix|>": 4, "<|endofprompt|>": 20},
        {"bos": END, "eos": END},
    ),
    128000: llama3(),
}


def read_ranks(content: bytes, file: Path, settings: Settings, pattern: str | None = None) -> Encoder:
    """The encoder of a rank file. pattern: the split, where the number of ranks is none of FAMILIES."""
    pieces = []
    for number, line in enumerate(content.splitlines()):
        try:
            piece, rank = line.split()
            pieces.append(base64.b64decode(piece, validate=True))
            if int(rank) != number:
                raise ValueError(f"rank {int(rank)} where {number} is due")
        except (ValueError, binascii.Error) as error:
            raise DataError(f"{file}, line {number + 1}: {line[:40]!r} is no piece and its rank ({error})") from error
    family = FAMILIES.get(len(pieces))
    if family is None and pattern is None:
        known = ", ".join(map(str, FAMILIES))
        raise DataError(
            f"{file} has {len(pieces)} ranks, and the split of texts is known for {known} ranks; "
            "give it as load_tokenizer(..., pattern=REGEX), or use the checkpoint's tokenizer.json"
        )
    family = family or Family(pattern, {}, {})
    encoder = encoder_of(pieces, pattern or family.pattern, file, content_hash(content), first=0)
    ids = {text: len(pieces) + place for text, place in family.specials.items()}
    named = settings.marks or [Mark(text, id) for text, id in ids.items()]
    encoder = add_marks(encoder, named)
    ids = encoder.specials.marks.ids
    before = tuple(ids[text] for text in family.before if text in ids)
    specials = dataclasses.replace(encoder.specials, roles=family.roles, before=before)
    return settings.finish(dataclasses.replace(encoder, specials=specials))


def read_tekken(content: bytes, file: Path, settings: Settings) -> Encoder:
    """The encoder of a tekken.json."""
    data = json.loads(content)
    try:
        config, first = data["config"], data["config"]["default_num_special_tokens"]
        count = config["default_vocab_size"] - first
        pieces = [base64.b64decode(entry["token_bytes"]) for entry in data["vocab"][:count]]
        names = {entry["token_str"]: entry["rank"] for entry in data.get("special_tokens") or usual_specials()}
        pattern = config["pattern"]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{file} is no tekken.json ({error!r})") from error
    encoder = encoder_of(pieces, pattern, file, content_hash(content), first)
    encoder = add_marks(encoder, [Mark(text, id) for text, id in names.items() if id < first])
    roles = {role: text for role, text in (("bos", "<s>"), ("eos", "</s>"), ("unk", "<unk>")) if text in names}
    before = (names["<s>"],) if "<s>" in names else ()
    specials = dataclasses.replace(encoder.specials, roles=roles, before=before)
    return settings.finish(dataclasses.replace(encoder, specials=specials))


def usual_specials() -> list[dict]:
    """The first special tokens of a tekken.json that does not list them (its first versions)."""
    names = "<unk> <s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] [/TOOL_RESULTS] "
    names += "[TOOL_CALLS] [IMG] <pad> [IMG_BREAK] [IMG_END] [PREFIX] [MIDDLE] [SUFFIX] [SYSTEM_PROMPT] "
    names += "[/SYSTEM_PROMPT] [TOOL_CONTENT]"
    return [{"token_str": name, "rank": rank} for rank, name in enumerate(names.split())]


def encoder_of(pieces: list[bytes], pattern: str, file: Path, key: str, first: int) -> Encoder:
    """The encoder of pieces in the order of their ranks; `first` is the id of the first."""
    try:
        import tiktoken
    except ImportError as error:
        raise ImportError(f"{EXTRA} (there is no tiktoken)") from error
    ranks = {piece: rank for rank, piece in enumerate(pieces)}
    if len(ranks) != len(pieces):
        raise DataError(f"{file} has a piece twice")
    missing = [value for value in range(256) if bytes([value]) not in ranks]
    if missing:
        raise DataError(f"{file} has no piece for the byte {missing[0]:#04x}; the file is not whole")
    try:
        merges = tiktoken.Encoding(name=file.name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    except ValueError as error:
        raise DataError(f"{file}: its split {pattern!r} is no regular expression ({error})") from error

    def encode(text: bytes) -> np.ndarray:
        return np.array(merges.encode_ordinary(text.decode()), np.int32) + first

    return Encoder(encode, (b"",) * first + tuple(pieces), None, digest("ranks", key, pattern))
