"""What holds for every synthetic problem: shapes, ids, purity, chance; and the laws that examples are drawn by."""

import itertools

import numpy as np
import pytest

from llmlab.config import Config, from_json, to_json
from llmlab.data import synthetic

LANGUAGES = [
    value(test_sizes=(41, 120))
    for value in vars(synthetic).values()
    if isinstance(value, type) and issubclass(value, synthetic.Language) and value is not synthetic.Language
]
ACCURACY = [
    *LANGUAGES,
    *synthetic.MAD.values(),
    synthetic.Mqar(vocab=64),
    synthetic.Mqar(vocab=32, length=31, pairs=7, filler="random", scored="all"),
    synthetic.InductionHead(symbols=8, length=20),
    synthetic.InductionHead(symbols=8, length=3, scored="all"),
    synthetic.AssociativeRecall(scored="all"),
    synthetic.SelectiveCopying(noise=40, count=5),
    synthetic.ModularTable(modulus=11, operation="x/y", share=0.3, seed=4),
    synthetic.Reversal(symbols=6, sizes=(2, 7)),
    synthetic.Sorting(symbols=6, sizes=(3, 9), layout="row", scored="all"),
    synthetic.Addition(digits=2),
]
LOSS = [synthetic.UniformStream(), synthetic.MarkovStream(), synthetic.CopyStream(delay=3), synthetic.MaskedMarkov()]
PROBLEMS = [*ACCURACY, *LOSS]
INTEGERS = {"tokens_L", "targets_L", "segments_L", "source_M", "source_segments_M"}


def generator(index: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[7, index]))


def draws(problem, split, count):
    return [problem.draw(generator(index), split) for index in range(count)]


def name(problem) -> str:
    return f"{type(problem).__name__}-{PROBLEMS.index(problem)}"


def test_every_problem_is_tested_here():
    public = [value for value in vars(synthetic).values() if isinstance(value, type) and issubclass(value, Config)]
    abstract = {synthetic.Problem, synthetic.Language, synthetic.Transduction, synthetic.Chain}
    abstract |= {synthetic.Keywords}  # gives frames of numbers: tests/data/test_drawn.py
    assert {type(problem) for problem in PROBLEMS} == set(public) - abstract


@pytest.mark.parametrize("problem", PROBLEMS, ids=name)
def test_shapes_types_and_ids(problem):
    for split, length in (("train", problem.length), ("validation", problem.test_length)):
        for example in draws(problem, split, 30):
            assert {"tokens_L", "targets_L", "weights_L"} <= example.keys() <= INTEGERS | {"weights_L"}
            for key, array in example.items():
                assert array.shape == ((problem.source_length,) if key.startswith("source") else (length,)), key
                assert array.dtype == (np.int32 if key in INTEGERS else np.float32), key
                if key in ("tokens_L", "targets_L", "source_M"):
                    assert array.min() >= 0 and array.max() < problem.vocab, key
            assert ("source_M" in example) == (problem.source_length > 0)
            padding_L = example.get("segments_L", np.ones(length, int)) == 0
            assert not example["weights_L"][padding_L].any()
            assert not padding_L[: length - padding_L.sum()].any()


@pytest.mark.parametrize("problem", PROBLEMS, ids=name)
def test_an_example_is_a_pure_function_of_its_generator(problem):
    first = draws(problem, "train", 8)
    last = problem.draw(generator(5), "train")
    assert all(np.array_equal(first[5][key], last[key]) for key in last)
    assert from_json(to_json(problem)) == problem
    again = from_json(to_json(problem)).draw(generator(5), "train")
    assert all(np.array_equal(again[key], last[key]) for key in last)
    looks = {tuple(np.concatenate(list(example.values())).tolist()) for example in first}
    assert len(looks) > 5


@pytest.mark.parametrize("problem", ACCURACY, ids=name)
def test_chance_is_a_uniform_guess_among_all_answers_that_occur(problem):
    assert problem.metric == "accuracy" and problem.levels()["ceiling"] == 1
    seen, tries = set(), 40_000 if problem.vocab > 90 else 4_000
    for index in range(tries):
        example = problem.draw(generator(index), "validation")
        seen |= set(example["targets_L"][example["weights_L"] > 0].tolist())
        if len(seen) * problem.levels()["chance"] > 0.999:
            break
    assert len(seen) * problem.levels()["chance"] == pytest.approx(1)


@pytest.mark.parametrize("problem", PROBLEMS, ids=name)
def test_slices_hold_each_answer_at_most_once(problem):
    for example in draws(problem, "validation", 10):
        slices = problem.slices(example)
        total_L = sum(slices.values()) if slices else np.zeros(problem.test_length, int)
        assert np.array_equal(total_L, (example["weights_L"] > 0) if slices else total_L)


def test_slices_of_recall_by_distance():
    """Keys 1 2 3 at 0, 2, 4; their queries at 8, 6, 14."""
    tokens_L = np.array([1, 9, 2, 8, 3, 7, 2, 0, 1, 0, 0, 0, 0, 0, 3, 0])
    example = {"tokens_L": tokens_L, "weights_L": np.isin(np.arange(16), (6, 8, 14)).astype(np.float32)}
    found = synthetic.Mqar(vocab=16, length=16, pairs=3).slices(example)
    assert {key: np.flatnonzero(mask_L).tolist() for key, mask_L in found.items()} == {
        "distance 4-7": [6],
        "distance 8-15": [8, 14],
    }


