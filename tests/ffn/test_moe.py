"""Mixture of experts: routers, dropless and bucketed forms, losses, balancing, sharding."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmlab import axes
from llmlab.config import config
from llmlab.cost import Shape, work
from llmlab.ffn import Capacity, Dropless, ExpertChoice, Gated, Mlp, MoE, Sigmoid, TopK
from llmlab.kernels.receipt import receipt
from llmlab.mesh import Mesh
from llmlab.nn import Context
from llmlab.nn.module import Rngs, merge, specs, split
from llmlab.nn.parts import Declared
from llmlab.optim.optimizers import matrix
from llmlab.plan.hlo import array_bytes
from llmlab.testing import check_ffn
from llmlab.testing.contract import Violation

B, L, D, F, E = 2, 8, 6, 5, 4
DIMS = {"D": D, "N": 1}
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(B, L, D)).astype(np.float32)
SEGMENTS = np.ones((B, L), int)
SEGMENTS[1, 5:] = 0  # padding
CTX = Context(positions_BL=np.tile(np.arange(L), (B, 1)), segments_BL=SEGMENTS)
PLAIN = MoE(experts=E, expert=Gated(hidden=F))
SMALL = MoE(experts=4, expert=Gated(hidden=16))  # in the decoder of the contract
EIGHT = MoE(experts=8, expert=Gated(hidden=16))
INPUTS = np.random.default_rng(5).normal(size=(8, L, 8)).astype(np.float32)
WHOLE = Capacity(factor=float(E))  # so many slots that nothing is dropped


def built(cfg, seed=0):
    """(structure, params, stats) with scores far enough apart that choices do not hang on rounding."""
    structure, params, stats = split(cfg.build(DIMS, Rngs(params=seed)))
    return structure, jax.tree.map(lambda w: 3 * w, params), stats


def run(cfg, params=None, x_BLD=X, ctx=CTX, stats=None):
    """(y_BLD, aux) of one call."""
    structure, own, first = built(cfg)
    layer = lambda params, stats, x: merge(structure, params, stats)(x, ctx)
    return jax.jit(layer)(params or own, stats or first, x_BLD)


def naive(cfg, params, x_BLD, bias_e=0.0):
    """Every expert on every token, weighted by what the papers' formulas give."""
    logits_BLE = x_BLD @ params["router"]["score"]["w"]
    if isinstance(cfg.router, Sigmoid):
        scores_BLE = jax.nn.sigmoid(logits_BLE)
    else:
        scores_BLE = jnp.exp(logits_BLE) / jnp.exp(logits_BLE).sum(-1, keepdims=True)
    threshold_BL1 = jnp.sort(scores_BLE + bias_e, axis=-1)[..., -cfg.top_k][..., None]
    weights_BLE = jnp.where(scores_BLE + bias_e >= threshold_BL1, scores_BLE, 0)
    if isinstance(cfg.router, Sigmoid) or cfg.router.over == "chosen":
        weights_BLE /= weights_BLE.sum(-1, keepdims=True)
    weights_BLE *= getattr(cfg.router, "scale", 1.0) * (SEGMENTS > 0)[..., None]
    y_BLD = 0
    for e in range(E):
        matrices = {name: part["w"][e] for name, part in params["experts"].items()}
        if "gate" in matrices:
            h_BLF = jax.nn.silu(x_BLD @ matrices["gate"]) * (x_BLD @ matrices["up"])
        else:
            h_BLF = jax.nn.relu(x_BLD @ matrices["up"])
        y_BLD += weights_BLE[..., e, None] * (h_BLF @ matrices["down"])
    return y_BLD


@pytest.mark.parametrize(
    "cfg",
    [
        PLAIN,
        dataclasses.replace(PLAIN, top_k=1, router=TopK(over="all"), expert=Mlp(hidden=F, activation="relu")),
        dataclasses.replace(PLAIN, top_k=3, router=Sigmoid(scale=2.5)),
        dataclasses.replace(PLAIN, router=TopK(over="all"), form=WHOLE),
    ],
    ids=["chosen", "all, plain experts", "sigmoid", "all, capacity"],
)
def test_values_and_gradients_equal_a_loop_over_experts(cfg):
    structure, params, stats = built(cfg)
    bias_e = 0.0
    if stats:
        bias_e = stats["router"]["bias"] = jnp.array([0.3, -0.4, 0.0, 0.1])
    dy_BLD = RANDOM.normal(size=X.shape).astype(np.float32)
    loss = lambda params, x: (merge(structure, params, stats)(x, CTX)[0] * dy_BLD).sum()
    expected = lambda params, x: (naive(cfg, params, x, bias_e) * dy_BLD).sum()
    both = [jax.jit(jax.value_and_grad(function, (0, 1)))(params, X) for function in (loss, expected)]
    for found, right in zip(*map(jax.tree.leaves, both)):
        np.testing.assert_allclose(found, right, rtol=1e-3, atol=1e-4)
        assert np.abs(right).max() > 0


