"""Synthetic problems with exact answers: recall, copying, formal languages, algebra, streams; it knows only configs."""

from llmlab.data.synthetic.algebra import ModularTable
from llmlab.data.synthetic.arithmetic import (
    BinaryAddition,
    BinaryMultiplication,
    BinarySquareRoot,
    BracketArithmetic,
    ModularArithmetic,
    SolveEquation,
)
from llmlab.data.synthetic.chain import Chain, MaskedMarkov
from llmlab.data.synthetic.copying import SelectiveCopying
from llmlab.data.synthetic.formal import (
    BucketSort,
    CycleNavigation,
    Duplicate,
    EvenPairs,
    MissingDuplicate,
    OddsFirst,
    Parity,
    Reverse,
    StackManipulation,
)
from llmlab.data.synthetic.keywords import Keywords
from llmlab.data.synthetic.language import Language
from llmlab.data.synthetic.mad import MAD, BlankedCopying, Compression, FuzzyRecall, InContextRecall, Memorization
from llmlab.data.synthetic.problem import Example, Problem
from llmlab.data.synthetic.recall import AssociativeRecall, InductionHead, Mqar
from llmlab.data.synthetic.sequences import Addition, Reversal, Sorting, Transduction
from llmlab.data.synthetic.streams import CopyStream, MarkovStream, UniformStream

__all__ = [
    "MAD",
    "Addition",
    "AssociativeRecall",
    "BinaryAddition",
    "BinaryMultiplication",
    "BinarySquareRoot",
    "BlankedCopying",
    "BracketArithmetic",
    "BucketSort",
    "Chain",
    "Compression",
    "CopyStream",
    "CycleNavigation",
    "Duplicate",
    "EvenPairs",
    "Example",
    "FuzzyRecall",
    "InContextRecall",
    "InductionHead",
    "Keywords",
    "Language",
    "MarkovStream",
    "MaskedMarkov",
    "Memorization",
    "MissingDuplicate",
    "ModularArithmetic",
    "ModularTable",
    "Mqar",
    "OddsFirst",
    "Parity",
    "Problem",
    "Reversal",
    "Reverse",
    "SelectiveCopying",
    "SolveEquation",
    "Sorting",
    "StackManipulation",
    "Transduction",
    "UniformStream",
]
