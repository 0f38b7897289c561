"""Names of checkpoints: orders of letters, pieces that are joined, letters that are counted from the last."""

import numpy as np
import pytest

from llmlab.names import Piece, Table, Tensor, bind, file_shape, from_file, halves, neighbours, tensor, to_file
from llmlab.nn.module import Spec

TAPS_JHK, TAPS_JGS = np.arange(24).reshape(2, 4, 3), 100 + np.arange(16).reshape(2, 2, 4)


def test_pieces_of_a_convolution_are_joined_and_turned_around():
    arrays, axes, letters = (TAPS_JHK, TAPS_JGS), ("JHK", "JGS"), ("+HK 1 <J", "+GS 1 <J")
    whole = to_file(arrays, axes, letters)
    assert whole.shape == (20, 1, 2)
    np.testing.assert_array_equal(whole[:12, 0, 0], TAPS_JHK[1].ravel())  # the file has the oldest tap first
    np.testing.assert_array_equal(whole[12:, 0, 1], TAPS_JGS[0].ravel())
    for number, array in enumerate(arrays):
        np.testing.assert_array_equal(from_file(whole, axes, [a.shape for a in arrays], letters, number), array)


def test_a_name_goes_to_the_layers_whose_parameter_has_its_letters():
    """Attention and Mamba both have a parameter `out.w`."""

    class Part:
        pattern, repeats, depth = (None, None), 1, 2

    class Stack:
        segments = (Part,)

    at = lambda place: ("stack", "segments", "0", str(place), "out", "w")
    specs = {
        at(0): Spec(at(0), (1, 2, 3, 6), np.float32, "NHKD"),
        at(1): Spec(at(1), (1, 12, 6), np.float32, "NCD"),
    }
    names = tensor("layers.{N}.o_proj", "out.w: D HK"), tensor("layers.{N}.out_proj", "out.w: D C")
    bound = bind(Table(model=(), layers={"stack": names}), {"stack": Stack}, specs)
    assert {one.name: file_shape(one, specs) for one in bound} == {
        "layers.0.o_proj": (6, 6),
        "layers.1.out_proj": (6, 12),
    }
    with pytest.raises(ValueError, match="no name in a file for stack.segments.0.1.out.w"):
        bind(Table(model=(), layers={"stack": names[:1]}), {"stack": Stack}, specs)


SIZES = {"H": 2, "K": 4, "D": 3, "G": 1, "F": 5}


def array(axes: str, start: int = 0) -> np.ndarray:
    shape = [SIZES[letter] for letter in axes]
    return (start + np.arange(np.prod(shape))).reshape(shape)


@pytest.mark.parametrize(
    "axes, letters, shape",
    [
        (["DHK"], ["HK D"], (8, 3)),
        (["DHK"], ["D HK"], (3, 8)),
        (["KD"], ["D 1 K"], (3, 1, 4)),
        (["DHK", "DGK", "DGK"], ["+HK D", "+GK D", "+GK D"], (16, 3)),
        (["DHK", "DHK", "DHK"], ["H+K D"] * 3, (24, 3)),
        (["DF", "DF"], ["D +F", "D +F"], (3, 10)),
        (["HK", "HK"], ["H+K", "H+K"], (16,)),
    ],
)
def test_a_tensor_is_cut_as_it_was_joined(axes, letters, shape):
    arrays = [array(own, 100 * number) for number, own in enumerate(axes)]
    whole = to_file(arrays, axes, letters)
    assert whole.shape == shape
    for number, own in enumerate(arrays):
        np.testing.assert_array_equal(from_file(whole, axes, [a.shape for a in arrays], letters, number), own)


def test_the_order_of_the_file_is_that_of_the_letters():
    q_DHK, k_DHK = array("DHK"), array("DHK", 100)
    by_head = to_file([q_DHK, k_DHK], ["DHK", "DHK"], ["H+K D", "H+K D"]).reshape(2, 2, 4, 3)
    np.testing.assert_array_equal(by_head[1, 0], q_DHK[:, 1].T)
    np.testing.assert_array_equal(by_head[0, 1], k_DHK[:, 0].T)
    with pytest.raises(ValueError, match="a parameter with the axes 'DHK' cannot be written as 'HF D'"):
        to_file([q_DHK], ["DHK"], ["HF D"])


def test_neighbours_become_halves_and_back():
    np.testing.assert_array_equal(halves(np.arange(8).reshape(1, 8), 1), [[0, 2, 4, 6, 1, 3, 5, 7]])
    given = np.arange(24).reshape(2, 4, 3)
    np.testing.assert_array_equal(neighbours(halves(given, 1), 1), given)


def specs(**shapes) -> dict:
    found = {}
    for name, axes in shapes.items():
        path = tuple(name.split("__"))
        found[path] = Spec(path, tuple(SIZES[letter] for letter in axes), np.float32, axes)
    return found


def test_what_a_model_lacks_falls_away_and_what_has_no_name_is_told():
    table = Table((tensor("w", "w: F D"), tensor("b", "b: F"), tensor("e.{E}", "e: F D")), {})
    assert [one.name for one in bind(table, {}, specs(w="DF"), "lm")] == ["w"]
    experts = {("e",): Spec(("e",), (3, 3, 5), np.float32, "EDF")}
    assert [(one.name, one.pieces[0].at) for one in bind(table, {}, experts, "lm")] == [
        ("e.0", (0,)), ("e.1", (1,)), ("e.2", (2,)),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="no name in a file for odd"):
        bind(table, {}, specs(w="DF", odd="D"), "lm")
    joined = Table((Tensor("qk", (Piece("q", "+F D"), Piece("k", "+F D"))),), {})
    with pytest.raises(ValueError, match="qk joins q, k, and the model has only some"):
        bind(joined, {}, specs(q="DF"), "lm")
