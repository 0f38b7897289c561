"""Text from a trained model."""

from llmlab.generate.beam import Beam, search
from llmlab.generate.decode import Generator
from llmlab.generate.sampling import Sampling

__all__ = ["Beam", "Generator", "Sampling", "search"]