def test_all_of_equal_experts_are_one_dense_feed_forward():
    cfg = dataclasses.replace(PLAIN, top_k=E)
    structure, params, stats = built(cfg)
    params["experts"] = jax.tree.map(lambda w: jnp.broadcast_to(w[:1], w.shape), params["experts"])
    y_BLD, aux = run(cfg, params)
    dense = split(cfg.expert.build(DIMS, Rngs(params=0)))[0]
    one = jax.tree.map(lambda w: w[0], params["experts"])
    expected_BLD = merge(dense, one)(X, CTX)[0] * (SEGMENTS > 0)[..., None]
    np.testing.assert_allclose(y_BLD, expected_BLD, rtol=1e-4, atol=1e-5)
    assert float(aux["busiest"]) == pytest.approx(1 / E)  # all experts have all tokens: even


def test_dropless_is_a_capacity_without_end():
    dropless, _ = run(PLAIN)
    whole, aux = run(dataclasses.replace(PLAIN, form=WHOLE))
    np.testing.assert_allclose(dropless, whole, rtol=1e-5, atol=1e-6)
    assert float(aux["dropped"]) == 0


def test_losses_are_their_formulas_and_1_when_even():
    aux = run(PLAIN, ctx=CTX)[1]
    _, params, _ = built(PLAIN)
    logits_TE = (X @ np.asarray(params["router"]["score"]["w"]))[SEGMENTS > 0]  # padding is not counted
    probs_TE = np.exp(logits_TE) / np.exp(logits_TE).sum(-1, keepdims=True)
    share_E = np.bincount(np.argsort(-logits_TE)[:, :2].ravel(), minlength=E) / (2 * len(logits_TE))
    assert float(aux["load_balance"]) == pytest.approx(E * (share_E * probs_TE.mean(0)).sum(), rel=1e-5)
    assert float(aux["router_z"]) == pytest.approx((np.log(np.exp(logits_TE).sum(-1)) ** 2).mean(), rel=1e-4)
    assert float(aux["busiest"]) == pytest.approx(share_E.max()) and aux.keys() == {
        "load_balance",
        "router_z",
        "busiest",
    }
    params["router"]["score"]["w"] *= 0
    aux = run(PLAIN, params)[1]
    assert float(aux["load_balance"]) == pytest.approx(1) and float(aux["router_z"]) == pytest.approx(np.log(E) ** 2)
    params["router"]["score"]["w"] = jnp.zeros((D, E)).at[0].set([50.0, 49.0, 0.0, 0.0])
    assert float(run(PLAIN, params, np.abs(X))[1]["load_balance"]) > 1.5  # all choose the first two


def crowded(form):
    """Every token's first choice is expert 0 and its second is expert 1."""
    cfg = dataclasses.replace(PLAIN, form=form)
    _, params, _ = built(cfg)
    params["router"]["score"]["w"] = jnp.zeros((D, E)).at[0].set([2.0, 1.0, 0.0, 0.0])
    return run(cfg, params, np.abs(X))


def test_what_finds_no_slot_is_dropped_and_counted():
    whole_BLD, _ = crowded(Dropless())
    y_BLD, aux = crowded(Capacity(factor=1.0))  # 8 x 2 / 4 = 4 slots an expert
    kept_BL = np.arange(L) < 4
    np.testing.assert_allclose(y_BLD[:, kept_BL], whole_BLD[:, kept_BL], rtol=1e-5, atol=1e-6)
    assert not np.any(y_BLD[:, ~kept_BL])
    # of 8 + 5 tokens with two choices each, padding not counted, 4 + 1 are dropped
    assert float(aux["dropped"]) == pytest.approx(5 / 13)


