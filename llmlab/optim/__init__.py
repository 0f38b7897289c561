"""Optimizers, schedules, parameter groups, and the layout of their state."""

from llmlab.optim.groups import Group
from llmlab.optim.optimizers import Adafactor, AdamW, Lion, Muon, Optimizer
from llmlab.optim.schedules import Constant, Cosine, InverseSquareRoot, Linear, Schedule, WarmupStableDecay
from llmlab.optim.sharding import state_letters, state_shardings, unlettered

__all__ = [
    "Adafactor",
    "AdamW",
    "Constant",
    "Cosine",
    "Group",
    "InverseSquareRoot",
    "Linear",
    "Lion",
    "Muon",
    "Optimizer",
    "Schedule",
    "WarmupStableDecay",
    "state_letters",
    "state_shardings",
    "unlettered",
]
