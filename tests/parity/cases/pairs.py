"""Encoder-decoders: T5 of both versions, BART, and Marian for the original Transformer."""

from .case import Case

T5 = {
    "vocab_size": 61,
    "d_model": 32,
    "d_kv": 12,
    "d_ff": 40,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "decoder_start_token_id": 0,
}
HALVES = {
    "vocab_size": 61,
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 40,
    "decoder_layers": 3,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 48,
    "pad_token_id": 1,
}


def t5(soak=True, **options) -> Case:
    values = {**T5, **options.pop("values", {})}
    return Case("T5ForConditionalGeneration", "T5Config", values, pair=True, soak=soak, **options)


def bart(soak=True, **options) -> Case:
    values = {**HALVES, **options.pop("values", {})}
    return Case("BartForConditionalGeneration", "BartConfig", values, pair=True, soak=soak, **options)


def marian(soak=True, **options) -> Case:
    # In real files both are one; transformers gives the row of padding no gradient, though it starts every target.
    ids = {"decoder_start_token_id": 60, "pad_token_id": 1}
    values = {**HALVES, **ids, **options.pop("values", {})}
    # Its waves are fixed, and have a gradient in transformers once they are loaded.
    frozen = ("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight")
    return Case("MarianMTModel", "MarianConfig", values, pair=True, frozen=frozen, soak=soak, **options)


GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
CASES = {
    "t5": t5(soak=False, values={"num_layers": 3, "num_decoder_layers": 2}),
    "t5_odd_buckets": t5(values={"relative_attention_num_buckets": 11, "layer_norm_epsilon": 1e-3}),
    # With more decoder layers than encoder layers the cache of transformers has too few places.
    "t5_deeper_decoder": t5(values={"num_decoder_layers": 3}, generation={"use_cache": False}),
    "t5_gated": t5(soak=False, values=GATED, untied=("lm_head.weight",), shards=2),
    "t5_gated_old": t5(
        values=GATED,
        untied=("lm_head.weight",),
        unwritten=("scale_decoder_outputs", "dense_act_fn", "is_gated_act"),
        written={"tie_word_embeddings": False},
    ),
    "t5_unscaled": t5(values={"tie_word_embeddings": False, "feed_forward_proj": "gated-silu"}),
    "bart": bart(soak=False),
    "bart_scaled": bart(
        values={"scale_embedding": True, "activation_function": "relu", "forced_bos_token_id": 0}, dtype="F16"
    ),
    "bart_classes": Case(
        "BartForSequenceClassification", "BartConfig", {**HALVES, "num_labels": 3}, loss="sequence", greedy=False,
        states=False,
    ),
    "bart_question": Case("BartForQuestionAnswering", "BartConfig", HALVES, loss=None, greedy=False, states=False),
    "marian": marian(
        soak=False, values={"scale_embedding": True, "activation_function": "relu", "forced_eos_token_id": None}
    ),
    "marian_swish": marian(values={"activation_function": "swish"}),
}  # fmt: skip
