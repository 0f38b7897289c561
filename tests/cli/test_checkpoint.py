"""generate, chat and embed on a published checkpoint: what is asked of the model, and what is made of its answers."""

import json

import numpy as np
import pytest

import llmlab as package
from llmlab.generate import Generator
from llmlab.interop.tokenizers import load_tokenizer


@pytest.fixture
def asked(monkeypatch, checkpoint):
    """The prompts that the model was given, as text with special ids written out; it answers `asked.says`."""
    encoder = load_tokenizer(checkpoint)
    texts = {id: text for text, id in encoder.specials.marks.ids.items()}
    show = lambda ids: "".join(texts.get(id) or encoder.decode([id]) for id in ids)

    class Asked(list):
        says = ["fine<|im_end|>"]

    found = Asked()

    def stream(self, prompts, most, sampling=None, stop=(), seed=0, sources=None):
        found.append(([show(row) for row in prompts], most, {show([id]) for id in stop}))
        answers = [encoder.encode_marked(found.says[row % len(found.says)]).tolist() for row in range(len(prompts))]
        for place in range(0, max(map(len, answers)), 2):
            rows = [answer[place : place + 2] for answer in answers]
            yield np.array([row + [-1] * (2 - len(row)) for row in rows])

    monkeypatch.setattr(Generator, "stream", stream)
    return found


@pytest.fixture
def type_in(monkeypatch):
    """type_in(line, ...): what a user types at the prompt; an exception in place of a line is raised."""

    def typed(*lines):
        waiting = iter([*lines, EOFError()])

        def answer(prompt=""):
            line = next(waiting)
            if isinstance(line, BaseException):
                raise line
            return line

        monkeypatch.setattr("builtins.input", answer)

    return typed


def test_generate_continues_the_same_as_from_python(llmlab, checkpoint):
    code, out, error = llmlab("generate", checkpoint, "--prompt", "the cat", "--tokens", 9, "--temperature", 0)
    model = package.from_pretrained(checkpoint)
    ids = model.tokenizer.encode("the cat")
    tokens = model.generate([ids.tolist()], max_new_tokens=9)[0]
    assert code == 0 and out == model.tokenizer.decode(tokens) + "\n"
    assert f"[{checkpoint.name}: 9 tokens in" in error
    code, out, _ = llmlab("generate", checkpoint, "--prompt", "the cat", "a", "--tokens", 4, "--beams", 2)
    assert code == 0 and out.startswith("--- the cat") and "\n--- a" in out


def test_generate_with_a_template_examples_and_ends(llmlab, checkpoint, asked, tmp_path):
    code, out, _ = llmlab("generate", checkpoint, "--prompt", "hi <|im_end|>", "--template", "default")
    text = "<|im_start|>user\nhi <|im_end|><|im_end|>\n<|im_start|>assistant\n"
    assert code == 0 and asked.pop() == ([text], 200, {"<|endoftext|>", "<|im_end|>"})
    assert out == "hi <|im_end|> -> fine\n"

    shots = tmp_path / "shots.jsonl"
    shots.write_text('{"input": "a", "output": "b"}\n\n{"input": "c", "output": "d"}\n')
    asked.says = [" four\nInput: no", " two"]
    code, out, _ = llmlab("generate", checkpoint, "--prompt", "e", "f", "--few-shot", shots)
    frame = "Input: a\nOutput: b\n\nInput: c\nOutput: d\n\nInput: {}\nOutput:"
    assert code == 0 and asked.pop()[0] == [frame.format("e"), frame.format("f")]
    assert out == "--- e ->  four\n--- f ->  two\n"

    template = tmp_path / "frame.txt"
    template.write_text("Summarise: {prompt}\nIn short:\n")
    code, out, _ = llmlab("generate", checkpoint, "--prompt", "long", "--few-shot", template, "--stop", "our", "x")
    assert asked.pop()[0] == ["Summarise: long\nIn short:"] and out == "long ->  f\n"


