"""Published tokenizers: each kind of file gives the ids of its own package, and special ids are never forged."""

import json
import sys

import numpy as np
import pytest
import tokenizers

from llmlab.data import Data, DataError, TextFiles
from llmlab.interop import ranks
from llmlab.interop.tokenizers import Published, load_tokenizer
from tests.interop.tiny import RANKS, TEXTS, byte_level, rank_lines, word_pieces


def same(encoder, reference) -> None:
    for text in TEXTS:
        assert encoder.encode(text).tolist() == reference(text), text


def lossless(encoder) -> None:
    for text in TEXTS:
        assert encoder.decode(encoder.encode(text)) == text
        assert encoder.bytes_V[encoder.encode(text)].sum() == len(text.encode()) + encoder.indent


def plain(layout: str):
    tokenizer = tokenizers.Tokenizer.from_str(layout)
    tokenizer.encode_special_tokens = True
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def test_sentencepiece_of_llama(write, llama_model):
    import sentencepiece

    place = write(tokenizer__model=llama_model)
    encoder, reference = load_tokenizer(place), sentencepiece.SentencePieceProcessor(model_proto=llama_model)
    same(encoder, reference.encode)
    assert encoder.vocab == 350 and encoder.end == 2 and encoder.indent
    assert encoder.encode("cat", special=True).tolist() == [1, *reference.encode("cat")]
    for text in TEXTS[:4]:
        assert encoder.decode(encoder.encode(text)) == text
    assert encoder.encode("<s>").tolist()[-1] != 1 and encoder.encode_marked("<s>").tolist() == [1]
    after = encoder.encode_marked("<s>cat")[1:]
    assert encoder.decode(after) == "cat" and not encoder.pieces[after[0]].startswith(b" ")
    assert reference.piece_to_id("[INST]") in encoder.encode("[INST]")  # as published, where no settings say otherwise


def test_settings_keep_users_from_forging_a_piece(write, llama_model):
    added = {"3": {"content": "[INST]", "special": False}, "4": {"content": "<end_of_turn>", "special": True}}
    added["350"] = {"content": "<|end|>", "special": True, "rstrip": True}
    settings = {"added_tokens_decoder": added, "eos_token": "<|end|>", "add_bos_token": False, "add_eos_token": True}
    encoder = load_tokenizer(write(tokenizer__model=llama_model, tokenizer_config__json=settings))
    assert 4 not in encoder.encode("<end_of_turn>") and 3 in encoder.encode("[INST]")
    assert encoder.encode_marked("a<end_of_turn>b<|end|>  \n c").tolist()[1] == 4
    assert encoder.decode(encoder.encode_marked("a<|end|>  \n c")) == "ac"  # the token takes the spaces on its right
    assert encoder.vocab == 351 and encoder.end == 350 and encoder.encode("a", special=True)[-1] == 350
    assert encoder.encode("a", special=True)[0] != 1


def test_sentencepiece_of_t5(write, t5_model):
    import sentencepiece

    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 3, "eos_token": {"content": "</s>"}}
    encoder = load_tokenizer(write(spiece__model=t5_model, tokenizer_config__json=settings))
    reference = sentencepiece.SentencePieceProcessor(model_proto=t5_model)
    same(encoder, reference.encode)
    assert encoder.vocab == 41 and encoder.encode("the", special=True)[-1] == 1
    assert encoder.encode_marked("<extra_id_0>").tolist() == [40] and 40 not in encoder.encode("<extra_id_0>")


def test_gpt2_as_json_and_as_two_files(write, gpt2_files):
    place = write(**gpt2_files)
    reference = plain(byte_level())
    for file in ("tokenizer.json", "vocab.json"):
        encoder = load_tokenizer(place / file)
        same(encoder, reference)
        lossless(encoder)
        assert encoder.encode_marked("a<|endoftext|>b")[1] == encoder.end == 0
        assert encoder.encode("a", special=True).tolist() == encoder.encode("a").tolist()
    (place / "merges.txt").unlink()
    with pytest.raises(DataError, match="vocab.json is a vocabulary of byte pairs, and there is no merges.txt"):
        load_tokenizer(place / "vocab.json")


def test_bert_as_json_and_as_a_list(write, bert_files):
    place, reference = write(**bert_files), plain(word_pieces())
    for file in ("tokenizer.json", "vocab.txt"):
        encoder = load_tokenizer(place / file)
        same(encoder, reference)
        ids = encoder.encode("The cat", special=True).tolist()
        assert ids[0] == 2 and ids[-1] == 3 == encoder.end and encoder.specials.id("pad") == 0
        assert encoder.decode(ids) == "the cat"


