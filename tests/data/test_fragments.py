"""Fragments of the standard library with their package, and a training split as a corpus of its own."""

import dataclasses
import itertools

import numpy as np
import pytest

from llmlab.data import Bytes, Carved, DataError, Fragments, Packages, Stdlib, TextFiles
from llmlab.data.fragments import package_names

DATA = Fragments(labels=Packages(count=4), tokenizer=Bytes(), batch=8, length=32, tests=40)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return DATA.open(cache=tmp_path_factory.mktemp("cache"))


def text_of(tokens_L) -> bytes:
    return bytes(tokens_L.astype(np.uint8))


def test_a_window_comes_from_the_package_that_its_label_names(dataset):
    files = list(DATA.labels.chosen().values())
    with dataset.train() as batches:
        batch = next(batches)
    assert batch["tokens_BL"].shape == (8, 32) and batch["label_B"].shape == (8,)
    for tokens_L, label in zip(batch["tokens_BL"], batch["label_B"]):
        text = text_of(tokens_L)
        pieces = b"".join(text for _, text in DATA.labels.part(files[label], "train"))
        assert text in pieces
    assert len(package_names(DATA)) == 4


def test_validation_has_every_package_as_often_and_is_held_out_and_the_same_for_every_seed(dataset, tmp_path):
    labels = np.concatenate([batch["label_B"] for batch in dataset.validation()])
    assert np.bincount(labels).tolist() == [10] * 4
    other = dataclasses.replace(DATA, seed=1).open(cache=tmp_path)
    for a, b in zip(dataset.validation(), other.validation()):
        np.testing.assert_array_equal(a["tokens_BL"], b["tokens_BL"])
    with dataset.train() as first, other.train() as second:
        assert not np.array_equal(next(first)["tokens_BL"], next(second)["tokens_BL"])
    assert other.fingerprint != dataset.fingerprint
    for files in DATA.labels.chosen().values():
        sides = [{name for name, _ in DATA.labels.part(files, split)} for split in ("train", "validation")]
        assert all(sides) and not sides[0] & sides[1]


def test_what_cannot_be_asked_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Packages.count is 1; a choice needs 2 or more"):
        Packages(count=1)
    with pytest.raises(DataError, match="packages of several files, not 999"):
        Packages(count=999).chosen()
    with pytest.raises(DataError, match="fewer than length 99999999"):
        dataclasses.replace(DATA, length=99_999_999).open(cache=tmp_path)


def test_a_carved_source_never_gives_the_validation_split():
    carved = Carved(source=Stdlib(), share=0.3)
    names = {
        split: {name.partition(" ")[2] or name for name, _ in carved.read(split)} for split in ("train", "validation")
    }
    whole = {split: {name for name, _ in Stdlib().read(split)} for split in ("train", "validation")}
    assert names["train"] | names["validation"] == whole["train"]
    assert not names["train"] & names["validation"] and not names["validation"] & whole["validation"]
    assert carved.fingerprint() not in (Stdlib().fingerprint(), Carved(source=Stdlib(), share=0.2).fingerprint())


def test_a_single_text_is_carved_by_place(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("0123456789" * 10)
    source = TextFiles(path=str(path), validation=0.5)
    parts = [b"".join(text for _, text in Carved(source=source, share=0.2).read(s)) for s in ("train", "validation")]
    assert parts == [b"0123456789" * 4, b"0123456789"]
    assert b"".join(itertools.chain(parts)) == next(iter(source.read("train")))[1]
