"""Files of tiny tokenizers."""

import json
from pathlib import Path

import pytest

from tests.interop.tiny import byte_level, sentencepiece, word_pieces


@pytest.fixture
def write(tmp_path):
    """write(name=content, ...): a directory with these files; tables become JSON, `__` in a name is a dot."""

    def make(**files) -> Path:
        for name, content in files.items():
            content = json.dumps(content) if isinstance(content, dict) else content
            content = content.encode() if isinstance(content, str) else content
            (tmp_path / name.replace("__", ".")).write_bytes(content)
        return tmp_path

    return make


@pytest.fixture(scope="session")
def llama_model() -> bytes:
    """LLaMA's kind of SentencePiece model: byte pairs, a space before the text."""
    return sentencepiece(model_type="bpe", byte_fallback=True, normalization_rule_name="identity",
                         remove_extra_whitespaces=False, user_defined_symbols=["[INST]", "<end_of_turn>"])  # fmt: skip


@pytest.fixture(scope="session")
def t5_model() -> bytes:
    """T5's kind: Unigram, without bytes, its specials at 0, 1, 2."""
    return sentencepiece(model_type="unigram", vocab_size=38, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)


@pytest.fixture(scope="session")
def gpt2_files() -> dict[str, str]:
    """{name: text} of tokenizer.json, vocab.json and merges.txt of the same byte pairs."""
    layout = json.loads(byte_level())
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in layout["model"]["merges"]]
    return {
        "tokenizer__json": json.dumps(layout),
        "vocab__json": json.dumps(layout["model"]["vocab"]),
        "merges__txt": "#version: 0.2\n" + "\n".join(merges) + "\n",
    }


@pytest.fixture(scope="session")
def bert_files() -> dict[str, str]:
    """The same of tokenizer.json and vocab.txt."""
    vocab = json.loads(word_pieces())["model"]["vocab"]
    return {"tokenizer__json": word_pieces(), "vocab__txt": "".join(f"{p}\n" for p in sorted(vocab, key=vocab.get))}
