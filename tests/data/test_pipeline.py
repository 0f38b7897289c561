"""The pipeline: an order that nothing but seed and index decides, a validation that is whole, and messages."""

import itertools
import subprocess
import sys

import numpy as np
import pytest

from llmlab.config import from_json, to_json
from llmlab.data import Bytes, Chunks, Data, DataError, Planned, RandomWindows, SentencePiece, Stdlib
from llmlab.data.cache import cache_folder

PACKINGS = [Chunks(), RandomWindows(), Planned()]


@pytest.fixture
def dataset(texts, tmp_path):
    generator = np.random.default_rng(0)

    def text(count):
        return bytes(generator.integers(97, 123, count, np.uint8)).decode()

    source = texts(train=tuple(text(n) for n in generator.integers(1, 60, 30)), validation=(text(50), text(33)))

    def open_(**values):
        data = Data(**{"source": source, "tokenizer": Bytes(), "batch": 4, "length": 16} | values)
        return data.open(cache=tmp_path, report=lambda line: None)

    return open_


def take(batches, count):
    with batches:
        return [next(batches)["tokens_BL"] for _ in range(count)]


@pytest.mark.parametrize("packing", PACKINGS)
def test_order_does_not_depend_on_restart_or_processes(dataset, packing):
    opened = dataset(packing=packing)
    count = 3 * len(opened.examples["train"]) // 4 + 2  # into the fourth epoch
    whole = take(opened.train(), count)
    assert whole[0].shape == (4, 16) and whole[0].dtype == np.int32 and type(whole[0]) is np.ndarray
    batches = opened.train()
    for _ in range(count - 2):
        next(batches)
    assert batches.next_index == 4 * (count - 2)
    np.testing.assert_array_equal(take(dataset(packing=packing).train(batches.next_index), 2), whole[-2:])
    np.testing.assert_array_equal(np.concatenate(take(opened.train(6), 2)), np.concatenate(whole)[6:14])
    halves = [take(opened.train(rows=range(process * 2, process * 2 + 2)), count) for process in range(2)]
    np.testing.assert_array_equal(np.concatenate(halves, axis=1), whole)


def test_order_does_not_depend_on_workers(dataset):
    whole = take(dataset().train(4), 7)
    np.testing.assert_array_equal(take(dataset(workers=2).train(4), 7), whole)


def test_each_epoch_is_whole_and_in_its_own_order(dataset):
    opened = dataset(batch=1)
    size = len(opened.examples["train"])
    epochs = np.reshape(take(opened.train(), 3 * size), (3, size, 16)).tolist()
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    others = [np.reshape(take(dataset(batch=1, seed=seed).train(), 2 * size), (2, size, 16)) for seed in (1, 2)]
    orders = [*epochs, *itertools.chain(*(other.tolist() for other in others))]
    assert all(a != b for a, b in itertools.combinations(orders, 2))  # no seed repeats an epoch of its neighbour


@pytest.mark.parametrize("packing", PACKINGS)
def test_validation_covers_every_token_once(dataset, packing):
    opened = dataset(packing=packing)
    batches = list(opened.validation())
    assert all(array.shape == (4, 16) for batch in batches for array in batch.values())
    joined = {name: np.concatenate([batch[name].ravel() for batch in batches]) for name in batches[0]}
    tokens_T = opened.examples["validation"].examples.corpus.tokens_T  # 51 and 34: two documents with their ends
    assert len(tokens_T) == 85 and len(batches) == 2
    np.testing.assert_array_equal(joined["targets_BL"][:84], tokens_T[1:])
    assert joined["weights_BL"].sum() == 83 and joined["weights_BL"][50] == 0  # all but the first of each document
    assert joined["bytes_BL"].sum() == 83 - 2  # ends are predicted and stand for no text
    assert not joined["segments_BL"][84:].any() and not joined["weights_BL"][84:].any()
    first = list(opened.validation(limit=1))
    assert len(first) == 1 and np.array_equal(first[0]["tokens_BL"], batches[0]["tokens_BL"])
    halves = [list(opened.validation(rows=range(process * 2, process * 2 + 2))) for process in range(2)]
    for batch, low, high in zip(batches, *halves):
        np.testing.assert_array_equal(np.concatenate([low["targets_BL"], high["targets_BL"]]), batch["targets_BL"])


