"""Tokenizers: text to ids and back, with the number of bytes that each id stands for.

A tokenizer config knows the size of its vocabulary without data, because the model needs it; `load` gives the
`Encoder`. A new tokenizer inherits `Tokenizer`, defines `vocab` and `load`, and returns an `Encoder`.
Letters: V vocabulary, T tokens of a text.
"""

from __future__ import annotations

import dataclasses
import io
import re
import warnings
from collections.abc import Callable, Iterator, Set
from pathlib import Path

import numpy as np

from llmlab.config import Config, config, digest
from llmlab.data.cache import discard, publish
from llmlab.data.encoder import Encoder, Mark, Marks, Specials
from llmlab.data.sources import DataError, Source, content_hash

SAMPLE = 4 << 20  # bytes of text that a tokenizer is trained on at most
SENTENCE = 2000  # characters given to the trainer at once
SPACE = "\u2581"  # what SentencePiece writes for a space
NOTHING = np.zeros(0, np.int32)


class Tokenizer(Config):
    """The slot of a tokenizer."""

    @property
    def vocab(self) -> int:
        """The number of ids."""
        raise TypeError(f"{type(self).__name__} must define vocab")

    def load(self, source: Source | None = None, cache: Path | None = None, report: Callable = print) -> Encoder:
        """The encoder; what must be trained is trained on the source's train split, kept in `cache`, and reported."""
        raise TypeError(f"{type(self).__name__} must define load(source, cache, report)")


@config
class Bytes(Tokenizer):
    """One id a byte (0 to 255), and 256 to end a document: a vocabulary of 257 that knows every text."""

    vocab = 257

    def load(self, source=None, cache=None, report=print):
        pieces = tuple(bytes([value]) for value in range(256)) + (b"",)
        return Encoder(self._encode, pieces, end=256, fingerprint="bytes")

    def _encode(self, text: bytes) -> np.ndarray:
        return np.frombuffer(text, np.uint8).astype(np.int32)


@config
class Characters(Tokenizer):
    """One id for each character of a fixed alphabet, in its order; nothing ends a document."""

    alphabet: str

    def check(self):
        twice = [c for i, c in enumerate(self.alphabet) if c in self.alphabet[:i]]
        if twice or not self.alphabet:
            raise ValueError(f"Characters.alphabet has {twice[0]!r} twice" if twice else "Characters.alphabet is empty")

    @property
    def vocab(self) -> int:
        return len(self.alphabet)

    def load(self, source=None, cache=None, report=print):
        pieces = tuple(character.encode() for character in self.alphabet)
        return Encoder(self._encode, pieces, end=None, fingerprint=digest("characters", self.alphabet))

    def _encode(self, text: bytes) -> np.ndarray:
        codes_T = code_points(text.decode())
        codes_V = code_points(self.alphabet)
        order_V = np.argsort(codes_V)
        slots_T = np.searchsorted(codes_V, codes_T, sorter=order_V).clip(max=len(codes_V) - 1)
        ids_T = order_V[slots_T].astype(np.int32)
        unknown = np.flatnonzero(codes_V[ids_T] != codes_T)
        if unknown.size:
            character = chr(codes_T[unknown[0]])
            raise DataError(
                f"the character {character!r} (U+{ord(character):04X}) at position {unknown[0]} of the text is not "
                f"among the {self.vocab} of Characters.alphabet; add it there, or use Bytes()"
            )
        return ids_T


def code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


@config
class SentencePiece(Tokenizer):
    """Byte-pair pieces over UTF-8 text (Sennrich et al. 2016, Kudo & Richardson 2018).

    model: the path of a SentencePiece model of any kind. None trains one of `vocab` pieces on the source's train split
    (an even sample of 4 MiB, so a few seconds): with byte fallback and no normalisation, so that every text comes back
    exactly. 0 is unknown (never used), 1 ends a document, 2 to 257 are the bytes.
    """

    vocab: int = 2048
    model: str | None = None

    def check(self):
        if self.model is None and self.vocab < 300:
            raise ValueError(f"SentencePiece.vocab is {self.vocab}; 258 ids are bytes and specials, take 300 or more")

    def load(self, source=None, cache=None, report=print):
        if self.model is None:
            return self._trained(source, cache, report)
        path = Path(self.model).expanduser()
        if not path.is_file():
            raise DataError(f"no SentencePiece model {self.model!r}; pass --data.tokenizer.model FILE")
        encoder = encoder_of(path.read_bytes(), str(path))
        if encoder.vocab != self.vocab:
            raise DataError(
                f"{path} has {encoder.vocab} pieces and SentencePiece.vocab says {self.vocab}; "
                f"pass --data.tokenizer.vocab {encoder.vocab} and --model.vocab {encoder.vocab}"
            )
        return encoder

    def _trained(self, source: Source, cache: Path, report: Callable) -> Encoder:
        import sentencepiece

        key = digest("sentencepiece", sentencepiece.__version__, self, source.fingerprint())
        path = cache / "tokenizers" / f"{key}.model"
        if path.exists():
            try:
                return encoder_of(path.read_bytes(), str(path))
            except DataError as error:
                warnings.warn(f"{error}; it is trained again", RuntimeWarning, stacklevel=2)
                discard(path)
        report(f"training the tokenizer: {self.vocab} SentencePiece pieces")
        model = train(list(sentences(source)), self.vocab)
        publish(lambda temporary: temporary.write_bytes(model), path)
        return encoder_of(model, str(path))


