"""The data of a synthetic problem: every example a pure function of its index, training and validation apart."""

import itertools

import numpy as np
import pytest

from llmlab.config import config
from llmlab.data import Synthetic
from llmlab.data.synthetic.keywords import Keywords, patterns, stretch
from llmlab.data.synthetic.problem import Problem


@config
class Echo(Problem):
    """Say the token before."""

    size: int = 12
    vocab = 1000
    length = property(lambda self: self.size)
    test_length = property(lambda self: 2 * self.size)

    def draw(self, rng, split):
        tokens_l = rng.integers(0, self.vocab, 1 + (self.length if split == "train" else self.test_length), np.int32)
        return {"tokens_L": tokens_l[1:], "targets_L": tokens_l[:-1], "weights_L": np.ones(len(tokens_l) - 1, "f")}


def test_examples_are_functions_of_their_index():
    data = Synthetic(problem=Echo(), batch=4, tests=10)
    with data.open().train() as batches:
        whole = [next(batches)["tokens_BL"] for _ in range(6)]
    with data.open().train(start=8) as batches:
        np.testing.assert_array_equal(next(batches)["tokens_BL"], whole[2])
    assert len({tuple(row) for row in np.concatenate(whole).tolist()}) == 24
    tests = list(data.open().validation())
    assert [batch["tokens_BL"].shape for batch in tests] == [(4, 24)] * 3 and tests[2]["weights_BL"][2:].sum() == 0
    assert tests[0]["segments_BL"].all() and tests[0]["positions_BL"][0, -1] == 23
    heads = np.concatenate([batch["tokens_BL"][:, :12] for batch in tests])[:10].tolist()
    assert not {tuple(row) for row in heads} & {tuple(row) for row in np.concatenate(whole).tolist()}
    assert data.sample(np.random.default_rng(0), 1000)["targets_L"].shape == (12,)


def test_a_finite_set_is_seen_in_epochs():
    data = Synthetic(problem=Echo(), batch=2, examples=6)
    with data.open().train() as batches:
        rows = [tuple(row) for batch in itertools.islice(batches, 6) for row in batch["tokens_BL"].tolist()]
    assert set(rows[:6]) == set(rows[6:]) and len(set(rows)) == 6 and rows[:6] != rows[6:]


def test_ids_are_numbers():
    encoder = Synthetic(problem=Echo()).open().encoder
    assert encoder.encode("3 999").tolist() == [3, 999]
    with pytest.raises(ValueError, match="'1000' is no id; the ids of this problem are 0 to 999"):
        encoder.encode("1000")
    with pytest.raises(ValueError, match="Synthetic.batch is 0"):
        Synthetic(problem=Echo(), batch=0)


def test_key_words_are_the_same_in_both_splits_and_differ_from_each_other():
    problem = Keywords(noise=0.0)
    rows = {
        split: Synthetic(problem=problem, batch=64, tests=64).open().examples[split]
        for split in ("train", "validation")
    }
    for examples in rows.values():
        for index in range(64):
            example = examples.at(index, index)
            said = np.flatnonzero(example["features_LJ"].any(1))
            assert 19 <= len(said) <= 30 and example["features_LJ"].shape == (64, 16) and example["segments_L"].all()
            heard = [
                np.abs(stretch(word, len(said)) - example["features_LJ"][said]).max() for word in patterns(problem)
            ]
            assert np.argmin(heard) == example["label"] and min(heard) < 1e-5 < sorted(heard)[1]
    with pytest.raises(ValueError, match="Keywords.length is 20; the slowest word has 30 frames"):
        Keywords(length=20)
