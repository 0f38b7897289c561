"""A laboratory for sequence architectures in JAX.

>>> import llmlab
>>> llmlab.from_pretrained("no such directory")
Traceback (most recent call last):
    ...
FileNotFoundError: there is no checkpoint no such directory; it is a directory with a config.json, or a GGUF file
"""

__all__ = ["from_pretrained", "save_pretrained"]


def __getattr__(name: str):
    if name in __all__:  # when it is used: a command that loads nothing starts without jax
        from llmlab import pretrained

        return getattr(pretrained, name)
    raise AttributeError(f"llmlab has no {name!r}")
