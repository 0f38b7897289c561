"""Names of checkpoints: orders of letters, pieces that are joined, letters that are counted from the last."""

import numpy as np
import pytest

from llmlab.names import Table, bind, file_shape, from_file, tensor, to_file
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
