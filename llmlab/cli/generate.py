"""`llmlab generate RUN`."""

from __future__ import annotations

import dataclasses
import sys
import time

from llmlab.cli.arguments import parse_run, set_up


@dataclasses.dataclass
class Flags:
    """Continue prompts with a run's newest good checkpoint; one prompt is shown as it grows."""

    prompt: tuple[str, ...] = ()
    """Texts to continue; without any, the standard input is one."""
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
    """Texts of one token each that end a row; the end of a document does so anyway."""
    sample_seed: int = 0
    """Seed of the choices."""
    step: int | None = None
    """Another checkpoint, by its step."""
    cpu_devices: int | None = None
    """Host devices to show jax in place of one CPU."""


def main(arguments: list[str]) -> int:
    flags, experiment, directory = parse_run("generate", Flags, arguments)
    set_up(flags.cpu_devices)
    from llmlab.generate import Beam, Generator, Sampling, search
    from llmlab.train.restore import restore_model

    sampling = Sampling(temperature=flags.temperature, top_k=flags.top_k, top_p=flags.top_p, min_p=flags.min_p)
    beam = None if flags.beams is None else Beam(width=flags.beams)
    prompts = flags.prompt or (sys.stdin.read(),)
    program, state, step = restore_model(directory, experiment, flags.step)
    encoder = experiment.open_data(lambda text: print(text, file=sys.stderr)).encoder
    generator = Generator.of(program, state)
    asked = [experiment.task.ask(encoder.encode(prompt).tolist(), experiment.data.vocab) for prompt in prompts]
    stop = stop_ids(encoder, flags.stop) + asked[0].stop
    rows, sources = [one.tokens for one in asked], [one.source for one in asked]
    options = {"stop": stop, "sources": None if sources[0] is None else sources}
    lead = (lambda prompt: prompt) if sources[0] is None else (lambda prompt: f"{prompt} -> ")
    read = lambda row: encoder.decode([token for token in row if token not in stop])
    began = time.perf_counter()
    if beam is None and len(prompts) == 1:
        chunks = generator.stream(rows, flags.tokens, sampling=sampling, seed=flags.sample_seed, **options)
        count = show(chunks, lead(prompts[0]), encoder, stop)
    else:
        if beam is None:
            found = generator.generate(rows, flags.tokens, sampling=sampling, seed=flags.sample_seed, **options)
        else:
            found = [row for row, _ in search(generator, rows, flags.tokens, beam, **options)]
        count = sum(map(len, found))
        for prompt, row in zip(prompts, found):
            print(f"--- {lead(prompt)}{read(row)}")
    seconds = time.perf_counter() - began
    print(f"[step {step}: {count} tokens in {seconds:.1f} s, compilation counted]", file=sys.stderr)
    return 0


def stop_ids(encoder, texts: tuple[str, ...]) -> tuple[int, ...]:
    """Ids that end a row. Raises ValueError for a text that is not one token."""
    found = [] if encoder.end is None else [int(encoder.end)]
    for text in texts:
        ids = encoder.encode(text)
        if len(ids) != 1:
            raise ValueError(f"--stop {text!r} is {len(ids)} tokens of this tokenizer; a stop text is one token")
        found.append(int(ids[0]))
    return tuple(found)


def show(chunks, prompt: str, encoder, stop: tuple[int, ...]) -> int:
    """Prints a growing text; returns how many tokens came."""
    print(prompt, end="", flush=True)
    stream, count = encoder.stream(), 0
    for chunk in chunks:
        ids = [int(token) for token in chunk[0] if token >= 0]
        count += len(ids)
        print(stream.push([token for token in ids if token not in stop]), end="", flush=True)
    print(stream.push([], final=True))
    return count
