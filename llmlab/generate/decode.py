"""Generation: one prefill of the prompts, then one position at a time on the cached state.

Prompts of different lengths stand at the right end of their rows; what is left of them is padding, which has negative
positions and is seen by no layer. Sources of an encoder stand at the left, and are read once. Tokens come in chunks of
a scan, so that Python does not run between two tokens. Where a row grows beyond a length at which all its keys become
others (LongRope's), the rows are read anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from llmlab import axes
from llmlab.axes import Rules
from llmlab.generate.sampling import Sampling
from llmlab.nn.einsum import Einsum
from llmlab.nn.module import merge, parts, split
from llmlab.nn.parts import Context
from llmlab.nn.position import RotaryLayer
from llmlab.nn.stack import StackLayers
from llmlab.tasks.pairs import read_source
from llmlab.tasks.task import row_context

CHUNK = 16  # tokens of one scan


class Generator:
    """Generates with a model (its structure, parameters and statistics) on a mesh."""

    def __init__(self, structure, params: dict, stats: dict, mesh: jax.sharding.Mesh, rules: Rules, dtype: str):
        self.mesh, self.rules, self.dtype = mesh, rules.relaxed("BLM"), dtype
        model = merge(structure, params, stats)
        if mesh.size == 1 and mesh.devices.flat[0].platform == "cpu":
            for stack in parts(model, StackLayers):
                stack.unroll()
            for part in parts(model, Einsum) if dtype == "bfloat16" else ():
                part.turn(dtype)  # eight rows in 0.83 of the time, one in 0.78 (docs/log.md)
        scalings = [layer.cfg.scaling for layer in parts(model, RotaryLayer)]
        self.border = min((one.border for one in scalings if one and one.border), default=None)
        self.structure, self.params, self.stats = split(model)
        self.prefill = jax.jit(self._prefill, static_argnums=(4, 5))
        self.extend = jax.jit(self._extend, static_argnums=(5, 6), donate_argnums=2)

    @classmethod
    def of(cls, program, state: dict) -> Generator:
        """The generator of a program (`llmlab.train.program`) and a state that has params and stats."""
        experiment = program.experiment
        if not experiment.model.declared().decodable:
            raise ValueError(f"{type(experiment.model).__name__} is not decodable: a part of it has no decode state")
        return cls(program.structure, state["params"], state["stats"], program.mesh, experiment.rules, program.dtype)

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        most: int,
        sampling: Sampling = Sampling(),
        stop: Sequence[int] = (),
        seed: int = 0,
        sources: Sequence[Sequence[int]] | None = None,
    ) -> Iterator[np.ndarray]:
        """Yields new tokens as they come, arrays of (rows, 1 to CHUNK) ids; -1 after a row's stop token.

        most: new tokens of a row at most. stop: ids that end a row (they are given too). sources: what an encoder
        reads, one for each prompt. Raises ValueError for an empty prompt or source and for `most` below 1.
        """
        rows, carry, given = self.rows(prompts, most, sources), None, 0
        stop, key = tuple(sorted(stop)), jax.random.key(seed)
        texts, done_B = [list(prompt) for prompt in prompts], np.zeros(len(prompts), bool)
        while given < most and not done_B.all():
            steps = min(most - given, self.steps(texts)) if given else 0
            if steps:
                new_BL, carry = self.extend(self.params, self.stats, carry, key, given, sampling, stop)
            else:
                rows, steps = self.rows(texts, most - given, sources) if given else rows, 1
                slots = rows["tokens_BL"].shape[1] + -(-(most - given) // CHUNK) * CHUNK
                drawn = jax.random.fold_in(key, given) if given else key
                tokens_B, carry = self.prefill(self.params, self.stats, rows, drawn, slots, sampling)
                ended_B = jnp.isin(tokens_B, jnp.array(stop or (-1,))) | done_B  # where the tokens lie: one compilation
                new_BL, carry = tokens_B[:, None], (tokens_B, ended_B, *carry)
            new_BL = np.where(done_B[:, None], -1, np.asarray(new_BL)[:, :steps])
            yield new_BL
            given += steps
            done_B |= np.isin(new_BL, stop).any(1)
            for text, new_L in zip(texts, np.maximum(new_BL, 0)):
                text += new_L.tolist()

    def steps(self, texts: list[list[int]]) -> int:
        """How many steps of a scan are right: none of them reads a row beyond the border that was not there yet."""
        left = [self.border + 1 - len(text) for text in texts if len(text) <= self.border + 1] if self.border else ()
        return min([CHUNK, *left])

    def rows(self, prompts, most: int, sources=None) -> dict[str, np.ndarray]:
        """Prompts, and sources if there are any, as arrays."""
        if most < 1:
            raise ValueError(f"generation gives 1 new token or more, not {most}")
        for kind, given in (("prompt", prompts), ("source", sources or ())):
            for number, ids in enumerate(given):
                if len(ids) == 0:
                    raise ValueError(f"{kind} {number} holds no tokens; generation needs at least one to start from")
        length = max(map(len, prompts))
        longest = self.check_length(length + most)
        padded = min(few(length), longest or few(length))
        rows = {
            "tokens_BL": np.zeros((len(prompts), padded), np.int32),
            "positions_BL": np.full((len(prompts), padded), -1, np.int32),
        }
        for row, prompt in enumerate(prompts):
            rows["tokens_BL"][row, -len(prompt) :] = prompt
            rows["positions_BL"][row, -len(prompt) :] = np.arange(len(prompt))
        if sources is None:
            return rows
        size = few(max(map(len, sources)))
        for name in ("source_BM", "source_segments_BM"):
            rows[name] = np.zeros((len(prompts), size), np.int32)
        for row, source in enumerate(sources):
            rows["source_BM"][row, : len(source)] = source
            rows["source_segments_BM"][row, : len(source)] = 1
        return rows

    def check_length(self, length: int) -> int | None:
        """The most positions of the model, None for no limit. Raises ValueError when `length` is more."""
        longest = merge(self.structure, self.params, self.stats).longest
        if longest is not None and length > longest:
            raise ValueError(
                f"prompt and new tokens are {length} positions, and the model has {longest}; "
                "ask for fewer tokens, or give a shorter prompt"
            )
        return longest

    def generate(self, prompts: Sequence[Sequence[int]], most: int, **options) -> list[list[int]]:
        """The new tokens of each row, a stop token included; the options are those of `stream`."""
        rows = np.concatenate(list(self.stream(prompts, most, **options)), axis=1)
        return [[int(token) for token in row if token >= 0] for row in rows]

    def _prefill(self, params, stats, rows, key, slots: int, sampling: Sampling):
        with axes.use(self.mesh, self.rules):
            logits_BV, positions_B, state = begin(merge(self.structure, params, stats), rows, slots, self.dtype)
            return sampling(logits_BV, jax.random.fold_in(key, 0)), (positions_B, state)

    def _extend(self, params, stats, carry, key, given, sampling: Sampling, stop: tuple[int, ...]):
        with axes.use(self.mesh, self.rules):
            model = merge(self.structure, params, stats)

            def one(carry, index):
                tokens_B, done_B, positions_B, state = carry
                ctx = Context(positions_BL=positions_B[:, None], dtype=self.dtype)
                hidden_BLD, state = model.extend(tokens_B[:, None], state, ctx)
                new_B = sampling(model.logits(hidden_BLD)[:, 0], jax.random.fold_in(key, index))
                shown_B = jnp.where(done_B, -1, new_B)
                if stop:
                    done_B |= jnp.isin(new_B, jnp.array(stop))
                return (new_B, done_B, positions_B + 1, state), shown_B

            carry, new_LB = jax.lax.scan(one, carry, given + jnp.arange(CHUNK))
            return new_LB.T, carry


def begin(model, rows: dict[str, jax.Array], slots: int, dtype):
    """(logits_BV after the prompts, the next positions_B, decode state); an encoder reads its sources here, once."""
    ctx = start = row_context(rows, None, dtype)
    if "source_BM" in rows:
        start, _ = read_source(model, rows, None, dtype)
    state = model.start(rows["tokens_BL"].shape[0], slots, start)
    state = jax.tree.map(axes.shard, state, model.letters)
    hidden_BLD, state = model.extend(rows["tokens_BL"], state, ctx)
    return model.logits(hidden_BLD[:, -1:])[:, 0], ctx.positions_BL[:, -1] + 1, state


def few(length: int) -> int:
    """The next power of two: few lengths, so that prefill compiles seldom."""
    return 1 << (length - 1).bit_length()