def sentences(source: Source) -> Iterator[str]:
    """An even sample of the train split in parts of at most SENTENCE characters, newlines within.

    Tabs and NULs part them because the trainer leaves out whatever contains one.
    """
    total = sum(len(text) for text in source.documents("train"))
    stride, count = -(-total // SAMPLE), 0
    for text in source.documents("train"):
        for part in re.findall(rf"[^\t\0]{{1,{SENTENCE}}}", text.decode()):
            if count % stride == 0:
                yield part
            count += 1


def train(parts: list[str], vocab: int) -> bytes:
    """A serialised byte-pair model; the same for the same parts."""
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(parts),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            max_sentence_length=8 * SENTENCE,  # bytes; longer ones would be left out
            unk_id=0,
            eos_id=1,
            bos_id=-1,
            pad_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise DataError(
            f"no SentencePiece model of {vocab} pieces can be trained on {sum(map(len, parts))} characters "
            f"({str(error).rpartition('] ')[2]}); set --data.tokenizer.vocab and --model.vocab to what fits, "
            "give more text, or use Bytes()"
        ) from error
    return model.getvalue()


def encoder_of(model: bytes, name: str, controls: Set[str] = frozenset()) -> Encoder:
    """The encoder of a serialised SentencePiece model. Raises DataError when it is none.

    controls: pieces that the text of a user never becomes, beside those that the model itself says.
    """
    import sentencepiece
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    try:
        proto = ModelProto.FromString(model)
        if not proto.pieces:
            raise ValueError("it has no pieces")
        for piece in proto.pieces:
            if piece.piece in controls:
                piece.type = ModelProto.SentencePiece.Type.CONTROL
        processor = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    except Exception as error:  # protobuf's DecodeError, RuntimeError or OSError, by what is wrong with the bytes
        raise DataError(f"{name} is no SentencePiece model ({error})") from error
    rules, encode = proto.normalizer_spec, SentencePieceEncode.of(processor, proto.normalizer_spec)
    follow, indent = None, rules.add_dummy_prefix
    if indent:
        rules.add_dummy_prefix = False
        bare = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
        follow = SentencePieceEncode(bare, NOTHING)
    control = lambda index: processor.is_control(index) or processor.is_unknown(index)
    marks = [Mark(processor.id_to_piece(index), index) for index in range(len(processor)) if control(index)]
    ids = {role: getattr(processor, f"{role}_id")() for role in ("bos", "eos", "pad", "unk")}
    return Encoder(
        encode,
        tuple(piece_bytes(processor, index) for index in range(len(processor))),
        end=ids["eos"] if ids["eos"] >= 0 else None,
        fingerprint=digest("sentencepiece", content_hash(model)),
        indent=indent,
        specials=Specials(
            Marks(tuple(marks)), {r: processor.id_to_piece(i) for r, i in ids.items() if i >= 0}, follow=follow
        ),
    )


@dataclasses.dataclass(frozen=True)
class SentencePieceEncode:
    """Encodes with a model, and a SPACE that stands in the text itself by its bytes, for the model reads it as " ".

    bytes_of_space: the ids of SPACE's three bytes; empty where the model has no bytes or adds spaces of its own.
    """

    processor: object
    bytes_of_space: np.ndarray

    @classmethod
    def of(cls, processor, rules) -> SentencePieceEncode:
        """rules: the normaliser of the model."""
        ids = [processor.piece_to_id(f"<0x{value:02X}>") for value in SPACE.encode()]
        exact = not rules.add_dummy_prefix and not rules.remove_extra_whitespaces and all(map(processor.is_byte, ids))
        return cls(processor, np.array(ids, np.int32) if exact else NOTHING)

    def __call__(self, text: bytes) -> np.ndarray:
        parts = text.decode().split(SPACE) if self.bytes_of_space.size else [text.decode()]
        ids = [self.processor.encode_as_numpy(part).astype(np.int32) for part in parts]
        return np.concatenate([x for part in ids for x in (self.bytes_of_space, part)][1:]) if len(ids) > 1 else ids[0]


def piece_bytes(processor, index: int) -> bytes:
    if processor.is_byte(index):
        return bytes([int(processor.id_to_piece(index)[3:5], 16)])  # written <0x41>
    if processor.is_control(index) or processor.is_unknown(index) or processor.is_unused(index):
        return b""
    return processor.id_to_piece(index).replace(SPACE, " ").encode()
