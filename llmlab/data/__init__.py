"""Text to batches of token ids; it knows only the config tree, and no jax."""

from llmlab.data.packing import Chunks, Packing, Planned, RandomWindows
from llmlab.data.pipeline import Batches, Data, Dataset
from llmlab.data.sources import DataError, Source, Stdlib, TextFiles, Tfds
from llmlab.data.tokenizers import Bytes, Characters, Encoder, SentencePiece, Tokenizer, check_vocab

__all__ = [
    "Batches",
    "Bytes",
    "Characters",
    "Chunks",
    "Data",
    "DataError",
    "Dataset",
    "Encoder",
    "Packing",
    "Planned",
    "RandomWindows",
    "SentencePiece",
    "Source",
    "Stdlib",
    "TextFiles",
    "Tfds",
    "Tokenizer",
    "check_vocab",
]