def test_padding_and_truncation_of_a_file_are_left_out(write):
    tokenizer = tokenizers.Tokenizer.from_str(word_pieces())
    tokenizer.enable_padding(length=32)
    tokenizer.enable_truncation(2)
    encoder = load_tokenizer(write(tokenizer__json=tokenizer.to_str()))
    assert encoder.encode("the cat sat on").tolist() == plain(word_pieces())("the cat sat on")


def test_bart_frames_a_text(write):
    vocab = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a": 4, "b": 5, "ab": 6, "<mask>": 7}
    encoder = load_tokenizer(write(vocab__json=vocab, merges__txt="a b\n"))
    assert encoder.encode("ab", special=True).tolist() == [0, 6, 2] and encoder.specials.id("pad") == 1
    assert encoder.encode_marked("a  <mask>b").tolist() == [4, 7, 5]  # the mask takes the spaces on its left


def test_gpt1_words(write):
    vocab = {"<unk>": 0, "a": 1, "b</w>": 2, "ab</w>": 3}
    encoder = load_tokenizer(write(vocab__json=vocab, merges__txt="#version: 0.2\na b</w>\n"))
    assert encoder.encode("AB ab?").tolist() == [3, 3, 0] and encoder.decode([3, 3]) == "ab ab "


def test_ranks_under_any_name(write, monkeypatch):
    import tiktoken

    specials = {"<|endoftext|>": 0}
    monkeypatch.setitem(ranks.FAMILIES, len(RANKS), ranks.Family(ranks.GPT2, specials, {"eos": "<|endoftext|>"}))
    place = write(tokenizer__model=rank_lines(RANKS))
    encoder = load_tokenizer(place)
    pieces = {piece: rank for rank, piece in enumerate(RANKS)}
    same(encoder, tiktoken.Encoding("x", pat_str=ranks.GPT2, mergeable_ranks=pieces, special_tokens={}).encode_ordinary)
    lossless(encoder)
    assert encoder.end == len(RANKS) == encoder.vocab - 1
    assert encoder.encode_marked(" cat<|endoftext|>").tolist() == [260, 262]


def test_ranks_of_llama_3_have_its_special_tokens():
    family = ranks.FAMILIES[128000]
    ids = {text: 128000 + place for text, place in family.specials.items()}
    assert len(ids) == 256 and ids["<|begin_of_text|>"] == 128000 and ids["<|eot_id|>"] == 128009
    assert ids["<|start_header_id|>"] == 128006 and ids["<|reserved_special_token_247|>"] == 128255
    assert ranks.FAMILIES[50256].specials == {"<|endoftext|>": 0}


def test_damaged_ranks(write):
    with pytest.raises(DataError, match="262 ranks, and the split of texts is known for 50256, 100256, 128000 ranks"):
        load_tokenizer(write(x__tiktoken=rank_lines(RANKS)))
    assert load_tokenizer(write(x__tiktoken=rank_lines(RANKS)), pattern=ranks.GPT4).encode(" cat").tolist() == [260]
    cases = {
        "line 3: b'Ag== 7' is no piece .*rank 7 where 2 is due": rank_lines(RANKS).replace(b"Ag== 2\n", b"Ag== 7\n"),
        "line 2: b'not base64 5' is no piece": b"AA== 0\nnot base64 5\n",
        "no piece for the byte 0x03": rank_lines([*RANKS[:3]]),
        "has a piece twice": rank_lines([*RANKS, b"the"]),
    }
    for message, content in cases.items():
        with pytest.raises(DataError, match=message):
            load_tokenizer(write(x__tiktoken=content), pattern=ranks.GPT4)
    with pytest.raises(DataError, match="no regular expression"):
        load_tokenizer(write(x__tiktoken=rank_lines(RANKS)), pattern="(")


def test_tekken(write):
    import base64

    config = {"pattern": ranks.GPT4, "default_vocab_size": 3 + len(RANKS), "default_num_special_tokens": 3}
    vocab = [{"rank": i, "token_bytes": base64.b64encode(piece).decode()} for i, piece in enumerate(RANKS)]
    file = {"config": config, "vocab": [*vocab, {"rank": 999, "token_bytes": "eHh4"}]}
    encoder = load_tokenizer(write(tekken__json=file))
    assert encoder.vocab == 3 + len(RANKS) and encoder.end == 2
    assert encoder.encode(" cat", special=True).tolist() == [1, 263] and encoder.decode([1, 263, 2]) == " cat"
    assert encoder.encode_marked("</s>").tolist() == [2]


