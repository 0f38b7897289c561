"""Sources: what they give, in which order, and what they say when they cannot."""

import importlib
import json
import shutil

import numpy as np
import pytest

from llmlab.data.sources import DataError, Stdlib, TextFiles, Tfds, held_out


def read(source):
    return {split: list(source.documents(split)) for split in ("train", "validation")}


def test_stdlib_is_the_library_without_its_tests():
    source = Stdlib()
    names = {split: [name for name, _ in source.read(split)] for split in ("train", "validation")}
    everything = names["train"] + names["validation"]
    assert "argparse.py" in everything and "json/decoder.py" in everything
    folders = {folder for name in everything for folder in name.split("/")[:-1]}
    assert not folders & {"test", "tests", "site-packages"} and not [n for n in everything if "sysconfigdata" in n]
    assert not set(names["train"]) & set(names["validation"])
    assert 0.04 < len(names["validation"]) / len(everything) < 0.12
    assert names["train"] == sorted(names["train"])
    assert source.fingerprint() == Stdlib().fingerprint() != Stdlib(validation=0.2).fingerprint()


def test_one_file_is_split_by_characters(tmp_path):
    text = "é" * 90 + "x" * 10
    (tmp_path / "a.txt").write_text(text)
    given = read(TextFiles(path=str(tmp_path / "a.txt"), validation=0.1))
    assert given == {"train": [("é" * 90).encode()], "validation": [b"x" * 10]}


def test_the_split_of_tiny_shakespeare(tmp_path):
    """1,115,394 characters are split as nanoGPT does: int(n * 0.9) train."""
    (tmp_path / "a.txt").write_text("x" * 1_115_394)
    assert [len(text) for (text,) in read(TextFiles(path=str(tmp_path / "a.txt"))).values()] == [1_003_854, 111_540]


def test_several_files_are_split_by_file(tmp_path):
    for number in range(20):
        (tmp_path / f"{number:02}.txt").write_text(str(number))
    (tmp_path / ".hidden").write_text("no")
    folder = read(TextFiles(path=str(tmp_path), validation=0.3))
    assert sorted(folder["train"] + folder["validation"], key=int) == [str(n).encode() for n in range(20)]
    assert 1 <= len(folder["validation"]) <= 12
    assert folder == read(TextFiles(path=str(tmp_path / "*.txt"), validation=0.3))


def test_a_file_keeps_its_side_when_others_come():
    few, many = [f"{n}.txt" for n in range(100)], [f"{n}.txt" for n in range(200)]
    assert held_out(few, 0.2) == held_out(many, 0.2) & set(few)
    assert all(0 < len(held_out(few[:count], 0.01)) < count for count in (2, 3, 7))
    assert all(0 < len(held_out(few[:count], 0.99)) < count for count in (2, 3, 7))


def test_explicit_validation_path(tmp_path):
    (tmp_path / "a.txt").write_text("train")
    (tmp_path / "b.txt").write_text("validate")
    source = TextFiles(path=str(tmp_path / "a.txt"), validation_path=str(tmp_path / "b.txt"))
    assert read(source) == {"train": [b"train"], "validation": [b"validate"]}


def test_fingerprint_follows_content_not_place(tmp_path):
    for folder, text in (("a", "text"), ("b", "text"), ("c", "tex2")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.txt").write_text(text)
    a, b, c = (TextFiles(path=str(tmp_path / folder / "x.txt")).fingerprint() for folder in "abc")
    assert a == b != c


def test_messages_of_text_files(tmp_path):
    def message(**values):
        with pytest.raises(DataError) as error:
            list(TextFiles(**values).documents("train"))
        return str(error.value)

    assert "pass --data.source.path FILE" in message()
    assert "no file or folder" in message(path=str(tmp_path / "none.txt"))
    assert "no files in" in message(path=str(tmp_path))
    assert "no files in" in message(path=str(tmp_path / "*.txt"))
    (tmp_path / "a.txt").write_text("")
    assert "gives no text in its train split" in message(path=str(tmp_path / "a.txt"))
    (tmp_path / "a.txt").write_bytes(b"abc\xff")
    assert "a.txt: byte 0xff at offset 3 is not UTF-8" in message(path=str(tmp_path / "a.txt"))
    (tmp_path / "b.txt").write_bytes(b"ab\xfe")
    assert "offset" in message(path=str(tmp_path), validation_path=str(tmp_path / "a.txt"))
    with pytest.raises(ValueError, match="TextFiles.validation is 1.5; it is a share between 0 and 1"):
        TextFiles(validation=1.5)
    with pytest.raises(ValueError, match="no split 'test'; a source has train and validation"):
        next(Stdlib().documents("test"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The folder of a small dataset, built without TensorFlow."""
    tfds = importlib.import_module("tensorflow_datasets")

    class TinyText(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {"text": tfds.features.Text(), "label": tfds.features.Scalar(np.int64)}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            return {"train": self._generate_examples(10), "test": self._generate_examples(4)}

        def _generate_examples(self, count):
            for number in range(count):
                yield number, {"text": f"document {number} é", "label": number}

    folder = tmp_path_factory.mktemp("tfds")
    TinyText(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def test_tfds_without_tensorflow(prepared):
    import sys

    source = Tfds(name="tiny_text", data_dir=str(prepared), validation="test")
    given = read(source)
    assert sorted(given["train"]) == [f"document {number} é".encode() for number in range(10)]
    assert len(given["validation"]) == 4 and read(source) == given
    parts = read(Tfds(name="tiny_text", data_dir=str(prepared), train="train[:80%]", validation="train[80%:]"))
    assert parts["train"] + parts["validation"] == given["train"] and len(parts["validation"]) == 2
    assert "tensorflow" not in sys.modules


def test_tfds_fingerprint(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "copy")
    source, copy = (Tfds(name="tiny_text", data_dir=str(place)) for place in (prepared, tmp_path / "copy"))
    assert source.fingerprint() == copy.fingerprint()
    (shard,) = (tmp_path / "copy").glob("**/*train.array_record*")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert source.fingerprint() != copy.fingerprint()


def test_messages_of_tfds(prepared, tmp_path):
    def message(**values):
        with pytest.raises(DataError) as error:
            list(Tfds(**{"name": "tiny_text", "data_dir": str(prepared)} | values).documents("validation"))
        return str(error.value)

    assert "no split 'validation' that can be read; it has train, test" in message()
    assert "no feature 'body'; it has text, label" in message(feature="body")
    assert "no text in its feature 'label' but int" in message(feature="label", validation="test")
    assert "is not prepared in" in message(data_dir=str(tmp_path))
    assert "no dataset 'tiny_text:2.0.0'" in message(name="tiny_text:2.0.0")
    assert "pass --data.source.name NAME" in message(name="<required>")
    shutil.copytree(prepared, tmp_path / "copy")
    (info,) = (tmp_path / "copy").glob("**/dataset_info.json")
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    assert "is stored as tfrecord, which only TensorFlow reads" in message(data_dir=str(tmp_path / "copy"))
