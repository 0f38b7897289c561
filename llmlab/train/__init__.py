"""The experiment, the compiled program, and the loop."""

from llmlab.train.experiment import Experiment, Skip, Stop, Train

__all__ = ["Experiment", "Skip", "Stop", "Train"]
