"""What a model is trained to do."""

from llmlab.tasks.task import CausalLM, Outcome, Task

__all__ = ["CausalLM", "Outcome", "Task"]
