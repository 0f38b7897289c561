"""The contract holds for the parts of the package, and catches a planted fault of each kind."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from llmlab import axes
from llmlab.config import config, put
from llmlab.cost import Cost, Shape
from llmlab.ffn import Gated, Mlp
from llmlab.mesh import Mesh
from llmlab.mixers import Attention, Bidirectional, Causal
from llmlab.models import Block, Decoder, Parallel, PostNorm, Sandwich
from llmlab.nn import Embedding, LayerNorm, Learned, RMSNorm, Segment, Stack, TiedHead
from llmlab.nn.einsum import ZEROS, Einsum
from llmlab.nn.module import Module, Param
from llmlab.nn.parts import Declared, Mixer
from llmlab.nn.stack import StackLayers
from llmlab.testing import CHECKS, Subject, Violation, check_mixer, check_model
from llmlab.testing.contract import check_sharding, small

WINDOWED = Decoder(
    vocab=61,
    width=32,
    embed=Embedding(position=Learned(length=32), multiple=8, norm=LayerNorm()),
    stack=Stack(
        segments=(
            Segment(
                pattern=(
                    Block(
                        mixer=Attention(heads=4, kv_heads=2, view=Causal(window=3), norm=RMSNorm(), bias=ZEROS),
                        ffn=Mlp(hidden=48, activation="relu2", bias=ZEROS),
                        wiring=Sandwich(),
                    ),
                    Block(mixer=Attention(heads=4, kv_heads=1, softcap=20.0), ffn=Gated(hidden=48), wiring=Parallel()),
                ),
                repeats=2,
            ),
            Segment(pattern=(Block(mixer=Attention(heads=4, head_size=4), ffn=None, wiring=PostNorm()),)),
        ),
        remat="projections",
    ),
    head=TiedHead(softcap=30.0),
)


@pytest.mark.soak
def test_the_contract_holds_for_a_decoder_of_many_kinds():
    found = check_model(WINDOWED)
    assert found.keys() == CHECKS.keys()
    assert not [name for name, seen in found.items() if seen.startswith("not applicable")]


def test_a_bidirectional_mixer_is_exempt_by_its_declaration():
    found = check_mixer(Attention(heads=4, view=Bidirectional()), only=("causality", "packing isolation"))
    assert found["causality"].startswith("not applicable") and not found["packing isolation"].startswith("not")


# --- planted faults -------------------------------------------------------------------------------------------------


@config
class Plain(Mixer):
    """A mixer that keeps the contract: each position alone, times a matrix. Faults override it."""

    layer_class = property(lambda self: PlainLayer)

    def build(self, dims, rngs):
        return self.layer_class(dims, rngs)


class PlainLayer(Module):
    letters = {"last": "BD"}

    def __init__(self, dims, rngs):
        self.w = Einsum("BLD,Dd->BLd", dims, rngs)

    def __call__(self, x_BLD, ctx):
        return self.w(x_BLD), {}

    def start(self, batch, length, ctx):
        return {"last": jnp.zeros((batch, self.w.w.shape[0]), ctx.dtype)}

    def extend(self, x_BLD, state, ctx):
        return self(x_BLD, ctx)[0], {"last": x_BLD[:, -1]}

    def cost(self, shape: Shape) -> Cost:
        return self.w.cost(shape)


class LooksAhead(PlainLayer):
    def __call__(self, x_BLD, ctx):
        return self.w(x_BLD + 1e-3 * jnp.roll(x_BLD, -1, axis=1)), {}


class ChoosesByWhatComes(PlainLayer):
    """Goes one of two ways by the sign of a later input, as a router would; that has no gradient."""

    def __call__(self, x_BLD, ctx):
        later_BL1 = jnp.roll(x_BLD, -1, axis=1)[..., :1]
        return self.w(jnp.where(later_BL1 > 0, x_BLD, -x_BLD)), {}


class MixesDocuments(PlainLayer):
    """The previous position, whatever document it is of."""

    def __call__(self, x_BLD, ctx):
        return self.w(x_BLD + jnp.pad(x_BLD, ((0, 0), (1, 0), (0, 0)))[:, :-1]), {}


class ForgetsState(MixesDocuments):
    def extend(self, x_BLD, state, ctx):
        return self(x_BLD, ctx)[0], state


class ForgetsPadding(PlainLayer):
    """Decodes a running sum right, but lets padding into it."""

    def __call__(self, x_BLD, ctx):
        return self.w(jnp.cumsum(x_BLD, axis=1)), {}

    def extend(self, x_BLD, state, ctx):
        sums_BLD = state["last"][:, None] + jnp.cumsum(x_BLD, axis=1)
        return self.w(sums_BLD), {"last": sums_BLD[:, -1]}


class CountsItself(PlainLayer):
    """Knows whether it is unrolled: a scanned layer's index is traced."""

    def __call__(self, x_BLD, ctx):
        return self.w(x_BLD) * (
            2 if isinstance(ctx.layer, jax.core.Tracer) and ctx.layer.size and _scanned() else 1
        ), {}


