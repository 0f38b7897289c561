"""BERT: every head, both forms of gelu, old names, files without a prefix."""

from .case import Case

BERT = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 24,
    "type_vocab_size": 3,
}
NEAR = 5e-5


def bert(head: str, loss=None, soak=True, **options) -> Case:
    values = {**BERT, **options.pop("values", {})}
    return Case(f"Bert{head}", "BertConfig", values, loss=loss, greedy=False, tolerance=NEAR, soak=soak, **options)


CASES = {
    "bert": bert("ForMaskedLM", "masked", soak=False, types=True),
    "bert_tanh": bert("ForMaskedLM", "masked", types=True, values={"hidden_act": "gelu_new", "layer_norm_eps": 1e-5}),
    "bert_before_training": bert("ForPreTraining", types=True, dtype="F16"),
    "bert_old_names": bert(
        "ForMaskedLM",
        "masked",
        renamed=(("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")),
        buffers=("bert.embeddings.position_ids",),
        unwritten=("layer_norm_eps", "hidden_act", "tie_word_embeddings"),
    ),
    "bert_pooled": bert("Model", soak=False, buffers=("embeddings.position_ids",)),
    "bert_pooled_prefixed": bert("Model", prefix="bert."),
    "bert_classes": bert("ForSequenceClassification", "sequence", types=True, values={"num_labels": 3}),
    "bert_token_classes": bert("ForTokenClassification", "token", values={"num_labels": 5}),
    "bert_question": bert("ForQuestionAnswering", types=True),
}
