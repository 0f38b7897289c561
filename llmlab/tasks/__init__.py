"""What a model is trained to do."""

from llmlab.tasks.masked import MaskedLM
from llmlab.tasks.pairs import Continuation, Seq2Seq, SpanCorruption, Spans, Suffix, ul2
from llmlab.tasks.rows import Classification, Contrastive
from llmlab.tasks.task import Answers, CausalLM, Outcome, PrefixLM, Task, example_batch

__all__ = [
    "Answers",
    "CausalLM",
    "Classification",
    "Continuation",
    "Contrastive",
    "MaskedLM",
    "Outcome",
    "PrefixLM",
    "Seq2Seq",
    "SpanCorruption",
    "Spans",
    "Suffix",
    "Task",
    "example_batch",
    "ul2",
]
