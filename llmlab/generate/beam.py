"""Beam search (Wu et al., 2016, section 7): the likeliest whole continuations that a few kept beams lead to.

Letters of this file: W, beams of a row; T, new tokens; P, rows times beams.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from llmlab import axes
from llmlab.config import Config, config
from llmlab.generate.decode import Generator, begin
from llmlab.nn.module import merge
from llmlab.nn.parts import Context

NEVER = -1e30  # the score of what is no candidate


@config
class Beam(Config):
    """width: beams kept of each row. penalty: a continuation of n tokens is ranked by its log-probability divided by
    ((5 + n) / 6) ** penalty, so that short ones are not preferred; 0 ranks by probability alone."""

    width: int = 4
    penalty: float = 0.6

    def check(self):
        if self.width < 1 or self.penalty < 0:
            raise ValueError(f"Beam: width {self.width} is 1 or more, penalty {self.penalty} is 0 or more")

    def rank(self, scores, count):
        return scores / ((5 + count) / 6) ** self.penalty


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Search:
    """What a search holds between two tokens. Beams that are done keep their rank, the others their log-probability."""

    count: jax.Array  # new tokens so far
    scores_BW: jax.Array
    tokens_BWT: jax.Array
    ranks_BW: jax.Array
    done_BWT: jax.Array
    positions_P: jax.Array
    state: object


def search(
    generator: Generator,
    prompts: Sequence[Sequence[int]],
    most: int,
    beam: Beam = Beam(),
    stop: Sequence[int] = (),
    sources: Sequence[Sequence[int]] | None = None,
) -> list[tuple[list[int], float]]:
    """(new tokens, rank) of the best continuation of each prompt; a stop token ends one and is given too.

    A continuation that does not stop within `most` tokens is ranked as it stands there. Where a row grows beyond the
    border of the generator, all beams are read anew.
    """
    stop, texts, found, given = tuple(sorted(stop)), prompts, None, 0
    borders = {generator.border + 1 - len(prompt) for prompt in prompts} if generator.border else ()
    for until in sorted({most, *(count for count in borders if 0 < count < most)}):
        rows = generator.rows(texts, most - given, sources)
        weights = generator.params, generator.stats
        found, going, (tokens_BT, ranks_B) = _search(generator, beam, most, stop, weights, rows, found, until)
        if not going:
            break
        sources = sources if given or sources is None else [one for one in sources for _ in range(beam.width)]
        written, given = np.asarray(found.tokens_BWT)[..., :until].tolist(), until
        texts = [[*prompt, *tokens] for prompt, beams in zip(prompts, written) for tokens in beams]
    return [([int(t) for t in row if t >= 0], float(rank)) for row, rank in zip(tokens_BT, ranks_B)]


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _search(generator: Generator, beam: Beam, most: int, stop: tuple[int, ...], weights, rows, found, until):
    """(what the search holds at `until` new tokens, but for the state, whether it goes on, the best of each row).

    found: what it held where the rows are those of its beams, None where they are prompts.
    """
    with axes.use(generator.mesh, generator.rules):
        model = merge(generator.structure, *weights)
        logits_BV, positions_B, state = begin(model, rows, rows["tokens_BL"].shape[1] + most, generator.dtype)
        if found is None:
            found = _first(beam, most, positions_B, state, model.letters)
            logits_BV = jnp.repeat(logits_BV, beam.width, axis=0)
        else:
            found = dataclasses.replace(found, positions_P=positions_B, state=state)
        return _run(generator, beam, stop, model, found, logits_BV, until)


def _first(beam: Beam, most: int, positions_B, state, letters) -> Search:
    """What a search holds before its first token."""
    held = (len(positions_B), beam.width)
    spread = lambda letters, a: a if "B" not in letters else jnp.repeat(a, beam.width, axis=letters.index("B"))
    return Search(
        count=jnp.zeros((), jnp.int32),
        scores_BW=jnp.full(held, NEVER).at[:, 0].set(0.0),  # one beam until they differ
        tokens_BWT=jnp.full((*held, most), -1, jnp.int32),
        ranks_BW=jnp.full(held, NEVER),
        done_BWT=jnp.full((*held, most), -1, jnp.int32),
        positions_P=jnp.repeat(positions_B, beam.width),
        state=jax.tree.map(spread, letters, state),
    )


def _run(generator: Generator, beam: Beam, stop: tuple[int, ...], model, begun: Search, logits_PV, until):
    batch, _, most = begun.tokens_BWT.shape
    vocab = logits_PV.shape[1]

    def step(found: Search, logits_PV) -> Search:
        logp_BWV = jax.nn.log_softmax(logits_PV).reshape(batch, beam.width, vocab)
        every_BW, index_BW = jax.lax.top_k((found.scores_BW[..., None] + logp_BWV).reshape(batch, -1), 2 * beam.width)
        parent_BW, token_BW = index_BW // vocab, (index_BW % vocab).astype(jnp.int32)
        written_BWT = jnp.take_along_axis(found.tokens_BWT, parent_BW[..., None], 1).at[..., found.count].set(token_BW)
        ends_BW = jnp.isin(token_BW, jnp.array(stop)) if stop else jnp.zeros_like(token_BW, bool)
        ranks_BW = jnp.where(ends_BW, beam.rank(every_BW, found.count + 1), NEVER)
        ranks_BW, done_BWT = best(
            jnp.concatenate([found.ranks_BW, ranks_BW], 1),
            jnp.concatenate([found.done_BWT, written_BWT], 1),
            beam.width,
        )
        scores_BW, kept_BW = jax.lax.top_k(jnp.where(ends_BW, NEVER, every_BW), beam.width)
        from_P = (jnp.take_along_axis(parent_BW, kept_BW, 1) + beam.width * jnp.arange(batch)[:, None]).reshape(-1)
        pick = lambda letters, a: a if "B" not in letters else jnp.take(a, from_P, axis=letters.index("B"))
        tokens_BWT = jnp.take_along_axis(written_BWT, kept_BW[..., None], 1)
        state = jax.tree.map(pick, model.letters, found.state)
        return Search(found.count + 1, scores_BW, tokens_BWT, ranks_BW, done_BWT, found.positions_P, state)

    def going(found: Search):
        """Whether a beam that is not done could still come before the worst that is."""
        hope_B = beam.rank(found.scores_BW.max(1), most)
        return (found.count < most) & (hope_B > found.ranks_BW.min(1)).any()

    def body(found: Search) -> Search:
        tokens_P = jnp.take_along_axis(
            found.tokens_BWT.reshape(-1, most), jnp.broadcast_to(found.count - 1, (batch * beam.width, 1)), 1
        )
        ctx = Context(positions_BL=found.positions_P[:, None], dtype=generator.dtype)
        hidden_PLD, state = model.extend(tokens_P, found.state, ctx)
        moved = dataclasses.replace(found, state=state, positions_P=found.positions_P + 1)
        return step(moved, model.logits(hidden_PLD)[:, 0])

    early = lambda found: going(found) & (found.count < until)
    found = jax.lax.while_loop(early, body, step(begun, logits_PV))
    ranks_BW = jnp.concatenate([found.ranks_BW, beam.rank(found.scores_BW, found.count)], 1)
    ranks_BW, tokens_BWT = best(ranks_BW, jnp.concatenate([found.done_BWT, found.tokens_BWT], 1), 1)
    return dataclasses.replace(found, state=None), going(found), (tokens_BWT[:, 0], ranks_BW[:, 0])


def best(ranks_BW, tokens_BWT, count: int):
    """The `count` highest ranks of each row and their tokens."""
    ranks_BW, index_BW = jax.lax.top_k(ranks_BW, count)
    return ranks_BW, jnp.take_along_axis(tokens_BWT, index_BW[..., None], 1)
