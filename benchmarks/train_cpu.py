"""Training steps on CPU against transformers + PyTorch eager, the same shapes, interleaved on the same cores.

    python benchmarks/train_cpu.py --rounds 6 --torch-python PYTHON_WITH_TORCH

Models: gpt2, llama, bert, mamba of 6 layers, t5 of 3 + 3 (128 + 128 positions), mixtral of 4 with 4 experts; width 384,
6 heads, vocabulary 8,192, 8 x 256 tokens (mamba 2 x 256), float32, AdamW; mamba2 has no peer here. Each worker is a
process of its own that steps when told, so that both see the same machine; the ratio is of the best step and of the
median. The floor is what llmlab's step would take if its matrix products were all there is: the FLOPs that it
executes at the rate of a product of 1,024 x 1,024, measured after each step. Writes benchmarks/results/train_cpu.json.
"""

from __future__ import annotations

import argparse
import dataclasses
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
SQUARE = 1024  # rows and columns of the product that the floor is measured by


def llmlab_experiment(family: str, precision: str):
    """The experiment of a family; its task asks for a loss at every position, as the peer's does."""
    from llmlab.data import Bytes, Data
    from llmlab.ffn import Capacity, Gated, Mlp, MoE
    from llmlab.mixers import Attention, Bidirectional, CrossAttention, Mamba, Mamba2
    from llmlab.models import Block, Decoder, Encoder, EncoderDecoder, PostNorm
    from llmlab.nn import Embedding, Fill, LayerNorm, Learned, Relative, RMSNorm, Stack, TiedHead, TransformHead, repeat
    from llmlab.optim import AdamW
    from llmlab.tasks import Answers, CausalLM, Continuation
    from llmlab.train import Experiment, Train

    zeros, task = Fill(value=0.0), CausalLM()
    biased = {"heads": HEADS, "position": None, "bias": zeros, "out_bias": zeros}
    wide, norm, embed = Mlp(hidden=4 * WIDTH, activation="gelu_tanh", bias=zeros), RMSNorm(), Embedding()
    if family == "gpt2":
        block = Block(mixer=Attention(**biased), ffn=wide, norm=LayerNorm())
        embed, norm = Embedding(position=Learned(length=LENGTH)), LayerNorm()
    elif family == "llama":
        block = Block(mixer=Attention(heads=HEADS, kv_heads=2), ffn=Gated(hidden=1024))
    elif family == "mixtral":
        experts = MoE(experts=4, top_k=2, expert=Gated(hidden=1024), form=Capacity(factor=1.25))
        block = Block(mixer=Attention(heads=HEADS, kv_heads=2), ffn=experts)
        task = CausalLM(auxiliary=(("load_balance", 0.001),))
    elif family in ("mamba", "mamba2"):
        block = Block(mixer=Mamba() if family == "mamba" else Mamba2(), ffn=None)
    if family == "bert":
        block = Block(mixer=Attention(view=Bidirectional(), **biased), ffn=wide, norm=LayerNorm(), wiring=PostNorm())
        embed = Embedding(position=Learned(length=LENGTH), types=2, norm=LayerNorm())
        model = Encoder(embed=embed, stack=repeat(block, LAYERS), norm=None, head=TransformHead())
        task = Answers()
    elif family == "t5":
        ffn = Mlp(hidden=4 * WIDTH, activation="relu")
        read = Block(mixer=Attention(heads=HEADS, view=Bidirectional(), position=None), ffn=ffn)
        write = Block(mixer=Attention(heads=HEADS, position=None), cross=CrossAttention(heads=HEADS), ffn=ffn)
        stack = lambda block, two: Stack(
            segments=repeat(block, LAYERS // 2).segments, bias=Relative(heads=HEADS, bidirectional=two)
        )
        model, task = EncoderDecoder(encoder=stack(read, True), stack=stack(write, False)), Continuation()
    else:
        layers = 4 if family == "mixtral" else LAYERS
        model = Decoder(embed=embed, stack=repeat(block, layers), norm=norm, head=TiedHead())
    return Experiment(
        model=dataclasses.replace(model, vocab=VOCAB, width=WIDTH),
        task=task,
        data=Data(tokenizer=Bytes(), batch=rows(family), length=LENGTH),
        optim=AdamW(peak=1e-4),
        train=Train(precision=precision),
    )


def llmlab_step(family: str, precision: str):
    """(A function that does one training step and waits for it, the FLOPs of its matrix products, a function that gives
    the FLOP/s of a large one now)."""
    import jax
    import jax.numpy as jnp

    from llmlab.tasks import example_batch
    from llmlab.train.program import Program

    experiment = llmlab_experiment(family, precision)
    program = Program(experiment, experiment.mesh.build())
    holder = {"state": program.init()}
    batch = example_batch(experiment.task, experiment.data, VOCAB, rows(family))
    if family == "t5":  # 128 positions of either side, as the peer's
        batch = {name: a[:, : LENGTH // 2] for name, a in batch.items()}
    else:
        batch.pop("segments_BL")  # rows of one document, as the peer's are
    batch = jax.device_put(batch)

    def step():
        holder["state"], metrics = program.step(holder["state"], batch)
        return float(metrics["objective"])

    square, product = jnp.ones((SQUARE, SQUARE), precision), jax.jit(jnp.matmul)
    product(square, square).block_until_ready()

    def rate():
        began = time.perf_counter()
        product(square, square).block_until_ready()
        return 2 * SQUARE**3 / (time.perf_counter() - began)

    return step, 3 * program.model.cost(experiment.task.shape(batch)).executed, rate


def rows(family: str) -> int:
    """Rows of a batch: few for Mamba, whose peer is slow."""
    return 2 if family.startswith("mamba") else BATCH


def torch_model(family: str):
    import transformers

    common = {"vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    common |= {"max_position_embeddings": LENGTH, "attn_implementation": "sdpa"}
    llama = common | {"intermediate_size": 1024, "num_key_value_heads": 2, "tie_word_embeddings": True}
    if family == "gpt2":
        return transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=VOCAB, n_positions=LENGTH, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, attn_pdrop=0,
                resid_pdrop=0, embd_pdrop=0, attn_implementation="sdpa",
            )
        )  # fmt: skip
    if family == "llama":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**llama))
    if family == "mixtral":
        experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}
        config = transformers.MixtralConfig(**llama | experts | {"num_hidden_layers": 4, "output_router_logits": True})
        return transformers.MixtralForCausalLM(config)
    if family == "bert":
        dropout = {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
        return transformers.BertForMaskedLM(
            transformers.BertConfig(**common | dropout | {"intermediate_size": 4 * WIDTH})
        )
    if family == "t5":
        return transformers.T5ForConditionalGeneration(
            transformers.T5Config(
                vocab_size=VOCAB, d_model=WIDTH, d_kv=WIDTH // HEADS, d_ff=4 * WIDTH, num_layers=LAYERS // 2,
                num_decoder_layers=LAYERS // 2, num_heads=HEADS, dropout_rate=0, decoder_start_token_id=0,
            )
        )  # fmt: skip
    return transformers.MambaForCausalLM(
        transformers.MambaConfig(vocab_size=VOCAB, hidden_size=WIDTH, state_size=16, num_hidden_layers=LAYERS)
    )


def torch_step(family: str, precision: str):
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    model = torch_model(family)
    tokens = torch.randint(0, VOCAB, (rows(family), LENGTH))
    batch = {"input_ids": tokens, "labels": tokens}
    if family == "t5":
        half = LENGTH // 2
        batch = {"input_ids": tokens[:, :half].contiguous(), "labels": tokens[:, half:].contiguous()}
    elif family != "bert":
        batch["use_cache"] = False
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step, None, lambda: None


def work(peer: str, family: str, precision: str) -> None:
    """Steps once for each line of standard input; answers with wall and CPU seconds, loss and FLOP/s of a product."""
    step, flops, rate = {"llmlab": llmlab_step, "torch": torch_step}[peer](family, precision)
    step(), step()
    print(json.dumps({"flops": flops}), flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        loss = step()
        seconds = [time.perf_counter() - wall, time.process_time() - cpu]
        print(json.dumps([*seconds, loss, rate()]), flush=True)


def start(python: str, peer: str, family: str, precision: str) -> subprocess.Popen:
    environment = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "JAX_PLATFORMS": "cpu"}
    if peer == "torch":
        environment.pop("GLIBC_TUNABLES")
    command = [python, __file__, "--worker", peer, "--families", family, "--precision", precision]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def until_ready(name: str, worker: subprocess.Popen) -> float | None:
    """Waits for a worker's first line that is not a library's, and gives the FLOPs it says."""
    for line in worker.stdout:
        if line.startswith('{"flops"'):
            return json.loads(line)["flops"]
    raise RuntimeError(f"the {name} worker ended")


def compare(family: str, precision: str, rounds: int, steps: int, torch_python: str | None) -> dict:
    workers = {"llmlab": start(sys.executable, "llmlab", family, precision)}
    if torch_python and family != "mamba2":
        workers["torch"] = start(torch_python, "torch", family, precision)
    flops = {name: until_ready(name, worker) for name, worker in workers.items()}
    seen = {name: [] for name in workers}
    for _ in range(rounds):
        for name, worker in workers.items():
            for _ in range(steps):
                worker.stdin.write("\n")
                worker.stdin.flush()
                seen[name].append(json.loads(worker.stdout.readline()))
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    tokens = rows(family) * LENGTH
    found = {"family": family, "precision": precision}
    for name, times in seen.items():
        walls, cpus, *_ = zip(*times)
        found[name] = {
            "tokens_per_second_best": round(tokens / min(walls)),
            "tokens_per_second_median": round(tokens / statistics.median(walls)),
            "cpu_seconds_per_step": round(min(cpus), 4),
        }
    rate = max(rate for *_, rate in seen["llmlab"])
    floor = tokens * rate / flops["llmlab"]
    found["floor"] = {
        "product_gigaflops": round(rate / 1e9),
        "tokens_per_second": round(floor),
        "share_reached": round(found["llmlab"]["tokens_per_second_best"] / floor, 3),
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
