"""`python -m llmlab` is the command `llmlab`."""

from llmlab.cli import main

main()
