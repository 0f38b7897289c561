"""Mixture of experts (Shazeer et al., 2017): a router sends each token through a few of many feed-forwards.

What can be chosen apart: the router and its scores (ffn/router.py), whether choices may be dropped (ffn/dispatch.py),
experts of any size and number, and a shared one that every token passes through (DeepSeekMoE, 2024). Left out: biases
in experts, a gate on the shared expert.
"""

from __future__ import annotations

import jax

from llmlab.axes import shard
from llmlab.config import config
from llmlab.cost import Cost, Shape
from llmlab.ffn.dense import Gated, Mlp
from llmlab.ffn.dispatch import Capacity, Dropless, Form, slots
from llmlab.ffn.router import ExpertChoice, Router, TopK
from llmlab.nn.module import Module, Rngs, leading
from llmlab.nn.parts import Context, FeedForward

MATRICES = {Gated: ("gate", "up", "down"), Mlp: ("up", "down")}


@config
class MoE(FeedForward):
    """expert: one of them. top_k: experts a token, on average for ExpertChoice. shared: what every token also passes.

    aux, of which the stack takes the mean of its layers: "load_balance" (1 when even) and "router_z", losses that the
    task weighs; "busiest", the largest share of choices that one expert has (1 / experts when even); "dropped".
    """

    experts: int = 8
    top_k: int = 2
    expert: FeedForward = Gated()
    shared: FeedForward | None = None
    router: Router = TopK()
    form: Form = Dropless()

    def check(self):
        if not 1 <= self.top_k <= self.experts:
            raise ValueError(f"MoE.top_k is {self.top_k}; it is 1 or more, and at most experts = {self.experts}")
        if type(self.expert) not in MATRICES or self.expert.bias is not None:
            names = " or ".join(cls.__name__ for cls in MATRICES)
            raise ValueError(f"MoE.expert is {self.expert!r}; experts are {names} without a bias")
        if isinstance(self.router, ExpertChoice) and isinstance(self.form, Capacity):
            raise ValueError("MoE.form is Capacity with ExpertChoice, which fills its slots itself; use Dropless()")
        self.router.check_top_k(self.top_k)

    def declared(self):
        found = self.router.declared() & self.form.declared()
        return found & self.shared.declared() if self.shared else found

    def build(self, dims, rngs):
        return MoELayer(self, {**dims, "E": self.experts}, rngs)


class MoELayer(Module):
    def __init__(self, cfg: MoE, dims, rngs):
        self.cfg = cfg
        self.router = cfg.router.build(dims, rngs, cfg.top_k)
        build = lambda key: cfg.expert.build(dims, Rngs(params=key))
        self.experts = leading(jax.vmap(build)(jax.random.split(rngs.params(), cfg.experts)), "E")
        self.shared = cfg.shared and cfg.shared.build(dims, rngs)

    def __call__(self, x_BLD: jax.Array, ctx: Context):
        valid_BL = ctx.positions_BL >= 0
        if ctx.segments_BL is not None:
            valid_BL &= ctx.segments_BL != 0
        routed, aux = self.router(x_BLD, valid_BL)
        stats = {"router": aux.pop("stats")} if "stats" in aux else {}
        routed, found = self.cfg.form.arrange(routed, self.cfg.top_k)
        aux |= found
        weights = {name: self.matrices(name).astype(x_BLD.dtype) for name in MATRICES[type(self.cfg.expert)]}
        y_BLD = shard(routed.run(x_BLD, weights, self.cfg.expert.activation), "BLD")
        if self.shared is not None:
            more_BLD, found = self.shared(x_BLD, ctx)
            stats |= {"shared": found.pop("stats")} if "stats" in found else {}
            y_BLD, aux = y_BLD + more_BLD, {**found, **aux}
        return y_BLD, aux | ({"stats": stats} if stats else {})

    def matrices(self, name: str) -> jax.Array:
        return getattr(self.experts, name).w[...]

    def cost(self, shape: Shape) -> Cost:
        """Algorithmic: top_k experts a token, the router and the shared expert; executed: all rows of the layout."""
        cfg, (experts, width, hidden) = self.cfg, self.experts.up.w.shape
        matrices = len(MATRICES[type(cfg.expert)])
        row = 2.0 * matrices * width * hidden
        if isinstance(cfg.router, ExpertChoice):
            rows = chosen = shape.batch * experts * slots(shape.length, experts, cfg.top_k, 1.0)
        else:
            rows, chosen = cfg.form.rows(shape.batch, shape.length, experts, cfg.top_k), shape.tokens * cfg.top_k
        values = experts * matrices * width * hidden + rows * (2 * width + (2 * matrices - 3) * hidden)
        found = Cost(chosen * row, rows * row, shape.itemsize * values) + self.router.cost(shape)
        return found + self.shared.cost(shape) if self.shared else found