def test_gaps_are_drawn_one_after_the_other_by_a_power_law():
    """All 12 ordered pairs of 4 gaps, with the probability of draws without replacement."""
    problem, count = synthetic.Mqar(vocab=16, length=12, pairs=2), 6000
    weights = [0.01 * i**-0.99 for i in (1, 2, 3, 4)]
    seen = dict.fromkeys(itertools.permutations(range(4), 2), 0)
    for index in range(count):
        tokens = problem.draw(generator(index), "train")["tokens_L"].tolist()
        seen[tuple((tokens.index(tokens[key], 4) - 4) // 2 for key in (0, 2))] += 1
    for (first, second), times in seen.items():
        p = weights[first] / sum(weights) * weights[second] / (sum(weights) - weights[first])
        assert abs(times - count * p) < 5 * (count * p * (1 - p)) ** 0.5


def test_a_guess_among_the_values_of_the_row_is_the_plateau():
    problem, hits, total = synthetic.Mqar(vocab=64, pairs=4), 0, 0
    for index in range(1000):
        example, guess = problem.draw(generator(index), "validation"), generator(index + 10**6)
        answers = example["targets_L"][example["weights_L"] > 0]
        hits += (guess.choice(example["tokens_L"][1:8:2], len(answers)) == answers).sum()
        total += len(answers)
    assert total == 4000 and abs(hits / total - problem.levels()["plateau"]) < 0.035  # 5 sigma


def test_sizes_of_strings_are_uniform_and_longer_in_validation():
    problem = synthetic.Parity(test_sizes=(41, 80))
    for split, least in (("train", 1), ("validation", 41)):
        sizes = [int(example["segments_L"].sum()) - 1 for example in draws(problem, split, 4000)]
        counts = np.bincount(sizes, minlength=least + 40)[least:]
        assert len(counts) == 40 and counts.min() > 50 and counts.max() < 150  # 100 expected, 5 sigma is 50


@pytest.mark.parametrize("problem", LANGUAGES, ids=name)
def test_every_string_weighs_the_same_and_no_blank_tells_the_answer(problem):
    for example in draws(problem, "validation", 20):
        assert example["weights_L"].sum() == pytest.approx(1, abs=1e-5)
        scored_L = example["weights_L"] > 0
        assert (example["tokens_L"][scored_L] == problem.vocab - 1).all()


def test_what_is_scored_was_never_learned():
    table = synthetic.ModularTable(modulus=7, share=0.4)
    sides = [{tuple(e["tokens_L"][[0, 2]].tolist()) for e in draws(table, s, 800)} for s in ("train", "validation")]
    assert not sides[0] & sides[1] and len(sides[0]) == round(0.4 * 49) and len(sides[0] | sides[1]) == 49
    other = {
        tuple(e["tokens_L"][[0, 2]].tolist()) for e in draws(synthetic.ModularTable(modulus=7, seed=1), "train", 800)
    }
    assert other != sides[0]
    addition = synthetic.Addition(digits=1)
    sides = [{tuple(e["source_M"].tolist()) for e in draws(addition, s, 1500)} for s in ("train", "validation")]
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 100 and 5 <= len(sides[1]) <= 20


def test_all_tokens_are_learned_only_in_training():
    for problem in (
        synthetic.Mqar(scored="all"),
        synthetic.InContextRecall(),
        synthetic.Reversal(layout="row", scored="all"),
    ):
        learned, tested = (problem.draw(generator(0), split) for split in ("train", "validation"))
        assert learned["weights_L"][:-1].all() and np.array_equal(learned["tokens_L"], tested["tokens_L"])
        assert 0 < tested["weights_L"].sum() < problem.length / 1.5
        plain_L = (tested["weights_L"] == 0)[:-1]
        assert np.array_equal(learned["targets_L"][:-1][plain_L], learned["tokens_L"][1:][plain_L])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: synthetic.Mqar(vocab=9), "Mqar.vocab is 9; take an even number, 10 or more"),
        (lambda: synthetic.Mqar(pairs=17), "Mqar.length is 64, and 17 pairs with their queries need 68"),
        (lambda: synthetic.InductionHead(length=2), "InductionHead.length is 2; take 3 or more"),
        (lambda: synthetic.Parity(train_sizes=(0, 4)), r"Parity.train_sizes is \(0, 4\); take 1 <= least <= most"),
        (lambda: synthetic.ModularTable(modulus=91), "ModularTable.modulus is 91; take a prime"),
        (lambda: synthetic.Addition(digits=10), "Addition.digits is 10; take 1 to 9"),
        (lambda: synthetic.Reversal(scored="all"), "Reversal.scored is 'all' and layout 'pair'; take 'answers', or"),
        (lambda: synthetic.InContextRecall(noise=0.2), "InContextRecall.noise is 0.2 and noise_vocab 0; take a share"),
        (lambda: synthetic.MaskedMarkov(rate=1.0), "MaskedMarkov.rate is 1.0; take a share between 0 and 1"),
        (lambda: synthetic.Chain(concentration=0.01), "Chain.concentration is 0.01; take 0.05 or more"),
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
