"""The config tree: saved and reloaded, changed by path, and wrong values refused with path, value and mend."""

import dataclasses
import json
from typing import Any, Literal

import pytest

from llmlab.config import (
    Config,
    config,
    diff,
    digest,
    flatten,
    from_json,
    get,
    nodes,
    put,
    reference,
    show,
    show_diff,
    swap,
    to_json,
)  # fmt: skip
from llmlab.ffn import Gated, Mlp
from llmlab.mixers import Attention, Causal
from llmlab.models import Block, Decoder
from llmlab.nn import FeedForward, Fill, Learned, Segment, Stack, repeat


@config
class Plugin(FeedForward):
    """A part that stands outside the package."""

    sizes: tuple[int, ...] = (3, 4)
    pair: tuple[int, str] = (1, "a")
    rate: float = 0.5
    count: int = 2
    on: bool = False
    kind: Literal["a", "b", 1] = "a"
    extra: Any = None
    inner: FeedForward | None = None

    def check(self):
        if self.count < 0:
            raise ValueError(f"Plugin.count is {self.count}")


MODEL = Decoder(
    stack=Stack(
        segments=(
            Segment(pattern=(Block(), Block(mixer=Attention(view=Causal(window=8)), ffn=None)), repeats=3),
            Segment(pattern=(Block(ffn=Plugin(inner=Mlp(bias=Fill()), sizes=())),)),
        ),
        remat="dots",
    )
)
DEEP = "stack.segments.0.pattern.1.mixer.view.window"


def test_a_saved_config_reloads_to_an_equal_one():
    text = to_json(MODEL)
    assert from_json(text) == MODEL
    assert to_json(from_json(text)) == text
    saved = json.loads(text)["stack"]["segments"][1]["pattern"][0]["ffn"]
    assert saved["_type"] == reference(Plugin) == f"{__name__}:Plugin"
    assert saved["inner"]["_type"] == "llmlab.ffn.dense:Mlp"


def test_the_difference_is_exact_and_names_replaced_classes():
    other = put(MODEL, DEEP, 16)
    other = put(other, "stack.segments.1.pattern.0.ffn", Gated(hidden=3))
    found = diff(MODEL, other)
    assert found.pop(DEEP) == (8, 16)
    ffn = "stack.segments.1.pattern.0.ffn"
    assert found[ffn] == (reference(Plugin), reference(Gated))
    assert found[f"{ffn}.hidden"] == (..., 3) and found[f"{ffn}.count"] == (2, ...)
    assert all(path.startswith(ffn) for path in found)
    assert not diff(MODEL, from_json(to_json(MODEL)))
    assert show_diff(Mlp(), Mlp(hidden=7)) == "  hidden: 2048 -> 7"
    assert f"  {ffn}.sizes: () -> absent" in show_diff(MODEL, other)


def test_values_are_read_and_replaced_by_path():
    assert get(MODEL, DEEP) == 8 and get(put(MODEL, DEEP, None), DEEP) is None
    assert get(MODEL, DEEP) == 8  # put made a new tree
    assert flatten(MODEL)[DEEP] == 8 and dict(nodes(MODEL))["stack.segments.0.pattern.1.mixer.view"] == Causal(window=8)
    assert [path for path, _ in nodes(Block(ffn=None))] == ["", "mixer", *(
        "mixer.init", "mixer.out_init", "mixer.view", "mixer.position", "norm", "wiring",
    )]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("stack.segmets.0", r"stack\.segmets\.0: Stack has no field 'segmets'; did you mean 'segments'\?"),
        ("stack.segments.2", "'2' is no index of a tuple of 2"),
        ("stack.segments.first", "'first' is no index"),
        ("width.x", "int has no field 'x'"),
    ],
)
def test_a_wrong_path_is_named(path, message):
    with pytest.raises(KeyError, match=message):
        get(MODEL, path)
    with pytest.raises(KeyError, match="no (field|index)"):
        put(MODEL, path, 1)