def test_padding_takes_no_slot():
    first = dataclasses.replace(CTX, segments_BL=np.tile(np.arange(L) >= 4, (B, 1)).astype(int))
    decoding = dataclasses.replace(CTX, segments_BL=None, positions_BL=np.tile(np.arange(L) - 4, (B, 1)))
    for ctx in (first, decoding):
        cfg = dataclasses.replace(PLAIN, form=Capacity(factor=0.5 * E))  # 4 slots
        y_BLD, aux = run(cfg, ctx=ctx)
        assert float(aux["dropped"]) == 0 and not np.any(y_BLD[:, :4]) and np.all(np.abs(y_BLD[:, 4:]).max(-1) > 0)
        chosen = run(dataclasses.replace(cfg, router=ExpertChoice(), form=Dropless()), ctx=ctx)[0]
        assert not np.any(chosen[:, :4]) and np.any(chosen[:, 4:])


def test_first_choices_come_before_second_ones_of_earlier_tokens():
    cfg = dataclasses.replace(PLAIN, form=Capacity(factor=0.5))  # 2 slots
    _, params, _ = built(cfg)
    params["router"]["score"]["w"] = jnp.eye(D, E)
    x_1LD = np.zeros((1, L, D), np.float32)
    x_1LD[0, :, :4] = [2, 1, 0, 0]  # wants expert 0, then 1
    later_1LD = x_1LD.copy()
    later_1LD[0, -2:, :4] = [1, 2, 0, 0]  # the last two want 1 first
    ctx = Context(positions_BL=np.arange(L)[None])
    before, after = (np.asarray(run(cfg, params, x, ctx)[0]) for x in (x_1LD, later_1LD))
    assert np.abs(before[0, 0] - after[0, 0]).max() > 1e-3  # an earlier output has changed: it is not causal
    assert cfg.declared() == Declared(causal=False, isolated=False, decodable=False) != PLAIN.declared() == Declared()


def test_the_bias_evens_the_load_without_gradients():
    cfg = dataclasses.replace(PLAIN, router=Sigmoid(rate=0.02))
    structure, params, stats = built(cfg)
    x_BLD = jnp.asarray(RANDOM.normal(size=(4, 64, D)), jnp.float32).at[..., 0].set(1)
    params["router"]["score"]["w"] = params["router"]["score"]["w"].at[0].add(jnp.array([2.0, 0.0, 0.0, -2.0]))
    ctx = Context(positions_BL=np.tile(np.arange(64), (4, 1)))

    def step(stats, _):
        aux = merge(structure, params, stats)(x_BLD, ctx)[1]
        return aux["stats"], aux["busiest"]

    stats, busiest = jax.jit(lambda stats: jax.lax.scan(step, stats, length=150))(stats)
    assert busiest[0] > 0.4 and busiest[-20:].mean() < 0.28
    bias_e = stats["router"]["bias"]
    assert bias_e[0] < 0 < bias_e[3] and "bias" not in params["router"]


def test_experts_are_as_many_separate_ones():
    cfg = MoE(experts=3, expert=Gated(hidden=40), shared=Mlp(hidden=7))
    layer = cfg.build({"D": 30, "N": 1}, Rngs(params=0))
    up_EDF = np.asarray(layer.experts.up.w[...])
    assert up_EDF.std((1, 2)) == pytest.approx(30**-0.5, rel=0.1) and not np.allclose(up_EDF[0], up_EDF[1])
    spec = specs(layer)[("experts", "up", "w")]
    assert spec.axes == "EDF" and spec.inputs == "D" and matrix(spec).reduction_axis == (1,)
    assert specs(layer)[("experts", "down", "w")].axes == "EFD" and ("shared", "up", "w") in specs(layer)


def test_a_shared_expert_is_added():
    cfg = dataclasses.replace(PLAIN, shared=Mlp(hidden=3))
    structure, params, stats = built(cfg)
    alone = {name: part for name, part in params.items() if name != "shared"}
    shared = merge(split(cfg.shared.build(DIMS, Rngs(params=0)))[0], params["shared"])
    np.testing.assert_allclose(run(cfg, params)[0], run(PLAIN, alone)[0] + shared(X, CTX)[0], rtol=1e-5, atol=1e-5)


