"""Text from a trained model."""

from llmlab.generate.beam import Beam, search
from llmlab.generate.decode import Generator
from llmlab.generate.reading import Reading
from llmlab.generate.sampling import Sampling
from llmlab.generate.score import likelihoods

__all__ = ["Beam", "Generator", "Reading", "Sampling", "likelihoods", "search"]
