"""The same models and kernels in transformers and PyTorch, in a process of their own without llmlab and jax.

`python -c SOURCE JSON` builds what is asked, says {"ready": true}, and does one turn for each line of its input: a
training step, the next tokens of a greedy `generate`, or a kernel with its gradients. On a GPU models that are trained,
and kernels, are compiled (torch.compile). In bfloat16 training runs under autocast, with weights in float32.
"""

import json
import sys
import time

KERNELS = ("attention", "attention, packed", "attention, window", "attention, both sides", "cross-entropy", "RMS norm")


def model_of(family: str, size: dict, length: int, half: int):
    """The model of a family. half: layers of each half of T5."""
    import transformers as t

    vocab, width, layers, heads = (size[name] for name in ("vocab", "width", "layers", "heads"))
    common = {"vocab_size": vocab, "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    common |= {"max_position_embeddings": length, "attn_implementation": "sdpa"}
    llama = common | {"num_key_value_heads": size["kv_heads"], "tie_word_embeddings": True}
    states = {"vocab_size": vocab, "hidden_size": width, "num_hidden_layers": size["states"]}
    if family == "gpt2":
        return t.GPT2LMHeadModel(
            t.GPT2Config(
                vocab_size=vocab, n_positions=length, n_embd=width, n_layer=layers, n_head=heads, attn_pdrop=0,
                resid_pdrop=0, embd_pdrop=0, bos_token_id=None, eos_token_id=None, attn_implementation="sdpa",
            )
        )  # fmt: skip
    if family == "llama":
        return t.LlamaForCausalLM(t.LlamaConfig(**llama | {"intermediate_size": size["hidden"]}))
    if family in ("mixtral", "dropless"):
        layers, experts, hidden = size["sparse"]
        own = {
            "num_local_experts": experts,
            "num_experts_per_tok": 2,
            "sliding_window": None,
            "num_hidden_layers": layers,
        }
        return t.MixtralForCausalLM(
            t.MixtralConfig(**llama | own | {"intermediate_size": hidden, "output_router_logits": True})
        )
    if family == "bert":
        own = {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0, "intermediate_size": 4 * width}
        return t.BertForMaskedLM(t.BertConfig(**common | own))
    if family == "t5":
        return t.T5ForConditionalGeneration(
            t.T5Config(
                vocab_size=vocab, d_model=width, d_kv=width // heads, d_ff=4 * width, num_layers=half,
                num_decoder_layers=half, num_heads=heads, dropout_rate=0, decoder_start_token_id=0,
            )
        )  # fmt: skip
    if family == "mamba":
        return t.MambaForCausalLM(t.MambaConfig(**states, state_size=16))
    return t.Mamba2ForCausalLM(
        t.Mamba2Config(**states, num_heads=2 * width // 64, n_groups=1, tie_word_embeddings=True)
    )


def trained(asked: dict, device: str):
    """A training step."""
    import torch

    family, (rows, length) = asked["name"], asked["shape"]
    model = model_of(family, asked["size"], length, asked["half"]).to(device)
    tokens = torch.randint(0, asked["size"]["vocab"], (rows, length), device=device)
    batch = {"input_ids": tokens, "labels": tokens}
    if family == "t5":
        batch = {"input_ids": tokens[:, : length // 2].contiguous(), "labels": tokens[:, length // 2 :].contiguous()}
    elif family != "bert":
        batch["use_cache"] = False
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    model = torch.compile(model) if device == "cuda" else model

    def step():
        with torch.autocast(device, dtype=torch.bfloat16, enabled=asked["precision"] == "bfloat16"):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def decoded(asked: dict, device: str):
    """The next tokens, behind a prompt that grows by as many each time. Seconds are of one token, not of the prompt."""
    import torch

    rows, prompt, new = asked["shape"]
    model = model_of(asked["name"], asked["size"], asked["size"]["length"], asked["half"])
    model = model.to(device, getattr(torch, asked["precision"])).eval()
    turns, turn = max((asked["size"]["length"] - prompt) // new - 1, 1), 0  # that the model has positions for
    tokens = torch.randint(1, asked["size"]["vocab"], (rows, prompt + turns * new), device=device)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0

    def step():
        nonlocal turn
        seen, given = [], tokens[:, : prompt + turn % turns * new]
        turn += 1

        def clock(ids, scores, **_):
            seen.append((time.perf_counter(), time.process_time()))
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

        model.generate(
            given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=new + 1,
            do_sample=False,
            stopping_criteria=[clock],
        )
        return [(last - first) / new for first, last in zip(seen[0], seen[-1])]

    return step


def kernel(asked: dict, device: str):
    """The result and the gradients of one kernel."""
    import torch
    from torch.nn import functional as f

    name, size, dtype = asked["name"], asked["size"], getattr(torch, asked["precision"])
    draw = lambda letters: torch.randn(
        [size[letter] for letter in letters], device=device, dtype=dtype, requires_grad=True
    )
    at = torch.arange(size["L"], device=device)
    part, causal = at * 3 // size["L"], at[:, None] >= at
    masks = {
        "attention, packed": causal & (part[:, None] == part),
        "attention, window": causal & (at[:, None] - at < 100),
    }
    if name.startswith("attention"):
        given, mask, plain = [draw("BHLK"), draw("BGLK"), draw("BGLK")], masks.get(name), name == "attention"
        run = lambda q, k, v: f.scaled_dot_product_attention(q, k, v, mask, is_causal=plain, enable_gqa=True)
    elif name == "cross-entropy":
        given, targets = [draw("BLD"), draw("VD")], torch.randint(0, size["V"], (size["B"] * size["L"],), device=device)
        given[1].data *= size["D"] ** -0.5
        run = lambda x, w: f.cross_entropy(f.linear(x.flatten(0, 1), w).float(), targets, reduction="sum")
    else:
        given = [draw("BLD"), draw("D")]
        run = lambda x, scale: f.rms_norm(x, scale.shape, scale, 1e-6)
    run = torch.compile(run) if device == "cuda" else run
    weights = torch.randn_like(run(*given))

    def step():
        run(*given).backward(weights)
        for a in given:
            a.grad = None
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def main(asked: dict) -> None:
    import torch

    device = "cuda" if torch.cuda.is_available() and not asked["on_cpu"] else "cpu"
    if device == "cpu":
        torch.set_num_threads(asked["cores"])
    torch.manual_seed(0)
    step = {"train": trained, "decode": decoded, "kernels": kernel}[asked["suite"]](asked, device)
    step(), step()
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        found = step()
        seconds = found if isinstance(found, list) else [time.perf_counter() - wall, time.process_time() - cpu]
        print(json.dumps([*seconds, torch.cuda.max_memory_allocated() if device == "cuda" else None]), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
