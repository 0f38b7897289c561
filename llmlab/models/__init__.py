"""Whole models, as values."""

from llmlab.models.block import Block, Parallel, PostNorm, PreNorm, Sandwich
from llmlab.models.decoder import Decoder, Model

__all__ = ["Block", "Decoder", "Model", "Parallel", "PostNorm", "PreNorm", "Sandwich"]
