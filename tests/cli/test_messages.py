"""What a user gets wrong: one message that names the value, the place and the mend, an exit code, no traceback."""

import pytest

from llmlab.train import Experiment
from llmlab.train.run import Run

LEAF = "--model.stack.segments.0.pattern.1.mixer"
WRONG = {  # name: (arguments after FILE and its text, exit code, what the message has)
    "unknown leaf": (["--optim.peek", "1"], 78, ["--optim.peek", "Perhaps you meant", "--optim.peak"]),
    "wrong type": (["--optim.peak", "fast"], 78, ["--optim.peak", "'fast'", "float"]),
    "no such choice": (["--train.precision", "float16"], 78, ["--train.precision", "'float16'", "'bfloat16'"]),
    "value refused by its config": (["--train.steps", "0"], 78, ["Train.steps is 0; it must be at least 1"]),
    "value refused by its parent": ([f"{LEAF}.heads", "5"], 78, ["heads is 5", "the width 32", "head_size"]),
    "mesh of other devices": (["--mesh.data", "3"], 78, ["data 3 is of 3 devices", "there are 8", "--mesh.data -1"]),
    "indivisible mesh": (["--mesh.tensor", "3"], 78, ["8 devices", "tensor 3", "change --mesh.tensor"]),
    "indivisible batch": (["--data.batch", "6"], 78, ["'B' (batch) has size 6", "'data' of size 8", "--mesh.data"]),
    "indivisible part of a batch": (["--train.accumulate", "2"], 78, ["'B' (batch) has size 4", "'data' of size 8"]),
    "unknown rules": (["--rules", "fdsp*tensor"], 78, ["'fdsp'", "there are data, fsdp, tensor"]),
    "vocabulary": (["--model.vocab", "300"], 78, ["Bytes has a vocabulary of 257", "300", "--model.vocab 257"]),
    "no width": (["--model.width", "0"], 78, ["'D' (model width) of a parameter", "has size 0; it is 1 or more"]),
    "nan": (["--optim.peak", "nan"], 78, ["AdamW.peak is nan, which is no number"]),
    "an extra that is missing": (["--wandb", "mine"], 78, ["--wandb mine needs a package", "'llmlab[wandb]'"]),
    "half a job": (["--processes", "2"], 78, ["--coordinator, --processes and --process go together"]),
}


def check_message(found, code, parts):
    """One message on standard error, at most a frame around it."""
    assert found[0] == code, found
    assert "Traceback" not in found[2] and len(found[2].splitlines()) <= 14
    plain = " ".join(found[2].replace("│", " ").split())
    for part in parts:
        assert part in plain, (part, plain)


@pytest.mark.parametrize("name", WRONG)
def test_train_refuses_and_writes_nothing(name, llmlab, file, text, tmp_path):
    arguments, code, parts = WRONG[name]
    check_message(llmlab("train", file, "--data.source.path", text, *arguments), code, parts)
    assert not (tmp_path / "runs").exists()


def test_train_needs_its_corpus(llmlab, file, tmp_path):
    check_message(llmlab("train", file), 78, ["--data.source.path", "required"])
    missing, empty = tmp_path / "nowhere.txt", tmp_path / "empty.txt"
    empty.touch()
    found = llmlab("train", file, "--data.source.path", missing)
    check_message(found, 65, [f"no file or folder '{missing}'", "pass --data.source.path FILE"])
    found = llmlab("train", file, "--data.source.path", empty)
    check_message(found, 65, ["TextFiles gives no text in its train split", str(empty)])
    assert not (tmp_path / "runs").exists()


def test_experiment_files(llmlab, file, tmp_path):
    check_message(llmlab("train"), 78, ["EXPERIMENT comes first, a Python file with config()", "usage: llmlab train"])
    found = llmlab("train", file.with_name("smooth_word.py"))
    check_message(found, 78, ["there is no experiment file", "there are", "smooth_words.py"])
    (tmp_path / "without.py").write_text("x = 1\n")
    found = llmlab("describe", tmp_path / "without.py")
    check_message(found, 78, ["without.py defines no `config()`", "an experiment is a function `-> Experiment`"])
    (tmp_path / "number.py").write_text("def config():\n    return 3\n")
    found = llmlab("check", tmp_path / "number.py")
    check_message(found, 78, ["number.py: config() returned a int, not an Experiment"])


