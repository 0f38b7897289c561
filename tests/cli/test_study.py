"""`llmlab study` prints what it will do, does it, and goes on where it was."""

import pytest

STUDY = '''"""A study."""
from llmlab.config import REQUIRED
from llmlab.data import Bytes, Data, TextFiles
from llmlab.ffn import Mlp
from llmlab.mixers import Attention
from llmlab.models import Block, Decoder
from llmlab.nn import repeat
from llmlab.study import Every, Study, one_at_a_time
from llmlab.train import Experiment, Train


def study() -> Study:
    block = Block(mixer=Attention(heads=2), ffn=Mlp(hidden=16))
    base = Experiment(
        model=Decoder(vocab=257, width=8, stack=repeat(block, 1)),
        data=Data(source=TextFiles(path=REQUIRED), tokenizer=Bytes(), batch=4, length=8),
        train=Train(steps=3, precision="float32"),
    )
    path = "model.stack.segments.0.pattern.0.ffn.activation"
    return Study(question="Is silu better?", base=base, arms=one_at_a_time(base, {"silu": {path: "silu"}}), seeds=2,
                 free=(Every(),))
'''


@pytest.fixture
def file(tmp_path):
    path = tmp_path / f"study_{tmp_path.name}.py"
    path.write_text(STUDY)
    return path


def test_a_study_is_shown_trained_and_gone_on_with(file, tmp_path, text, llmlab):
    common = ("study", file, "--data.source.path", text, "--run", tmp_path / "run", "--no-contracts")
    code, shown, _ = llmlab(*common, "--dry")
    assert code == 0 and "Is silu better?" in shown and "'gelu_tanh' -> 'silu'" in shown and "the base again" in shown
    assert "matched on training FLOPs within 0.50%" in shown and "6 runs" in shown and "2 seeds find" in shown
    assert not (tmp_path / "run").exists()
    code, first, _ = llmlab(*common, "--no-prices")
    assert code == 0 and first.count(": training") == 3 and (tmp_path / "run" / "study.json").exists()
    code, again, _ = llmlab(*common, "--no-prices")
    assert code == 0 and ": training" not in again


def test_a_leaf_that_must_be_given_is_asked_for(file, llmlab):
    code, _, error = llmlab("study", file, "--dry")
    assert code == 78 and "--data.source.path" in error


def test_a_file_without_a_study_tells_what_it_has(tmp_path, llmlab):
    path = tmp_path / f"none_{tmp_path.name}.py"
    path.write_text(STUDY.replace("def study()", "def other()"))
    code, _, error = llmlab("study", path)
    assert code == 78 and "defines no `study()`; it has other" in error
