"""Routers: which experts each token goes to, and with what weight, from one linear map of the token in float32.

Token choice: each token takes its best experts (TopK, Sigmoid). Expert choice: each expert takes its best tokens.
Left out: noise on the scores, limits on the number of groups or devices a token may reach.

Letters of this file: e, experts, whole on every device; k, choices of a token; c, slots of an expert in a row;
l, positions, whole.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from llmlab.axes import shard
from llmlab.config import config
from llmlab.cost import Cost, Shape
from llmlab.ffn.dispatch import Buckets, Choice, best, slots
from llmlab.nn.einsum import Einsum
from llmlab.nn.init import FanIn, Init
from llmlab.nn.module import Module, Statistic
from llmlab.nn.parts import Declared, Part

TINY = 1e-20  # in float32: no score that sigmoid gives to a sane logit is near it


@config
class Router(Part):
    """router(x_BLD, valid_BL) -> (Choice or Buckets, aux); build(dims, rngs, top_k), with E in `dims`.

    `valid_BL` is False on padding, which is routed nowhere and counted nowhere.
    """

    init: Init = FanIn()

    def check_top_k(self, top_k: int) -> None:
        """Raises ValueError for a number of experts that the router cannot learn to choose."""


@config
class TopK(Router):
    """The experts of the highest scores, weighted by a softmax over the chosen (Mixtral) or all (Switch, Jamba)."""

    over: Literal["chosen", "all"] = "chosen"

    def check_top_k(self, top_k):
        if top_k == 1 and self.over == "chosen":
            raise ValueError(
                "MoE.top_k is 1 with TopK(over='chosen'), whose weight is then always 1: the router would have no "
                "gradient; use TopK(over='all')"
            )

    def build(self, dims, rngs, top_k):
        return TopKLayer(self, dims, rngs, top_k)


@config
class Sigmoid(Router):
    """Sigmoid scores, balanced by a bias that no gradient changes (DeepSeek-V3, 2024).

    A bias is added to the scores to choose, not to weigh; after each step it goes up by `rate` for experts with less
    than the mean load and down for those with more. Weights are the chosen scores over their sum, times `scale`.
    """

    rate: float = 1e-3
    scale: float = 1.0

    def check(self):
        if self.rate < 0 or self.scale <= 0:
            raise ValueError(f"Sigmoid: rate is {self.rate}, 0 or more, and scale is {self.scale}, above 0")

    def check_top_k(self, top_k):
        if top_k == 1:
            raise ValueError(
                "MoE.top_k is 1 with Sigmoid(), whose weight is then always the same: the router would have no "
                "gradient; use TopK(over='all'), or top_k of 2 or more"
            )

    def build(self, dims, rngs, top_k):
        return SigmoidLayer(self, dims, rngs, top_k)


@config
class ExpertChoice(Router):
    """Each expert takes the length x top_k / experts tokens of a row that score highest (Zhou et al., 2022).

    Load is even by construction. Whether an expert takes a token depends on all tokens of the row, later ones and those
    of packed neighbours too, and a token decoded by itself is taken by every expert; so it declares that nothing holds.
    """

    def declared(self):
        return Declared(causal=False, isolated=False, decodable=False)

    def build(self, dims, rngs, top_k):
        return ExpertChoiceLayer(self, dims, rngs, top_k)


class RouterLayer(Module):
    def __init__(self, cfg: Router, dims, rngs, top_k: int):
        self.cfg, self.top_k, self.experts = cfg, top_k, dims["E"]
        # e has no sharding rule: each device scores its own tokens for all experts.
        self.score = Einsum("BLD,De->BLe", dims, rngs, cfg.init)

    def logits(self, x_BLD):
        with jax.default_matmul_precision("highest"):  # else a TPU rounds the factors to bfloat16
            return shard(self.score(x_BLD.astype(jnp.float32)), "BLe")

    def cost(self, shape: Shape) -> Cost:
        return self.score.cost(shape)

    def chosen(self, weights_BLk, experts_BLk, valid_BL) -> Choice:
        """The choice of a token; padding goes to the expert after the last one, that is to none."""
        valid_BL1 = valid_BL[..., None]
        return Choice(
            jnp.where(valid_BL1, experts_BLk, self.experts), jnp.where(valid_BL1, weights_BLk, 0), self.experts
        )

    def statistics(self, logits_BLe, probs_BLe, experts_BLk, valid_BL) -> tuple[dict, jax.Array]:
        """(losses and statistics, the share of all choices that each expert has).

        load_balance: experts x sum over them of their share of choices x their mean probability; 1 when even (Fedus et
        al., 2022). busiest: the largest of these shares.
        """
        tokens = jnp.maximum(valid_BL.sum(), 1)
        taken_BLke = (experts_BLk[..., None] == jnp.arange(self.experts)) & valid_BL[..., None, None]
        share_e = taken_BLke.sum((0, 1, 2)).astype(jnp.float32) / (tokens * self.top_k)
        mean_e = jnp.where(valid_BL[..., None], probs_BLe, 0).sum((0, 1)) / tokens
        aux = {"load_balance": self.experts * (share_e * mean_e).sum(), "busiest": share_e.max()}
        return aux | square_of_z(logits_BLe, valid_BL), share_e


class TopKLayer(RouterLayer):
    def __call__(self, x_BLD, valid_BL):
        logits_BLe = self.logits(x_BLD)
        probs_BLe = jax.nn.softmax(logits_BLe, axis=-1)
        best_BLk, experts_BLk = best(logits_BLe, self.top_k, "BLe")
        if self.cfg.over == "chosen":
            weights_BLk = jax.nn.softmax(best_BLk, axis=-1)
        else:
            weights_BLk = jnp.take_along_axis(probs_BLe, experts_BLk, axis=-1)
        aux, _ = self.statistics(logits_BLe, probs_BLe, experts_BLk, valid_BL)
        return self.chosen(weights_BLk, experts_BLk, valid_BL), aux


class SigmoidLayer(RouterLayer):
    def __init__(self, cfg: Sigmoid, dims, rngs, top_k: int):
        super().__init__(cfg, dims, rngs, top_k)
        self.bias = Statistic(jnp.zeros(self.experts), axes="e")

    def __call__(self, x_BLD, valid_BL):
        logits_BLe, bias_e = self.logits(x_BLD), self.bias[...]
        scores_BLe = jax.nn.sigmoid(logits_BLe)
        _, experts_BLk = best(scores_BLe + bias_e, self.top_k, "BLe")
        best_BLk = jnp.take_along_axis(scores_BLe, experts_BLk, axis=-1)
        weights_BLk = self.cfg.scale * best_BLk / (best_BLk.sum(-1, keepdims=True) + TINY)
        probs_BLe = scores_BLe / scores_BLe.sum(-1, keepdims=True)
        aux, share_e = self.statistics(logits_BLe, probs_BLe, experts_BLk, valid_BL)
        aux["stats"] = {"bias": bias_e + self.cfg.rate * jnp.sign(share_e.mean() - share_e)}
        return self.chosen(weights_BLk, experts_BLk, valid_BL), aux


class ExpertChoiceLayer(RouterLayer):
    def __call__(self, x_BLD, valid_BL):
        logits_BLe, length = self.logits(x_BLD), x_BLD.shape[1]
        probs_BLe = jax.nn.softmax(logits_BLe, axis=-1)
        ranked_Bel = jnp.where(valid_BL[:, None], jnp.swapaxes(probs_BLe, 1, 2), -1)
        weights_Bec, tokens_Bec = best(ranked_Bel, slots(length, self.experts, self.top_k, 1.0), "Bel")
        tokens_Bec = jnp.where(weights_Bec < 0, length, tokens_Bec)  # a row with fewer tokens than slots
        routed = Buckets(tokens_Bec, jnp.maximum(weights_Bec, 0))
        reached_BL = jax.vmap(lambda tokens_ec: jnp.zeros(length, bool).at[tokens_ec].set(True, mode="drop"))(
            tokens_Bec
        )
        left = (valid_BL & ~reached_BL).sum() / jnp.maximum(valid_BL.sum(), 1)
        return routed, {"dropped": left} | square_of_z(logits_BLe, valid_BL)


def square_of_z(logits_BLe, valid_BL) -> dict:
    """router_z: the mean of log(Z)^2, which keeps scores small (Zoph et al., 2022)."""
    squares_BL = jnp.square(jax.nn.logsumexp(logits_BLe, axis=-1))
    return {"router_z": jnp.where(valid_BL, squares_BL, 0).sum() / jnp.maximum(valid_BL.sum(), 1)}
