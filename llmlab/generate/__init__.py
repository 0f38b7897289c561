"""Text from a trained model."""

from llmlab.generate.decode import Generator
from llmlab.generate.sampling import Sampling

__all__ = ["Generator", "Sampling"]
