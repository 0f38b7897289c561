"""Rows survive the way to disk and back."""

import dataclasses

import pytest

from llmlab.study.record import from_json, read_rows, to_json, write_row


def test_a_row_is_equal_after_json(row):
    assert from_json(to_json(row)) == row


def test_rows_are_read_in_order(row, tmp_path):
    for key, changes in {"2": {"arm": "other"}, "1": {"replicate": 0}, "3": {"phase": "tune"}, "4": {}}.items():
        write_row(tmp_path, dataclasses.replace(row, key=key, **changes))
    assert [row.key for row in read_rows(tmp_path)] == ["3", "1", "4", "2"]


def test_a_state_that_there_is_not_is_refused(row):
    with pytest.raises(ValueError, match="state is 'finished'; it is one of pending, running, done"):
        dataclasses.replace(row, state="finished")
