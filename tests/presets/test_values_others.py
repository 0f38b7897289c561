"""Presets without files: what their papers fix is there."""

from llmlab.nn.module import abstract, specs
from llmlab.presets import keyword_spotter, rnnencdec, rnnsearch


def shapes(model):
    return {".".join(path): spec.shape for path, spec in specs(abstract(model.build)).items()}


def test_recurrent_pairs_have_1000_units_a_direction_and_no_norm():
    for model in (rnnsearch(), rnnencdec()):
        found = shapes(model)
        assert not any("wiring" in name or name.startswith(("norm", "source_norm")) for name in found)
        assert found["embed.table"] == found["source_embed.table"] == found["head.table"] == (30_000, 2000)
        assert "encoder.segments.0.0.mixer.out.w" not in found  # the two directions are the width
    assert shapes(rnnsearch())["stack.segments.0.0.mixer.keys.w"] == (1, 2000, 1000)
    assert shapes(rnnsearch())["stack.segments.0.0.mixer.query.w"] == (1, 1000, 1000)
    assert shapes(rnnencdec())["stack.segments.0.0.mixer.out.w"][-1] == 2000


def test_a_spotter_of_words_reads_frames():
    model = keyword_spotter(words=5)
    assert (model.outcomes, model.trunk.features, model.trunk.stack.depth) == (5, 40, 6)
    assert shapes(model)["out.w"] == (64, 5)
