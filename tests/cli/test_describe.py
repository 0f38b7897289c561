"""`describe`: sharding and bytes of a mesh whose devices need not exist, padding, and what a rule leaves whole."""

import re


def describe(llmlab, file, *arguments):
    code, out, error = llmlab("describe", file, *arguments)
    assert code == 0, error
    return out


def row(out, name):
    """The cells of a parameter's line."""
    line = next(line for line in out.splitlines() if line.startswith(f"{name} "))
    return re.split(r"\s{2,}", line.strip())


def test_a_mesh_that_does_not_exist(llmlab, file):
    out = describe(
        llmlab, file, "--devices", 64, "--data.batch", 16, "--mesh.data", 8, "--mesh.fsdp", 2, "--mesh.tensor", 4
    )
    table = row(out, "embed.table")
    assert table == ["embed.table", "VD", "(264, 32)", "V: tensor, D: fsdp", f"{264 * 32 * 4 // 8:,}"]
    up = row(out, "stack.segments.0.1.ffn.up.w")
    assert up == [
        "stack.segments.0.1.ffn.up.w",
        "NDF",
        "(2, 32, 32)",
        "D: fsdp, F: tensor",
        f"{2 * 32 * 32 * 4 // 8:,}",
    ]
    own = row(out, "stack.segments.0.0.mixer.out.w")  # of the part in the file; d has no rule
    assert own[3:] == ["D: fsdp", f"{2 * 32 * 32 * 4 // 2:,}"]
    assert f"(and {7 * 32:,} of padding)" in out and "memory of one of 64 devices" in out
    assert "replicated" not in out and "not divided" not in out


def test_one_device(llmlab, file):
    out = describe(llmlab, file)
    assert row(out, "embed.table")[3:] == ["replicated", f"{264 * 32 * 4:,}"]
    assert "Smooth" in out and "keep: 0.5" in out
    count = 257 * 32  # the table; then norms and matrices
    count += 32 + 2 * (32 * 32 + 32 + 4 * 32 * 32 + 2 * 32 * 32 + 2 * 32)
    assert f"{count:,} parameters" in out
    assert f"{4 * 8 * 16:,} tokens in 4 steps" in out


def test_what_a_rule_does_not_divide_or_does_not_reach(llmlab, file):
    kv = "--model.stack.segments.0.pattern.1.mixer.kv-heads"
    out = describe(llmlab, file, "--devices", 8, "--mesh.tensor", 8, kv, 2)
    name = "stack.segments.0.1.mixer.k.w"
    assert f"not divided: {name}: G of 2 over tensor 8; replicated" in out
    assert row(out, name)[3:] == ["replicated", f"{2 * 32 * 2 * 4 * 4:,}"]
