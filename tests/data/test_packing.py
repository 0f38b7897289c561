"""Packings: the arrays of hand-made corpora, exactly; every token once; plans that are valid and tight."""

import numpy as np
import pytest

from llmlab.config import config
from llmlab.data import Chunks, DataError, Planned, RandomWindows
from llmlab.data.corpus import Corpus
from llmlab.data.packing import best_fit, cut_documents


def rows(examples, name):
    return [examples[i][name].tolist() for i in range(len(examples))]


def test_chunks_exactly(corpus_of):
    """Documents 1 2 3 | 4 | 5 6 7 8 9 in windows of 4 (id i stands for i bytes)."""
    examples = Chunks().build(corpus_of([1, 2, 3], [4], [5, 6, 7, 8, 9]), 4, 0)
    assert rows(examples, "tokens_L") == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert rows(examples, "targets_L") == [[2, 3, 4, 5], [6, 7, 8, 9]]
    assert rows(examples, "weights_L") == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert rows(examples, "segments_L") == [[1, 1, 1, 2], [1, 1, 1, 1]]
    assert rows(examples, "positions_L") == [[0, 1, 2, 0], [0, 1, 2, 3]]
    assert rows(examples, "bytes_L") == [[2, 3, 0, 0], [6, 7, 8, 9]]


def test_chunks_that_cut_a_document_and_end_in_padding(corpus_of):
    examples = Chunks().build(corpus_of([1, 2, 3, 4, 5], [6, 7]), 4, 0)
    assert rows(examples, "tokens_L") == [[1, 2, 3, 4], [5, 6, 0, 0]]
    assert rows(examples, "targets_L") == [[2, 3, 4, 5], [6, 7, 0, 0]]
    assert rows(examples, "weights_L") == [[1, 1, 1, 1], [0, 1, 0, 0]]
    assert rows(examples, "segments_L") == [[1, 1, 1, 1], [1, 2, 0, 0]]
    assert rows(examples, "positions_L") == [[0, 1, 2, 3], [0, 0, 0, 0]]
    assert rows(examples, "bytes_L") == [[2, 3, 4, 5], [0, 7, 0, 0]]
    dtypes = {name: array.dtype for name, array in examples[0].items()}
    assert dtypes.pop("weights_L") == np.float32 and set(dtypes.values()) == {np.dtype(np.int32)}


def test_one_document_has_all_weights(corpus_of):
    examples = Chunks().build(corpus_of(list(range(1, 10))), 4, 0)
    assert np.all([examples[i]["weights_L"] for i in range(2)]) and len(examples) == 2


def test_planned_exactly(corpus_of):
    """Sizes in targets are 4 + 2 (cut), 0 (left out), 1 and 3, packed as 4 | 3 + 1 | 2."""
    corpus = corpus_of([1, 2, 3, 4, 5, 6, 7], [8], [9, 10], [11, 12, 13, 14])
    examples = Planned().build(corpus, 4, 0)
    assert rows(examples, "tokens_L") == [[1, 2, 3, 4], [9, 11, 12, 13], [5, 6, 0, 0]]
    assert rows(examples, "targets_L") == [[2, 3, 4, 5], [10, 12, 13, 14], [6, 7, 0, 0]]
    assert rows(examples, "weights_L") == [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]]
    assert rows(examples, "segments_L") == [[1, 1, 1, 1], [1, 2, 2, 2], [1, 1, 0, 0]]
    assert rows(examples, "positions_L") == [[0, 1, 2, 3], [0, 0, 1, 2], [0, 1, 0, 0]]
    assert rows(examples, "bytes_L") == [[2, 3, 4, 5], [10, 12, 13, 14], [6, 7, 0, 0]]


@config
class Reference:
    """What a packing must give, worked out token by token."""

    corpus: object

    def pairs(self) -> list[tuple[int, int]]:
        """(token, target) of every prediction within a document, by place in the corpus."""
        bounds = zip(self.corpus.offsets_P[:-1], self.corpus.offsets_P[1:])
        return [(place, place + 1) for start, stop in bounds for place in range(start, stop - 1)]


