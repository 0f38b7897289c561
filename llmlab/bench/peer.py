"""The same models in transformers and PyTorch, in a process of their own; nothing of llmlab or jax is imported here.

`python -c SOURCE JSON` builds a model, says {"ready": true}, and does a training step for each line of its input.
On a GPU the model is compiled (torch.compile); in bfloat16 it runs under autocast, with weights in float32.
"""

import json
import sys
import time


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
                resid_pdrop=0, embd_pdrop=0, attn_implementation="sdpa",
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


def main(asked: dict) -> None:
    import torch

    device = "cuda" if torch.cuda.is_available() and not asked["on_cpu"] else "cpu"
    if device == "cpu":
        torch.set_num_threads(asked["cores"])
    torch.manual_seed(0)
    family, rows, length = asked["family"], asked["rows"], asked["length"]
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

    step(), step()
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        step()
        seconds = [time.perf_counter() - wall, time.process_time() - cpu]
        print(json.dumps([*seconds, torch.cuda.max_memory_allocated() if device == "cuda" else None]), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
