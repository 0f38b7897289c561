"""What tasks make of a text, in numpy: masks, spans, prefixes, crops."""

import numpy as np
import pytest

from llmlab.data import Data
from llmlab.tasks import Continuation, Contrastive, MaskedLM, PrefixLM, SpanCorruption, Spans, Suffix, ul2

VOCAB, LENGTH = 50, 64
PIECES = tuple(b" w" if index % 3 == 0 else b"x" for index in range(VOCAB))


def text(length=LENGTH, real=LENGTH, seed=0):
    example = Data(length=length).sample(np.random.default_rng(seed), VOCAB)
    for name in ("weights_L", "segments_L", "bytes_L"):
        example[name] = example[name] * (np.arange(length) < real)
    return example


def prepare(task, example, seed=1):
    return task.prepare(example, np.random.default_rng(seed), PIECES)


def test_masking_takes_its_share_and_keeps_the_rest():
    task, example = MaskedLM(), text()
    counts = np.zeros(3)  # masked, replaced, kept
    for seed in range(300):
        found = prepare(task, example, seed)
        chosen = found["places_T"][found["weights_T"] > 0]
        assert len(chosen) == len(set(chosen)) == round(0.15 * LENGTH) <= task.places(LENGTH) == 16
        np.testing.assert_array_equal(found["targets_T"][: len(chosen)], example["tokens_L"][chosen])
        rest = np.setdiff1d(np.arange(LENGTH), chosen)
        np.testing.assert_array_equal(found["tokens_L"][rest], example["tokens_L"][rest])
        now, before = found["tokens_L"][chosen], example["tokens_L"][chosen]
        counts += [(now == VOCAB).sum(), ((now != VOCAB) & (now != before)).sum(), (now == before).sum()]
    np.testing.assert_allclose(counts / counts.sum(), [0.8, 0.1 * 49 / 50, 0.1 + 0.1 / 50], atol=0.02)


def test_whole_words_are_masked_together_and_padding_never():
    example = text(real=40)
    tokens = example["tokens_L"][:40]
    word = np.cumsum(tokens % 3 == 0)  # a word begins where a piece begins with a space
    for seed in range(50):
        found = prepare(MaskedLM(units="words"), example, seed)
        chosen = found["places_T"][found["weights_T"] > 0]
        assert len(chosen) and chosen.max() < 40
        whole = [set(np.flatnonzero(word == number)) for number in set(word[chosen])]
        assert len(chosen) <= 6 and (set().union(*whole) == set(chosen) or len(whole) == 1)
    assert prepare(MaskedLM(), text(real=0))["weights_T"].sum() == 0
    assert MaskedLM().extra == 1 and MaskedLM(mask=3).extra == 0


def restored(found, start, end, sentinels):
    """The text that source and target tell together."""
    source = found["source_M"][found["source_segments_M"] > 0]
    target = found["targets_L"][found["weights_L"] > 0]
    assert source[-1] == target[-1] == end and found["tokens_L"][0] == start
    np.testing.assert_array_equal(found["tokens_L"][1 : len(target)], target[:-1])
    spans, number = {}, None
    for token in target[:-1]:
        if token in sentinels:
            number = token
            spans[number] = []
        else:
            spans[number].append(token)
    return [t for token in source[:-1] for t in (spans[token] if token in sentinels else [token])]


@pytest.mark.parametrize("denoiser", [Spans(), Spans(rate=0.5, mean=8.0), Suffix(), Spans(rate=0.9, mean=1.0)])
@pytest.mark.parametrize("real", [LENGTH, 21, 2])
def test_span_corruption_loses_nothing(denoiser, real):
    task, example = SpanCorruption(denoisers=(denoiser,)), text(real=real)
    start, end, sentinels = VOCAB, VOCAB + 1, range(VOCAB + 2, VOCAB + 102)
    for seed in range(20):
        found = prepare(task, example, seed)
        assert restored(found, start, end, sentinels) == example["tokens_L"][:real].tolist()
    taken = denoiser.noise(real, np.random.default_rng(0))
    assert not taken[0] and 1 <= taken.sum() <= denoiser.sizes(real)[0]
    assert task.extra == 102 and len(prepare(task, text(real=1))["tokens_L"]) == task.lengths(LENGTH)[1]
    assert prepare(task, text(real=1))["weights_L"].sum() == 0


def test_spans_take_their_share_in_the_right_number():
    noise = np.array([Spans().noise(512, np.random.default_rng(seed)) for seed in range(50)])
    assert (noise.sum(1) == 77).all()  # round(512 * 0.15)
    assert ((np.diff(noise.astype(int), axis=1) == 1).sum(1) == 26).all()  # round(77 / 3)


def test_ul2_tells_its_mode():
    task = ul2()
    assert task.extra == 2 + 100 + 3
    modes = [prepare(task, text(), seed)["source_M"][0] - (VOCAB + 102) for seed in range(200)]
    assert set(modes) == {0, 1, 2} and 0.4 < np.mean(np.array(modes) == 2) < 0.75  # 4 of 7
    assert len({tuple(a.shape for a in prepare(task, text(), seed).values()) for seed in range(40)}) == 1
    with pytest.raises(ValueError, match="spans and there are 4 sentinels; raise task.sentinels"):
        prepare(SpanCorruption(sentinels=4), text(length=512, real=512))


def test_continuation_splits_the_window():
    found = prepare(Continuation(), text(real=50))
    tokens = text()["tokens_L"]
    assert found["source_M"].tolist() == tokens[:32].tolist() and found["tokens_L"][0] == VOCAB
    assert found["targets_L"][:19].tolist() == [*tokens[32:50].tolist(), VOCAB + 1] and found["weights_L"].sum() == 19
    assert prepare(Continuation(), text(real=20))["weights_L"].sum() == 0


def test_prefix_and_crops():
    for seed in range(20):
        found = prepare(PrefixLM(), text(real=40), seed)
        cut = int(found["prefix_L"].sum())
        assert 1 <= cut < 40 and found["weights_L"].sum() == 40 - cut + 1 == found["bytes_L"].sum()
        assert found["weights_L"][cut - 1] == 1
    found = prepare(Contrastive(), text(real=41))
    tokens = text()["tokens_L"]
    assert found["tokens_L"][:21].tolist() == tokens[:21].tolist() and found["segments_L"].sum() == 21
    assert found["partner_L"][:21].tolist() == tokens[20:41].tolist() and found["weight"] == 1
    assert prepare(Contrastive(), text(real=1))["weight"] == 0