def test_choices_are_told_by_their_likelihood(llmlab, checkpoint):
    code, out, _ = llmlab("generate", checkpoint, "--prompt", "the cat", "a", "--choices", "sat", "ran", "sat on")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [line["prompt"] for line in lines] == ["the cat", "a"]
    model = package.from_pretrained(checkpoint)
    for line in lines:
        assert sum(line["shares"].values()) == pytest.approx(1, abs=1e-3)
        found, score = line["log_likelihoods"], {}
        for choice in found:
            prompt = model.tokenizer.encode(line["prompt"])
            row = model.tokenizer.encode(f"{line['prompt']} {choice}")
            labels = np.where(np.arange(len(row)) < len(prompt), -100, row)
            score[choice] = -float(model.loss(row[None], labels[None])) * (len(row) - len(prompt))
        assert line["choice"] == max(score, key=score.get) == max(found, key=found.get)
        # Only what they have in common is left out: differences are the same.
        assert found["sat"] - found["ran"] == pytest.approx(score["sat"] - score["ran"], abs=2e-3)
    code, out, _ = llmlab("generate", checkpoint, "--prompt", "x", "--choices", "a", "b", "--template", "plain")
    assert code == 0 and set(json.loads(out)["shares"]) == {"a", "b"}


def test_chat_keeps_what_was_said(llmlab, checkpoint, asked, type_in, tmp_path, monkeypatch):
    type_in("hi", "/save", f"/save {tmp_path / 'said.json'}", "why?", "/system be brief", "so", "/what", "/reset", "x")
    asked.says = [" well<|im_end|>no"]
    code, out, error = llmlab("chat", checkpoint, "--system", "be kind", "--tokens", "5")
    turn = "<|im_start|>{}\n{}<|im_end|>\n".format
    begun = "<|im_start|>assistant\n"
    first = turn("system", "be kind") + turn("user", "hi") + begun
    brief = turn("system", "be brief")
    assert [texts[0] for texts, *_ in asked] == [
        first,
        turn("system", "be kind") + turn("user", "hi") + turn("assistant", "well") + turn("user", "why?") + begun,
        brief + turn("user", "so") + begun,
        brief + turn("user", "x") + begun,
    ]
    assert code == 0 and out == "well\n" * 4 + "\n"
    said = json.loads((tmp_path / "said.json").read_text())
    assert said == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "well"},
    ]
    assert "/save needs the name of a file" in error and error.count("/reset forgets what was said") == 2


def test_chat_says_when_it_forgets(llmlab, checkpoint, asked, type_in):
    """96 positions; an answer may take 10 of them."""
    words = "the cat sat on the mat " * 2
    type_in(words, "a " * 90, words, words)
    code, out, error = llmlab("chat", checkpoint, "--tokens", "10")
    turns = [texts[0].count(words) for texts, *_ in asked]
    assert code == 0 and turns == [1, 2, 2]  # what was too long is not kept, and loses nothing of what was said
    assert error.count("[the first 2 messages no longer fit and are forgotten]") == 1
    assert "the model has 96 positions, 10 of them kept for the answer; say less" in error


def test_chat_is_interrupted_and_left(llmlab, checkpoint, asked, type_in, monkeypatch, tmp_path):
    whole = Generator.stream

    def stopped(*arguments, **options):
        yield next(whole(*arguments, **options))
        raise KeyboardInterrupt

    monkeypatch.setattr(Generator, "stream", stopped)
    asked.says = ["the cat sat on the mat"]
    type_in("go", KeyboardInterrupt(), "and?", "/exit", "never")
    code, out, error = llmlab("chat", checkpoint, "--tokens", "5")
    assert code == 0 and len(asked) == 2 and "[stopped]" in error and "(Ctrl-D or /exit leaves)" in error
    heard = asked[1][0][0].split("assistant\n")[1].split("<|im_end|>")[0]
    assert heard and "the cat sat on the mat".startswith(heard) and heard in out


