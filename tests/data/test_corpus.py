"""The token cache: what it holds, that it is made once, and that a broken one is noticed."""

import dataclasses
import pickle
import threading
import warnings

import numpy as np
import pytest

from llmlab.data import Bytes, Characters, DataError
from llmlab.data.corpus import Corpus, open_corpus
from llmlab.data.encoder import Encoder


@pytest.fixture
def open_texts(texts, tmp_path):
    def open_(encoder=None, split="train", report=lambda line: None, train=("ab", "c", "", "dé")) -> Corpus:
        source = texts(train=train)
        return open_corpus(source, source.fingerprint(), encoder or Bytes().load(), split, tmp_path, report)

    return open_


def test_documents_end_and_are_counted(open_texts):
    corpus = open_texts()
    assert corpus.tokens_T.tolist() == [97, 98, 256, 99, 256, 100, 0xC3, 0xA9, 256] and corpus.tokens_T.dtype == "<u2"
    assert corpus.offsets_P.tolist() == [0, 3, 5, 9] and corpus.bytes_V.tolist() == [1] * 256 + [0]
    assert corpus.sizes() == {"documents": 3, "tokens": 9, "bytes": 6, "bytes_per_token": 6 / 9}
    characters = open_texts(Characters(alphabet="abcdé").load())
    assert characters.tokens_T.tolist() == [0, 1, 2, 3, 4] and characters.offsets_P.tolist() == [0, 2, 3, 5]


def test_large_vocabularies_take_four_bytes(open_texts):
    pieces = tuple(bytes([i % 256]) for i in range(1 << 17))
    encoder = Encoder(lambda text: np.array([70000] * len(text), np.int32), pieces, None, "large")
    assert open_texts(encoder).tokens_T.tolist() == [70000] * 6


def test_it_is_made_once(open_texts):
    lines = []
    for split in ("train", "train", "validation", "validation"):
        open_texts(report=lines.append, split=split)
    assert lines == ["encoding the train split", "encoding the validation split"]
    open_texts(report=lines.append, train=("other",))
    open_texts(Characters(alphabet="abcdé").load(), report=lines.append)
    assert len(lines) == 4


@pytest.mark.parametrize("name", ["tokens.bin", "offsets.bin", "bytes.bin", "meta.json"])
@pytest.mark.parametrize("damage", ["cut", "lost"])
def test_a_broken_cache_is_made_again(open_texts, name, damage):
    corpus = open_texts()
    expected, file = corpus.tokens_T.tolist(), corpus.folder / name
    del corpus
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-8])  # whole items, so that only sizes tell
    else:
        file.unlink()
    with pytest.warns(RuntimeWarning, match="the cached corpus .* is broken .* it is made again"):
        assert open_texts().tokens_T.tolist() == expected
    assert [path.name for path in open_texts().folder.parent.iterdir() if path.name.startswith(".")] == []


def test_a_stopped_writer_leaves_nothing(open_texts, tmp_path):
    with pytest.raises(DataError, match="document 1 of the train split: the character 'c' .* at position 0"):
        open_texts(Characters(alphabet="ab").load())
    assert list((tmp_path / "corpora").iterdir()) == []


def test_writers_that_race_both_succeed(open_texts):
    """Both encode, for the second starts before the first is done; one copy stays and no temporary."""
    meet, results = threading.Barrier(2), []

    def encode(text):
        if not results:
            meet.wait(10)
        return np.frombuffer(text, np.uint8).astype(np.int32)

    encoder = Encoder(encode, tuple(bytes([i]) for i in range(256)), None, "slow")

    def work():
        results.append(open_texts(encoder, train=("abc",)))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [corpus.tokens_T.tolist() for corpus in results] == [[97, 98, 99]] * 2
    assert len(list(results[0].folder.parent.iterdir())) == 1


def test_a_lossy_tokenizer_is_named(open_texts):
    encoder = Encoder(lambda text: np.zeros(len(text), np.int32), (b"xx",), None, "lossy")
    with pytest.warns(RuntimeWarning, match="stand for 12 bytes, the text has 6, .* off by the factor 2.0000"):
        open_texts(encoder)
    indenting = dataclasses.replace(encoder, pieces=(b"x",), encode_text=lambda text: np.zeros(len(text) + 1, np.int32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_texts(dataclasses.replace(indenting, fingerprint="indenting", indent=True))


def test_a_cache_that_cannot_be_written(texts, tmp_path):
    (tmp_path / "file").write_text("in the way")
    source = texts(train=("a",))
    with pytest.raises(OSError, match="while writing the cache .LLMLAB_CACHE names another folder"):
        open_corpus(source, "f", Bytes().load(), "train", tmp_path / "file", lambda line: None)


def test_a_worker_maps_the_files(open_texts):
    """Pickled for another process, a corpus is its place and no copy of the tokens."""
    corpus = open_texts(train=("x" * 100_000,))
    sent = pickle.dumps(corpus)
    assert len(sent) < 1000 and pickle.loads(sent).tokens_T.tolist() == corpus.tokens_T.tolist()
