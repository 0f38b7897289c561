"""Tokenizers: exact round trips, bytes of each id, training that repeats, and messages."""

import numpy as np
import pytest

from llmlab.data import Bytes, Characters, DataError, SentencePiece

HARD = "tab\there  two\n\n   lines \r\n é😀 a\u2581b \ufeff nul\0 \u2047 </s><0x41><unk> end "


def text_of(count):
    """Prose with enough different words to train on."""
    generator = np.random.default_rng(0)
    syllables = ["ka", "lo", "mi", "tre", "sun", "dar", "vo", "pel", "qui", "zan"]
    words = ["".join(generator.choice(syllables, generator.integers(1, 5))) for _ in range(300)]
    return " ".join(generator.choice(words, count)).replace("ka lo", "ka\n    lo")


@pytest.fixture
def trained(texts, tmp_path):
    return SentencePiece(vocab=320).load(texts(train=(text_of(2000),)), tmp_path, report=lambda line: None)


def test_bytes():
    encoder = Bytes().load()
    assert encoder.vocab == Bytes().vocab == 257 and encoder.end == 256
    assert encoder.encode("é").tolist() == [0xC3, 0xA9] and encoder.encode("é").dtype == np.int32
    assert encoder.decode(encoder.encode(HARD)) == HARD
    assert encoder.bytes_V.tolist() == [1] * 256 + [0]
    assert encoder.decode([65, 256, 66]) == "AB" and encoder.decode([0xC3]) == "\ufffd"


def test_characters():
    tokenizer = Characters(alphabet="zéa\n")
    encoder = tokenizer.load()
    assert encoder.vocab == tokenizer.vocab == 4 and encoder.end is None
    assert encoder.encode("aé\nz").tolist() == [2, 1, 3, 0] and encoder.decode([2, 1, 3, 0]) == "aé\nz"
    assert encoder.bytes_V.tolist() == [1, 2, 1, 1]
    with pytest.raises(DataError, match=r"'x' \(U\+0078\) at position 2 .* the 4 of Characters.alphabet; add it there"):
        encoder.encode("aaxq")
    with pytest.raises(ValueError, match="has 'a' twice"):
        Characters(alphabet="aba")
    assert encoder.fingerprint != Characters(alphabet="éza\n").load().fingerprint


def test_sentencepiece_is_lossless_and_counts_bytes(trained):
    for text in (HARD, text_of(50), "\u2581", ""):
        ids_T = trained.encode(text)
        assert trained.decode(ids_T) == text and ids_T.dtype == np.int32
        assert trained.bytes_V[ids_T].sum() == len(text.encode())
    assert trained.vocab == 320 and trained.end == 1 and trained.bytes_V[:3].tolist() == [0, 0, 1]
    assert len(trained.encode(text_of(50))) < len(text_of(50)) / 2


def test_training_repeats_and_is_cached(texts, tmp_path):
    lines = []
    source, tokenizer = texts(train=(text_of(2000),)), SentencePiece(vocab=320)
    first = tokenizer.load(source, tmp_path / "a", lines.append)
    assert tokenizer.load(source, tmp_path / "b", lines.append).fingerprint == first.fingerprint
    assert lines == ["training the tokenizer: 320 SentencePiece pieces"] * 2
    (model,) = (tmp_path / "a").glob("tokenizers/*")
    assert tokenizer.load(source, tmp_path / "a", lines.append).fingerprint == first.fingerprint and len(lines) == 2
    model.write_bytes(model.read_bytes()[:500] + b"garbage")
    with pytest.warns(RuntimeWarning, match="is no SentencePiece model .* it is trained again"):
        assert tokenizer.load(source, tmp_path / "a", lines.append).fingerprint == first.fingerprint
    other = tokenizer.load(texts(train=(text_of(2000).upper(),)), tmp_path / "a", lines.append)
    assert len(lines) == 4 and other.fingerprint != first.fingerprint


def test_a_given_model(texts, tmp_path, trained):
    (model,) = tmp_path.glob("tokenizers/*.model")
    assert SentencePiece(vocab=320, model=str(model)).load().fingerprint == trained.fingerprint
    with pytest.raises(DataError, match="has 320 pieces and SentencePiece.vocab says 400; pass --data.tokenizer.vocab"):
        SentencePiece(vocab=400, model=str(model)).load()
    with pytest.raises(DataError, match="no SentencePiece model '/none'; pass --data.tokenizer.model FILE"):
        SentencePiece(model="/none").load()
    (tmp_path / "bad").write_text("not a model")
    with pytest.raises(DataError, match="bad is no SentencePiece model"):
        SentencePiece(model=str(tmp_path / "bad")).load()
    (tmp_path / "empty").touch()
    with pytest.raises(DataError, match=r"empty is no SentencePiece model \(it has no pieces\)"):
        SentencePiece(model=str(tmp_path / "empty")).load()


def test_a_model_that_indents(tmp_path):
    """The usual models put a space before a text; it is not shown again."""
    import sentencepiece

    path = tmp_path / "model"
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(text_of(500).split("\n")), model_writer=file, vocab_size=60, minloglevel=2
        )
    encoder = SentencePiece(vocab=60, model=str(path)).load()
    ids_T = encoder.encode("kalo mi")
    assert encoder.pieces[ids_T[0]].startswith(b" ") and encoder.end == 2
    assert encoder.decode(ids_T) == "kalo mi"
    stream = encoder.stream()
    assert "".join(stream.push([index]) for index in ids_T) == "kalo mi"


def test_training_messages(texts, tmp_path):
    with pytest.raises(DataError, match="no SentencePiece model of 2048 pieces can be trained on 11 characters"):
        SentencePiece(vocab=2048).load(texts(train=("hello world",)), tmp_path, print)
    with pytest.raises(DataError, match="Texts gives no text in its train split"):
        SentencePiece().load(texts(train=("",)), tmp_path, print)
    with pytest.raises(ValueError, match="SentencePiece.vocab is 200; 258 ids are bytes and specials"):
        SentencePiece(vocab=200)


def test_stream_holds_back_half_characters(trained):
    stream = trained.stream()
    shown = [stream.push([index]) for index in trained.encode("ké😀ka")]
    assert "".join(shown) == "ké😀ka" and not any("\ufffd" in text for text in shown) and "" in shown
    assert stream.push([]) == "" and trained.stream().push([2 + 0xC3], final=True) == "\ufffd"
