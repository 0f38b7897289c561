"""llmlab: a laboratory for sequence architectures. Start with README.md, then experiments/quickstart.py."""
