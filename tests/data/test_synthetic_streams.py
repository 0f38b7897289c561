"""Exact losses of streams and gaps, against the enumeration of every row and mask of small languages."""

import itertools
import math

import numpy as np
import pytest

from llmlab.data.synthetic import Chain, CopyStream, MarkovStream, MaskedMarkov, UniformStream
from llmlab.data.synthetic.chain import gap_losses, laws_of


def draws(problem, split, count):
    return [problem.draw(np.random.default_rng(index), split) for index in range(count)]


def entropy(p) -> float:
    return -sum(x * math.log(x) for x in np.ravel(p) if x > 0)


def joint(chain: Chain, length: int) -> np.ndarray:
    """The probability of every row, one axis for each position."""
    transition_SS, stationary_S, _ = laws_of(chain)
    found = stationary_S
    for _ in range(length - 1):
        found = found[..., None] * transition_SS
    return found


def given(rows, place: int, visible: tuple[int, ...]) -> float:
    """H(x_place | x_visible)."""
    others = lambda kept: tuple(set(range(rows.ndim)) - set(kept))
    return entropy(rows.sum(axis=others((place, *visible)))) - entropy(rows.sum(axis=others(visible)))


@pytest.mark.parametrize("length", [1, 2, 5])
@pytest.mark.parametrize("rate", [0.15, 0.6])
def test_losses_of_gaps_equal_an_enumeration_of_all_masks(length, rate):
    chain = Chain(states=3, concentration=0.4, seed=2)
    rows, both, causal = joint(chain, length), 0.0, 0.0
    for hidden_L in itertools.product((True, False), repeat=length):
        p = math.prod(rate if hidden else 1 - rate for hidden in hidden_L)
        visible = tuple(i for i in range(length) if not hidden_L[i])
        for place in (i for i in range(length) if hidden_L[i]):
            both += p * given(rows, place, visible)
            causal += p * given(rows, place, tuple(i for i in visible if i < place))
    expected = both / (rate * length), causal / (rate * length)
    assert gap_losses(chain.entropies(length), length, rate) == pytest.approx(expected, abs=1e-12)
    levels = MaskedMarkov(chain=chain, length=length, rate=rate).levels()
    assert (levels["ceiling"], levels["causal"]) == pytest.approx(expected, abs=1e-12)
    assert levels["plateau"] == pytest.approx(given(rows, 0, ()))


def test_known_entropies_of_neighbours():
    chain = Chain(states=4, concentration=0.3, seed=5)
    rows = joint(chain, 4)
    assert chain.entropies(3) == pytest.approx([given(rows, 3, ()), *(given(rows, 3, (i,)) for i in (2, 1, 0))])
    assert MaskedMarkov(chain=chain).levels()["isolated"] == pytest.approx(given(rows, 1, (0, 2)))
    levels = MaskedMarkov().levels()
    assert levels["isolated"] < levels["ceiling"] < levels["causal"] < levels["plateau"] < levels["chance"]


def test_masks_hide_their_share_and_nothing_else():
    problem = MaskedMarkov()
    examples = draws(problem, "train", 300)
    share = np.mean([example["weights_L"] for example in examples])
    assert abs(share - 0.15) < 5 * (0.15 * 0.85 / 64 / 300) ** 0.5
    for example in examples:
        hidden_L = example["weights_L"] > 0
        assert (example["tokens_L"][hidden_L] == problem.chain.states).all()
        assert np.array_equal(example["tokens_L"][~hidden_L], example["targets_L"][~hidden_L])
        assert example["targets_L"].max() < problem.chain.states


def test_the_best_predictor_of_what_is_drawn_reaches_the_ceiling():
    """Forward and backward messages over rows that were drawn; the loss of 5,800 hidden positions."""
    problem = MaskedMarkov()
    transition_SS, stationary_S, _ = laws_of(problem.chain)
    tokens_LB, targets_LB = (
        np.stack([e[key] for e in draws(problem, "train", 600)], 1) for key in ("tokens_L", "targets_L")
    )
    seen_LBS = np.vstack([np.eye(8), np.ones(8)])[tokens_LB]  # 1 for each state that the token allows
    before_BS, after_BS, before, after = np.tile(stationary_S, (600, 1)), np.ones((600, 8)), [], []
    for place in range(problem.length):
        before.append(before_BS)
        before_BS = (before_BS * seen_LBS[place]) @ transition_SS
        before_BS /= before_BS.sum(1, keepdims=True)
        after.append(after_BS)
        after_BS = (after_BS * seen_LBS[-1 - place]) @ transition_SS.T
        after_BS /= after_BS.sum(1, keepdims=True)
    hidden_LB = tokens_LB == 8
    for name, law_LBS in (("causal", np.stack(before)), ("ceiling", np.stack(before) * np.stack(after[::-1]))):
        law_LBS /= law_LBS.sum(2, keepdims=True)
        losses = -np.log(np.take_along_axis(law_LBS, targets_LB[..., None], 2)[..., 0][hidden_LB])
        assert losses.mean() == pytest.approx(problem.levels()[name], abs=4 * losses.std() / len(losses) ** 0.5)


def test_rows_follow_the_chain():
    problem = MarkovStream(chain=Chain(states=3, seed=1))
    transition_SS, stationary_S, _ = laws_of(problem.chain)
    assert stationary_S @ transition_SS == pytest.approx(stationary_S)
    counts_SS, firsts_S, loss = np.zeros((3, 3)), np.zeros(3), 0.0
    examples = draws(problem, "train", 400)
    for example in examples:
        tokens_L, targets_L = example["tokens_L"], example["targets_L"]
        assert np.array_equal(tokens_L[1:], targets_L[:-1]) and example["weights_L"].all()
        np.add.at(counts_SS, (tokens_L, targets_L), 1)
        firsts_S[tokens_L[0]] += 1
        loss -= np.log(transition_SS[tokens_L, targets_L]).mean() / len(examples)
    assert counts_SS / counts_SS.sum(1, keepdims=True) == pytest.approx(transition_SS, abs=0.03)
    assert firsts_S / 400 == pytest.approx(stationary_S, abs=0.13)  # 5 sigma
    assert loss == pytest.approx(problem.levels()["ceiling"], abs=0.02)


def test_uniform_stream():
    problem = UniformStream(vocab=5)
    examples = draws(problem, "validation", 200)
    counts = np.bincount(np.concatenate([example["targets_L"] for example in examples]))
    assert len(counts) == 5 and np.abs(counts - 2560).max() < 5 * (12800 * 0.2 * 0.8) ** 0.5
    assert all(np.array_equal(e["tokens_L"][1:], e["targets_L"][:-1]) and e["weights_L"].all() for e in examples)
    assert problem.levels() == {"chance": math.log(5), "ceiling": math.log(5)}


def test_copy_stream():
    for example in draws(CopyStream(delay=2), "train", 20):
        assert np.array_equal(example["targets_L"][2:], example["tokens_L"][:-2])
        assert example["weights_L"].tolist() == [0, 0] + [1] * 62
