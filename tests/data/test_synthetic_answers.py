"""The answers of every problem against slow solvers that read nothing but the tokens."""

import fractions
import math

import numpy as np
import pytest

from llmlab.data import synthetic


def split_pairs(tokens):
    return list(zip(tokens[::2], tokens[1::2]))


def mqar(problem, tokens):
    known = dict(split_pairs(tokens[: 2 * problem.pairs]))
    return {place: known[token] for place, token in enumerate(tokens) if place >= 2 * problem.pairs and token in known}


def induction(problem, tokens):
    assert tokens.count(problem.symbols) == 2 and tokens[-1] == problem.symbols
    return {problem.length - 1: tokens[tokens.index(problem.symbols) + 1]}


def associative(problem, tokens):
    return {problem.length - 1: dict(split_pairs(tokens[:-1]))[tokens[-1]]}


def selective(problem, tokens):
    data = [token for token in tokens if token not in (0, problem.vocab - 1)]
    assert tokens[-problem.count :] == [problem.vocab - 1] * problem.count and len(data) == problem.count
    return dict(enumerate(data, problem.length - problem.count))


def in_context(problem, tokens):
    ids, known, answers = problem.vocab - problem.noise_vocab, {}, {}
    for number, (key, value) in enumerate(split_pairs(tokens)):
        if key < ids:
            assert key < ids // 2 <= value < ids
            if key in known:
                assert known[key] == value
                answers[2 * number] = value
            known[key] = value
    assert problem.length - 2 in answers
    return answers


def fuzzy(problem, tokens):
    """A motif is a run of ids of one side; the last one is cut by the end of the row."""
    keys, known, answers, place = (problem.vocab - 1) // 2, {}, {}, 0
    tokens = [*tokens, None]
    while tokens[place] == problem.vocab - 1:
        place += 1
    while tokens[place] is not None:
        start = place
        while tokens[place] is not None and tokens[place] < keys:
            place += 1
        key, start = tuple(tokens[start:place]), place
        while tokens[place] is not None and tokens[place] >= keys:
            place += 1
        value = tokens[start:place]
        if key in known:
            whole = known[key]
            assert value == whole[: len(value)]
            answers |= dict(enumerate(whole, start - 1))
        else:
            known[key] = value
    return answers


def blanked(problem, tokens):
    blank, cut = problem.vocab - 2, tokens.index(problem.vocab - 1)
    assert set(tokens[cut + 1 :]) == {blank} and tokens[cut - 1] != blank
    return dict(enumerate([token for token in tokens[:cut] if token != blank], cut + 1))


def compression(problem, tokens):
    return dict(enumerate(tokens[:-1]))


def table(formula):
    def answers(problem, tokens):
        x, operation, y, equals = tokens
        assert (operation, equals) == (problem.modulus, problem.modulus + 1)
        return {3: eval(formula, {"x": x, "y": y}) % problem.modulus}

    return answers


def string_of(problem, tokens):
    return tokens[: tokens.index(problem.vocab - 1)]


def language(solve):
    """Answers at the blanks from a function of the string."""

    def answers(problem, tokens):
        string = string_of(problem, tokens)
        return dict(enumerate(solve(problem, string), len(string)))

    return answers


def even_pairs(problem, string):
    text = "".join(map(str, string))
    return [sum(text[i : i + 2] in ("01", "10") for i in range(len(text))) % 2]


def cycle(problem, string):
    place = 0
    for step in string:
        place = (place + (-1, 0, 1)[step]) % problem.cycle
    return [place]


def stack(problem, string):
    held = ""
    for token in string:
        held = held[:-1] if token == 2 else held + {0: "0", 1: "1", 3: "0", 4: "1"}[token]
    return [*map(int, reversed(held)), 5]


