"""Every leaf of an experiment is a flag: of a part from outside, in tuples, and where the default is None."""

import pytest

from llmlab.cli.arguments import parse
from llmlab.cli.describe import Flags
from llmlab.config import diff
from llmlab.train.files import load_experiment

BLOCK = "model.stack.segments.0.pattern.{}.mixer.{}"


GIVEN = {
    "model.width": ("64", 64),
    BLOCK.format(1, "heads"): ("4", 4),
    BLOCK.format(1, "kv_heads"): ("2", 2),
    BLOCK.format(1, "softcap"): ("30", 30.0),
    BLOCK.format(1, "view.window"): ("8", 8),
    BLOCK.format(0, "keep"): ("0.25", 0.25),
    BLOCK.format(0, "slow"): ("3", 3),
    "optim.clip": ("None", None),
    "optim.groups.1.decay": ("0.5", 0.5),
    "train.save_every": ("7", 7),
    "train.prompt": ("xyz", "xyz"),
    "train.precision": ("bfloat16", "bfloat16"),
    "mesh.tensor": ("4", 4),
}


@pytest.mark.parametrize("spell", [lambda path: path, lambda path: path.replace("_", "-")], ids=["a_b", "a-b"])
def test_flags_set_their_leaves_and_no_others(spell, file):
    arguments = [word for path, (given, _) in GIVEN.items() for word in (f"--{spell(path)}", given)]
    flags, experiment = parse("describe", Flags, [str(file), *arguments])
    changed = diff(load_experiment(file), experiment)
    assert {path: (type(new), new) for path, (_, new) in changed.items()} == {
        path: (type(value), value) for path, (_, value) in GIVEN.items()
    }
    assert flags == Flags()


def test_rules_are_chosen_by_name(file):
    chosen = parse("describe", Flags, [str(file), "--rules", "fsdp*tensor"])[1].rules
    assert chosen.name == "fsdp*tensor" and dict(chosen.stored)["D"] == ("fsdp",)


def test_help_lists_the_leaves_of_a_part_of_the_file(llmlab, file):
    code, out, _ = llmlab("train", file, "--help")
    assert code == 0
    leaves = ("--model.width", f"--{BLOCK.format(0, 'keep')}", f"--{BLOCK.format(0, 'slow')}", "--optim.peak")
    for name in (*leaves, "--run", "--fresh", "--mesh.tensor", "--data.source.path"):
        assert name in out, name
