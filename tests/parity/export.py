"""Import, export, open with transformers: the logits stay. Run once by each interpreter, over the same folder.

    python tests/parity/export.py write FOLDER [case ...]         # with llmlab: reads each case, writes it to FOLDER
    parity/bin/python tests/parity/export.py check FOLDER         # with torch: opens what is there, compares logits

`check` opens the class that config.json names, and ends with the largest difference and with status 1 where one is
above the tolerance of its case.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent)]


def write(folder: Path, names: list[str]) -> None:
    import llmlab
    from tests.parity.test_parity import ONE
    from tests.parity.test_parity import write as lay_out

    for name in names:
        (folder / "read" / name).mkdir(parents=True, exist_ok=True)
        reference = np.load(HERE / "data" / f"{name}.npz")
        model = llmlab.from_pretrained(lay_out(folder / "read" / name, name, reference), mesh=ONE)
        llmlab.save_pretrained(model, folder / "written" / name)
        print(name, type(model.config).__name__, flush=True)


def check(folder: Path) -> int:
    import torch
    import transformers
    from cases import CASES

    worst, wrong, opened = 0.0, [], sorted(path.name for path in (folder / "written").iterdir())
    for name in opened:
        case, reference = CASES[name], np.load(HERE / "data" / f"{name}.npz")
        config = json.loads((folder / "written" / name / "config.json").read_text())
        kind = getattr(transformers, config["architectures"][0])
        model, report = kind.from_pretrained(
            folder / "written" / name, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
        )
        found = max(differences(model.eval(), case, reference), default=0.0)
        keys = {key: list(report[key]) for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if report[key]}
        worst = max(worst, found)
        if keys or found > case.tolerance:
            wrong.append(name)
        print(f"{name}: {found:.1e}", keys or "", flush=True)
    print(f"{len(opened)} cases, largest difference {worst:.1e}; wrong: {', '.join(wrong) or 'none'}")
    return int(bool(wrong))


def differences(model, case, reference):
    """The largest difference of each output."""
    import torch

    ids = torch.from_numpy(reference["ids"])
    given = {"token_type_ids": torch.from_numpy(reference["types"])} if case.types else {}
    if case.pair:
        given["labels"] = torch.from_numpy(reference["labels"])
    with torch.no_grad():
        out = model(ids, **given, output_hidden_states=not case.pair)
    kinds = ("logits", "prediction_logits", "start_logits", "pooler_output")
    logits = next((out[name] for name in kinds if name in out), None)
    if "end_logits" in out:
        logits = torch.stack([out.start_logits, out.end_logits], -1)
    if "logits" in reference:
        yield float(np.abs(logits.numpy() - reference["logits"]).max())
    elif "hidden_states" in out:
        last = len(out.hidden_states) - 1
        yield float(np.abs(out.hidden_states[-1].numpy() - reference[f"h{last}"]).max())


if __name__ == "__main__":
    mode, folder = sys.argv[1], Path(sys.argv[2])
    if mode == "check":
        sys.exit(check(folder))
    from cases import CASES

    write(folder, sys.argv[3:] or list(CASES))