def test_cost_counts_chosen_experts_and_executed_rows():
    expert, router, shape = 2 * 3 * D * F, 2 * D * E, Shape(B, L)
    cost = lambda cfg: cfg.build(DIMS, Rngs(params=0)).cost(shape)
    dropless = cost(PLAIN)
    assert dropless.algorithmic == B * L * (2 * expert + router)
    assert dropless.executed == (4 + (32 - 4) // 8) * 8 * expert + B * L * router  # blocks of 8 rows
    assert cost(dataclasses.replace(PLAIN, form=Capacity(factor=1.5))).executed == B * E * 6 * expert + B * L * router
    assert cost(dataclasses.replace(PLAIN, router=ExpertChoice())).algorithmic == dropless.algorithmic
    shared = cost(dataclasses.replace(PLAIN, shared=Mlp(hidden=3)))
    assert shared.algorithmic - dropless.algorithmic == B * L * 2 * 2 * D * 3


@config
class Boasting(ExpertChoice):
    """Expert choice that declares nothing."""

    def declared(self):
        return Declared()


def test_expert_choice_violates_what_it_does_not_declare():
    with pytest.raises(Violation, match="decoding differs from the parallel form"):
        check_ffn(dataclasses.replace(SMALL, router=Boasting()), only=["decode = teacher forcing"])
    cfg = dataclasses.replace(PLAIN, router=ExpertChoice())
    before = np.asarray(run(cfg)[0])
    later = X.copy()
    later[:, 4:] = RANDOM.normal(size=(B, 4, D)) * 3
    assert np.abs(np.asarray(run(cfg, x_BLD=later)[0]) - before)[:, :4].max() > 1e-3


def over(mesh: Mesh, cfg: MoE, rules=None):
    """(the loss and gradients of a layer, laid out over the mesh, and its arguments)."""
    grid, rules, layer = (
        mesh.build(jax.devices()[:8]),
        rules or axes.every(),
        cfg.build(DIMS | {"D": 8}, Rngs(params=0)),
    )
    structure, params, stats = split(layer)
    letters = specs(layer)
    place = lambda path, leaf: axes.stored(letters[tuple(k.key for k in path)].axes, leaf.shape, grid, rules)
    params = jax.tree.map(lambda w: 3 * w, params)
    params = jax.device_put(params, jax.tree_util.tree_map_with_path(place, params))
    ctx = Context(positions_BL=jnp.tile(jnp.arange(L), (8, 1)), segments_BL=jnp.ones((8, L), int).at[3, 5:].set(0))

    def loss(params, x_BLD):
        with axes.use(grid, rules):
            y_BLD, aux = merge(structure, params, stats)(axes.shard(x_BLD, "BLD"), ctx)
            return jnp.square(y_BLD).sum() + aux["router_z"]

    return jax.jit(jax.value_and_grad(loss)), (params, jnp.asarray(INPUTS))


E_APART = axes.Rules(name="E where tokens are whole", live=(("B", ("data",)), ("E", ("tensor",))))
LAYOUTS = {
    "product": (Mesh(expert=2, sequence=2, tensor=2), None),
    "fsdp": (Mesh(expert=4, fsdp=2), None),
    "apart": (Mesh(tensor=4, data=2), E_APART),
}
KINDS = {"dropless": {}, "capacity": {"form": Capacity(factor=1.0)}, "choice": {"router": ExpertChoice()}}
QUICK = ("dropless product", "capacity product", "dropless apart")


@pytest.mark.parametrize(
    ("kind", "layout"),
    [
        pytest.param(kind, layout, id=f"{kind} {layout}", marks=[] if f"{kind} {layout}" in QUICK else pytest.mark.soak)
        for kind in KINDS
        for layout in LAYOUTS
    ],
)
def test_experts_over_devices_equal_one_device(kind, layout):
    cfg, (mesh, rules) = dataclasses.replace(EIGHT, **KINDS[kind]), LAYOUTS[layout]
    (plain, alone), (step, given) = over(Mesh(data=8), cfg, axes.Rules()), over(mesh, cfg, rules)
    for found, right in zip(jax.tree.leaves(step(*given)), jax.tree.leaves(plain(*alone))):
        np.testing.assert_allclose(found, right, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("form", [Dropless(room=0.1), Dropless(rounds=3, room=0.5), Dropless(rounds=4)])
def test_dropless_tokens_travel_in_as_many_rounds_as_they_need(form):
    """With places for a tenth of an even share nearly every round is a further one."""
    (plain, alone), mesh = over(Mesh(data=8), EIGHT, axes.Rules()), Mesh(data=2, expert=4)
    step, given = over(mesh, dataclasses.replace(EIGHT, form=form))
    with receipt() as found:
        values = step(*given)
    assert found["experts"] == "tokens travel by all-to-all"
    for value, right in zip(jax.tree.leaves(values), jax.tree.leaves(plain(*alone))):
        np.testing.assert_allclose(value, right, rtol=1e-3, atol=1e-4)


def test_rounds_travel_in_smaller_messages():
    largest = []
    for rounds in (1, 4):
        form = Dropless(rounds=rounds, room=2.0)  # places for 4 x 2 of the 16 choices of a device
        step, given = over(Mesh(data=2, expert=4), dataclasses.replace(EIGHT, form=form))
        sent = [line.split(" all-to-all(") for line in step.lower(*given).compile().as_text().splitlines()]
        largest.append(max(sum(array_bytes(parts[0])) for parts in sent if len(parts) == 2))
    assert largest == [4 * 8 * 8 * 4, 4 * 2 * 8 * 4]  # devices, places, width, bytes


def test_rounds_are_computed_again_once_where_layers_are():
    """Under a policy that saves nothing, experts in four rounds do what they do in one, but for padding of blocks."""
    grid, found = Mesh(data=2, expert=4).build(jax.devices()[:8]), []
    _, params, stats = split(EIGHT.build(DIMS | {"D": 64}, Rngs(params=0)))
    ctx = Context(positions_BL=jnp.tile(jnp.arange(64), (8, 1)))
    for rounds in (1, 4):
        cfg = dataclasses.replace(EIGHT, form=Dropless(rounds=rounds))
        layer = split(cfg.build(DIMS | {"D": 64}, Rngs(params=0)))[0]
        run = jax.checkpoint(lambda params, x_BLD, layer=layer: merge(layer, params, stats)(x_BLD, ctx)[0])
        with axes.use(grid, axes.every()):
            loss = lambda params, x_BLD, run=run: jnp.square(run(params, x_BLD)).sum()
            found.append(work(jax.make_jaxpr(jax.grad(loss))(params, jnp.zeros((8, 64, 64)))).products)
    assert 1 <= found[1] / found[0] < 1.15


def test_buckets_travel_by_all_to_all():
    step, given = over(Mesh(expert=4, data=2), dataclasses.replace(EIGHT, form=Capacity()))
    assert given[0]["experts"]["up"]["w"].sharding.spec[0] == "expert"
    text = step.lower(*given).compile().as_text()
    assert text.count(" all-to-all(") == 3  # there and back, and the gradient of the way back
    gathered = [array_bytes(shape) for shape in re.findall(r"= (\S+) all-gather\(", text)]
    assert max(sum(sizes) for sizes in gathered) == 4 * 8 * 8  # the router; no expert and no token goes to all devices


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top_k": 5}, r"MoE.top_k is 5; it is 1 or more, and at most experts = 4"),
        ({"top_k": 1}, r"MoE.top_k is 1 with TopK\(over='chosen'\).*use TopK\(over='all'\)"),
        ({"top_k": 1, "router": Sigmoid()}, r"MoE.top_k is 1 with Sigmoid\(\)"),
        ({"expert": PLAIN}, r"MoE.expert is MoE\(.*experts are Gated or Mlp without a bias"),
        ({"router": ExpertChoice(), "form": Capacity()}, "MoE.form is Capacity with ExpertChoice.*use Dropless"),
    ],
)
def test_values_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PLAIN, **change)
    with pytest.raises(ValueError, match="Capacity.factor is 0"):
        Capacity(factor=0)
    with pytest.raises(ValueError, match="Dropless: rounds is 0, 1 or more"):
        Dropless(rounds=0)


def test_buckets_refuse_rules_that_share_experts_half_with_the_batch():
    mesh = Mesh(expert=2, tensor=2, data=2).build(jax.devices()[:8])
    rules = axes.Rules(name="half", live=(("B", ("expert",)), ("E", ("expert", "tensor"))))
    layer = merge(*built(dataclasses.replace(PLAIN, form=Capacity())))
    with axes.use(mesh, rules), pytest.raises(ValueError, match="the axes of E must all be among those of B and L"):
        jax.eval_shape(lambda x_BLD: layer(x_BLD, CTX)[0], X)
