"""Small parts."""

from llmlab.nn.bias import Alibi, PositionBias, Relative
from llmlab.nn.einsum import Einsum
from llmlab.nn.embed import Embedding, LinearHead, TiedHead, TransformHead
from llmlab.nn.init import FanIn, Fill, Init, Normal, PerDepth, Scaled
from llmlab.nn.module import Module, Param
from llmlab.nn.norm import LayerNorm, RMSNorm
from llmlab.nn.parts import Context, Declared, FeedForward, Layer, Mixer, Norm, Position
from llmlab.nn.position import Learned, Rotary, Sinusoidal
from llmlab.nn.stack import Segment, Stack, arrange, repeat

__all__ = [
    "Alibi", "Context", "Declared", "Einsum", "Embedding", "FanIn", "FeedForward", "Fill", "Init", "Layer",
    "LayerNorm", "Learned", "LinearHead", "Mixer", "Module", "Norm", "Normal", "Param", "PerDepth", "Position",
    "PositionBias", "RMSNorm", "Relative", "Rotary", "Scaled", "Segment", "Sinusoidal", "Stack", "TiedHead",
    "TransformHead", "arrange", "repeat",
]  # fmt: skip
