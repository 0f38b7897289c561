"""How likely a model finds given texts: what a choice among labels is decided by."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from llmlab import axes
from llmlab.generate.decode import Generator, few
from llmlab.nn.module import merge
from llmlab.tasks.pairs import read_source
from llmlab.tasks.task import row_context


def likelihoods(
    generator: Generator, rows: Sequence[Sequence[int]], first: int, source: Sequence[int] | None = None
) -> np.ndarray:
    """The log-probability of each row's tokens from `first` on, in nats, given those before and the source.

    Raises ValueError unless every row has a token there and one before it.
    """
    short = min(map(len, rows))
    if not 0 < first < short:
        raise ValueError(f"rows of {short} tokens or more cannot be scored from token {first} on")
    longest = generator.check_length(max(map(len, rows)) - 1)
    size = few(max(map(len, rows)) - 1)
    size = min(size, longest or size)
    batch = {
        f"{name}_BL": np.zeros((len(rows), size), np.int32) for name in ("tokens", "targets", "segments", "scored")
    }
    for number, row in enumerate(rows):
        count = len(row) - 1
        batch["tokens_BL"][number, :count], batch["targets_BL"][number, :count] = row[:-1], row[1:]
        batch["segments_BL"][number, :count] = 1
        batch["scored_BL"][number, first - 1 : count] = 1
    if source is not None:
        width = few(len(source))
        batch["source_BM"] = np.tile(np.pad(source, (0, width - len(source))), (len(rows), 1)).astype(np.int32)
        batch["source_segments_BM"] = np.tile(np.arange(width) < len(source), (len(rows), 1)).astype(np.int32)
    return -np.asarray(_losses(generator, generator.params, generator.stats, batch))


@partial(jax.jit, static_argnums=0)
def _losses(generator: Generator, params, stats, batch) -> jax.Array:
    """The sum of losses of each row."""
    with axes.use(generator.mesh, generator.rules):
        model = merge(generator.structure, params, stats)
        if "source_BM" in batch:
            ctx, _ = read_source(model, batch, None, generator.dtype)
        else:
            ctx = row_context(batch, None, generator.dtype)
        hidden_BLD, _ = model(batch["tokens_BL"], ctx)

        def loss(row):
            hidden_LD, targets_L, scored_L = row
            return model.nll(hidden_LD[None], targets_L[None], scored_L[None].astype(jnp.float32))[0]

        return jax.lax.map(loss, (hidden_BLD, batch["targets_BL"], batch["scored_BL"]))
