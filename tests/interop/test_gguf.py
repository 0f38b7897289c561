"""GGUF files: each type gives the values that its blocks mean, metadata a model and a tokenizer, damage an error."""

import json
import struct

import gguf
import jax
import numpy as np
import pytest

import llmlab
from llmlab.interop.checkpoint import open_checkpoint
from llmlab.interop.gguf import TYPES, read_gguf
from llmlab.interop.safetensors import FileError
from llmlab.interop.tokenizers import load_tokenizer
from llmlab.mesh import Mesh
from llmlab.models import Decoder
from llmlab.presets.family import ConfigError
from tests.interop.tiny import TEXTS, byte_level, word_pieces

ONE = Mesh().build(jax.devices()[:1])
WIDTH, HIDDEN, HEADS, GROUPS, LAYERS, VOCAB = 64, 96, 4, 2, 2, 37
WRITTEN = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")


def pairs(array: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head as llama.cpp writes them: what lay in halves, in pairs."""
    cut = array.reshape(heads, 2, -1, *array.shape[1:])
    return cut.swapaxes(1, 2).reshape(array.shape)


def weights() -> dict[str, np.ndarray]:
    """The tensors of a tiny model by their names in GGUF, with queries and keys in halves."""
    random = np.random.default_rng(0)
    shapes = {"token_embd": (VOCAB, WIDTH), "output": (VOCAB, WIDTH), "output_norm": (WIDTH,)}
    for i in range(LAYERS):
        shapes |= {
            f"blk.{i}.attn_q": (WIDTH, WIDTH),
            f"blk.{i}.attn_k": (WIDTH // 2, WIDTH),
            f"blk.{i}.attn_v": (WIDTH // 2, WIDTH),
            f"blk.{i}.attn_output": (WIDTH, WIDTH),
            f"blk.{i}.ffn_gate": (HIDDEN, WIDTH),
            f"blk.{i}.ffn_up": (HIDDEN, WIDTH),
            f"blk.{i}.ffn_down": (WIDTH, HIDDEN),
            f"blk.{i}.attn_norm": (WIDTH,),
            f"blk.{i}.ffn_norm": (WIDTH,),
        }
    return {f"{name}.weight": random.standard_normal(shape, np.float32) / 8 for name, shape in shapes.items()}


def write(file, kind: str = "F32", keys=None, change=lambda tensors: None, vocabulary=lambda writer: None):
    """A model whose matrices have a type. keys: further metadata. Gives the values that the tensors stand for."""
    writer, kind = gguf.GGUFWriter(file, "llama"), gguf.GGMLQuantizationType[kind]
    numbers = {
        "llama.block_count": LAYERS, "llama.context_length": 128, "llama.embedding_length": WIDTH,
        "llama.feed_forward_length": HIDDEN, "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": GROUPS,
    }  # fmt: skip
    for key, value in {**numbers, **(keys or {})}.items():
        writer.add_float32(key, value) if isinstance(value, float) else writer.add_uint32(key, value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    vocabulary(writer)
    tensors, meant = weights(), {}
    change(tensors)
    for name, array in tensors.items():
        heads = {"attn_q": HEADS, "attn_k": GROUPS}.get(name.split(".")[-2])
        laid = pairs(array, heads) if heads else array
        own = kind if array.ndim == 2 else gguf.GGMLQuantizationType.F32
        raw = gguf.quantize(laid, own)
        writer.add_tensor(name, raw, raw_dtype=own)
        meant[name] = gguf.dequantize(raw, own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant


@pytest.mark.parametrize("kind", WRITTEN)
def test_each_type_gives_the_values_of_its_blocks(kind, tmp_path):
    meant = write(tmp_path / "a.gguf", kind)
    found = read_gguf(tmp_path / "a.gguf").tensors
    assert found.keys() == meant.keys() and set(WRITTEN) <= set(TYPES)
    for name, array in meant.items():
        assert found[name].shape == array.shape
        np.testing.assert_array_equal(found[name].load(), array)


def test_a_file_is_the_model_of_the_same_directory(tmp_path):
    write(tmp_path / "a.gguf")
    model = llmlab.from_pretrained(tmp_path / "a.gguf", mesh=ONE)
    assert isinstance(model.config, Decoder) and model.config.stack.depth == LAYERS
    assert model.config.norm.eps == 1e-5
    llmlab.save_pretrained(model, tmp_path / "hf")
    again = llmlab.from_pretrained(tmp_path / "hf", mesh=ONE)
    given, tokens = weights(), np.arange(10)[None]
    q_DHK = again.params["stack"]["segments"]["0"]["0"]["mixer"]["q"]["w"][1]
    np.testing.assert_array_equal(q_DHK, given["blk.1.attn_q.weight"].T.reshape(WIDTH, HEADS, -1))
    np.testing.assert_array_equal(again.params["embed"]["table"], given["token_embd.weight"])
    np.testing.assert_array_equal(again(tokens), model(tokens))
    np.testing.assert_array_equal(llmlab.from_pretrained(tmp_path, mesh=ONE)(tokens), model(tokens))  # its only file


def test_factors_of_wavelengths_are_read(tmp_path):
    factors = np.linspace(1, 8, WIDTH // HEADS // 2).astype(np.float32)
    write(tmp_path / "a.gguf", change=lambda tensors: tensors.update({"rope_freqs.weight": factors}))
    scaling = open_checkpoint(tmp_path / "a.gguf").model.stack.segments[0].pattern[0].mixer.position.scaling
    waves = scaling.waves(16, 1e4, np.array([5]))[0][0]
    np.testing.assert_allclose(waves, 1e4 ** (-np.arange(8) / 8) / factors, rtol=1e-6)
    write(tmp_path / "b.gguf", keys={"llama.rope.freq_base": 5e5}, vocabulary=linear)
    position = open_checkpoint(tmp_path / "b.gguf").model.stack.segments[0].pattern[0].mixer.position
    assert position.theta == 5e5 and position.scaling.factor == 4


def linear(writer):
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(4.0)


def test_byte_pairs_and_the_chat_template_are_read(tmp_path):
    layout = json.loads(byte_level())
    tokens = sorted(layout["model"]["vocab"], key=layout["model"]["vocab"].get)
    special = {token["id"]: token["content"] for token in layout["added_tokens"]}
    tokens += [special[i] for i in sorted(special) if i >= len(tokens)]
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in layout["model"]["merges"]]

    def vocabulary(writer, pre="gpt-2"):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(tokens)
        writer.add_token_types([3 if i in special else 1 for i in range(len(tokens))])
        writer.add_token_merges(merges)
        writer.add_eos_token_id(min(special))
        writer.add_chat_template("{{ messages[0].content }}!")

    grow = lambda tensors: tensors.update({"token_embd.weight": np.zeros((len(tokens), WIDTH), np.float32),
                                           "output.weight": np.ones((len(tokens), WIDTH), np.float32)})  # fmt: skip
    write(tmp_path / "a.gguf", change=grow, vocabulary=vocabulary)
    model = llmlab.from_pretrained(tmp_path / "a.gguf", mesh=ONE)
    (tmp_path / "tokenizer.json").write_text(byte_level())
    reference = load_tokenizer(tmp_path / "tokenizer.json")
    for text in TEXTS:
        assert model.tokenizer.encode(text).tolist() == reference.encode(text).tolist()
        assert model.tokenizer.decode(model.tokenizer.encode(text)) == text
    assert model.ends == (min(special),) and model.tokenizer.end == min(special)
    llmlab.save_pretrained(model, tmp_path / "hf")
    template = json.loads((tmp_path / "hf" / "tokenizer_config.json").read_text())["chat_template"]
    assert template == "{{ messages[0].content }}!"
    write(tmp_path / "b.gguf", change=grow, vocabulary=lambda writer: vocabulary(writer, "martian"))
    with pytest.warns(UserWarning, match="the tokenizer 'gpt2' with the split 'martian' is not read"):
        open_checkpoint(tmp_path / "b.gguf")


def test_pieces_with_scores_are_a_sentencepiece_model(tmp_path, llama_model):
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    proto = ModelProto.FromString(llama_model)

    def vocabulary(writer):
        writer.add_tokenizer_model("llama")
        writer.add_token_list([piece.piece for piece in proto.pieces])
        writer.add_token_scores([piece.score for piece in proto.pieces])
        writer.add_token_types([piece.type for piece in proto.pieces])
        writer.add_unk_token_id(0)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)

    count = len(proto.pieces)
    write(
        tmp_path / "a.gguf",
        vocabulary=vocabulary,
        change=lambda tensors: tensors.update({"token_embd.weight": np.zeros((count, WIDTH), np.float32)}),
    )
    checkpoint = open_checkpoint(tmp_path / "a.gguf")
    encoder = load_tokenizer(checkpoint.directory)
    (tmp_path / "tokenizer.model").write_bytes(llama_model)
    reference = load_tokenizer(tmp_path / "tokenizer.model")
    for text in TEXTS:
        assert encoder.encode(text).tolist() == reference.encode(text).tolist()


@pytest.mark.parametrize("cased", [None, "piece", "key"])
def test_word_pieces_are_a_vocabulary_of_lines(cased, tmp_path):
    """Case counts where a piece has capitals or where a key says so."""
    layout = json.loads(word_pieces())
    pieces = sorted(layout["model"]["vocab"], key=layout["model"]["vocab"].get)
    pieces += ["Cat"] if cased == "piece" else []
    marks = {token["content"] for token in layout["added_tokens"]}
    laid = [one if one in marks else one[2:] if one.startswith("##") else f"\u2581{one}" for one in pieces]

    def vocabulary(writer, tokens=laid):
        writer.add_tokenizer_model("bert")
        writer.add_token_list(tokens)
        writer.add_token_types([3 if one in marks else 1 for one in pieces])
        if cased == "key":
            writer.add_bool("tokenizer.ggml.normalizer.lowercase", False)

    write(tmp_path / "a.gguf", vocabulary=vocabulary)
    encoder = load_tokenizer(tmp_path / "a.gguf")
    layout["model"]["vocab"] = {piece: id for id, piece in enumerate(pieces)}
    layout["normalizer"]["lowercase"] = cased is None
    (tmp_path / "tokenizer.json").write_text(json.dumps(layout))
    reference = load_tokenizer(tmp_path / "tokenizer.json")
    for text in (*TEXTS, "The Cat sat: Émile"):
        assert encoder.encode(text, special=True).tolist() == reference.encode(text, special=True).tolist()
        assert encoder.decode(encoder.encode(text)) == reference.decode(reference.encode(text))
    write(tmp_path / "a.gguf", vocabulary=lambda writer: vocabulary(writer, [*laid[:-1], "a\nb"]))
    with pytest.raises(FileError, match=r"tokens has '##a\\nb', and a piece is no more than a line"):
        open_checkpoint(tmp_path / "a.gguf")


def lacks(name):
    return lambda tensors: tensors.pop(name)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"change": lacks("token_embd.weight")}, "has no token_embd.weight; it holds no whole model"),
        ({"change": lacks("blk.1.ffn_up.weight")}, "a.gguf lacks model.layers.1.mlp.up_proj.weight"),
        (
            {"keys": {"llama.feed_forward_length": 32}},
            r"mlp.gate_proj.weight has the shape \(96, 64\), and the model of config.json has \(32, 64\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(options, message, tmp_path):
    write(tmp_path / "a.gguf", **options)
    with pytest.raises(FileError, match=message):
        llmlab.from_pretrained(tmp_path / "a.gguf", mesh=ONE)


def test_unknown_kinds_and_places_are_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "clip")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(FileError, match="general.architecture is 'clip', which is not read from GGUF; known are llama"):
        open_checkpoint(tmp_path / "a.gguf")
    (tmp_path / "b.gguf").write_bytes(b"")
    with pytest.raises(FileError, match="has 2 GGUF files"):
        open_checkpoint(tmp_path)
    (tmp_path / "c.txt").write_text("hello world")
    with pytest.raises(FileError, match="c.txt is no GGUF file; it does not begin with GGUF"):
        open_checkpoint(tmp_path / "c.txt")


def header(*, keys=0, tensors=0, version=3, body=b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + body


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def entry(sizes=(32,), kind=0, offset=0, name=b"a") -> bytes:
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)


@pytest.mark.parametrize(
    "content, message",
    [
        (header(version=9), "has version 9 of GGUF; known are 2 and 3"),
        (header()[:9], "8 more bytes of its header are announced at byte 8, and the file has 9; it is cut off"),
        (header(keys=1 << 40), "1099511627776 entries are announced at byte 24, too many for it"),
        (header(tensors=1 << 40), "1099511627776 entries are announced at byte 24"),
        (header(keys=1, body=text(b"k") + struct.pack("<I", 77) + bytes(8)), "'k' has a value of type 77"),
        (header(keys=1, body=text(b"k") + struct.pack("<IIQ", 9, 0, 1 << 60)), "entries are announced at byte"),
        (header(keys=1, body=text(b"k") + struct.pack("<IIQ", 9, 9, 1)), r"'k' has a value of type \[9\]"),
        (header(keys=1, body=text(b"\xff") + struct.pack("<IQ", 10, 1)), r"b'\\xff' before byte 33 is no text"),
        (header(tensors=1, body=entry((1,) * 5)), "'a' has 5 dimensions; 4 is the most"),
        (header(tensors=1, body=entry(kind=17) + bytes(256)), "'a' has the type IQ2_XS; known are F32, F16"),
        (header(tensors=1, body=entry(kind=99) + bytes(256)), "'a' has the type 99; known are"),
        (header(tensors=1, body=entry((33,), kind=8) + bytes(256)), r"\(33,\) does not fill blocks of 32, as Q8_0 has"),
        (header(tensors=1, body=entry()), r"'a' of shape \(32,\) and type F32 takes 128 bytes from byte 64 on"),
        (header(tensors=1, body=entry((1 << 62, 1 << 62))), "it is cut off"),
        (header(tensors=2, body=entry() + entry() + bytes(512)), "has 'a' twice"),
        (header(tensors=2, body=entry() + entry(offset=64, name=b"b") + bytes(512)), "of 'a' and 'b' overlap"),
        (
            header(keys=1, body=text(b"general.alignment") + struct.pack("<II", 4, 3)),
            "general.alignment is 3; it is a power of two",
        ),
    ],
)
def test_a_damaged_file_is_refused(content, message, tmp_path):
    (tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(FileError, match=message):
        read_gguf(tmp_path / "a.gguf")


def test_chance_damage_gives_no_other_error(tmp_path):
    write(tmp_path / "a.gguf", "Q8_0")
    whole, random = (tmp_path / "a.gguf").read_bytes(), np.random.default_rng(0)
    start, refused = whole.index(b"general.architecture"), 0
    for _ in range(150):
        damaged = bytearray(whole[: random.integers(8, len(whole))] if random.random() < 0.2 else whole)
        for _ in range(random.integers(1, 4)):
            damaged[random.integers(4, min(start + 1500, len(damaged)))] = random.integers(256)
        (tmp_path / "b.gguf").write_bytes(damaged)
        try:
            open_checkpoint(tmp_path / "b.gguf")
        except (FileError, ConfigError):
            refused += 1
    assert 75 < refused < 150  # some bytes are of no consequence


def test_experts_are_cut_from_the_tensor_that_holds_them(tmp_path):
    from llmlab.interop.layouts import _expert

    array = np.arange(2 * 3 * 32, dtype=np.float32).reshape(2, 3, 32)
    write(tmp_path / "a.gguf", change=lambda tensors: tensors.update({"experts.weight": array}))
    stored = read_gguf(tmp_path / "a.gguf").tensors["experts.weight"]
    np.testing.assert_array_equal(_expert(stored, 1).load(), array[1])
    with pytest.raises(FileError, match=r"a tensor of shape \(2, 3, 32\) is to hold the weights of expert 2"):
        _expert(stored, 2)