@pytest.mark.parametrize("packing", [Chunks(), Planned()])
@pytest.mark.parametrize("length", [1, 5, 16, 1000])
def test_every_prediction_within_a_document_comes_once(packing, length):
    generator = np.random.default_rng(length)
    offsets_P = np.cumsum([0, *generator.integers(1, 40, 60)])
    # Each token is its own place in the corpus, so that what an example holds can be read off.
    places_T = np.arange(offsets_P[-1]).astype(np.uint16)
    corpus = Corpus(places_T, offsets_P, np.ones(len(places_T), np.int32), 0)
    examples = packing.build(corpus, length, 0)
    seen = []
    for example in (examples[i] for i in range(len(examples))):
        tokens_L, targets_L, kept_L = example["tokens_L"], example["targets_L"], example["weights_L"] > 0
        seen += zip(tokens_L[kept_L].tolist(), targets_L[kept_L].tolist())
        document_L = np.searchsorted(offsets_P, tokens_L, side="right")
        for segment in range(1, example["segments_L"].max() + 1):
            inside_L = example["segments_L"] == segment
            assert len(set(document_L[inside_L])) == 1
            assert example["positions_L"][inside_L].tolist() == list(range(inside_L.sum()))
        assert np.all(example["bytes_L"] == kept_L)
    assert sorted(seen) == Reference(corpus=corpus).pairs()


def test_random_windows(corpus_of):
    """Offsets are a pure function of seed and index and reach both ends of the corpus, each about as often."""
    corpus = corpus_of(list(range(1, 15)))
    examples, same, other = (RandomWindows().build(corpus, 4, seed) for seed in (0, 0, 1))
    first = [int(examples[i]["tokens_L"][0]) for i in range(2000)]
    assert first == [int(same[i]["tokens_L"][0]) for i in range(2000)]
    assert first[:50] != [int(other[i]["tokens_L"][0]) for i in range(50)]
    counts = np.bincount(first)[1:]
    assert len(counts) == 10 and counts.min() > 140 and counts.max() < 260  # 200 expected, 5 sigma is 67
    assert examples[10**12]["weights_L"].tolist() == [1, 1, 1, 1]
    with pytest.raises(DataError, match="has 14 tokens and a window of length 14 needs 15; give more text or lower"):
        RandomWindows().build(corpus, 14, 0)


def test_too_short(corpus_of):
    with pytest.raises(DataError, match="has 1 tokens and an example needs 2"):
        Chunks().build(corpus_of([1]), 4, 0)
    with pytest.raises(DataError, match="no document of the corpus has two tokens"):
        Planned().build(corpus_of([1], [2]), 4, 0)


def best_fit_one_by_one(sizes, length):
    """The algorithm as in the textbook: (how many rows, sorted fillings)."""
    spaces = []
    for size in sorted(sizes, reverse=True):
        fitting = [row for row, space in enumerate(spaces) if space >= size]
        if fitting:
            row = min(fitting, key=spaces.__getitem__)
        else:
            row = len(spaces)
            spaces.append(length)
        spaces[row] -= size
    return sorted(length - space for space in spaces)


@pytest.mark.parametrize("length", [7, 32])
def test_best_fit_equals_the_textbook(length):
    for seed in range(20):
        sizes_P = np.random.default_rng(seed).integers(1, length + 1, 200)
        rows_P = best_fit(sizes_P, length)
        assert sorted(np.bincount(rows_P, sizes_P).astype(int)) == best_fit_one_by_one(sizes_P.tolist(), length)


def test_cut_documents():
    starts, sizes = cut_documents(np.array([5, 0, 4, 1]), np.array([0, 6, 7, 12]), 4)
    assert list(zip(starts.tolist(), sizes.tolist())) == [(0, 4), (4, 1), (7, 4), (12, 1)]
