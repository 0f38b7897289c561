"""How the next token is chosen from logits."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from llmlab.config import Config, config


@config
class Sampling(Config):
    """temperature 0 takes the likeliest token. The filters apply in the order of the fields, after the temperature.

    top_k: only the k likeliest. top_p: the smallest set of likeliest tokens whose probabilities reach p (Holtzman et
    al., 2020). min_p: only tokens at least min_p times as likely as the likeliest (Nguyen et al., 2024).
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def check(self):
        if self.temperature < 0:
            raise ValueError(f"Sampling.temperature is {self.temperature}; it is 0 (greedy) or more")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"Sampling.top_k is {self.top_k}; it keeps 1 token or more")
        for name in ("top_p", "min_p"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"Sampling.{name} is {value}; it is a share, above 0 and at most 1")

    def __call__(self, logits_BV: jax.Array, key: jax.Array) -> jax.Array:
        """tokens_B."""
        if self.temperature == 0:
            return logits_BV.argmax(-1).astype(jnp.int32)
        logits_BV = logits_BV / self.temperature
        if self.top_k is not None and self.top_k < logits_BV.shape[-1]:
            least_B1 = jax.lax.top_k(logits_BV, self.top_k)[0][:, -1:]
            logits_BV = jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
        if self.top_p is not None:
            order_BV = jnp.argsort(-logits_BV, axis=-1)
            probs_BV = jax.nn.softmax(jnp.take_along_axis(logits_BV, order_BV, -1), axis=-1)
            outside_BV = probs_BV.cumsum(-1) - probs_BV >= self.top_p  # what lies before a token reaches p already
            outside_BV = jnp.take_along_axis(outside_BV, jnp.argsort(order_BV, axis=-1), -1)
            logits_BV = jnp.where(outside_BV, -jnp.inf, logits_BV)
        if self.min_p is not None:
            probs_BV = jax.nn.softmax(logits_BV, axis=-1)
            logits_BV = jnp.where(probs_BV < self.min_p * probs_BV.max(-1, keepdims=True), -jnp.inf, logits_BV)
        return jax.random.categorical(key, logits_BV).astype(jnp.int32)