def test_swap_replaces_every_node_of_exactly_one_class():
    found = swap(MODEL, Gated, lambda ffn: Mlp(hidden=ffn.hidden))
    kinds = [type(node) for _, node in nodes(found)]
    assert kinds.count(Gated) == 0 and kinds.count(Mlp) == 2
    assert swap(found, FeedForward, lambda ffn: None) == found  # a base class is not its subclasses


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(cuont=1), "Plugin has no field 'cuont'; did you mean 'count'?"),
        (dict(zzz=1), "Plugin has no field 'zzz'; it has sizes, pair, rate"),
        (dict(count="2"), "Plugin.count is '2', a str; it takes int"),
        (dict(count=True), "Plugin.count is True, a bool; it takes int"),
        (dict(rate=False), "Plugin.rate is False, a bool; it takes float"),
        (dict(on=1), "Plugin.on is 1, a int; it takes bool"),
        (dict(kind="c"), "Plugin.kind is 'c', a str; it takes Literal['a', 'b', 1]"),
        (dict(kind=True), "Plugin.kind is True, a bool; it takes Literal"),
        (dict(sizes=[1]), "Plugin.sizes is [1], a list; it takes tuple[int, ...]"),
        (dict(sizes=(1, "2")), "Plugin.sizes is (1, '2'), a tuple; it takes tuple[int, ...]"),
        (dict(pair=(1, "a", "b")), "Plugin.pair is (1, 'a', 'b')"),
        (dict(inner=Causal()), "it takes llmlab.nn.parts.FeedForward | None"),
    ],
)
def test_wrong_fields_are_refused(values, message):
    with pytest.raises(TypeError) as caught:
        Plugin(**values)
    assert message in str(caught.value)


def test_right_fields_pass_and_configs_are_frozen_and_hashable():
    assert Plugin(rate=1, kind=1, extra={"a": 1}, pair=(2, "b"), inner=None).rate == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        MODEL.width = 3
    assert hash(MODEL) == hash(from_json(to_json(MODEL)))
    with pytest.raises(TypeError, match="positional"):
        Mlp(7)


def test_a_changed_copy_is_checked_again():
    with pytest.raises(ValueError, match="Plugin.count is -1"):
        dataclasses.replace(Plugin(), count=-1)
    with pytest.raises(TypeError, match="Plugin.count is 1.5"):
        put(Plugin(), "count", 1.5)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(_type="llmlab.ffn.dense:Mpl"), ValueError, "config.ffn: the class 'llmlab.ffn.dense:Mpl' cannot be"),
        (dict(_type="no_such_module:Mlp"), ValueError, "config.ffn: the class .*No module named 'no_such_module'"),
        (dict(_type="builtins:dict"), ValueError, "config.ffn: 'builtins:dict' is no config"),
        (dict(hiden=3), TypeError, "config.ffn: Mlp has no field 'hiden'; did you mean 'hidden'"),
        (dict(hidden="3"), TypeError, "config.ffn: Mlp.hidden is '3'"),
    ],
)
def test_json_that_does_not_fit_is_refused_with_its_path(change, error, message):
    saved = json.loads(to_json(Block(ffn=Mlp())))
    saved["ffn"] |= change
    with pytest.raises(error, match=message):
        from_json(json.dumps(saved))


def test_a_digest_names_equal_values_and_tells_others_apart():
    assert digest(MODEL, 1, "a") == digest(from_json(to_json(MODEL)), 1, "a")
    assert len({digest(MODEL), digest(put(MODEL, DEEP, 9)), digest(Mlp()), digest(Gated(hidden=2048))}) == 4


def test_the_tree_is_shown_one_field_a_line():
    assert show(repeat(Block(ffn=None, mixer=Attention(position=Learned())), 2)).splitlines()[:5] == [
        "Stack", "  segments:", "    0: Segment", "      pattern:", "        0: Block",
    ]  # fmt: skip
    assert "  bias: None" in show(Mlp()).splitlines()


def test_a_part_without_build_says_so():
    with pytest.raises(TypeError, match=r"Plugin must define build\(dims, rngs\)"):
        Plugin().build({}, None)
    assert isinstance(Plugin(), Config)
