"""What moves information along a sequence."""

from llmlab.mixers.attention import Attention, Bidirectional, Causal, Prefix

__all__ = ["Attention", "Bidirectional", "Causal", "Prefix"]
