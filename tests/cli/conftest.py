"""Commands called in this process, on an experiment file with a part of its own."""

import json
import random
from pathlib import Path

import jax
import pytest

from llmlab import cli
from llmlab.interop.checkpoint import write_checkpoint
from llmlab.nn.module import Rngs, split
from llmlab.presets.llama import heads, llama
from tests.interop.tiny import byte_level

CHAT = """{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


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


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """The directory of a tiny LLaMA with random weights, a tokenizer and a chat template."""
    folder, layout = tmp_path_factory.mktemp("checkpoint"), json.loads(byte_level())
    size = len(layout["model"]["vocab"])
    added = {str(size + i): {"content": f"<|im_{end}|>", "special": True} for i, end in enumerate(("start", "end"))}
    settings = {"added_tokens_decoder": added, "eos_token": "<|endoftext|>", "chat_template": CHAT}
    (folder / "tokenizer.json").write_text(byte_level())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    model = llama(2, 32, 48, heads(4, 2, 8), vocab=size + 2)
    params = split(model.build(Rngs(params=jax.random.key(0))))[1]
    write_checkpoint(folder, model, params)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"max_position_embeddings": 96, "eos_token_id": 0}))
    return folder


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
