"""`llmlab chat MODEL`: a conversation in the terminal."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from pathlib import Path

from llmlab.cli.arguments import parse_model, set_up

HELP = "/reset forgets what was said, /system TEXT sets the system message and resets, /save FILE writes, /exit leaves"


@dataclasses.dataclass
class Flags:
    """Talk with a model. Ctrl-C stops an answer, Ctrl-D or /exit leaves; /help lists the other commands."""

    system: str | None = None
    """The system message."""
    template: str = "default"
    """The chat template: a name of the checkpoint's, a file, or "plain" for a model without one."""
    tokens: int = 512
    """New tokens of an answer at most."""
    temperature: float = 0.7
    """0 takes the likeliest token."""
    top_k: int | None = None
    """Only the k likeliest tokens."""
    top_p: float | None = 0.95
    """Only the likeliest tokens that together reach probability p."""
    min_p: float | None = None
    """Only tokens at least so many times as likely as the likeliest."""
    sample_seed: int = 0
    """Seed of the choices."""
    cpu_devices: int | None = None
    """Host devices to show jax in place of one CPU."""


def main(arguments: list[str]) -> int:
    flags, experiment, directory = parse_model("chat", Flags, arguments)
    set_up(flags.cpu_devices)
    from llmlab.cli.subject import of_checkpoint, of_run

    subject = of_checkpoint(directory) if experiment is None else of_run(directory, experiment)
    talk = Talk(subject, flags)
    print(f"{subject.name}, {talk.chat.name}; {HELP}", file=sys.stderr)
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (it gives input() a history and the arrow keys)
    while True:
        try:
            line = input("> ")
        except EOFError:
            print()
            return 0
        except KeyboardInterrupt:
            print("\n(Ctrl-D or /exit leaves)", file=sys.stderr)
            continue
        if line.strip() == "/exit":
            return 0
        talk.hear(line)


class Talk:
    """A conversation: its messages, and what a line of the user does."""

    def __init__(self, subject, flags: Flags):
        from llmlab.generate import Sampling

        self.subject, self.flags = subject, flags
        self.chat = find(subject, flags.template)
        self.sampling = Sampling(temperature=flags.temperature, top_k=flags.top_k, top_p=flags.top_p, min_p=flags.min_p)
        self.turns = 0
        self.reset(flags.system)

    def reset(self, system: str | None) -> None:
        self.system = [] if system is None else [{"role": "system", "content": system}]
        self.messages: list[dict] = []

    def hear(self, line: str) -> None:
        """A command, or a message that is answered."""
        command, _, rest = line.strip().partition(" ")
        if command == "/reset":
            self.reset(self.system[0]["content"] if self.system else None)
        elif command == "/system":
            self.reset(rest or None)
        elif command == "/save":
            self.save(rest)
        elif command.startswith("/"):
            print(HELP, file=sys.stderr)
        elif line.strip():
            self.answer(line)

    def save(self, file: str) -> None:
        if not file:
            print("/save needs the name of a file", file=sys.stderr)
            return
        try:
            Path(file).write_text(json.dumps([*self.system, *self.messages], indent=1, ensure_ascii=False) + "\n")
            print(f"written to {file}", file=sys.stderr)
        except OSError as error:
            print(f"{file} cannot be written ({error.strerror})", file=sys.stderr)

    def answer(self, text: str) -> None:
        """Says the model's answer as it comes; both are kept, the answer as far as it was let to speak."""
        from llmlab.generate import Reading

        self.messages.append({"role": "user", "content": text})
        fitted = self.fit()
        if fitted is None:
            self.messages.pop()
            return
        question, most = fitted
        ends, until = self.chat.endings
        ends = {*self.subject.ends, *question.stop, *ends}
        reading, said = Reading(self.subject.encoder, question.tokens, ends, until), []
        options = {"stop": tuple(ends), "seed": self.flags.sample_seed + self.turns}
        options["sources"] = None if question.source is None else [question.source]
        self.turns += 1
        try:
            for chunk in self.subject.generator.stream([question.tokens], most, sampling=self.sampling, **options):
                self.say(said, reading.push(chunk[0]))
                if reading.done:
                    break
            self.say(said, reading.push((), final=True))
        except KeyboardInterrupt:
            print(" [stopped]", end="", file=sys.stderr)
        print()
        self.messages.append({"role": "assistant", "content": "".join(said).strip()})

    def say(self, said: list[str], text: str) -> None:
        text = text if "".join(said).strip() else text.lstrip()
        said.append(text)
        print(text, end="", flush=True)

    def fit(self):
        """(question, new tokens) of the messages, without the oldest where not all fit; None where one is too long."""
        context, kept = self.subject.context, self.messages
        most = self.flags.tokens if context is None else min(self.flags.tokens, context // 2)
        while True:
            question = self.subject.ask(self.chat.encode([*self.system, *kept]).tolist())
            size = len(question.tokens if question.source is None else question.source)
            if context is None or question.source is not None or size + most <= context:
                break
            if len(kept) == 1:
                print(
                    f"this message is {size} tokens, and the model has {context} positions, {most} of them kept for "
                    "the answer; say less, or give --tokens a lower number",
                    file=sys.stderr,
                )
                return None
            kept = kept[next(i for i in range(1, len(kept)) if kept[i]["role"] == "user") :]
        if len(kept) < len(self.messages):
            left = len(self.messages) - len(kept)
            print(f"[the first {left} messages no longer fit and are forgotten]", file=sys.stderr)
        self.messages = kept
        return question, most


def find(subject, name: str):
    """The chat template of a name. Raises ChatError that says how to talk with a model that has none."""
    from llmlab.interop.chat import ChatError

    try:
        return subject.chat(name)
    except ChatError as error:
        raise ChatError(f"{error}. Give a template with --template FILE, or --template plain") from error
