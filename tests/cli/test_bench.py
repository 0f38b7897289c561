"""`llmlab bench`: on a bare image, with wrong names, against earlier results, and with a kernel that is wrong."""

import dataclasses
import json
import subprocess
import sys

import pytest

from llmlab.bench import kernels, record
from llmlab.bench.shapes import FAMILIES, SIZES, experiment
from llmlab.cli import bench
from llmlab.nn.module import abstract, specs

BARE = """
import sys
HEAVY = {"orbax", "datasets", "tokenizers", "scipy", "sentencepiece", "tensorflow_datasets", "grain", "safetensors",
         "array_record", "tiktoken", "google", "xxhash", "jinja2", "gguf", "matplotlib"}
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HEAVY:
            raise ModuleNotFoundError(f"{name} is not on this image", name=name)
sys.meta_path.insert(0, Absent())
import dataclasses
from llmlab.bench.shapes import SIZES
from llmlab.cli import bench
SIZES["15M"] = dataclasses.replace(SIZES["15M"], layers=1, width=32, heads=2, vocab=128, batch=2, length=128)
sys.exit(bench.main(sys.argv[1:]))
"""


def test_runs_with_jax_flax_optax_numpy_alone(tmp_path):
    words = ["--suite", "train", "decode", "--families", "gpt2", "--rounds", "1", "--steps", "2", "--batch", "3"]
    command = [sys.executable, "-c", BARE, *words, "--output", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = tmp_path.glob("bench-*.json")
    found = json.loads(file.read_text())
    assert found["machine"]["cores"] >= 1 and found["versions"].keys() >= {"jax", "flax", "optax", "numpy"}
    trained, decoded = found["rows"]
    assert trained["seconds"] > 0 and trained["mfu"] > 0 and "cross-entropy" in trained["kernels"]
    assert decoded["rows"] == 3 and decoded["state_bytes"] > 0
    assert "attention: XLA, 1 tile of queries" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--suite", "trian"], r"--suite 'trian': there are train, .*did you mean 'train'"),
        (["--size", "124m"], r"--size '124m': there are 15M, 124M, .*did you mean '124M'"),
        (["--families", "gpt3"], r"--families 'gpt3': there are gpt2, .*did you mean 'gpt2'"),
        (["--rounds", "0"], r"--rounds 0: it is above 0"),
        (["--torch-python", "no/python"], r"--torch-python no/python: there is no such program"),
        (
            ["--torch-python", "false"],
            r"--torch-python false: it has no torch with transformers: it ended without a word",
        ),
    ],
)
def test_wrong_names_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        bench.main(words)


PEER = """#!/bin/sh
if [ "$2" = "import torch, transformers" ]; then exit 0; fi
echo '{"ready": true}'
while read turn; do echo '[2.0, 3.0, null]'; done
"""


def test_decoding_and_kernels_stand_beside_their_peers(tmp_path, monkeypatch, capsys):
    """A peer of which each turn takes two seconds."""
    (python := tmp_path / "python").write_text(PEER)
    python.chmod(0o755)
    tiny = dataclasses.replace(SIZES["15M"], layers=1, width=32, heads=2, vocab=128, batch=2, length=128)
    monkeypatch.setitem(SIZES, "15M", tiny)
    monkeypatch.setattr(kernels, "CASES", {name: kernels.CASES[name] for name in ("RMS norm", "delta rule")})
    words = ["--suite", "decode", "kernels", "--families", "gpt2", "--batch", "2", "--rounds", "1", "--size", "15M"]
    assert bench.main([*words, "--torch-python", str(python), "--output", str(tmp_path)]) == 0
    (file,) = tmp_path.glob("bench-*.json")
    decoded, norm, rule = json.loads(file.read_text())["rows"]
    assert decoded["torch"]["seconds"] == 2.0 and decoded["torch"]["tokens_per_second"] == 1.0
    assert decoded["ratio_to_torch"]["median"] == pytest.approx(2.0 / decoded["seconds"], rel=1e-2)
    assert norm["ratio_to_torch"]["best"] == pytest.approx(2.0 / norm["seconds_best"], rel=1e-2)
    assert rule["torch"] is None and "ratio_to_torch" not in rule  # PyTorch has none
    assert capsys.readouterr().out.count("times PyTorch") == 2


def test_a_row_is_compared_with_the_last_of_its_machine_and_shape(tmp_path):
    row = {"suite": "train", "name": "gpt2", "size": "15M", "rows": 8, "seconds": 2.0, "seconds_best": 1.0}
    for day, here, seconds in (("1", "a", 6.0), ("2", "a", 4.0), ("3", "b", 1.0)):
        kept = {"date": day, "machine": {"device": here}, "rows": [row | {"seconds": seconds}, {"error": "memory"}]}
        record.write(tmp_path / f"bench-{day}.json", kept)
    known = record.earlier(tmp_path, {"device": "a"})
    found = record.against(row, known.get(record.shape(row)))
    assert found["ratio_to_last"] == {"date": "2", "median": 2.0, "best": 1.0}
    assert record.against(row, known.get(record.shape(row | {"rows": 9}))) == row


def test_a_wrong_kernel_fails(monkeypatch, tmp_path, capsys):
    norm = kernels.CASES["RMS norm"]
    wrong = dataclasses.replace(norm, fast=lambda *given: norm.plain(*given) * 1.001)
    monkeypatch.setattr(kernels, "CASES", {"RMS norm": norm, "twisted": wrong})
    assert bench.main(["--suite", "correctness", "--output", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "right: value" in said and "WRONG: value 1.0e-03" in said


def test_every_family_builds_at_every_size():
    counts = {}
    for size in SIZES:
        for family in FAMILIES:
            model = abstract(experiment(family, SIZES[size]).model.build)
            counts[family, size] = sum(spec.size for spec in specs(model).values())
    assert counts["gpt2", "124M"] == 124_475_904  # GPT-2 with 47 more entries in its table
    assert 1.1e9 < counts["llama", "1B"] < counts["gpt2", "1B"] < 1.4e9
