"""Training steps of a mixture of experts on CPU: dropless, with a capacity, and dense; and PyTorch's Mixtral.

    python benchmarks/moe_cpu.py --rounds 6 --torch-python PYTHON_WITH_TORCH

4 layers, width 384, 6 heads (2 key/value heads), 4 experts of hidden size 1,024, 2 a token,
vocabulary 8,192, 8 x 256 random tokens, float32, AdamW, with the load-balance loss. "dense" has one feed-forward of
twice the hidden size: the FLOPs of the two chosen experts, without routing; its step is the floor. All are stepped in
turn on the same cores. Prints JSON: for each the tokens a second of the best and of the median step, CPU seconds of the
cheapest step; and the ratios to PyTorch of the best steps and of the medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

BATCH, LENGTH, VOCAB, WIDTH, LAYERS, HEADS, KV_HEADS = 8, 256, 8192, 384, 4, 6, 2
EXPERTS, TOP_K, HIDDEN, BALANCE = 4, 2, 1024, 0.001
FORMS = ("dropless", "capacity", "dense")
PAGES = "glibc.malloc.hugetlb=1"


def llmlab_step(form: str):
    """A function that does one training step and waits for it."""
    import jax
    import numpy as np

    from llmlab.data import Bytes, Data
    from llmlab.ffn import Capacity, Gated, MoE
    from llmlab.mixers import Attention
    from llmlab.models import Block, Decoder
    from llmlab.nn import Embedding, TiedHead, repeat
    from llmlab.optim import AdamW
    from llmlab.tasks import CausalLM
    from llmlab.train import Experiment, Train
    from llmlab.train.program import Program

    experts = MoE(experts=EXPERTS, top_k=TOP_K, expert=Gated(hidden=HIDDEN))
    ffn = {
        "dropless": experts,
        "capacity": MoE(experts=EXPERTS, top_k=TOP_K, expert=Gated(hidden=HIDDEN), form=Capacity(factor=1.25)),
        "dense": Gated(hidden=TOP_K * HIDDEN),
    }[form]
    stack = repeat(Block(mixer=Attention(heads=HEADS, kv_heads=KV_HEADS), ffn=ffn), LAYERS)
    experiment = Experiment(
        model=Decoder(vocab=VOCAB, width=WIDTH, embed=Embedding(), stack=stack, head=TiedHead()),
        task=CausalLM(auxiliary=() if form == "dense" else (("load_balance", BALANCE),)),
        data=Data(tokenizer=Bytes(), batch=BATCH, length=LENGTH),
        optim=AdamW(peak=1e-4),
        train=Train(precision="float32"),
    )
    program = Program(experiment, experiment.mesh.build(jax.devices()[:1]))
    holder = {"state": program.init()}
    tokens_Bl = np.random.default_rng(0).integers(0, VOCAB, (BATCH, LENGTH + 1), np.int32)
    batch = {"tokens_BL": tokens_Bl[:, :-1], "targets_BL": tokens_Bl[:, 1:]}
    batch["weights_BL"] = np.ones((BATCH, LENGTH), np.float32)

    def step():
        holder["state"], metrics = program.step(holder["state"], batch)
        return float(metrics["objective"])

    return step


def torch_step():
    import torch
    import transformers

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    model = transformers.MixtralForCausalLM(
        transformers.MixtralConfig(
            vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=HIDDEN, num_hidden_layers=LAYERS,
            num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, max_position_embeddings=LENGTH,
            num_local_experts=EXPERTS, num_experts_per_tok=TOP_K, tie_word_embeddings=True, sliding_window=None,
            attn_implementation="sdpa", output_router_logits=True, router_aux_loss_coef=BALANCE,
        )
    )  # fmt: skip
    tokens = torch.randint(0, VOCAB, (BATCH, LENGTH))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step():
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def work(form: str) -> None:
    """Steps once for each line of standard input; answers with wall and CPU seconds."""
    step = torch_step() if form == "torch" else llmlab_step(form)
    step(), step()
    print("ready", flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        step()
        print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu]), flush=True)


def start(python: str, form: str) -> subprocess.Popen:
    """A worker that has done its first steps; raises RuntimeError if it ends before."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"} | ({} if form == "torch" else {"GLIBC_TUNABLES": PAGES})
    command = [python, __file__, "--worker", form]
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    while (line := worker.stdout.readline()).strip() != "ready":
        if not line:
            raise RuntimeError(f"the worker of {form} ended before its first step")
    return worker


def measure(workers: dict[str, subprocess.Popen], rounds: int, steps: int) -> dict[str, dict]:
    """Steps the workers in turn."""
    seen = {name: [] for name in workers}
    for _ in range(rounds):
        for name, worker in workers.items():
            for _ in range(steps):
                worker.stdin.write("\n")
                worker.stdin.flush()
                seen[name].append(json.loads(worker.stdout.readline()))
    found = {}
    for name, times in seen.items():
        walls, cpus = zip(*times)
        found[name] = {
            "tokens_per_second_best": round(BATCH * LENGTH / min(walls)),
            "tokens_per_second_median": round(BATCH * LENGTH / statistics.median(walls)),
            "cpu_seconds_per_step": round(min(cpus), 3),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2, help="steps of a worker in a round")
    parser.add_argument("--torch-python", help="a Python with torch and transformers, to compare with")
    parser.add_argument("--worker", choices=(*FORMS, "torch"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        return work(given.worker)
    workers = {form: start(sys.executable, form) for form in FORMS}
    if given.torch_python:
        workers["torch"] = start(given.torch_python, "torch")
    found = measure(workers, given.rounds, given.steps)
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    for form in FORMS if "torch" in found else ():
        for rate in ("best", "median"):
            name = f"tokens_per_second_{rate}"
            found[form][f"ratio_to_torch_{rate}"] = round(found[form][name] / found["torch"][name], 3)
    print(json.dumps({"cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0], **found}, indent=1))


if __name__ == "__main__":
    main()
