"""What moves information along a sequence."""

from llmlab.mixers.attention import Attention, Bidirectional, Causal, Prefix
from llmlab.mixers.bahdanau import Bahdanau
from llmlab.mixers.conv import Convolution, Hyena
from llmlab.mixers.cross import CrossAttention
from llmlab.mixers.delta import DeltaNet, gated_delta_net
from llmlab.mixers.differential import Differential
from llmlab.mixers.latent import LatentAttention
from llmlab.mixers.linear import LinearAttention, gated_linear_attention, retention
from llmlab.mixers.mamba import Fixed, Mamba, Selective
from llmlab.mixers.mamba2 import Mamba2
from llmlab.mixers.recurrent import GRU, LSTM, RNN, Both, Forward, Summary

__all__ = [
    "Attention", "Bahdanau", "Bidirectional", "Both", "Causal", "Convolution", "CrossAttention", "DeltaNet",
    "Differential", "Fixed", "Forward", "GRU", "Hyena", "LSTM", "LatentAttention", "LinearAttention", "Mamba",
    "Mamba2", "Prefix", "RNN", "Selective", "Summary", "gated_delta_net", "gated_linear_attention", "retention",
]  # fmt: skip
