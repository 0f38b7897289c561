"""Text to batches of token ids; it knows only the config tree, and no jax."""

from llmlab.data.carved import Carved
from llmlab.data.drawn import Synthetic
from llmlab.data.encoder import Encoder
from llmlab.data.fragments import Fragments, Packages
from llmlab.data.labelled import Labelled
from llmlab.data.packing import Chunks, Packing, Planned, RandomWindows
from llmlab.data.pipeline import Batches, Data, Dataset, Supply
from llmlab.data.sources import DataError, Source, Stdlib, TextFiles, Tfds
from llmlab.data.tokenizers import Bytes, Characters, SentencePiece, Tokenizer

__all__ = [
    "Batches",
    "Bytes",
    "Carved",
    "Characters",
    "Chunks",
    "Data",
    "DataError",
    "Dataset",
    "Encoder",
    "Fragments",
    "Labelled",
    "Packages",
    "Packing",
    "Planned",
    "RandomWindows",
    "SentencePiece",
    "Source",
    "Stdlib",
    "Supply",
    "Synthetic",
    "TextFiles",
    "Tfds",
    "Tokenizer",
]