def test_what_is_no_run(llmlab, tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("nowhere", "empty"):
        found = llmlab("eval", tmp_path / name)
        check_message(found, 65, [f"{name} is no run: it has no run.json", "`llmlab train EXPERIMENT --run"])
    check_message(llmlab("eval"), 78, ["RUN comes first, a directory that `llmlab train` wrote"])


@pytest.mark.parametrize("command", ["generate", "chat", "embed"])
def test_what_is_no_model(command, llmlab, tmp_path):
    (tmp_path / "empty").mkdir()
    found = llmlab(command, tmp_path / "nowhere")
    check_message(
        found, 78, ["there is no checkpoint", "nowhere; it is a directory with a config.json, or a GGUF file"]
    )
    check_message(llmlab(command, tmp_path / "empty"), 65, ["there is no", "config.json"])
    check_message(llmlab(command), 78, ["MODEL comes first, a directory with a published checkpoint, or one that"])


def test_unknown_names(llmlab, file):
    code, _, error = llmlab("trian")
    assert code == 78 and error.startswith(
        "llmlab has no command 'trian'; did you mean 'train'?\nusage: llmlab COMMAND"
    )
    found = llmlab("check", file, "--only", "causalty")
    check_message(found, 78, ["there is no check 'causalty'; there are: causality, packing isolation"])


def test_usage(llmlab):
    for arguments in ([], ["--help"]):
        code, out, _ = llmlab(*arguments)
        assert code == 0 and "train" in out and "huge pages" in out and "LLMLAB_HUGE_PAGES=0" in out
    code, out, _ = llmlab("--version")
    assert code == 0 and out.startswith("llmlab 0.")
    code, out, _ = llmlab("eval", "--help")
    assert code == 0 and "RUN: a directory that `llmlab train` wrote" in out


def test_the_traceback_is_there_when_asked_for(llmlab, file, text, monkeypatch):
    from llmlab import cli

    monkeypatch.setenv("LLMLAB_TRACEBACK", "1")
    with pytest.raises(ValueError, match="Train.steps is 0"):
        cli.run("train", [str(file), "--data.source.path", str(text), "--train.steps", "0"])


@pytest.mark.parametrize(
    "name, text, parts",
    [
        ("torn.py", "def config(:\n    pass\n", ["torn.py: SyntaxError: invalid syntax", "line 1"]),
        ("lost.py", "\nimport nothing_here\n", ["lost.py, line 2: ModuleNotFoundError", "'nothing_here'"]),
        ("wrong.py", "def config():\n    return 1 / 0\n", ["wrong.py, line 2: ZeroDivisionError: division by zero"]),
        ("text.txt", "words", ["there is no experiment file", "text.txt"]),
    ],
)
def test_a_fault_in_an_experiment_file_is_told_with_its_line(name, text, parts, llmlab, tmp_path):
    (tmp_path / name).write_text(text)
    for command in ("train", "describe"):
        check_message(llmlab(command, tmp_path / name), 78, parts)


def test_run_record_that_is_torn_is_named(llmlab, file, text, tmp_path):
    directory = tmp_path / "torn"
    directory.mkdir()
    (directory / "run.json").write_text('{"experiment": {"mod')
    for command in (("eval", directory), ("train", file, "--data.source.path", text, "--run", directory)):
        check_message(llmlab(*command), 65, ["torn/run.json is not as a run wrote it", "--fresh"])
    code, out, error = llmlab("runs", tmp_path)
    assert code == 0 and "left out: " in error and "torn/run.json" in error and "nothing under" in out


def test_run_in_the_place_of_a_file_is_refused(llmlab, file, text, tmp_path):
    (tmp_path / "taken").write_text("mine")
    found = llmlab("train", file, "--data.source.path", text, "--run", tmp_path / "taken")
    check_message(found, 65, ["no run can be kept in", "taken", "give another --run"])


def test_fresh_deletes_nothing_where_there_is_no_run(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "mine").write_text("kept")
    run = Run(tmp_path, Experiment())
    assert run.open(fresh=True) is False
    run.close()
    assert (tmp_path / "checkpoints" / "mine").read_text() == "kept"


@pytest.mark.parametrize("error, code", [(KeyboardInterrupt(), 130), (BrokenPipeError(), 141)])
def test_a_command_that_is_cut_short_has_no_traceback(error, code, monkeypatch):
    import llmlab.cli.runs

    def cut(_):
        raise error

    monkeypatch.setattr(llmlab.cli.runs, "main", cut)
    monkeypatch.setattr("os.dup2", lambda *_: None)  # the output of the test stays its own
    monkeypatch.setattr("sys.stdout.fileno", lambda: 1, raising=False)
    assert llmlab.cli.run("runs", []) == code


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        ("describe", ["--devices", "0"], "--devices 0: it is above 0"),
        ("describe", ["--precision", "float8"], "'float8'"),
        ("coordinates", ["--steps", "0"], "--steps 0: it is above 0"),
        ("coordinates", ["--times", "1"], "--times 1: a slope needs two multiples"),
    ],
)
def test_flags_out_of_range(command, words, message, llmlab, file):
    check_message(llmlab(command, file, *words), 78, [message])


def test_a_fresh_run_keeps_the_experiment_that_lies_in_its_directory(llmlab, file, text, tmp_path):
    run = tmp_path / "mine"
    run.mkdir()
    own = run / "experiment.py"
    own.write_text(file.read_text())
    for flags in ([], ["--fresh"]):
        code, _, error = llmlab("train", own, "--data.source.path", text, "--run", run, *flags)
        assert code == 0, error
        assert own.read_text() == file.read_text()
