"""The experiment, the compiled program, and the loop."""

from llmlab.train.experiment import Experiment, Skip, Stop, Train
from llmlab.train.start import Fresh, Loaded, Pretrained

__all__ = ["Experiment", "Fresh", "Loaded", "Pretrained", "Skip", "Stop", "Train"]
