"""Kim's convolutions against a loop in numpy, and the classifier made of them."""

import jax
import numpy as np
import pytest

from llmlab.cost import Shape, traced_flops
from llmlab.models import Max, Pooled
from llmlab.models.textcnn import TextCNN
from llmlab.nn import Context, Normal
from llmlab.nn.module import Rngs

BATCH, LENGTH = 2, 7
CONFIG = TextCNN(vocab=11, size=4, widths=(2, 3), maps=5, bias=Normal(std=1.0))
TOKENS_BL = np.random.default_rng(0).integers(0, 11, (BATCH, LENGTH))
SEGMENTS_BL = np.array([[1] * 5 + [0] * 2, [1, 1, 2, 2, 2, 2, 2]])
CTX = Context(positions_BL=np.tile(np.arange(LENGTH), (BATCH, 1)), segments_BL=SEGMENTS_BL)


def test_each_map_is_a_window_from_the_position_on_inside_its_document():
    model = CONFIG.build(Rngs(params=0))
    hidden_BLD, aux = jax.jit(model)(TOKENS_BL, CTX)
    x_BLD = np.asarray(model.embed.table[...])[TOKENS_BL]
    expected = np.zeros((BATCH, LENGTH, CONFIG.width))
    for number, conv in enumerate(model.convs):
        w_JDC, own = np.asarray(conv.w[...]), slice(5 * number, 5 * number + 5)
        expected[..., own] = conv.bias[...]
        for b, at, j in np.ndindex(BATCH, LENGTH, len(w_JDC)):
            if at + j < LENGTH and SEGMENTS_BL[b, at] == SEGMENTS_BL[b, at + j]:
                expected[b, at, own] += x_BLD[b, at + j] @ w_JDC[j]
    np.testing.assert_allclose(hidden_BLD, np.maximum(expected, 0), rtol=1e-4, atol=1e-6)
    assert aux == {} and CONFIG.width == 10


def test_the_papers_classifier_is_a_pooled_model():
    model = Pooled(trunk=CONFIG, pooling=Max(), classes=3, dropout=0.5).build(Rngs(params=0))

    def classify(tokens_BL):
        hidden_BLD, _ = model(tokens_BL, CTX)
        return hidden_BLD, model.classify(hidden_BLD, CTX)

    hidden_BLD, logits_BJ = jax.jit(classify)(TOKENS_BL)
    top_D = np.asarray(hidden_BLD)[0, :5].max(0)  # over real words, not over the padding
    expected = top_D @ np.asarray(model.out.w[...])
    np.testing.assert_allclose(logits_BJ[0], expected, rtol=1e-4, atol=1e-6)
    assert model.cost(Shape(BATCH, LENGTH)).executed == traced_flops(classify, TOKENS_BL)


def test_sizes():
    assert TextCNN().width == 300 and not TextCNN().declared().causal
    with pytest.raises(ValueError, match=r"TextCNN: widths \(3, 0\), maps 100 and size 300 are 1 or more"):
        TextCNN(widths=(3, 0))
    with pytest.raises(ValueError, match="there is at least one width"):
        TextCNN(widths=())
