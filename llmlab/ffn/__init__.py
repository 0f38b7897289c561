"""What works on each position."""

from llmlab.ffn.dense import Gated, Mlp

__all__ = ["Gated", "Mlp"]
