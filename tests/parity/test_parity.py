"""Checkpoints of published systems give what transformers gives: logits, hidden states, loss, gradients, tokens.

The references are made by tests/parity/make.py. Each case writes its directory, so reading is tested on real files.
"""

import json
import math
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest

import llmlab
from llmlab.interop.safetensors import DTYPES, write_directory
from llmlab.mesh import Mesh
from tests.parity.cases import CASES
from tests.parity.weights import values

ONE = Mesh().build(jax.devices()[:1])
DATA = Path(__file__).parent / "data"
NAMES = [pytest.param(name, marks=[pytest.mark.soak] if case.soak else []) for name, case in CASES.items()]


def write(folder: Path, name: str, reference) -> Path:
    """The directory of a case."""
    case, shapes = CASES[name], json.loads(str(reference["shapes"]))
    dtype = DTYPES[case.dtype]
    tensors = [
        (named(key, case), tuple(shape), lambda key=key, one=(shape, *rest): values(key, *one))
        for key, (shape, *rest) in shapes.items()
    ]
    tensors += [(key, (1, 1, 4, 4), lambda: np.tril(np.ones((1, 1, 4, 4)))) for key in case.buffers]
    size = sum(math.prod(shape) for _, shape, _ in tensors) * dtype.itemsize
    write_directory(folder, tensors, dtype, shard=-(-size // case.shards) + 1 if case.shards > 1 else size)
    (folder / "config.json").write_text(str(reference["config"]))
    return folder


def named(key: str, case) -> str:
    """The name of a tensor in the file of a case."""
    key = case.prefix + key.removeprefix(case.strip)
    for old, new in case.renamed:
        key = key.replace(old, new)
    return key


@pytest.mark.parametrize("name", NAMES)
def test_it_is_what_transformers_computes(name, tmp_path):
    case, reference = CASES[name], np.load(DATA / f"{name}.npz")
    with warnings.catch_warnings(action="error", category=UserWarning):  # every tensor has its place
        model = llmlab.from_pretrained(write(tmp_path, name, reference), mesh=ONE)
    ids, near = reference["ids"], dict(atol=case.tolerance, rtol=0)
    if case.pair:
        check_pair(model, case, reference)
        return
    given = {"token_types": reference["types"]} if case.types else {}
    if case.states:
        logits, states = model(ids, hidden_states=True, **given)
    else:
        logits, states = model(ids), ()
        with pytest.raises(ValueError, match="a row that is read twice has two streams of hidden states"):
            model(ids, hidden_states=True)
    for number, state in enumerate(states):
        np.testing.assert_allclose(state, reference[f"h{number}"], **near, err_msg=f"hidden state {number}")
    if "logits" in reference:
        np.testing.assert_allclose(logits, reference["logits"], **near)
    if "loss" in reference:
        loss = lambda params: model.loss(ids, reference["labels"], params=params, **given)
        check_loss(loss, model.params, reference)
    left, mask_left = padded(ids, left=True)
    right, mask_right = padded(ids, left=False)
    sides = ((left, mask_left, slice(3, None)), (right, mask_right, slice(0, -3)))
    for tokens, mask, real in sides:
        given = {"token_types": padded(reference["types"], mask[0, 0] == 0)[0]} if case.types else {}
        found = model(tokens, mask, **given)
        np.testing.assert_allclose(found[:, real] if found.ndim == 3 else found, logits, **near)
    if case.greedy:
        new = reference["greedy"][:, ids.shape[1] :]
        for tokens, mask in ((left, mask_left), (right, mask_right)):
            found = model.generate(tokens, mask, max_new_tokens=new.shape[1], stop=())
            np.testing.assert_array_equal(found[:, tokens.shape[1] :], new)


def check_pair(model, case, reference):
    ids, labels, near = reference["ids"], reference["labels"], dict(atol=case.tolerance, rtol=0)
    target = np.concatenate([np.full((len(labels), 1), model.first), labels[:, :-1]], axis=1)
    logits, (source_states, target_states) = model(ids, target, hidden_states=True)
    for letter, states in (("s", source_states), ("t", target_states)):
        for number, state in enumerate(states):
            np.testing.assert_allclose(state, reference[f"{letter}{number}"], **near, err_msg=f"{letter}{number}")
    np.testing.assert_allclose(logits, reference["logits"], **near)
    check_loss(lambda params: model.loss(ids, labels, params=params), model.params, reference)
    right, mask_right = padded(ids, left=False)
    np.testing.assert_allclose(model(right, target, mask_right), reference["logits"], **near)
    if case.greedy:
        new = reference["greedy"]
        found = model.generate(right, mask_right, max_new_tokens=new.shape[1] - 1, stop=())
        np.testing.assert_array_equal(found, new)


def check_loss(loss, params, reference):
    value, grads = jax.value_and_grad(loss)(params)
    assert float(value) == pytest.approx(float(reference["loss"]), abs=1e-5)
    norm = math.sqrt(sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(grads)))
    assert norm == pytest.approx(float(reference["gradient"]), rel=1e-4)


def padded(ids, left: bool):
    """The rows with three tokens of padding on one side, and their mask."""
    sides = ((0, 0), (3, 0) if left else (0, 3))
    return np.pad(ids, sides, constant_values=1), np.pad(np.ones_like(ids), sides)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_written_as_it_was_read(name, tmp_path):
    reference = np.load(DATA / f"{name}.npz")
    (tmp_path / "one").mkdir()
    model = llmlab.from_pretrained(write(tmp_path / "one", name, reference), mesh=ONE)
    llmlab.save_pretrained(model, tmp_path / "two")
    again = llmlab.from_pretrained(tmp_path / "two", mesh=ONE)
    assert again.config == model.config
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
