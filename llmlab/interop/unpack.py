"""What a GGUF file holds beside weights, as the small files of a checkpoint's directory: config and tokenizer.

So whatever reads a directory reads it: the tokenizer, the chat template, the ids that end a text. Byte pairs become a
tokenizer.json, pieces with scores a SentencePiece model, whose types have the same numbers; BERT's words a vocab.txt.
"""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

from llmlab.interop.gguf import Gguf
from llmlab.interop.layouts import IDS, config_of
from llmlab.interop.ranks import GPT4
from llmlab.interop.safetensors import FileError

NORMAL, CONTROL, OWN, BYTE = 1, 3, 4, 6  # types of tokens; own: added by a user
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}


def split(pattern: str) -> list[dict]:
    """A text split by a regular expression before its bytes are merged."""
    cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return [cut, {**BYTES, "use_regex": False}]


SPLITS = {  # by tokenizer.ggml.pre: how a text is split before merging
    **dict.fromkeys(("default", "gpt-2", "phi-2", "olmo", "mpt"), [BYTES]),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r"), [DIGITS, BYTES]),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), split(GPT4)),
    "bloom": split(r" ?[^(\s|[.,!?…。，、।۔،])]+"),
}
WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3")  # a word that is a token is not merged


def unpack(given: Gguf, folder: Path) -> dict:
    """Writes the files, and gives the table of config.json. Warns where the tokenizer is of a kind not known here."""
    config = config_of(given)
    (folder / "config.json").write_text(json.dumps(config))
    values = {key.removeprefix("tokenizer."): value for key, value in given.values.items() if "tokenizer." in key}
    values = {key.removeprefix("ggml."): value for key, value in values.items()}
    if "tokens" not in values:
        return config
    check(given.file, values)
    kind, pre, told = values.get("model"), values.get("pre", "default"), settings(values)
    if kind == "gpt2" and pre in SPLITS:
        (folder / "tokenizer.json").write_text(json.dumps(byte_pairs(values, pre)))
    elif kind in ("llama", "t5"):
        (folder / "tokenizer.model").write_bytes(sentencepiece(values, unigram=kind == "t5"))
    elif kind == "bert" and "[UNK]" in values["tokens"]:
        pieces, told = word_pieces(given.file, values)
        (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")
    else:
        warnings.warn(f"{given.file}: the tokenizer {kind!r} with the split {pre!r} is not read", stacklevel=4)
        return config
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    return config


def check(file: Path, values: dict) -> None:
    """Raises FileError where the lists of a tokenizer do not fit together."""
    tokens, count = values["tokens"], len(values["tokens"])
    lists = {"tokens": str, "token_type": int, "scores": float, "merges": str}
    for key, kind in lists.items():
        given = values.get(key, [])
        if not isinstance(given, list) or not all(isinstance(one, kind) for one in given):
            raise FileError(f"{file}: tokenizer.ggml.{key} is no list of {kind.__name__}")
        if key in ("token_type", "scores") and key in values and len(given) != count:
            raise FileError(f"{file}: tokenizer.ggml.{key} has {len(given)} entries, and there are {count} tokens")
    if len(set(tokens)) < count and values.get("model") == "gpt2":
        raise FileError(f"{file}: tokenizer.ggml.tokens has the same token twice")
    for own in IDS.values():
        id = values.get(f"{own}_token_id", 0)
        if not isinstance(id, int) or not 0 <= id < count:
            raise FileError(f"{file}: tokenizer.ggml.{own}_token_id is {id!r}, and there are {count} tokens")


def types(values: dict) -> list[int]:
    return values.get("token_type") or [NORMAL] * len(values["tokens"])


def byte_pairs(values: dict, pre: str) -> dict:
    """A tokenizer.json of bytes that are merged in pairs."""
    tokens, flags = values["tokens"], {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": id, "content": token, "special": kind == CONTROL, **flags}
        for id, (token, kind) in enumerate(zip(tokens, types(values)))
        if kind in (CONTROL, OWN)
    ]
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": SPLITS[pre]},
        "post_processor": None,
        "decoder": BYTES,
        "model": {
            "type": "BPE",
            "ignore_merges": pre in WHOLE_WORDS,
            "vocab": {token: id for id, token in enumerate(tokens)},
            "merges": [merge.split(" ", 1) for merge in values.get("merges", ())],
        },
    }


def sentencepiece(values: dict, unigram: bool) -> bytes:
    """A SentencePiece model, of byte pairs or Unigram."""
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    proto, kinds = ModelProto(), types(values)
    for token, score, kind in zip(values["tokens"], values.get("scores", [0.0] * len(kinds)), kinds):
        proto.pieces.add(piece=token, score=score, type=kind)
    trainer, rules = proto.trainer_spec, proto.normalizer_spec
    trainer.model_type = trainer.UNIGRAM if unigram else trainer.BPE
    trainer.byte_fallback = BYTE in kinds
    trainer.vocab_size = len(kinds)
    for role, own in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        setattr(trainer, f"{role}_id", values.get(f"{own}_token_id", -1))
    rules.add_dummy_prefix = bool(values.get("add_space_prefix", True))
    rules.remove_extra_whitespaces = bool(values.get("remove_extra_whitespaces", False))
    rules.precompiled_charsmap = bytes(values.get("precompiled_charsmap", ()))
    rules.name = "nmt_nfkc" if rules.precompiled_charsmap else "identity"
    return proto.SerializeToString()


def word_pieces(file: Path, values: dict) -> tuple[list[str], dict]:
    """The lines of a vocab.txt and the tokenizer_config.json of WordPiece.

    Where a word begins the file has U+2581, and vocab.txt has ## where none does. Where the file does not say
    whether case counts, it does if a piece has capitals.
    """
    whole = [kind == CONTROL or re.fullmatch(r"\[.+\]", token) for token, kind in zip(values["tokens"], types(values))]
    turned = lambda token: token[1:] if token[:1] == "\u2581" else f"##{token}"
    pieces = [token if one else turned(token) for token, one in zip(values["tokens"], whole)]
    broken = [piece for piece in pieces if "\n" in piece or "\r" in piece]
    if broken:
        raise FileError(f"{file}: tokenizer.ggml.tokens has {broken[0]!r}, and a piece is no more than a line")
    capitals = any(piece != piece.lower() for piece, one in zip(pieces, whole) if not one)
    told = {"tokenizer_class": "BertTokenizer", "do_lower_case": bool(values.get("normalizer.lowercase", not capitals))}
    accents = values.get("normalizer.strip_accents")
    return pieces, told if accents is None else told | {"strip_accents": bool(accents)}


def settings(values: dict) -> dict:
    """A tokenizer_config.json: roles of ids, added tokens, what stands around a text, the chat template."""
    tokens, plain = values["tokens"], values.get("model") == "llama"
    found = {
        key.replace("_id", ""): tokens[values[f"{own}_token_id"]]
        for key, own in IDS.items()
        if f"{own}_token_id" in values
    }
    found["add_bos_token"] = bool(values.get("add_bos_token", plain))
    found["add_eos_token"] = bool(values.get("add_eos_token", values.get("model") == "t5"))
    found["added_tokens_decoder"] = {
        str(id): {"content": token, "special": kind == CONTROL}
        for id, (token, kind) in enumerate(zip(tokens, types(values)))
        if kind in (CONTROL, OWN)
    }
    if "chat_template" in values:
        found["chat_template"] = values["chat_template"]
    return found
