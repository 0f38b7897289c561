"""Makes the references of tests/parity/data with transformers: tiny models of each family, and what they compute.

    python -m venv parity && parity/bin/pip install torch transformers safetensors
    parity/bin/python tests/parity/make.py [case ...]

A case is a class, a config, and how its directory looks. Its file holds the config as it is written, the names and
shapes of the tensors, and what the model gives: logits, hidden states, loss, norm of all gradients, 32 greedy tokens.
The tests make the same directory without torch (tests/parity/weights.py) and compare.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers as tf
from safetensors import safe_open
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent))
from cases import CASES, Case  # noqa: E402
from weights import values  # noqa: E402

DATA = Path(__file__).parent / "data"
TYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
BATCH, LENGTH, NEW = 2, 11, 32


def make(case: Case) -> dict[str, np.ndarray]:
    """What the file of a case holds."""
    torch.manual_seed(0)
    kind = getattr(tf, case.model)
    fresh = kind(getattr(tf, case.config)(**case.values))
    with tempfile.TemporaryDirectory() as folder:
        fresh.save_pretrained(folder)
        more = {name: fresh.get_parameter(name).detach().clone() for name in case.untied}
        shapes = lay_out(Path(folder), case, more)
        model = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        config = json.loads((Path(folder) / "config.json").read_text())
    config = {key: value for key, value in {**config, **case.written}.items() if key not in case.unwritten}
    config = config if case.only is None else case.only
    found = {"config": np.array(json.dumps(config)), "shapes": np.array(json.dumps(shapes))}
    return found | {name: np.asarray(value) for name, value in compute(model, case).items()}


def lay_out(folder: Path, case: Case, more: dict) -> dict:
    """Replaces the weights of a directory, to which it adds `more`; gives {name: [shape, offset, scale]}."""
    shapes = {}
    with safe_open(folder / "model.safetensors", "pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()} | more  # noqa: SIM118
    for name, tensor in sorted(found.items()):
        offset = round(float(tensor.float().mean()), 1) if tensor.ndim == 1 or "A_log" in name else 0.0
        shapes[name] = [list(tensor.shape), offset, 0.2 if tensor.ndim == 1 else 0.15]
    made = {name: torch.from_numpy(values(name, *one)).to(TYPES[case.dtype]) for name, one in shapes.items()}
    save_file(made, folder / "model.safetensors", {"format": "pt"})
    return shapes


def compute(model, case: Case) -> dict:
    random = np.random.default_rng(7)
    vocab = model.config.get_text_config().vocab_size
    ids = torch.from_numpy(random.integers(3, vocab, (BATCH, LENGTH)))
    if case.model == "BartForSequenceClassification":  # it reads the last end
        ids[:, -1] = model.config.eos_token_id
    labels = torch.from_numpy(random.integers(3, vocab, (BATCH, LENGTH - 3))) if case.pair else ids
    given = {"input_ids": ids}
    if case.pair:
        given["labels"] = labels
    elif case.loss == "tokens":
        given["labels"] = ids
    elif case.loss == "masked":
        labels = torch.where(torch.from_numpy(random.random((BATCH, LENGTH)) < 0.4), ids, -100)
        given["labels"] = labels
    elif case.loss in ("sequence", "token"):
        shape = (BATCH,) if case.loss == "sequence" else (BATCH, LENGTH)
        labels = torch.from_numpy(random.integers(0, model.config.num_labels, shape))
        given["labels"] = labels
    if case.types:
        given["token_type_ids"] = torch.from_numpy((np.arange(LENGTH) > 4) * np.ones((BATCH, 1), np.int64))
    trained = [p for name, p in model.named_parameters() if name not in case.frozen]
    trained += [buffer.requires_grad_() for name, buffer in model.named_buffers() if name == "final_logits_bias"]
    out = model(**given, output_hidden_states=True)
    found = {"ids": ids, "labels": labels, **({"types": given["token_type_ids"]} if case.types else {})}
    kinds = ("logits", "prediction_logits", "start_logits", "pooler_output")
    logits = next((out[name] for name in kinds if name in out), None)
    if "end_logits" in out:
        logits = torch.stack([out.start_logits, out.end_logits], -1)
    if logits is not None:
        found["logits"] = logits.detach()
    hidden = out.get("hidden_states")
    if model.config.model_type in ("mamba", "mamba2"):  # what is after each layer, and the last normalised once more
        hidden = (model.get_input_embeddings()(ids), *hidden[:-2], hidden[-1])
    states = {
        "h": hidden,
        "s": out.get("encoder_hidden_states"),
        "t": out.get("decoder_hidden_states"),
    }
    for letter, tensors in states.items():
        found |= {f"{letter}{i}": one.detach() for i, one in enumerate(tensors or ())}
    if out.get("loss") is not None:
        out.loss.backward()
        grads = [p.grad for p in trained if p.grad is not None]
        found |= {"loss": out.loss.detach(), "gradient": torch.sqrt(sum((grad**2).sum() for grad in grads))}
    if case.greedy:
        with torch.no_grad():
            options = {"do_sample": False, "max_new_tokens": NEW, "eos_token_id": None, "pad_token_id": 0}
            found["greedy"] = model.generate(ids, **options, **case.generation)
    return {name: np.asarray(value) for name, value in found.items()}


def main() -> None:
    DATA.mkdir(exist_ok=True)
    for name in sys.argv[1:] or CASES:
        found = make(CASES[name])
        np.savez_compressed(DATA / f"{name}.npz", **found)
        print(name, {key: value.shape for key, value in found.items() if key in ("logits", "greedy")}, flush=True)


if __name__ == "__main__":
    main()
