"""Tokenizers of the `tokenizers` package: tokenizer.json, and the older vocabulary files that it can stand for.

tokenizer.json says everything: normaliser, split, model, decoder, and what stands around a text. A vocab.txt is
WordPiece with BERT's normaliser; vocab.json with merges.txt is GPT-2's bytes, or GPT-1's words, whose pieces end in
</w>.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from llmlab.config import digest
from llmlab.data.encoder import Encoder, Mark, Marks, Specials
from llmlab.data.sources import DataError, content_hash
from llmlab.interop.specials import EXTRA, Settings

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# The steps of a decoder: what they make of one piece, and those that change nothing of what an id alone stands for.
CHANGES = {
    "Replace": lambda step, text: text.replace(step["pattern"]["String"], step["content"]),
    "Metaspace": lambda step, text: text.replace(step["replacement"], " "),
    "WordPiece": lambda step, text: text[len(step["prefix"]) :] if text.startswith(step["prefix"]) else f" {text}",
    "BPEDecoder": lambda step, text: re.sub(f"{re.escape(step['suffix'])}$", " ", text),
}
SILENT = {"Fuse", "Strip"}
# Roles where a checkpoint names none; of one role the last that it has.
USUAL = (("eos", "<|endoftext|>"), ("bos", "<s>"), ("eos", "</s>"), ("pad", "<pad>"), ("unk", "<unk>"))
USUAL += tuple((role, f"[{role.upper()}]") for role in ("pad", "unk", "cls", "sep", "mask"))


def rust():
    """The package `tokenizers`. Raises ImportError that says how to install it."""
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError(f"{EXTRA} (there is no tokenizers)") from error
    return tokenizers


def read_tokenizer_json(content: bytes, file: Path, settings: Settings) -> Encoder:
    """The encoder of a tokenizer.json."""
    package = rust()
    try:
        tokenizer = package.Tokenizer.from_str(content.decode())
    except Exception as error:  # the package raises plain Exception, and UnicodeDecodeError is one too
        raise DataError(f"{file} is no tokenizer.json that `tokenizers` can read ({error})") from error
    return encoder_of(tokenizer, json.loads(content), file, settings, content_hash(content))


def read_vocab_txt(content: bytes, file: Path, settings: Settings) -> Encoder:
    """The encoder of WordPiece with BERT's normaliser, of the vocabulary with one piece a line."""
    from_file = content.decode().removesuffix("\n").split("\n")
    vocab = {piece.removesuffix("\r"): index for index, piece in enumerate(from_file)}
    package, raw = rust(), settings.raw
    tokenizer = package.Tokenizer(package.models.WordPiece(vocab, unk_token=settings.roles.get("unk", "[UNK]")))
    tokenizer.normalizer = package.normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=raw.get("tokenize_chinese_chars", True),
        strip_accents=raw.get("strip_accents"),
        lowercase=raw.get("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = package.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = package.decoders.WordPiece()
    return built(tokenizer, vocab, dict(USUAL[-5:]), ("cls", "sep"), (file, settings, content_hash(content)))


def read_vocab_json(content: bytes, file: Path, settings: Settings) -> Encoder:
    """The encoder of byte pairs in two files: {piece: id}, and beside it the merges in their order."""
    package, merges_file = rust(), file.with_name("merges.txt")
    if not merges_file.is_file():
        raise DataError(f"{file} is a vocabulary of byte pairs, and there is no merges.txt beside it")
    vocab, lines = json.loads(content), merges_file.read_text(encoding="utf-8").split("\n")
    merges = [tuple(line.split(" ")) for line in lines if line.strip() and not line.startswith("#version")]
    words = any(piece.endswith("</w>") for piece in vocab)
    usual = {"unk": "<unk>"} if words else {"bos": "<|endoftext|>", "eos": "<|endoftext|>", "unk": "<|endoftext|>"}
    if not words and {"<s>", "</s>"} <= vocab.keys():  # BART's
        usual = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask>"}
    suffix = {"end_of_word_suffix": "</w>", "unk_token": settings.roles.get("unk", "<unk>")} if words else {}
    try:
        tokenizer = package.Tokenizer(package.models.BPE(vocab=vocab, merges=merges, **suffix))
    except Exception as error:
        raise DataError(f"{file} and {merges_file.name} do not fit together ({error})") from error
    if words:
        tokenizer.normalizer = package.normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = package.pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = package.decoders.BPEDecoder(suffix="</w>")
    else:
        space = bool(settings.raw.get("add_prefix_space", False))
        tokenizer.pre_tokenizer = package.pre_tokenizers.ByteLevel(add_prefix_space=space)
        tokenizer.decoder = package.decoders.ByteLevel()
    around = ("bos", "eos") if "mask" in usual else ()
    key = digest(content_hash(content), content_hash(merges_file.read_bytes()))
    return built(tokenizer, vocab, usual, around, (file, settings, key))


def built(tokenizer, vocab: dict[str, int], usual: dict[str, str], around: tuple[str, ...], rest: tuple) -> Encoder:
    """The encoder of a tokenizer made here. usual: roles where the checkpoint says none. around: roles that stand
    before and after a text."""
    package, (file, settings, key) = rust(), rest
    roles = {role: text for role, text in {**usual, **settings.roles}.items() if text in vocab}
    mark = lambda role: package.AddedToken(roles[role], special=True, normalized=False, lstrip=role == "mask")
    tokenizer.add_special_tokens([mark(role) for role in roles])
    if set(around) <= roles.keys() and around:
        before, after = (roles[role] for role in around)
        tokenizer.post_processor = package.processors.TemplateProcessing(
            single=f"{before} $A {after}", special_tokens=[(text, vocab[text]) for text in (before, after)]
        )
    settings = Settings(settings.raw, roles, settings.marks)
    return encoder_of(tokenizer, json.loads(tokenizer.to_str()), file, settings, key)


def encoder_of(tokenizer, layout: dict, file: Path, settings: Settings, key: str) -> Encoder:
    """The encoder of a loaded tokenizer. layout: it as JSON. key: names its content."""
    package = rust()
    tokenizer.no_truncation()
    tokenizer.no_padding()
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for mark in settings.marks:
        if mark.text not in known:
            flags = {"lstrip": mark.left, "rstrip": mark.right, "single_word": mark.whole, "normalized": False}
            tokenizer.add_tokens([package.AddedToken(mark.text, special=mark.control, **flags)])
            if tokenizer.token_to_id(mark.text) != mark.id:
                raise DataError(f"{file} has no id {mark.id} for {mark.text!r}, which the checkpoint's settings name")
    tokenizer.encode_special_tokens = True  # the text of a user stays text
    added = tokenizer.get_added_tokens_decoder()
    marks = [Mark(t.content, id, t.special, t.lstrip, t.rstrip, t.single_word) for id, t in added.items()]
    before, after = around_text(tokenizer)
    texts = {mark.text for mark in marks}
    roles = {role: text for role, text in USUAL if text in texts}
    encoder = Encoder(
        functools.partial(encode, tokenizer),
        read_pieces(tokenizer, layout, file, {mark.id: mark for mark in marks}),
        end=None,
        fingerprint=digest("tokenizer.json", key, [(mark.text, mark.id, mark.control) for mark in marks]),
        indent=indents(layout),
        specials=Specials(Marks(tuple(marks)), roles, before, after, follow_of(tokenizer, layout)),
    )
    return settings.finish(encoder)


def encode(tokenizer, text: bytes) -> np.ndarray:
    return np.array(tokenizer.encode(text.decode(), add_special_tokens=False).ids, np.int32)


def around_text(tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that the tokenizer puts before and after a text."""
    found = tokenizer.encode("a")
    own = [i for i, special in enumerate(found.special_tokens_mask) if not special]
    if not own:
        return tuple(found.ids), ()
    return tuple(found.ids[: own[0]]), tuple(found.ids[own[-1] + 1 :])


def steps(node) -> Iterator[dict]:
    """The parts of a normaliser, a split or a decoder in their order, those of sequences too."""
    if isinstance(node, dict):
        children = next((node[key] for key in ("normalizers", "pretokenizers", "decoders") if key in node), None)
        if children is None:
            yield node
        for child in children or ():
            yield from steps(child)


def metaspace(layout: dict) -> dict | None:
    return next((s for s in steps(layout.get("pre_tokenizer")) if s["type"] == "Metaspace"), None)


def indents(layout: dict) -> bool:
    """Whether ids begin with a space that the text has not."""
    split, meta = list(steps(layout.get("pre_tokenizer"))), metaspace(layout)
    if (
        meta is not None
        and meta.get("prepend_scheme", "always" if meta.get("add_prefix_space") else "never") != "never"
    ):
        return True
    prepends = any(step["type"] == "Prepend" for step in steps(layout.get("normalizer")))
    bytes_ = any(step["type"] == "ByteLevel" and step.get("add_prefix_space") for step in split)
    return prepends or bytes_ or any(step["type"] == "WordPiece" for step in steps(layout.get("decoder")))


def follow_of(tokenizer, layout: dict) -> Callable | None:
    """How text after a special id is encoded, where only the first text of all gets a space before it."""
    meta = metaspace(layout)
    if meta is None or meta.get("prepend_scheme") != "first":
        return None

    @functools.cache
    def other():
        changed = json.loads(tokenizer.to_str())
        metaspace(changed)["prepend_scheme"] = "never"
        found = rust().Tokenizer.from_str(json.dumps(changed))
        found.encode_special_tokens = True
        return found

    return lambda text: encode(other(), text)


def read_pieces(tokenizer, layout: dict, file: Path, marks: dict[int, Mark]) -> tuple[bytes, ...]:
    """The bytes of each id; b"" where a number is no id."""
    vocab, read = tokenizer.get_vocab(with_added_tokens=True), piece_reader(layout, file)
    pieces = [b""] * (1 + max(vocab.values(), default=-1))
    for text, id in vocab.items():
        mark = marks.get(id)
        pieces[id] = read(text) if mark is None else b"" if mark.control else mark.text.encode()
    return tuple(pieces)


def piece_reader(layout: dict, file: Path) -> Callable[[str], bytes]:
    """What turns a piece of the vocabulary into the bytes it stands for, as the decoder says."""
    found = {step["type"]: step for step in steps(layout.get("decoder"))}
    unknown = found.keys() - {"ByteLevel", "ByteFallback", *CHANGES, *SILENT}
    if unknown:
        raise DataError(f"{file}: its decoder has a step {min(unknown)!r}, which is not known here")
    changes = [functools.partial(CHANGES[kind], step) for kind, step in found.items() if kind in CHANGES]
    table = byte_table() if "ByteLevel" in found else None

    def read(text: str) -> bytes:
        byte = BYTE.fullmatch(text) if "ByteFallback" in found else None
        if byte:
            return bytes([int(byte[1], 16)])
        if table is not None and all(character in table for character in text):
            return bytes(table[character] for character in text)
        return functools.reduce(lambda text, change: change(text), changes, text).encode()

    return read


def byte_table() -> dict[str, int]:
    """The character that stands for each byte in byte-level vocabularies (Radford et al., 2019), reversed.

    Printable bytes stand for themselves, the others for the characters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in printable]
    return {chr(value): value for value in printable} | {chr(0x100 + i): value for i, value in enumerate(others)}
