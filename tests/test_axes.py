"""Letters, rules and their products: what they shard, and with which words they refuse."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from llmlab import axes
from llmlab.axes import Maybe, Rules, spec
from llmlab.mesh import Mesh

SIZES = {"data": 2, "fsdp": 2, "expert": 1, "sequence": 1, "tensor": 4}
ONE_RULE = [axes.data, axes.fsdp, axes.tensor, axes.sequence, axes.expert]


def test_a_letter_becomes_its_mesh_axes():
    rules = axes.data() * axes.fsdp() * axes.tensor()
    assert spec("BLD", (4, 8, 16), rules.live, SIZES) == P(("data", "fsdp"), None, None)
    assert spec("BLHK", (4, 8, 8, 2), rules.live, SIZES) == P(("data", "fsdp"), None, "tensor", None)
    assert spec("NDF", (3, 16, 32), rules.stored, SIZES) == P(None, "fsdp", "tensor")


def test_a_lower_case_letter_has_its_twins_size_and_no_rule():
    assert spec("Dd", (16, 15), axes.fsdp().stored, SIZES) == P("fsdp", None)
    assert axes.size("DdK", {"D": 4, "K": 3}) == 48


def test_a_mesh_axis_of_size_one_shards_nothing():
    assert spec("BLD", (3, 7, 5), axes.sequence().live + axes.expert().live, SIZES) == P(None, None, None)


def test_maybe_replicates_what_is_not_divided_or_would_use_an_axis_twice():
    rules = axes.tensor().live
    assert spec("BMGK", (2, 8, 4, 2), rules, SIZES) == P(None, None, "tensor", None)
    assert spec("BMGK", (2, 8, 2, 2), rules, SIZES) == P(None, None, None, None)
    assert spec("HG", (4, 4), rules, SIZES) == P("tensor", None)
    assert spec("HV", (4, 8), (("H", ("tensor",)), ("V", ("fsdp", Maybe("tensor")))), SIZES) == P("tensor", "fsdp")


@pytest.mark.parametrize(
    ("letters", "shape", "message"),
    [
        ("HF", (8, 8), r"array 'HF' \(8, 8\): 'H' and 'F' both use mesh axis 'tensor'; .*Maybe\('tensor'\)"),
        (
            "DF",
            (8, 6),
            r"array 'DF' \(8, 6\): 'F' \(hidden size of a feed-forward\) has size 6, which mesh axis 'tensor' "
            r"of size 4 does not divide; .*--mesh\.tensor.*Maybe\('tensor'\)",
        ),
        ("VD", (50_257, 8), r"size 50257, .* raise `multiple` of the embedding"),
        ("DDF", (8, 8), r"letters 'DDF' do not name the 2 dimensions"),
    ],
)
def test_wrong_arrays_are_refused_with_letter_sizes_and_mend(letters, shape, message):
    with pytest.raises(ValueError, match=message):
        spec(letters, shape, axes.tensor().stored, SIZES)


def test_what_is_left_of_a_dimension_must_be_divided_too():
    with pytest.raises(ValueError, match="'B' .*size 2, which mesh axis 'fsdp' of size 2"):
        spec("BL", (2, 8), (axes.data() * axes.fsdp()).live, SIZES)


def test_a_rule_of_an_axis_that_the_mesh_lacks_is_refused():
    with pytest.raises(ValueError, match="rule of 'B' names mesh axis 'rows'; the mesh has data, fsdp"):
        spec("BL", (2, 8), (("B", ("rows",)),), SIZES)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ((("X", ("data",)),), "rules 'mine': 'X' is not a letter of the alphabet"),
        ((("d", ("data",)),), "'d' is not a letter.*upper-case"),
        ((("B", ("data",)), ("B", ("fsdp",))), "rules 'mine': live has the letters BB, one of them twice"),
    ],
)
def test_wrong_rules_are_refused(rules, message):
    with pytest.raises(ValueError, match=message):
        Rules(name="mine", live=rules)


def test_rules_multiply():
    both = axes.fsdp() * axes.tensor()
    assert both.name == "fsdp*tensor"
    assert dict(both.stored) == {**dict(axes.fsdp().stored), **dict(axes.tensor().stored)}
    assert dict((axes.data() * axes.fsdp()).live)["B"] == ("data", "fsdp")
    squared = axes.tensor() * axes.tensor()
    assert (squared.stored, squared.live) == (axes.tensor().stored, axes.tensor().live)


@pytest.mark.parametrize("rule", ONE_RULE)
def test_every_is_the_rule_whose_axis_is_larger_than_one(rule):
    sizes = dict.fromkeys(SIZES, 1) | {rule().name: 2}
    for letters in ("BLD", "BLHK", "BMGK", "BLF", "BLV", "NDHK", "EDF", "VD"):
        shape = (4,) * len(letters)
        assert spec(letters, shape, axes.every().live, sizes) == spec(letters, shape, rule().live, sizes)
        assert spec(letters, shape, axes.every().stored, sizes) == spec(letters, shape, rule().stored, sizes)


def test_relaxed_rules_let_some_letters_be_of_any_size():
    rules = axes.data() * axes.tensor()
    relaxed = rules.relaxed("BL")
    assert spec("BF", (3, 8), relaxed.live, SIZES) == P(None, "tensor")
    assert spec("BF", (4, 8), relaxed.live, SIZES) == P("data", "tensor")
    with pytest.raises(ValueError, match="'F'"):
        spec("BF", (3, 9), relaxed.live, SIZES)
    assert relaxed.stored == rules.stored and relaxed.relaxed("BL") == relaxed


def test_shard_holds_an_array_and_its_gradient_to_the_rules_in_force():
    mesh, rules = Mesh(data=4, tensor=2).build(), axes.data() * axes.tensor()

    def loss(x_BLF):
        with axes.use(mesh, rules):
            y_BLF = axes.shard(x_BLF * 2, "BLF")
            return (axes.shard(y_BLF[None, None], "...BLF") ** 2).sum(), y_BLF

    x_BLF = jnp.ones((4, 3, 8))
    (_, y_BLF), dx_BLF = jax.jit(jax.value_and_grad(loss, has_aux=True))(x_BLF)
    wanted = NamedSharding(mesh, P("data", None, "tensor"))
    assert y_BLF.sharding.is_equivalent_to(wanted, 3) and dx_BLF.sharding.is_equivalent_to(wanted, 3)
    assert y_BLF.addressable_shards[0].data.shape == (1, 3, 4)
    np.testing.assert_array_equal(dx_BLF, 8 * x_BLF)


def test_shard_does_nothing_without_a_mesh_or_on_one_device():
    x_BL = jnp.ones((3, 5))
    assert axes.scope() is None and axes.shard(x_BL, "BL") is x_BL
    with axes.use(Mesh().build(jax.devices()[:1]), axes.data()):
        assert axes.shard(x_BL, "BL") is x_BL


def test_stored_arrays_are_split_over_devices():
    mesh = Mesh(fsdp=2, tensor=4).build()
    w_DF = jax.device_put(np.ones((8, 16)), axes.stored("DF", (8, 16), mesh, axes.every()))
    assert w_DF.addressable_shards[0].data.shape == (4, 4)


def test_the_mesh_in_force_decides_the_platform_and_ends_with_its_block():
    rocm = SimpleNamespace(devices=np.array([SimpleNamespace(platform="rocm")]))
    tpu = SimpleNamespace(devices=np.array([SimpleNamespace(platform="tpu")]))
    with pytest.raises(KeyError), axes.use(rocm, axes.data()):
        with axes.use(tpu, axes.data()):
            assert axes.platform() == "tpu"
        assert axes.platform() == "gpu"
        raise KeyError
    assert axes.scope() is None and axes.platform() == "cpu"
