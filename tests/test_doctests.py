"""The examples in docstrings are run."""

import doctest
import importlib
from pathlib import Path

import llmlab

ROOT = Path(llmlab.__file__).parent


def test_examples_in_docstrings():
    files = [path for path in sorted(ROOT.rglob("*.py")) if ">>> " in path.read_text()]
    assert ROOT / "config.py" in files
    for path in files:
        module = importlib.import_module(".".join(("llmlab", *path.relative_to(ROOT).with_suffix("").parts)))
        found = doctest.testmod(module)
        assert found.attempted and not found.failed, f"{path}: {found}"
