"""What moves information along a sequence."""

from llmlab.mixers.attention import Attention, Bidirectional, Causal, Prefix
from llmlab.mixers.cross import CrossAttention
from llmlab.mixers.delta import DeltaNet, gated_delta_net
from llmlab.mixers.latent import LatentAttention
from llmlab.mixers.linear import LinearAttention, gated_linear_attention, retention
from llmlab.mixers.mamba import Fixed, Mamba, Selective
from llmlab.mixers.mamba2 import Mamba2

__all__ = [
    "Attention", "Bidirectional", "Causal", "CrossAttention", "DeltaNet", "Fixed", "LatentAttention",
    "LinearAttention", "Mamba", "Mamba2", "Prefix", "Selective", "gated_delta_net", "gated_linear_attention",
    "retention",
]  # fmt: skip