def test_fingerprint(dataset):
    opened = dataset()
    assert opened.fingerprint == dataset(batch=2, workers=3).fingerprint
    changes = [{"seed": 1}, {"length": 8}, {"packing": Planned()}]
    assert len({opened.fingerprint, *(dataset(**change).fingerprint for change in changes)}) == 4


def test_what_the_task_draws_is_a_function_of_the_global_index(dataset, tmp_path):
    def noisy(example, random, pieces):
        assert len(pieces) == 257
        return {"tokens_L": example["tokens_L"][:3] + random.integers(0, 99, 3), "label": random.integers(0, 9)}

    open_noisy = lambda: dataset().data.open(noisy, cache=tmp_path, report=lambda line: None)
    size = len(open_noisy().examples["train"])
    whole = take(open_noisy().train(), size)  # 4 epochs in batches of 4
    np.testing.assert_array_equal(take(open_noisy().train(start=8), 2), whole[2:4])
    assert next(open_noisy().train())["label_B"].shape == (4,) and whole[0].shape == (4, 3)
    rows = np.concatenate(whole)
    assert len({tuple(row) for row in rows.tolist()}) > size  # not the same noise in each epoch
    first, last = (list(open_noisy().validation()) for _ in range(2))
    assert all(np.array_equal(a["tokens_BL"], b["tokens_BL"]) for a, b in zip(first, last))


def test_messages(dataset):
    with pytest.raises(DataError, match=r"gives \d+ examples of length 16, fewer than one batch of 400; lower --data"):
        dataset(batch=400)
    assert take(dataset(batch=400, packing=RandomWindows()).train(), 1)[0].shape == (400, 16)
    with pytest.raises(DataError, match="the train split: the corpus has .* a window of length 9999 needs"):
        dataset(length=9999, packing=RandomWindows())
    opened = dataset()
    with pytest.raises(ValueError, match="a batch of 4 has no row 4"):
        opened.train(rows=[3, 4])
    for name in ("batch", "length"):
        with pytest.raises(ValueError, match=f"Data.{name} is 0; it must be at least 1"):
            Data(**{name: 0})
    batches = opened.train()
    batches.close()
    with pytest.raises(ValueError, match="is closed"):
        next(batches)


def test_config_round_trip():
    data = Data(tokenizer=SentencePiece(vocab=512), packing=Planned(), seed=3)
    assert from_json(to_json(data)) == data and data.source == Stdlib()


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("LLMLAB_CACHE", str(tmp_path / "a"))
    assert cache_folder() == tmp_path / "a" and cache_folder(tmp_path / "b") == tmp_path / "b"
    monkeypatch.delenv("LLMLAB_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "llmlab"


def test_importing_is_light():
    """Neither jax nor a heavy library comes with the package itself."""
    heavy = "{'jax', 'grain', 'tensorflow_datasets', 'sentencepiece'}"
    code = f"import llmlab.data, sys; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


DIES = """
import os, signal, sys
from llmlab.data import Bytes, Data, TextFiles
if __name__ == "__main__":
    source = TextFiles(path=sys.argv[1])
    batches = Data(source=source, tokenizer=Bytes(), batch=2, length=8, workers=1).open(cache=sys.argv[2]).train()
    next(batches)
    from multiprocessing import active_children
    (worker,) = active_children()
    if sys.argv[3] == "worker":
        worker.kill()
        for _ in range(9):
            next(batches)
    print(worker.pid, flush=True)
    if sys.argv[3] == "parent":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.soak
@pytest.mark.parametrize("dies", ["worker", "parent", "nobody"])
def test_death_of_a_process(dies, tmp_path):
    """A killed worker is an error within seconds, a killed parent takes its workers along, an exit is clean."""
    (tmp_path / "dies.py").write_text(DIES)
    (tmp_path / "text.txt").write_text("some text " * 100)
    command = [sys.executable, tmp_path / "dies.py", tmp_path / "text.txt", tmp_path, dies]
    # The worker holds the output open, so this returns only when it has ended too.
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ("Worker process was terminated unexpectedly" in done.stderr) == (dies == "worker")
    assert done.returncode == {"worker": 1, "parent": -9, "nobody": 0}[dies]
    assert dies != "nobody" or "Exception ignored" not in done.stderr and "leaked" not in done.stderr
