"""Files of tensors: damaged and hostile ones are refused by an error that names the tensor; the library reads ours."""

import contextlib
import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from llmlab.interop.safetensors import FILE, INDEX, FileError, parse_json, read_directory, read_header, write_directory

A = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def raw(header, data: bytes = bytes(24), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(**changes) -> bytes:
    return raw({"a": {**A, **changes}})


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "its header is said to have 0 bytes and the file has 0; it is cut off"),
        (b"1234567", "the file has 7; it is cut off"),
        (raw({}, length=1 << 60), r"said to have 1152921504606846976 bytes and the file has \d+; it is cut off"),
        (raw(b"not json"), "its header is no JSON: Expecting value"),
        (raw(b"\xff\xfe\xff\xff"), "its header is no JSON"),
        (raw(b"[" * 100_000), "its header is no JSON: maximum recursion"),
        (raw(b'{"a": %s}' % (b"9" * 5000)), "its header is no JSON: Exceeds the limit"),
        (raw([1]), "its header is a list, not a table of tensors"),
        (raw(b'{"a": {}, "a": {}}'), "its header has 'a' twice"),
        (raw({"a": 3}), "the entry of 'a' has not dtype, shape and data_offsets: 3"),
        (raw({"a": {"dtype": "F32", "shape": []}}), "the entry of 'a' has not dtype, shape and data_offsets"),
        (entry(data_offsets=[0]), "the entry of 'a' has not dtype, shape and data_offsets"),
        (entry(data_offsets=[-24, 0]), "the entry of 'a' has sizes that are no counts"),
        (entry(data_offsets=[False, 24]), "the entry of 'a' has sizes that are no counts"),
        (entry(data_offsets=[0.0, 24.0]), "the entry of 'a' has sizes that are no counts"),
        (entry(shape=[-2, -3]), "the entry of 'a' has sizes that are no counts"),
        (entry(shape=[True, 6]), "the entry of 'a' has sizes that are no counts"),
        (entry(dtype="F4"), "'a' has the type 'F4'; known are F64, F32"),
        (entry(dtype=["F32"]), r"'a' has the type \['F32'\]; known are"),
        (entry(shape=[2, 4]), r"'a' of shape \(2, 4\) and type F32 takes 32 bytes, and its place has 24"),
        (entry(shape=[1 << 40, 1 << 40]), "and its place has 24"),
        (entry(data_offsets=[24, 0]), "takes 24 bytes, and its place has -24"),
        (entry(data_offsets=[24, 48]), "'a' ends at byte 48 of the data, which has 24; the file is cut off"),
        (raw({"a": A}, bytes(23)), "'a' ends at byte 24 of the data, which has 23; the file is cut off"),
        (raw({"b": A, "a": {**A, "data_offsets": [8, 32]}}, bytes(32)), "the bytes of 'b' and 'a' overlap"),
    ],
)
def test_a_damaged_file_is_refused(content, message, tmp_path):
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(FileError, match=message):
        read_directory(tmp_path)


def test_a_huge_header_is_refused_before_it_is_read(tmp_path):
    with (tmp_path / FILE).open("wb") as stream:  # a file of 200 MB that takes no room
        stream.write((150 << 20).to_bytes(8, "little"))
        stream.truncate(200 << 20)
    with pytest.raises(FileError, match="said to have 157286400 bytes, more than the 104857600 that are read"):
        read_header(tmp_path / FILE)


def test_chance_damage_gives_no_other_error(tmp_path):
    whole, random = raw({"a": A, "b": {**A, "data_offsets": [24, 48]}}, bytes(48)), np.random.default_rng(0)
    for _ in range(400):
        damaged = bytearray(whole[: random.integers(len(whole))] if random.random() < 0.2 else whole)
        for place in random.integers(0, max(1, len(damaged) - 48), random.integers(1, 4)):
            damaged[place : place + 1] = bytes([random.integers(32, 127)])
        (tmp_path / FILE).write_bytes(damaged)
        with contextlib.suppress(FileError):
            for stored in read_directory(tmp_path).values():
                assert stored.load().shape == stored.shape


def index(directory, places) -> None:
    (directory / INDEX).write_text(json.dumps({"weight_map": places}))


