"""`llmlab generate MODEL`."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path

import numpy as np

from llmlab.cli.arguments import parse_model, positive, set_up


@dataclasses.dataclass
class Flags:
    """Continue prompts with a run's newest good checkpoint or a published one; one prompt is shown as it grows."""

    prompt: tuple[str, ...] = ()
    """Texts to continue; without any, the standard input is one."""
    few_shot: Path | None = None
    """Examples before the prompt: a .jsonl file of {"input", "output"}, or a text with {prompt} in it."""
    template: str | None = None
    """The prompt is a user's message by this chat template: "default" or another of the checkpoint, a file, "plain"."""
    choices: tuple[str, ...] = ()
    """Labels, of which the likeliest is told in place of a continuation."""
    tokens: int = 200
    """New tokens of each prompt at most."""
    temperature: float = 0.8
    """0 takes the likeliest token."""
    top_k: int | None = None
    """Only the k likeliest tokens."""
    top_p: float | None = None
    """Only the likeliest tokens that together reach probability p."""
    beams: int | None = None
    """Beam search over so many beams, in place of sampling."""
    min_p: float | None = None
    """Only tokens at least so many times as likely as the likeliest."""
    stop: tuple[str, ...] = ()
    """Texts that end a row and are left out; the end of a document does so anyway."""
    sample_seed: int = 0
    """Seed of the choices of tokens."""
    step: int | None = None
    """Another checkpoint of a run, by its step."""
    cpu_devices: int | None = None
    """Host devices to show jax in place of one CPU."""


def main(arguments: list[str]) -> int:
    flags, experiment, directory = parse_model("generate", Flags, arguments)
    positive(flags, "tokens", "beams")
    set_up(flags.cpu_devices)
    from llmlab.cli.shots import Shots, read_shots
    from llmlab.cli.subject import of_checkpoint, of_run

    if experiment is None and flags.step is not None:
        raise ValueError(f"--step {flags.step}: {directory} is one checkpoint; a run of `llmlab train` has several")
    shots = Shots() if flags.few_shot is None else read_shots(flags.few_shot)
    subject = of_checkpoint(directory) if experiment is None else of_run(directory, experiment, flags.step)
    prompts = flags.prompt or (sys.stdin.read(),)
    texts = [shots.around(prompt) for prompt in prompts]
    if flags.choices:
        for prompt, text in zip(prompts, texts):
            print(json.dumps({"prompt": prompt, **choose(subject, flags, text)}, ensure_ascii=False))
        return 0
    began = time.perf_counter()
    count = write(subject, flags, (prompts, texts), (*flags.stop, *shots.until))
    seconds = time.perf_counter() - began
    print(f"[{subject.name}: {count} tokens in {seconds:.1f} s, compilation counted]", file=sys.stderr)
    return 0


def prompt_ids(subject, template: str | None, text: str) -> list[int]:
    if template is None:
        return subject.ids(text)
    return subject.chat(template).encode([{"role": "user", "content": text}]).tolist()


def write(subject, flags: Flags, given: tuple, until: tuple[str, ...]) -> int:
    """Prints what the model writes; returns how many tokens. given: the prompts, and what is asked for each."""
    from llmlab.generate import Beam, Reading, Sampling, search

    prompts, texts = given
    asked = [subject.ask(prompt_ids(subject, flags.template, text)) for text in texts]
    sources = None if asked[0].source is None else [one.source for one in asked]
    ends = {*subject.ends, *asked[0].stop}
    if flags.template is not None:
        turn, texts = subject.chat(flags.template).endings
        ends, until = {*ends, *turn}, (*until, *texts)
    options = {"stop": tuple(ends), "sources": sources}
    rows = [one.tokens for one in asked]
    readings = [Reading(subject.encoder, row, ends, until) for row in rows]
    apart = sources is not None or flags.few_shot is not None or flags.template is not None
    leads = [f"{prompt} -> " if apart else prompt for prompt in prompts]
    if flags.beams is None:
        sampling = Sampling(temperature=flags.temperature, top_k=flags.top_k, top_p=flags.top_p, min_p=flags.min_p)
        chunks = subject.generator.stream(rows, flags.tokens, sampling=sampling, seed=flags.sample_seed, **options)
    else:
        chunks = [[row for row, _ in search(subject.generator, rows, flags.tokens, Beam(width=flags.beams), **options)]]
    if len(rows) == 1:
        print(leads[0], end="", flush=True)
        for chunk in chunks:
            print(readings[0].push(chunk[0]), end="", flush=True)
            if readings[0].done:
                break
        print(readings[0].push((), final=True))
        return readings[0].count
    written = [[] for _ in rows]
    for chunk in chunks:
        for parts, reading, row in zip(written, readings, chunk):
            parts.append(reading.push(row))
        if all(reading.done for reading in readings):
            break
    for lead, parts, reading in zip(leads, written, readings):
        print(f"--- {lead}{''.join(parts)}{reading.push((), final=True)}")
    return sum(reading.count for reading in readings)


def choose(subject, flags: Flags, text: str) -> dict:
    """{"choice": the likeliest, "shares": of each, "log_likelihoods": in nats} of the labels after a text.

    What all of them have in common decides nothing and is not scored.
    """
    from llmlab.generate import likelihoods

    if len(set(flags.choices)) < 2:
        raise ValueError(f"--choices {' '.join(flags.choices)}: a choice is among 2 or more")
    question = subject.ask(prompt_ids(subject, flags.template, text))
    encode = subject.encoder.specials.follow or subject.encoder.encode_text
    if question.source is not None:
        ends = subject.after or question.stop
        rows = [[*question.tokens, *subject.encoder.encode(choice).tolist(), *ends] for choice in flags.choices]
    elif flags.template is not None:
        rows = [[*question.tokens, *encode(choice.encode()).tolist()] for choice in flags.choices]
    else:
        gap = "" if text[-1:].isspace() or not text else " "
        rows = [subject.ask(subject.ids(f"{text}{gap}{choice}")).tokens for choice in flags.choices]
    first = common(rows)
    scores = likelihoods(subject.generator, rows, first, question.source)
    shares = np.exp(scores - scores.max())
    table = lambda values: {choice: round(float(value), 4) for choice, value in zip(flags.choices, values)}
    best = flags.choices[int(scores.argmax())]
    return {"choice": best, "shares": table(shares / shares.sum()), "log_likelihoods": table(scores)}


def common(rows: list[list[int]]) -> int:
    """How many tokens all rows begin with; every row has one more."""
    most = min(map(len, rows)) - 1
    return next((i for i in range(most) if len({row[i] for row in rows}) > 1), most)
