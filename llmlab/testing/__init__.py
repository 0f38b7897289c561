"""The contract of parts and models, for the package's tests and for plug-ins."""

from llmlab.testing.contract import CHECKS, Subject, Violation, check_ffn, check_mixer, check_model

__all__ = ["CHECKS", "Subject", "Violation", "check_ffn", "check_mixer", "check_model"]
