"""The tiny checkpoints that are compared with transformers: each family in several tricky variants.

A file for each family or two that share much; to add one, write its CASES and name it here.
"""

from . import bert, llama, pairs
from .case import Case

CASES: dict[str, Case] = llama.CASES | bert.CASES | pairs.CASES
