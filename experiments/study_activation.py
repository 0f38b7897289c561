"""Is the squared ReLU better than GELU in nanoGPT's CPU recipe, after 400 steps?

    llmlab study experiments/study_activation.py --data.source.path input.txt
    llmlab study experiments/study_activation.py:twin --data.source.path input.txt      (the base against itself)

input.txt is char-rnn's tiny Shakespeare (1,115,394 characters). Both activations cost the same matrix products, so the
arms are matched as they are. Cost: 24 runs of 400 steps, 11 minutes on 2 CPU cores.
Expected: ReLU² better by 0.02 to 0.04 nats, p at most 0.02; the base against itself equivalent or undecided.
"""

import dataclasses

from nanogpt_char_cpu import config as nanogpt

from llmlab.config import put
from llmlab.study import Study, one_at_a_time
from llmlab.train import Experiment

ACTIVATION = "model.stack.segments.0.pattern.0.ffn.activation"


def config() -> Experiment:
    """The base: nanoGPT's recipe, 400 steps long."""
    experiment = put(nanogpt(), "train.steps", 400)
    experiment = put(experiment, "train.eval_batches", 20)
    return put(put(experiment, "train.eval_every", 100), "train.prompt", None)


def study() -> Study:
    base = config()
    return Study(
        name="activation",
        question="Is the squared ReLU better than GELU in nanoGPT's CPU recipe, after 400 steps?",
        base=base,
        base_name="GELU",
        arms=one_at_a_time(base, {"ReLU²": {ACTIVATION: "relu2"}}),
        seeds=8,
        min_effect=0.005,
    )


def twin() -> Study:
    """The base alone with its twin: what the study says of no difference."""
    return dataclasses.replace(study(), name="twin", question="Does the base differ from itself?", arms=())
