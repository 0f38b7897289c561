"""GPT-1, GPT-2, GPT-Neo and BLOOM: positions of three kinds, fused projections, masks in files, no prefix."""

from __future__ import annotations

import dataclasses

from .case import Case

GPT = {"vocab_size": 61, "n_positions": 64, "n_embd": 32, "n_layer": 3, "n_head": 4}
NEO = {
    "vocab_size": 61, "max_position_embeddings": 64, "hidden_size": 32, "num_heads": 4, "num_layers": 3,
    "attention_types": [[["global", "local", "global"], 1]], "window_size": 4,
}  # fmt: skip
BLOOM = {"vocab_size": 61, "hidden_size": 32, "n_layer": 3, "n_head": 4}
MASKS = tuple(f"h.{layer}.attn.{name}" for layer in range(3) for name in ("bias", "masked_bias"))


def gpt(soak=True, **values) -> Case:
    return Case("OpenAIGPTLMHeadModel", "OpenAIGPTConfig", {**GPT, **values}, soak=soak)


def gpt2(soak=True, **values) -> Case:
    return Case("GPT2LMHeadModel", "GPT2Config", {**GPT, **values}, soak=soak)


def neo(soak=True, **values) -> Case:
    return Case("GPTNeoForCausalLM", "GPTNeoConfig", {**NEO, **values}, soak=soak)


def bloom(soak=True, **values) -> Case:
    return Case("BloomForCausalLM", "BloomConfig", {**BLOOM, **values}, soak=soak)


def classes(case: Case, kind: str, stem: str) -> Case:
    values = {**case.values, "num_labels": 3, "pad_token_id": 0}
    loss = None if kind == "QuestionAnswering" else kind.removesuffix("Classification").lower()
    return dataclasses.replace(case, model=f"{stem}For{kind}", values=values, loss=loss, greedy=False, soak=True)


CASES = {
    "gpt": gpt(soak=False),
    "gpt_hub": dataclasses.replace(
        gpt(vocab_size=67, afn="relu"), strip="transformer.", buffers=MASKS[::2], dtype="F16", shards=2
    ),
    "gpt_classes": classes(gpt(), "SequenceClassification", "OpenAIGPT"),
    "gpt2": gpt2(soak=False),
    "gpt2_hub": dataclasses.replace(
        gpt2(),
        strip="transformer.",
        buffers=MASKS,
        dtype="BF16",
        unwritten=("tie_word_embeddings", "activation_function", "scale_attn_by_inverse_layer_idx", "n_inner"),
        written={"n_ctx": 64},
    ),
    "gpt2_scales": gpt2(n_inner=44, scale_attn_by_inverse_layer_idx=True, activation_function="relu", n_head=2),
    "gpt2_unscaled_untied": gpt2(scale_attn_weights=False, tie_word_embeddings=False, layer_norm_epsilon=1e-3),
    "gpt2_shards": dataclasses.replace(gpt2(vocab_size=53, activation_function="gelu"), shards=4, dtype="F16"),
    "gpt2_classes": classes(gpt2(), "SequenceClassification", "GPT2"),
    "gpt2_token_classes": classes(gpt2(), "TokenClassification", "GPT2"),
    "gpt2_question": classes(gpt2(), "QuestionAnswering", "GPT2"),
    "gpt_neo": neo(soak=False),
    "gpt_neo_hub": dataclasses.replace(
        neo(attention_types=[[["global", "local"], 2]], num_layers=4, intermediate_size=44),
        buffers=tuple(f"transformer.{name.replace('attn', 'attn.attention')}" for name in MASKS),
        dtype="F16",
        shards=2,
    ),
    "gpt_neo_untied": neo(tie_word_embeddings=False, attention_types=[[["local"], 3]], window_size=1),
    "gpt_neo_classes": classes(neo(), "SequenceClassification", "GPTNeo"),
    "gpt_neo_token_classes": classes(neo(), "TokenClassification", "GPTNeo"),
    "bloom": bloom(soak=False),
    "bloom_hub": dataclasses.replace(
        bloom(n_head=2),
        strip="transformer.",
        dtype="F16",
        shards=2,
        written={"n_embed": 32, "num_attention_heads": 2, "pretraining_tp": 4, "offset_alibi": 100},
        unwritten=("hidden_size", "n_head", "tie_word_embeddings"),
    ),
    "bloom_odd_heads": bloom(hidden_size=36, n_head=6),
    "bloom_renormed": bloom(apply_residual_connection_post_layernorm=True, layer_norm_epsilon=1e-4),
    "bloom_untied": bloom(tie_word_embeddings=False, vocab_size=67),
    "bloom_classes": classes(bloom(), "SequenceClassification", "Bloom"),
    "bloom_token_classes": classes(bloom(), "TokenClassification", "Bloom"),
    "bloom_question": classes(bloom(), "QuestionAnswering", "Bloom"),
}
