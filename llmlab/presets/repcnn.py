"""A key-word spotter after RepCNN (arXiv 2406.02652): frames of a second of sound to one of a few words.

The paper's table of channels and kernels is not published with code, so these sizes are ours, and no figure of the
paper is claimed for them. llmlab/models/repcnn.py has the network; its `fold` makes one convolution of the branches.
"""

from __future__ import annotations

from llmlab.models.heads import Mean, Pooled
from llmlab.models.repcnn import RepBlock, RepCNN
from llmlab.nn.stack import repeat


def keyword_spotter(words: int = 12, features: int = 40) -> Pooled:
    """words: of Speech Commands' usual task, silence and unknown words among them. features: log-mel energies."""
    trunk = RepCNN(features=features, width=64, stack=repeat(RepBlock(size=9), 6))
    return Pooled(trunk=trunk, pooling=Mean(), classes=words)