def test_added_tokens_of_the_settings(write, gpt2_files):
    size = len(json.loads(gpt2_files["vocab__json"]))
    added = {str(size): {"content": "<|end|>", "special": True}, str(size + 1): {"content": "<think>"}}
    settings = {"added_tokens_decoder": added, "eos_token": "<|end|>", "pad_token": None}
    encoder = load_tokenizer(write(**gpt2_files, tokenizer_config__json=settings))
    assert encoder.end == size and encoder.encode("a<think>b").tolist()[1] == size + 1
    assert size not in encoder.encode("<|end|>") and encoder.decode([size, size + 1]) == "<think>"
    settings["added_tokens_decoder"] = {str(size + 5): {"content": "<|end|>", "special": True}}
    with pytest.raises(DataError, match=rf"has no id {size + 5} for '<\|end\|>'"):
        load_tokenizer(write(tokenizer_config__json=settings))
    with pytest.raises(DataError, match="added_tokens_decoder is no table of tokens"):
        load_tokenizer(write(tokenizer_config__json={"added_tokens_decoder": {"x": 5}}))
    with pytest.raises(ValueError, match="tokenizer_config.json is no JSON"):
        load_tokenizer(write(tokenizer_config__json="{"))


def test_only_the_first_text_is_indented(write):
    """Metaspace with prepend_scheme "first", as transformers writes LLaMA's tokenizer.json."""
    vocab = {piece: i for i, piece in enumerate(["<unk>", "<s>", "\u2581", "a", "\u2581a", "<0x62>"])}
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab, [("\u2581", "a")], byte_fallback=True, unk_token="<unk>")
    )
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    parts = [tokenizers.decoders.Replace("\u2581", " "), tokenizers.decoders.ByteFallback()]
    tokenizer.decoder = tokenizers.decoders.Sequence([*parts, tokenizers.decoders.Fuse()])
    encoder = load_tokenizer(write(tokenizer__json=tokenizer.to_str()))
    for text in ("a", "<s>a", "a<s>a a", "<s> a<s>b"):
        assert encoder.encode_marked(text).tolist() == tokenizer.encode(text).ids
    assert encoder.decode([4, 3]) == "aa" and encoder.stream(before=[4]).push([4, 5]) == " ab"


def test_messages(write, tmp_path, gpt2_files, monkeypatch):
    with pytest.raises(DataError, match=r"has no tokenizer; looked for tokenizer.json, tokenizer.model, .*vocab.txt"):
        load_tokenizer(tmp_path)
    with pytest.raises(DataError, match="there is no tokenizer 'nowhere'"):
        load_tokenizer("nowhere")
    for content, message in (
        ("{ broken", "begins as JSON and is none"),
        ('{"a": "b"}', "is JSON, and no tokenizer.json, tekken.json or vocab.json; it has a"),
        ('{"model": {}}', "is no tokenizer.json that `tokenizers` can read"),
        ("hello", "is no tokenizer that is known"),
        (b"\n\x03abc", "is no SentencePiece model"),
    ):
        with pytest.raises(DataError, match=message):
            load_tokenizer(write(tokenizer__json=content))
    layout = json.loads(gpt2_files["tokenizer__json"])
    layout["decoder"] = {"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": True}
    with pytest.raises(DataError, match="its decoder has a step 'CTC'"):
        load_tokenizer(write(tokenizer__json=layout))
    place = write(**gpt2_files)
    with pytest.raises(DataError, match=r"has 300 ids and the model 299; they do not belong together"):
        load_tokenizer(place, vocab=299)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r'pip install "llmlab\[hf\]"'):
        load_tokenizer(place)
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(ImportError, match=r'pip install "llmlab\[hf\]"'):
        load_tokenizer(write(x__tiktoken=rank_lines(RANKS)) / "x.tiktoken", pattern=ranks.GPT2)


def test_data_of_a_published_tokenizer(write, tmp_path_factory, gpt2_files):
    place, folder = write(**gpt2_files), tmp_path_factory.mktemp("text")
    (folder / "text.txt").write_text("the cat sat on the mat. " * 40)
    data = Data(
        source=TextFiles(path=str(folder / "text.txt")),
        tokenizer=Published(path=str(place), vocab=320),
        batch=2,
        length=16,
    )
    dataset = data.open(cache=tmp_path_factory.mktemp("cache"), report=lambda text: None)
    assert data.vocab == dataset.encoder.vocab == 320  # the model has more ids than the tokenizer
    batch = next(iter(dataset.train()))
    assert batch["tokens_BL"].shape == (2, 16) and np.issubdtype(batch["tokens_BL"].dtype, np.integer)
    assert "the cat" in dataset.encoder.decode(batch["tokens_BL"][0])
    with pytest.raises(DataError, match="pass --data.tokenizer.path DIR"):
        Published(vocab=320).load()
    with pytest.raises(ValueError, match="Published.vocab is 0 with a path; it is the vocabulary of the model"):
        Published(path=str(place))
