"""The plug-in experiment through every command, on 8 host devices with a product mesh and no edit to the package."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MESH = ("--mesh.fsdp", "2", "--mesh.tensor", "2")


@pytest.fixture(scope="module")
def file():
    return Path(__file__).with_name("plugin_words.py")


def test_train_eval_and_generate(llmlab, file, text, tmp_path):
    code, out, error = llmlab("train", file, "--data.source.path", text, *MESH)
    assert code == 0, error
    assert "step 4/4" in out and (tmp_path / "runs" / "plugin_words" / "sample.txt").read_text().startswith("ab")
    run = tmp_path / "runs" / "plugin_words"
    code, out, _ = llmlab("eval", run)
    assert code == 0 and '"bits_per_byte"' in out
    code, out, _ = llmlab("generate", run, "--prompt", "ab", "ced", "--tokens", "4")
    assert code == 0 and "--- ab" in out and "--- ced" in out
    code, out, _ = llmlab("generate", run, "--prompt", "ab", "--tokens", "4", "--beams", "3")
    assert code == 0 and out.startswith("ab")


def test_describe_shows_its_parameters(llmlab, file, text):
    code, out, _ = llmlab("describe", file, "--devices", "8", "--data.source.path", text, *MESH)
    assert code == 0 and "MinGru" in out and "stack.segments.0.0.mixer.gate.w" in out and "NDC" in out


def test_check_finds_that_it_keeps_the_contract(llmlab, file, text):
    only = ("causality", "packing isolation", "decode = teacher forcing", "sharded = single device", "finite gradients")
    code, out, _ = llmlab("check", file, "--data.source.path", text, "--only", *only)
    assert code == 0 and "the contract holds" in out and out.count("holds  ") == 5


def test_the_mixer_has_at_most_40_lines():
    tree = ast.parse((ROOT / "experiments" / "plugin_mixer.py").read_text())
    parts = [node for node in tree.body if isinstance(node, ast.ClassDef) or getattr(node, "name", "") == "run"]
    text = (ROOT / "experiments" / "plugin_mixer.py").read_text().splitlines()
    lines = [line for node in parts for line in text[node.lineno - 1 : node.end_lineno] if line.strip()]
    assert len(parts) == 3 and len(lines) <= 40


def test_a_function_of_the_file_is_named_after_a_colon(llmlab, file, text):
    code, out, _ = llmlab("describe", f"{file}:config", "--data.source.path", text)
    assert code == 0 and "MinGru" in out
    code, _, error = llmlab("describe", f"{file}:confgi", "--data.source.path", text)
    assert code == 78 and "plugin_words.py defines no `confgi()`; it has config" in error
