"""The tiny checkpoints that are compared with transformers: each family in several tricky variants.

A file for each family or two that share much; to add one, write its CASES and name it here.
"""

from . import bert, gemma, gpt, llama, mistral, pairs, phi3, states
from .case import Case

MODULES = (llama, mistral, gemma, phi3, gpt, bert, pairs, states)
CASES: dict[str, Case] = {name: case for module in MODULES for name, case in module.CASES.items()}
