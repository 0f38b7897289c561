"""Training steps on CPU against transformers + PyTorch eager, the same shapes, interleaved on the same cores.

    python benchmarks/train_cpu.py --rounds 6 --torch-python PYTHON_WITH_TORCH

Models: gpt2 and llama of 6 layers, width 384, 6 heads, vocabulary 8,192, 8 x 256 tokens, float32, AdamW. Each worker is
a process of its own that steps when told, so that both see the same machine; the ratio is of the best step and of the
median. Writes benchmarks/results/train_cpu.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
BATCH, LENGTH, VOCAB, WIDTH, LAYERS, HEADS = 8, 256, 8192, 384, 6, 6


def llmlab_step(family: str, precision: str):
    """A function that does one training step and waits for it."""
    import jax

    from llmlab.data import Bytes, Data
    from llmlab.ffn import Gated, Mlp
    from llmlab.mixers import Attention
    from llmlab.models import Block, Decoder
    from llmlab.nn import Embedding, Fill, LayerNorm, Learned, RMSNorm, TiedHead, repeat
    from llmlab.optim import AdamW
    from llmlab.tasks import example_batch
    from llmlab.train import Experiment, Train
    from llmlab.train.program import Program

    zeros = Fill(value=0.0)
    if family == "gpt2":
        block = Block(
            mixer=Attention(heads=HEADS, position=None, bias=zeros, out_bias=zeros),
            ffn=Mlp(hidden=4 * WIDTH, activation="gelu_tanh", bias=zeros),
            norm=LayerNorm(),
        )
        embed, norm = Embedding(position=Learned(length=LENGTH)), LayerNorm()
    else:
        block = Block(mixer=Attention(heads=HEADS, kv_heads=2), ffn=Gated(hidden=1024))
        embed, norm = Embedding(), RMSNorm()
    experiment = Experiment(
        model=Decoder(vocab=VOCAB, width=WIDTH, embed=embed, stack=repeat(block, LAYERS), norm=norm, head=TiedHead()),
        data=Data(tokenizer=Bytes(), batch=BATCH, length=LENGTH),
        optim=AdamW(peak=1e-4),
        train=Train(precision=precision),
    )
    program = Program(experiment, experiment.mesh.build())
    holder = {"state": program.init()}
    batch = jax.device_put(example_batch(experiment.task, experiment.data, VOCAB, BATCH))
    batch.pop("segments_BL")  # rows of one document, as the peer's are

    def step():
        holder["state"], metrics = program.step(holder["state"], batch)
        return float(metrics["objective"])

    return step


def torch_step(family: str, precision: str):
    import torch
    import transformers

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    if family == "gpt2":
        model = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=VOCAB, n_positions=LENGTH, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, attn_pdrop=0,
                resid_pdrop=0, embd_pdrop=0, attn_implementation="sdpa",
            )
        )  # fmt: skip
    else:
        model = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=1024, num_hidden_layers=LAYERS,
                num_attention_heads=HEADS, num_key_value_heads=2, max_position_embeddings=LENGTH,
                tie_word_embeddings=True, attn_implementation="sdpa",
            )
        )  # fmt: skip
    tokens = torch.randint(0, VOCAB, (BATCH, LENGTH))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def work(peer: str, family: str, precision: str) -> None:
    """Steps once for each line of standard input; answers with wall and CPU seconds."""
    step = {"llmlab": llmlab_step, "torch": torch_step}[peer](family, precision)
    step(), step()
    print("ready", flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        loss = step()
        print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu, loss]), flush=True)


def start(python: str, peer: str, family: str, precision: str) -> subprocess.Popen:
    environment = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "JAX_PLATFORMS": "cpu"}
    if peer == "torch":
        environment.pop("GLIBC_TUNABLES")
    command = [python, __file__, "--worker", peer, "--families", family, "--precision", precision]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def compare(family: str, precision: str, rounds: int, steps: int, torch_python: str | None) -> dict:
    workers = {"llmlab": start(sys.executable, "llmlab", family, precision)}
    if torch_python:
        workers["torch"] = start(torch_python, "torch", family, precision)
    for name, worker in workers.items():
        while (line := worker.stdout.readline()).strip() != "ready":
            if not line:
                raise RuntimeError(f"the {name} worker ended")
    seen = {name: [] for name in workers}
    for _ in range(rounds):
        for name, worker in workers.items():
            for _ in range(steps):
                worker.stdin.write("\n")
                worker.stdin.flush()
                seen[name].append(json.loads(worker.stdout.readline())[:2])
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    tokens = BATCH * LENGTH
    found = {"family": family, "precision": precision}
    for name, times in seen.items():
        walls, cpus = zip(*times)
        found[name] = {
            "tokens_per_second_best": round(tokens / min(walls)),
            "tokens_per_second_median": round(tokens / statistics.median(walls)),
            "cpu_seconds_per_step": round(min(cpus), 4),
        }
    if "torch" in found:
        keys = ("tokens_per_second_best", "tokens_per_second_median")
        found["ratio"] = {key: round(found["llmlab"][key] / found["torch"][key], 3) for key in keys}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=["gpt2", "llama"])
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=3, help="steps of each worker in a round")
    parser.add_argument("--torch-python", default=None, help="a Python that has torch and transformers")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "train_cpu.json")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker, options.families[0], options.precision)
        return
    rows = []
    for family in options.families:
        rows.append(compare(family, options.precision, options.rounds, options.steps, options.torch_python))
        print(json.dumps(rows[-1], indent=1), flush=True)
    import jax

    record = {"date": time.strftime("%Y-%m-%d"), "machine": platform.processor() or platform.machine()}
    record |= {"cores": len(os.sched_getaffinity(0)), "jax": jax.__version__, "python": platform.python_version()}
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_text(json.dumps(record | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