def test_chat_without_a_template(llmlab, checkpoint, asked, type_in, tmp_path):
    for file in checkpoint.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "tokenizer_config.json").unlink()
    settings = json.loads((checkpoint / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    code, _, error = llmlab("chat", tmp_path)
    assert code == 65 and "no chat template 'default'" in error and "or --template plain" in error
    type_in("hi", "more")
    asked.says = [" yes\nUser: no"]
    code, out, _ = llmlab("chat", tmp_path, "--template", "plain")
    assert code == 0 and out == "yes\nyes\n\n"
    assert asked[1][0] == ["User: hi\nAssistant: yes\nUser: more\nAssistant:"]


def test_embed_writes_vectors(llmlab, checkpoint, tmp_path, monkeypatch):
    texts = ["the cat", "a dog ran"] * 9 + ["the end"]
    model = package.from_pretrained(checkpoint)
    expected = np.concatenate([np.asarray(model.embed([text])) for text in texts[:2]])
    code, _, error = llmlab("embed", checkpoint, "--texts", *texts, "--output", tmp_path / "v.npy")
    assert code == 0 and "19 vectors of 32 numbers written to" in error
    found = np.load(tmp_path / "v.npy")
    np.testing.assert_allclose(found, np.concatenate([expected] * 9 + [found[-1:]]), atol=1e-5)
    code, out, _ = llmlab("embed", checkpoint, "--texts", "the cat")
    (line,) = map(json.loads, out.splitlines())
    np.testing.assert_allclose(line["vector"], expected[0], atol=1e-5)
    assert line["text"] == "the cat" and line["place"] == "text 0"


def test_embed_finds_passages(llmlab, checkpoint, tmp_path):
    folder = tmp_path / "notes"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.txt").write_text("the cat sat on the mat\n" * 4 + "\n" + "a dog ran\n" * 3)
    (folder / "deep" / "b.md").write_text("naïve " * 120)
    (folder / "c.bin").write_bytes(b"\xff\xfe\x00")
    search = ("--files", folder, "--query", "a dog ran", "--top", 2, "--passage", 30)
    code, out, error = llmlab("embed", checkpoint, *search)
    assert code == 0 and "c.bin is left out: it is no UTF-8 text" in error
    lines = out.splitlines()
    assert len(lines) == 4 and f"{folder / 'a.txt'}:6" in lines[0]
    assert lines[1].strip() == "a dog ran a dog ran a dog ran"
    assert float(lines[0].split()[0]) >= float(lines[2].split()[0])


def test_passages_hold_every_word_and_are_short(checkpoint):
    from llmlab.cli.embed import parts

    encoder = load_tokenizer(checkpoint)
    text = "one two\n\n\nthree " + "x" * 200 + " four\n" + "five six seven eight nine ten\n" * 9
    found = list(parts(encoder, text, 40))
    assert "".join("".join(part.split()) for _, part in found) == "".join(text.split())
    assert max(len(encoder.encode(part)) for _, part in found) <= 40 and len(found) > 3
    assert [line for line, _ in found] == sorted(line for line, _ in found) and found[0][0] == 1


def test_messages(llmlab, checkpoint, tmp_path, type_in):
    cases = [
        (("generate", checkpoint, "--prompt", "a", "--step", 3), 78, "--step 3: .* is one checkpoint"),
        (("generate", checkpoint, "--prompt", "a", "--choices", "b"), 78, "a choice is among 2 or more"),
        (("generate", checkpoint, "--prompt", "a", "--few-shot", tmp_path / "no"), 78, "no file .*no of examples"),
        (("generate", checkpoint, "--prompt", "a", "--tokns", 3), 78, "tokns"),
        (("embed", checkpoint, "--texts", "a", "--output", "x.txt"), 78, "go to a .npy or a .jsonl file"),
        (("embed", checkpoint, "--files", tmp_path / "no"), 78, "there is no such file or folder"),
        (("embed", checkpoint, "--files", tmp_path), 78, "there is no text in it"),
        (("embed", checkpoint, "--texts", ""), 78, "is 0 tokens; a vector is made of"),
        (("chat",), 78, "MODEL comes first, a directory with a published checkpoint, or one that"),
        (("chat", tmp_path), 65, "config.json"),
    ]
    import re

    for arguments, code, message in cases:
        found = llmlab(*arguments)
        assert found[0] == code and re.search(message, " ".join(found[2].split())), found
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"input": "a"}\n')
    assert (
        "bad.jsonl, line 1: no JSON with `input` and `output`"
        in llmlab("generate", checkpoint, "--prompt", "a", "--few-shot", bad)[2]
    )
    (tmp_path / "bad.txt").write_text("no place")
    assert (
        "bad.txt has no {prompt}"
        in llmlab("generate", checkpoint, "--prompt", "a", "--few-shot", tmp_path / "bad.txt")[2]
    )