def _scanned() -> bool:
    import inspect

    callers = [frame.frame.f_locals.get("self") for frame in inspect.stack() if frame.function == "run"]
    return not any(isinstance(caller, StackLayers) and caller.cfg.unroll == 0 for caller in callers)


class AveragesItsShard(PlainLayer):
    """A batch statistic of the local rows: right on one device alone."""

    def __call__(self, x_BLD, ctx):
        y_BLD = self.w(x_BLD)
        if axes.scope() is None:
            return y_BLD - y_BLD.mean(0, keepdims=True), {}
        rows = PartitionSpec(("data", "fsdp"))
        local = jax.shard_map(
            lambda y: y - y.mean(0, keepdims=True), mesh=axes.scope()[0], in_specs=rows, out_specs=rows
        )
        return local(y_BLD), {}


class LiesAboutCost(PlainLayer):
    def cost(self, shape):
        return self.w.cost(shape) * 0.5


class HasADeadParameter(PlainLayer):
    def __init__(self, dims, rngs):
        super().__init__(dims, rngs)
        self.unused = Param(jnp.ones(dims["D"]), axes="D")


class DividesByZero(PlainLayer):
    def __call__(self, x_BLD, ctx):
        return self.w(x_BLD) + 0 * jnp.sqrt(self.w(x_BLD) * 0), {}


class NeedsFloat32(PlainLayer):
    """Lost in bfloat16: a small difference of large numbers."""

    def __call__(self, x_BLD, ctx):
        return self.w((x_BLD + 1000) - 1000) * 100, {}


FAULTS = {
    LooksAhead: ("causality", "looks ahead: "),
    ChoosesByWhatComes: ("causality", "looks ahead by a choice"),
    MixesDocuments: ("packing isolation", "mixes packed documents"),
    ForgetsState: ("decode = teacher forcing", "differs from the parallel form"),
    ForgetsPadding: ("decode = teacher forcing", "begins with padding"),
    CountsItself: ("scan = unrolled", "the scan differs"),
    AveragesItsShard: ("sharded = single device", "differs from one device"),
    LiesAboutCost: ("executed = traced FLOPs", "declares"),
    HasADeadParameter: ("finite gradients", "nothing uses it"),
    DividesByZero: ("finite gradients", "not finite"),
    NeedsFloat32: ("bfloat16 near float32", "in bfloat16 differ"),
}


def faulty(layer: type) -> Mixer:
    return config(type("Faulty", (Plain,), {"layer_class": property(lambda self: layer), "__module__": __name__}))()


def test_the_plain_mixer_keeps_the_contract():
    check_mixer(Plain(), only=[check for check, _ in FAULTS.values() if check != "sharded = single device"])


@pytest.mark.parametrize("layer", FAULTS, ids=lambda layer: layer.__name__)
def test_a_planted_fault_is_caught(layer):
    check, words = FAULTS[layer]
    if check == "sharded = single device":
        subject = Subject(put(small(), "stack.segments.0.pattern.0.mixer", faulty(layer)))
        with pytest.raises(Violation, match=words):
            check_sharding(subject, [Mesh(fsdp=4)])
        return
    with pytest.raises(Violation, match=words):
        check_mixer(faulty(layer), only=(check,))


def test_an_undeclared_bidirectional_mixer_is_caught():
    lying = config(type("Lying", (Attention,), {"declared": lambda self: Declared(), "__module__": __name__}))
    with pytest.raises(Violation, match="looks ahead"):
        check_mixer(lying(heads=4, view=Bidirectional()), only=("causality",))


def test_a_checkpoint_that_changes_a_value_is_caught(monkeypatch):
    from llmlab.train.checkpoint import Checkpoints

    real = Checkpoints.restore_parts

    def wrong(self, step, abstract):
        params = real(self, step, abstract)["params"]
        return {"params": {**params, "norm": jax.tree.map(lambda a: a + 1e-7, params["norm"])}}

    monkeypatch.setattr(Checkpoints, "restore_parts", wrong)
    with pytest.raises(Violation, match="norm.*changed when restored"):
        check_model(small(), only=("restored on another mesh",))


def test_an_initialisation_that_knows_too_much_is_caught():
    from llmlab.nn import LinearHead, Normal

    loud = dataclasses.replace(small(), head=LinearHead(init=Normal(std=2.0)))
    with pytest.raises(Violation, match="ln V is 4.159"):
        check_model(loud, only=("initial loss near ln V",))


def test_what_does_not_apply_says_why(monkeypatch):
    monkeypatch.setattr(jax, "device_count", functools.partial(int, 1))
    found = check_model(small(), only=("sharded = single device", "restored on another mesh"))
    assert all("needs 8 devices and there are 1" in seen for seen in found.values())
