"""Which family of decoders models Python's standard library best, with equal compute?

    llmlab study experiments/study_families_lm.py

Attention, Mamba, experts, a recurrent network and a hybrid predict the next token of the same text, matched in training
FLOPs. Masked and span losses are other questions and are not ranked here.
Cost: 5 seeds of 5 arms and a twin, 30 runs of 1 to 6 minutes each on 2 CPU cores. Expected: not known, it has not been
run; what 5 seeds leave undecided is said.
"""

import dataclasses

import families

from llmlab.study import Arm, Every, Leaf, Study
from llmlab.train import Experiment


def config() -> Experiment:
    """The base."""
    return shorter(families.gpt())


def shorter(experiment: Experiment) -> Experiment:
    return dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, prompt=None))


def study() -> Study:
    states = Leaf(paths=tuple(f"model.stack.segments.0.pattern.{i}.mixer.state" for i in range(families.LAYERS)))
    arms = [Arm(name=name, experiment=shorter(getattr(families, name)())) for name in ("moe", "hybrid", "rnn")]
    mamba = Arm(name="mamba", experiment=shorter(families.mamba()), free=(Leaf(paths=("model.width",)), states))
    return Study(
        name="families-lm",
        question="Which family of decoders models Python's standard library best, with equal compute?",
        base=config(),
        base_name="attention",
        arms=(mamba, *arms),
        match="flops",
        free=(Every(field="hidden"),),
        seeds=5,
        metric="bits_per_byte",
        min_effect=0.02,
    )
