"""The documents are right: links and paths exist, commands and flags are those of the package, examples run.

Markers stand in a comment before a block of Python: `<!-- run -->` for what is run here, `<!-- file: NAME -->` for a
file of a worked example, and with `complete experiment` beside the name for one that must build.
"""

import dataclasses
import importlib
import re
import shlex
from pathlib import Path

import jax
import pytest

from llmlab.cli import COMMANDS
from llmlab.config import get
from llmlab.study.load import load_studies
from llmlab.train.files import load_experiment, split_target
from llmlab.train.program import Program

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
EXPERIMENT = load_experiment(ROOT / "experiments" / "quickstart.py")
MARKED = re.compile(r"<!-- (run|file: [^>]*?) -->\n```python\n(.*?)```", re.DOTALL)
BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)


def names(documents):
    return [str(document.relative_to(ROOT)) for document in documents]


def commands(text: str) -> list[list[str]]:
    """The words of every `llmlab ...` command line, in blocks and between backticks."""
    lines = [line for block in BLOCK.findall(text) for line in block.splitlines()]
    spans = re.findall(r"`([^`\n]+)`", BLOCK.sub("", text))
    found = [re.search(r"(?:^\s*|/|-n 16 )llmlab (?=[a-z])(.*)", line) for line in lines + spans]
    return [shlex.split(match[1].split("   ")[0], comments=True) for match in found if match]


def snippets(document: Path) -> list[tuple[str, str]]:
    return MARKED.findall(document.read_text())


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """A folder with the files of the worked examples, and the names of those that are complete experiments."""
    folder, complete = tmp_path_factory.mktemp("examples"), []
    for document in DOCUMENTS:
        for marker, code in snippets(document):
            if marker.startswith("file: "):
                name, _, kind = marker.removeprefix("file: ").partition(", ")
                (folder / name).write_text(code)
                complete += [name] if kind == "complete experiment" else []
    return folder, complete


@pytest.mark.parametrize("document", DOCUMENTS, ids=names(DOCUMENTS))
def test_relative_links_lead_somewhere(document):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", BLOCK.sub("", document.read_text()))
    assert not [x for x in links if not x.startswith("http") and not (document.parent / x).exists()]


def test_the_tree_of_the_readme_exists_and_misses_nothing():
    tree = re.search(r"## Files\n\n```\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    folders, found = [], []
    for line in tree.splitlines():
        depth, path = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        folders = [*folders[:depth], path]
        found.append("".join(folders))
    assert not [path for path in found if not (ROOT / path).exists()]
    here = {p.name for p in (ROOT / "llmlab").iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert here <= {Path(path).name for path in found}


@pytest.mark.parametrize("document", DOCUMENTS, ids=names(DOCUMENTS))
def test_commands_and_their_flags_exist(document):
    for words in commands(document.read_text()):
        assert words[0] in COMMANDS, words
        module = importlib.import_module(f"llmlab.cli.{words[0]}")
        known = {field.name for field in dataclasses.fields(module.Flags)} | {"help"}
        for word in words[1:]:
            if not word.startswith("--"):
                continue
            name = word.removeprefix("--").replace("-", "_")
            if "." in name or name in ("seed", "rules"):
                leaf(name, words)
            else:
                assert name in known, f"{' '.join(words)}: {word}"


def leaf(name: str, words: list[str]) -> None:
    """Raises KeyError unless the command's experiment has the leaf, or the quickstart where it names none of ours.

    Those of the worked example are its mixer's.
    """
    if not ("recurrent.py" in words and name.endswith("mixer.channels")):
        targets = [split_target(word) for word in words if ".py" in word]
        targets = [(ROOT / file, function) for file, function in targets if (ROOT / file).is_file()]
        study = words[:1] == ["study"] and targets and targets[0][1] != "config"  # a function that gives a study
        shipped = [load_studies(*found)[0].base if study else load_experiment(*found) for found in targets]
        get(shipped[0] if shipped else EXPERIMENT, name)


def test_a_wrong_command_would_be_found():
    text = "```\nllmlab trian x.py --fresh\n```\nand `llmlab train x.py --model.widht 3`"
    assert commands(text) == [["trian", "x.py", "--fresh"], ["train", "x.py", "--model.widht", "3"]]
    with pytest.raises(KeyError, match="did you mean 'width'"):
        leaf("model.widht", [])


def test_complete_experiments_build_and_trace_a_step(examples):
    folder, complete = examples
    assert {"windows.py", "recurrent.py"} <= set(complete)
    for name in complete:
        experiment = load_experiment(folder / name)
        program = Program(experiment, experiment.mesh.build(jax.devices()[:1]))
        data = experiment.data
        assert data.tokenizer.vocab == experiment.model.vocab
        batch = experiment.example(experiment.data.batch)
        _, metrics = jax.eval_shape(program._step, program.abstract_state, batch)
        assert metrics["objective"].shape == ()


def test_the_mixer_of_the_worked_example_keeps_the_contract(examples):
    from llmlab.testing import check_mixer

    load_experiment(examples[0] / "recurrent.py")
    recurrence = importlib.import_module("recurrence")
    only = ("packing isolation", "decode = teacher forcing", "executed = traced FLOPs")
    seen = check_mixer(recurrence.Recurrence(channels=24), only=only)
    assert not [name for name, text in seen.items() if text.startswith("not applicable")]


def test_marked_snippets_run(monkeypatch):
    monkeypatch.chdir(ROOT)
    ran = 0
    for document in DOCUMENTS:
        for marker, code in snippets(document):
            if marker == "run":
                exec(compile(code, str(document), "exec"), {"__name__": "document"})
                ran += 1
    assert ran
