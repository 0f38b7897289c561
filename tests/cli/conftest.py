"""Commands called in this process, on an experiment file with a part of its own."""

import random
from pathlib import Path

import pytest

from llmlab import cli


@pytest.fixture(scope="session")
def file():
    return Path(__file__).with_name("smooth_words.py")


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """The path of a text of a few made-up words."""
    choose = random.Random(0)
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(" ".join(choose.choices(("abba", "cede", "fade", "hag"), k=700)))
    return path


@pytest.fixture
def llmlab(monkeypatch, tmp_path, capfd):
    """llmlab(command, *arguments) -> (exit code, standard output, standard error), without a second start of jax."""
    monkeypatch.setenv("LLMLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LLMLAB_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("LLMLAB_HUGE_PAGES", "0")
    for command in ("train", "eval", "generate", "check", "plan", "chat", "embed", "study"):
        monkeypatch.setattr(f"llmlab.cli.{command}.set_up", lambda devices=None: None)

    def call(*arguments):
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
        return ended.value.code, *capfd.readouterr()

    return call
