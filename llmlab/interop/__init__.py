"""Checkpoints of other tools: their files, their configs, and the way into a model and back."""
