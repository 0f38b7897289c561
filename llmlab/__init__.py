"""A laboratory for sequence architectures in JAX.

>>> import llmlab
>>> llmlab.from_pretrained("no such directory")
Traceback (most recent call last):
    ...
FileNotFoundError: there is no directory no such directory; a checkpoint is one with a config.json
"""

__all__ = ["from_pretrained", "save_pretrained"]


def __getattr__(name: str):
    if name in __all__:  # when it is used: a command that loads nothing starts without jax
        from llmlab import pretrained

        return getattr(pretrained, name)
    raise AttributeError(f"llmlab has no {name!r}")
