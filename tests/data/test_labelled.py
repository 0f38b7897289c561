"""Labelled texts: classes by name, ids around a text, cuts that are told, and messages."""

import dataclasses
import json

import numpy as np
import pytest

from llmlab.config import config
from llmlab.data import Bytes, DataError, Labelled, Tokenizer
from llmlab.data.encoder import Specials

LINES = [{"text": f"text {number}", "label": "yes" if number % 3 else "no"} for number in range(40)]


@config
class Framed(Tokenizer):
    """Bytes with an id on both sides."""

    vocab = 257

    def load(self, source=None, cache=None, report=print):
        return dataclasses.replace(Bytes().load(), specials=Specials(before=(256,), after=(256,)))


@pytest.fixture
def write(tmp_path):
    def make(lines, name="texts.jsonl"):
        file = tmp_path / name
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return str(file)

    return make


def test_examples_are_the_lines(write):
    data = Labelled(path=write(LINES), labels=("no", "yes"), tokenizer=Framed(), batch=4, length=16, validation=0.3)
    dataset = data.open(report=None)
    train, held = (dataset.examples[split] for split in ("train", "validation"))
    assert len(train) + len(held) == 40 and 3 < len(held) < 22 and data.vocab == 257 and data.classes == 2
    seen = set()
    for rows in (train, held):
        for number in range(len(rows)):
            row = rows.at(number, number)
            real = row["tokens_L"][row["segments_L"] > 0]
            text = dataset.encoder.decode(real)
            assert real[0] == real[-1] == 256 and len(row["tokens_L"]) == 16
            assert row["label"] == (int(text.split()[1]) % 3 != 0)
            seen.add(text)
    assert seen == {line["text"] for line in LINES}
    batch = next(iter(dataset.train()))
    assert batch["label_B"].shape == (4,) and batch["tokens_BL"].shape == (4, 16)
    sample = data.sample(np.random.default_rng(0), 257)
    assert {name: (value.shape, value.dtype) for name, value in sample.items()} == {
        name: (np.shape(value), value.dtype) for name, value in train.at(0, 0).items()
    }
    assert data.short(8).length == 8


def test_validation_of_its_own_and_long_texts(write):
    other = write([{"text": "x" * 50, "label": "1"}, {"text": "y", "label": 0}], "other.jsonl")
    data = Labelled(path=write(LINES, "a.jsonl"), labels=("no", "yes"), batch=4, length=10, validation_path=other)
    with pytest.raises(DataError, match="other.jsonl, line 1: the label '1' is not among no, yes; set --data.labels"):
        data.open(report=None)
    data = dataclasses.replace(data, path=other, labels=("0", "1"), batch=2, tokenizer=Framed())
    with pytest.warns(RuntimeWarning, match="1 of 2 texts of the train split are longer than 8 tokens and are cut"):
        dataset = data.open(report=None)
    row = dataset.examples["validation"].at(0, 0)
    assert row["tokens_L"].tolist() == [256, *[ord("x")] * 8, 256] and len(dataset.examples["train"]) == 2
    assert dataset.fingerprint != dataclasses.replace(data, seed=1, length=60).open(report=None).fingerprint


def test_messages(write, tmp_path):
    with pytest.raises(DataError, match="pass --data.path FILE"):
        Labelled().open(report=None)
    for content, message in (("{", "line 1: no JSON with `text` and `label`"), ('{"text": "a"}', "line 1: no JSON")):
        (tmp_path / "bad").write_text(content)
        with pytest.raises(DataError, match=message):
            Labelled(path=str(tmp_path / "bad")).open(report=None)
    one = write([{"text": "a", "label": "0"}])
    with pytest.raises(DataError, match="there is no text in the validation split"):
        Labelled(path=one, validation=1e-9).open(report=None)
    with pytest.raises(DataError, match="Labelled.length is 2, which has no place for text"):
        Labelled(path=one, validation_path=one, tokenizer=Framed(), length=2).open(report=None)
    with pytest.raises(ValueError, match="2 or more different names"):
        Labelled(labels=("a", "a"))
