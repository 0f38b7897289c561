"""Tiny tokenizers of every published kind, trained or written here."""

import base64
import functools
import io
import json
from pathlib import Path

import jax
import tokenizers

from llmlab.interop.checkpoint import write_checkpoint
from llmlab.nn.module import Rngs, split
from llmlab.presets.llama import heads, llama

CORPUS = [
    "the cat sat on the mat, 12 cats",
    "a dog ran; the dog's 3 dogs sat",
    "Émile naïve déjà vu",
    "日本 the end.",
] * 30
TEXTS = [
    "the cat",
    " two  spaces",
    "new\nlines\t\n",
    "é déjà 日本 😀",
    "it's 1234 <s> <|end|> [CLS]",
    "",
    " ",
    "\ufeffx",
]


def sentencepiece(**options) -> bytes:
    import sentencepiece as package

    model = io.BytesIO()
    options = {"vocab_size": 350, "minloglevel": 2, "num_threads": 1, **options}
    package.SentencePieceTrainer.train(sentence_iterator=iter(CORPUS), model_writer=model, **options)
    return model.getvalue()


@functools.cache
def byte_level() -> str:
    """The tokenizer.json of GPT-2's kind: bytes in pairs, with one special id."""
    found = tokenizers.Tokenizer(tokenizers.models.BPE())
    found.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False
    )
    found.train_from_iterator(CORPUS, trainer)
    return found.to_str()


@functools.cache
def word_pieces() -> str:
    """The tokenizer.json of BERT's kind."""
    found = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    found.normalizer = tokenizers.normalizers.BertNormalizer()
    found.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    found.decoder = tokenizers.decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = tokenizers.trainers.WordPieceTrainer(vocab_size=90, special_tokens=special, show_progress=False)
    found.train_from_iterator(CORPUS, trainer)
    found.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return found.to_str()


def rank_lines(pieces) -> bytes:
    return b"".join(base64.b64encode(piece) + f" {rank}\n".encode() for rank, piece in enumerate(pieces))


CHAT = """{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
RANKS = [bytes([value]) for value in range(256)] + [b"th", b"the", b" c", b"at", b" cat", b" the"]


def checkpoint(folder: Path) -> Path:
    """A tiny LLaMA with random weights, a tokenizer and a chat template, in a directory."""
    size = len(json.loads(byte_level())["model"]["vocab"])
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
