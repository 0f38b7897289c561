"""Rotary positions in the configs of published systems: today's form (rope_parameters) and the older one."""

from __future__ import annotations

from llmlab.nn.position import Rotary
from llmlab.nn.rotary import Dynamic, Linear, Llama3, LongRope, Scaling, Yarn
from llmlab.presets.family import ConfigError, Settings


def read_rotary(settings: Settings, given: dict | None = None, theta: float = 10_000.0) -> Rotary:
    """Rotary positions of a config. given: the table that says them, where a config has several. theta: the usual."""
    if given is None:
        given = settings.get("rope_parameters", "rope_scaling", default={})
    theta = given.get("rope_theta") or settings.number("rope_theta", default=theta)
    fraction = given.get("partial_rotary_factor") or settings.number("partial_rotary_factor", default=1.0)
    return Rotary(theta=float(theta), fraction=float(fraction), scaling=read_scaling(settings, given))


def read_scaling(settings: Settings, given: dict) -> Scaling | None:
    kind = given.get("rope_type") or given.get("type") or "default"
    longest = settings.get("max_position_embeddings", default=2048)
    original = given.get("original_max_position_embeddings") or settings.get("original_max_position_embeddings")
    if kind == "default":
        return None
    if kind in ("longrope", "su"):
        original = original or longest
        factor = given.get("factor") if original == longest and given.get("factor") else longest / original
        rest = {"attention": given.get("attention_factor"), "original": original, "factor": float(factor)}
        return LongRope(
            short=tuple(map(float, given["short_factor"])), long=tuple(map(float, given["long_factor"])), **rest
        )
    makers = {
        "linear": lambda: Linear(factor=given["factor"]),
        "dynamic": lambda: Dynamic(factor=given["factor"], original=original or longest),
        "yarn": lambda: Yarn(
            factor=given["factor"],
            original=original or longest,
            fast=given.get("beta_fast") or 32.0,
            slow=given.get("beta_slow") or 1.0,
            attention=given.get("attention_factor"),
            whole=given.get("truncate", True),
        ),
        "llama3": lambda: Llama3(
            factor=given["factor"],
            low=given["low_freq_factor"],
            high=given["high_freq_factor"],
            original=given["original_max_position_embeddings"],
        ),
    }
    if kind not in makers:
        raise ConfigError(f"{settings.where}: rope_type is {kind!r}; known are default, {', '.join(makers)}, longrope")
    try:
        return makers[kind]()
    except KeyError as missing:
        raise ConfigError(f"{settings.where}: rope scaling {kind!r} needs {missing}") from missing


def write_rotary(rotary: Rotary) -> dict:
    """The keys of a config, in the older form, which every version of transformers reads."""
    found = {"rope_theta": rotary.theta}
    if rotary.fraction != 1.0:
        found["partial_rotary_factor"] = rotary.fraction
    scaling = rotary.scaling
    if isinstance(scaling, Linear):
        found["rope_scaling"] = {"rope_type": "linear", "factor": scaling.factor}
    elif isinstance(scaling, Dynamic):
        found["rope_scaling"] = {"rope_type": "dynamic", "factor": scaling.factor}
        found["max_position_embeddings"] = scaling.original
    elif isinstance(scaling, Yarn):
        found["rope_scaling"] = {
            "rope_type": "yarn",
            "factor": scaling.factor,
            "original_max_position_embeddings": scaling.original,
            "beta_fast": scaling.fast,
            "beta_slow": scaling.slow,
            "attention_factor": scaling.attention,
            "truncate": scaling.whole,
        }
    elif isinstance(scaling, Llama3):
        found["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low,
            "high_freq_factor": scaling.high,
            "original_max_position_embeddings": scaling.original,
        }
    elif isinstance(scaling, LongRope):
        found["rope_scaling"] = {"rope_type": "longrope", "attention_factor": scaling.attention}
        found["rope_scaling"] |= {"short_factor": list(scaling.short), "long_factor": list(scaling.long)}
        found["original_max_position_embeddings"] = scaling.original
        found["max_position_embeddings"] = round(scaling.original * scaling.factor)
    return found