@pytest.mark.parametrize(
    "places, message",
    [
        (None, "weight_map is no table of names and files"),
        ({"a": 3}, "weight_map is no table of names and files"),
        (
            {"a": "../one.safetensors"},
            "names the file '../one.safetensors'; those of an index are .safetensors and lie",
        ),
        ({"a": "/etc/passwd"}, "names the file '/etc/passwd'; those of an index"),
        ({"a": ".."}, "names the file '..'"),
        ({"a": "pytorch_model.bin"}, "names the file 'pytorch_model.bin'"),
        ({"a": "x" * 5000 + ".safetensors"}, "names the file 'xxx"),
        ({"a": "gone.safetensors"}, "names gone.safetensors, which is not there; the checkpoint is not whole"),
        ({"a": "\0.safetensors"}, "which is not there"),
        ({"b": "one.safetensors"}, "says that one.safetensors has 'b', and it has not"),
    ],
)
def test_an_index_stays_in_its_directory(places, message, tmp_path):
    (tmp_path / "one.safetensors").write_bytes(raw({"a": A}))
    index(tmp_path, places)
    with pytest.raises(FileError, match=message):
        read_directory(tmp_path)


def test_links_of_a_cache_are_followed(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "blobs" / "1f2e").write_bytes(raw({"a": A}))
    (tmp_path / "snapshot" / "one.safetensors").symlink_to(tmp_path / "blobs" / "1f2e")
    index(tmp_path / "snapshot", {"a": "one.safetensors"})
    assert read_directory(tmp_path / "snapshot")["a"].shape == (2, 3)
    (tmp_path / "snapshot" / "one.safetensors").unlink()
    (tmp_path / "snapshot" / "one.safetensors").symlink_to("one.safetensors")  # to itself
    with pytest.raises(FileError, match="names one.safetensors, which is not there"):
        read_directory(tmp_path / "snapshot")


def test_what_is_not_there_is_told(tmp_path):
    with pytest.raises(FileError, match="has no model.safetensors and no model.safetensors.index.json"):
        read_directory(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(FileError, match="has pytorch_model.bin, which are pickles and are not loaded; save the model"):
        read_directory(tmp_path)
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors").write_bytes(raw({"a": A}))
    with pytest.raises(FileError, match="has 2 safetensors files and no model.safetensors.index.json that says"):
        read_directory(tmp_path)
    with pytest.raises(FileError, match="there is no .*config.json"):
        parse_json(tmp_path / "config.json")
    for text, message in (("{", "is no JSON"), ("[1]", "holds a list, not a table"), ("{" * 100_000, "is no JSON")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(FileError, match=message):
            parse_json(tmp_path / "config.json")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_library_reads_ours_and_we_read_its(dtype, tmp_path):
    dtype, random = np.dtype(getattr(ml_dtypes, dtype, None) or dtype), np.random.default_rng(0)
    arrays = {name: random.standard_normal(shape).astype(dtype) for name, shape in SHAPES.items()}
    made = [(name, array.shape, lambda array=array: array) for name, array in arrays.items()]
    assert [file.name for file in write_directory(tmp_path, made, dtype)] == [FILE]
    theirs = safetensors.numpy.load_file(tmp_path / FILE)
    safetensors.numpy.save_file(arrays, tmp_path / FILE)
    ours = {name: stored.load() for name, stored in read_directory(tmp_path).items()}
    assert theirs.keys() == ours.keys() == arrays.keys()
    for name, array in arrays.items():
        for found in (theirs[name], ours[name]):
            assert found.dtype == dtype and found.shape == array.shape
            np.testing.assert_array_equal(found, array)


SHAPES = {"a": (3, 5), "b.c": (), "none": (0, 4), "long": (7,)}


def some(value: float):
    return [(name, (2, 3), lambda value=value: np.full((2, 3), value)) for name in ("a", "b")]


def test_a_save_that_is_stopped_leaves_what_was_there(tmp_path):
    float32 = np.dtype(np.float32)
    write_directory(tmp_path, some(1.0), float32, shard=24)

    def stopped():
        raise KeyboardInterrupt

    for shard in (24, 48):
        with pytest.raises(KeyboardInterrupt):
            write_directory(tmp_path, [*some(2.0)[:1], ("b", (2, 3), stopped)], float32, shard)
        assert {name: stored.load()[0, 0] for name, stored in read_directory(tmp_path).items()} == {"a": 1, "b": 1}
    assert not list(tmp_path.glob("*.partial"))
    write_directory(tmp_path, some(2.0), float32)  # in one file: those of before are gone
    assert {name: stored.load()[0, 0] for name, stored in read_directory(tmp_path).items()} == {"a": 2, "b": 2}
    assert [file.name for file in tmp_path.iterdir()] == [FILE]
    write_directory(tmp_path, some(3.0), float32, shard=24)
    assert {name: stored.load()[0, 0] for name, stored in read_directory(tmp_path).items()} == {"a": 3, "b": 3}
    assert not (tmp_path / FILE).exists()
    with pytest.raises(ValueError, match=r"b has the shape \(3,\), and \(2, 3\) was announced"):
        write_directory(tmp_path, [*some(2.0)[:1], ("b", (2, 3), lambda: np.zeros(3))], float32)