def missing(problem, string):
    text = "".join(map(str, string))
    text = text.removesuffix("3")
    halves = text[: len(text) // 2], text[len(text) // 2 :]
    return [int(b if a == "2" else a) for a, b in zip(*halves) if "2" in (a, b)] if len(string) > 1 else None


def odds_first(problem, string):
    return [s for i, s in enumerate(string, 1) if i % 2] + [s for i, s in enumerate(string, 1) if i % 2 == 0]


def bucket_sort(problem, string):
    return [symbol for symbol in range(problem.alphabet) for other in string if other == symbol]


def text_of(problem, string, marks):
    return "".join((*map(str, range(problem.modulus)), *marks)[token] for token in string)


def modular(problem, string):
    return [eval(text_of(problem, string, "+-*")) % problem.modulus]


def brackets(problem, string):
    return [eval(text_of(problem, string, "+-*()")) % problem.modulus]


def equation(problem, string):
    left, right = text_of(problem, string, "+-()x=").split("=")
    fits = [d for d in range(problem.modulus) if (eval(left.replace("x", str(d))) - int(right)) % problem.modulus == 0]
    assert len(fits) == 1
    return fits


def binary(symbol):
    def solve(problem, string):
        first, second = (
            "".join(map(str, side))[::-1] for side in (string[: string.index(2)], string[string.index(2) + 1 :])
        )
        value = eval(f"0b{first} {symbol} 0b{second}")
        return [*map(int, bin(value)[:1:-1]), 3]

    return solve


def square_root(problem, string):
    value, size = int("".join(map(str, string)), 2), math.ceil(len(string) / 2)
    low, high = 0, 2**size  # by halving
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if middle**2 <= value else (low, middle)
    return [int(bit) for bit in f"{low:0{size}b}"]


def transduction(problem, question):
    start = problem.symbols
    if isinstance(problem, synthetic.Addition):
        order = 1 if problem.order == "greatest first" else -1
        plus = question.index(10)
        first, second = (int("".join(map(str, side[::order]))) for side in (question[:plus], question[plus + 1 :]))
        answer = [int(d) for d in str(first + second).zfill(problem.digits + 1)][::order]
    else:
        answer = question[::-1] if isinstance(problem, synthetic.Reversal) else sorted(question)
    return [start, *answer, start + 1]


SOLVERS = {
    synthetic.Mqar(vocab=64): mqar,
    synthetic.Mqar(vocab=32, length=31, pairs=7): mqar,
    synthetic.InductionHead(symbols=8, length=20): induction,
    synthetic.InductionHead(symbols=8, length=3): induction,
    synthetic.AssociativeRecall(): associative,
    synthetic.SelectiveCopying(noise=40, count=5): selective,
    synthetic.InContextRecall(): in_context,
    synthetic.MAD["noisy recall"]: in_context,
    synthetic.FuzzyRecall(): fuzzy,
    synthetic.BlankedCopying(): blanked,
    synthetic.Compression(): compression,
    synthetic.ModularTable(): table("x+y"),
    synthetic.ModularTable(modulus=11, operation="x-y"): table("x-y"),
    synthetic.ModularTable(modulus=11, operation="x*y"): table("x*y"),
    synthetic.ModularTable(modulus=11, operation="x/y"): table("x*y**9"),  # Fermat: y^(p-2) is 1/y
    synthetic.ModularTable(modulus=11, operation="x^2+y^2"): table("x**2+y**2"),
    synthetic.ModularTable(modulus=11, operation="x^2+xy+y^2"): table("x**2+x*y+y**2"),
    synthetic.ModularTable(modulus=11, operation="x^3+xy"): table("x**3+x*y"),
    synthetic.Parity(): language(lambda problem, string: [string.count(1) % 2]),
    synthetic.EvenPairs(): language(even_pairs),
    synthetic.CycleNavigation(): language(cycle),
    synthetic.CycleNavigation(cycle=2): language(cycle),
    synthetic.StackManipulation(): language(stack),
    synthetic.MissingDuplicate(): language(missing),
    synthetic.Reverse(): language(lambda problem, string: [string[-i] for i in range(1, len(string) + 1)]),
    synthetic.OddsFirst(alphabet=9): language(odds_first),
    synthetic.BucketSort(): language(bucket_sort),
    synthetic.Duplicate(): language(lambda problem, string: string * 2),
    synthetic.ModularArithmetic(): language(modular),
    synthetic.BracketArithmetic(): language(brackets),
    synthetic.BracketArithmetic(modulus=7): language(brackets),
    synthetic.SolveEquation(): language(equation),
    synthetic.BinaryAddition(): language(binary("+")),
    synthetic.BinaryMultiplication(): language(binary("*")),
    synthetic.BinarySquareRoot(): language(square_root),
}


def draws(problem, split, count):
    return [problem.draw(np.random.default_rng(index), split) for index in range(count)]


@pytest.mark.parametrize("problem", SOLVERS, ids=repr)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_answers(problem, split):
    for example in draws(problem, split, 50):
        answers = SOLVERS[problem](problem, example["tokens_L"].tolist())
        targets = example["targets_L"].tolist()
        assert {place: targets[place] for place in answers} == answers
        if split == "validation":
            assert np.flatnonzero(example["weights_L"]).tolist() == sorted(answers)


def test_random_filler_changes_nothing_else():
    """The keys and values of the same recall with zeros, and queries where it has them."""
    filled, plain = (synthetic.Mqar(vocab=64, filler=filler) for filler in ("random", "zero"))
    for example in draws(filled, "validation", 50):
        cleared = np.where((example["weights_L"] > 0) | (np.arange(64) < 8), example["tokens_L"], 0)
        answers = mqar(plain, cleared.tolist())
        assert {place: int(example["targets_L"][place]) for place in answers} == answers
        assert example["weights_L"].sum() == len(answers) == 4 and np.count_nonzero(example["tokens_L"]) > 50


@pytest.mark.parametrize(
    "problem",
    [
        synthetic.Reversal(),
        synthetic.Reversal(symbols=6, sizes=(2, 7)),
        synthetic.Reversal(symbols=6, layout="row"),
        synthetic.Sorting(symbols=6, sizes=(3, 9), layout="row"),
        synthetic.Sorting(symbols=6, sizes=(3, 9), layout="row", scored="all"),
        synthetic.Sorting(),
        synthetic.Addition(),
        synthetic.Addition(digits=2, layout="row", order="least first"),
    ],
    ids=repr,
)
def test_answers_of_sequences(problem):
    for example in draws(problem, "train", 50):
        row = [*example["tokens_L"][:1].tolist(), *example["targets_L"].tolist()]
        row = row[: row.index(problem.symbols + 1) + 1]
        assert example["tokens_L"][: len(row) - 1].tolist() == row[:-1]
        assert example["segments_L"].tolist() == [1] * (len(row) - 1) + [0] * (problem.length - len(row) + 1)
        start = row.index(problem.symbols)
        if problem.layout == "pair":
            assert start == 0
            question = example["source_M"][example["source_segments_M"] == 1].tolist()
        else:
            question = row[:start]
        assert row[start:] == transduction(problem, question)
        scored = range(0 if problem.scored == "all" else start, len(row) - 1)
        assert example["weights_L"].nonzero()[0].tolist() == list(scored)


def test_memorization_has_one_map_for_both_splits():
    known = {}
    problem = synthetic.Memorization()
    for split in ("train", "validation"):
        for example in draws(problem, split, 100):
            assert (example["tokens_L"][1::2] == 255).all() and example["weights_L"].tolist() == [0, 1] * 16
            for key, value in zip(example["tokens_L"][::2].tolist(), example["targets_L"][1::2].tolist()):
                assert known.setdefault(key, value) == value and key < 127 <= value < 255
    assert len(known) == len(set(known.values())) == 127
    other, same = draws(synthetic.Memorization(seed=1), "train", 1), draws(problem, "train", 1)
    assert np.array_equal(other[0]["tokens_L"], same[0]["tokens_L"])
    assert not np.array_equal(other[0]["targets_L"], same[0]["targets_L"])


def test_keys_of_fuzzy_recall_are_whole_in_validation():
    problem = synthetic.FuzzyRecall()
    sizes = {"train": set(), "validation": set()}
    for split, seen in sizes.items():
        for example in draws(problem, split, 20):
            text = "".join("k" if token < 7 else "v" for token in example["tokens_L"].tolist() if token < 15)
            seen |= {len(run) for run in text.replace("v", " ").split()}
    assert sizes == {"train": {1, 2, 3}, "validation": {3}}


def test_noise_of_recall_has_its_share():
    problem = synthetic.MAD["noisy recall"]
    noisy = [float((example["tokens_L"] >= 16).mean()) for example in draws(problem, "train", 400)]
    expected = fractions.Fraction(2, 10) * 62 / 64  # one pair of the first 63, and the last, never are
    assert abs(sum(noisy) / 400 - expected) < 5 * (0.2 * 0.8 / 62 / 400) ** 0.5
