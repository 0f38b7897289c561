"""Rows survive the way to disk and back."""

import dataclasses

import pytest

from llmlab.study.record import Row, from_json, read_rows, to_json, write_row

ROW = Row(
    study="s",
    arm="base",
    phase="replicate",
    replicate=1,
    trial={"optim.peak": 1e-3},
    seeds={"init": 1, "data": 2, "dropout": 3},
    key="0123",
    state="done",
    metrics={"loss": 1.5},
    curve=[{"step": 4, "tokens": 64, "flops": 1e6, "seconds": 0.5, "loss": 1.5}],
    axes={"parameters": 10, "active": 10, "flops": 1e6, "tokens": 64, "state_bytes": None, "seconds": 0.5},
    task="CausalLM",
    metric="loss",
    tokenizer="Bytes",
    evaluation={"fingerprint": "f", "tokens": 64.0, "bytes": 64.0},
    code="c",
    hardware="cpu",
)


def test_a_row_is_equal_after_json():
    assert from_json(to_json(ROW)) == ROW


def test_rows_are_read_in_order(tmp_path):
    for key, changes in {"2": {"arm": "other"}, "1": {"replicate": 0}, "3": {"phase": "tune"}, "4": {}}.items():
        write_row(tmp_path, dataclasses.replace(ROW, key=key, **changes))
    assert [row.key for row in read_rows(tmp_path)] == ["3", "1", "4", "2"]


def test_a_state_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="state is 'finished'; it is one of pending, running, done"):
        dataclasses.replace(ROW, state="finished")
