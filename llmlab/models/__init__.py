"""Whole models, as values."""

from llmlab.models.block import Bare, Block, Parallel, PostNorm, PreNorm, Renormed, Sandwich
from llmlab.models.decoder import Decoder, Model
from llmlab.models.encdec import EncoderDecoder, Reread
from llmlab.models.encoder import Encoder
from llmlab.models.heads import First, Last, Max, Mean, Pooled, Pooling, Tagged, Transform
from llmlab.models.repcnn import RepCNN
from llmlab.models.textcnn import TextCNN

__all__ = [
    "Bare", "Block", "Decoder", "Encoder", "EncoderDecoder", "First", "Last", "Max", "Mean", "Model", "Parallel",
    "Pooled", "Pooling", "PostNorm", "PreNorm", "Renormed", "RepCNN", "Reread", "Sandwich", "Tagged", "TextCNN",
    "Transform",
]  # fmt: skip
