"""The rows that a process feeds when its devices hold rows that are not neighbours, as on a pod."""

import numpy as np

from llmlab.train.program import select


def test_shards_are_picked_by_row_number():
    batch_BL = np.arange(16 * 3).reshape(16, 3)
    rows = np.array([2, 3, 6, 7])  # of 16; the others are fed elsewhere
    mine = batch_BL[rows]
    for index in ((slice(6, 8), slice(None)), (slice(2, 3), slice(0, 2))):
        assert np.array_equal(select(mine, rows, index, 16), batch_BL[index])
