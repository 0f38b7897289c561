"""The end of a run: a sample, a picture of the losses, a page that shows both, and what to do next."""

from __future__ import annotations

import html
import json
from pathlib import Path

import jax

from llmlab.config import show
from llmlab.train.curve import draw
from llmlab.train.loop import Result
from llmlab.train.metrics import summary


def finish(result: Result, directory: Path) -> None:
    """Writes the sample, loss.svg and run.html, and prints what lies where."""
    sample = write_sample(result)
    if jax.process_index():
        return
    directory = Path(directory)
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    curves = {
        kind: [(line["step"], line["loss"]) for line in lines if line["kind"] == kind]
        for kind in ("train", "validation")
    }
    picture = draw(curves, "step", "loss (nats per token)")
    (directory / "loss.svg").write_text(picture)
    if sample:
        (directory / "sample.txt").write_text(sample)
        print(f"\nsample:\n{sample}\n")
    (directory / "run.html").write_text(page(directory.name, result, picture, sample))
    print(f"validation: {summary(result.validation)}")
    more = ", sample.txt" if sample else ""
    print(f"written to {directory}: checkpoints/, metrics.jsonl, loss.svg, run.html{more}")
    print(f"look at it:   {directory / 'run.html'} in a browser")
    if result.program.experiment.model.declared().decodable:
        prompt = result.program.experiment.train.prompt or "Once"
        print(f"try next:     llmlab generate {directory} --prompt {prompt!r}")
    else:
        print(f"try next:     llmlab eval {directory}")


def write_sample(result: Result) -> str:
    """What the model makes of the experiment's prompt; "" where it has none."""
    experiment = result.program.experiment
    prompt = experiment.train.prompt
    if prompt is None:
        return ""
    from llmlab.generate import Generator, Sampling

    tokenizer = result.dataset.encoder
    asked = experiment.task.ask(tokenizer.encode(prompt).tolist(), experiment.data.vocab)
    stop = asked.stop + (() if tokenizer.end is None else (tokenizer.end,))
    longest = result.program.model.longest
    most = 120 if longest is None else max(1, min(120, longest - len(asked.tokens)))
    generator = Generator.of(result.program, result.state)
    sources = None if asked.source is None else [asked.source]
    sampling = Sampling(temperature=0.8, top_p=0.95)
    rows = generator.generate([asked.tokens], most, sampling=sampling, stop=stop, sources=sources)
    between = "" if asked.source is None else " -> "
    return prompt + between + tokenizer.decode([token for token in rows[0] if token not in stop])


def page(name: str, result: Result, picture: str, sample: str) -> str:
    """One self-contained page: the curve, the sample, and every leaf of the experiment."""
    program = result.program
    count = sum(spec.size for spec in program.specs.values())
    shown = f"<h2>Sample</h2><pre>{html.escape(sample)}</pre>" if sample else ""
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(name)}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>:root{{color-scheme:light dark}}
body{{font:16px/1.5 system-ui,sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem}}
svg{{width:100%;height:auto}}pre{{overflow-x:auto;padding:1rem;border:1px solid #8886}}</style>
<h1>{html.escape(name)}</h1><p>{count:,} parameters, {program.experiment.train.steps:,} steps;
validation: {html.escape(summary(result.validation))}.</p>{picture}{shown}
<h2>Experiment</h2><pre>{html.escape(show(program.experiment))}</pre></html>
"""
