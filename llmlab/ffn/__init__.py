"""What works on each position."""

from llmlab.ffn.dense import Gated, Mlp
from llmlab.ffn.dispatch import Capacity, Dropless
from llmlab.ffn.moe import MoE
from llmlab.ffn.router import ExpertChoice, Sigmoid, TopK

__all__ = ["Capacity", "Dropless", "ExpertChoice", "Gated", "Mlp", "MoE", "Sigmoid", "TopK"]
