"""Tasks of encoder and decoder: a source is read, a target is written.

An example has source_M and source_segments_M (1, 0 on padding) beside tokens_L (the target moved by one: it begins with
a start id), targets_L and weights_L.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from llmlab.config import Config, config
from llmlab.cost import Shape
from llmlab.nn.parts import Context
from llmlab.tasks.task import Question, Task, predict, row_context, whole_rows


def read_source(model, batch, key, dtype) -> tuple[Context, dict]:
    """The context of the target, with what the model's encoder makes of the source."""
    memory_BMD, aux = model.encode(batch["source_BM"], source_context(batch, key, dtype))
    told = {"memory_BMD": memory_BMD, "memory_segments_BM": batch["source_segments_BM"]}
    return dataclasses.replace(row_context(batch, key, dtype), **told), aux


def source_context(batch, key, dtype) -> Context:
    """The context of the source. Its positions are those in the row where the batch does not give them."""
    apart = None if key is None else jax.random.fold_in(key, 1 << 20)  # no layer of the decoder has this number
    positions_BM = batch.get("source_positions_BM")
    if positions_BM is None:
        positions_BM = jnp.broadcast_to(jnp.arange(batch["source_BM"].shape[1]), batch["source_BM"].shape)
    ctx = row_context(batch, apart, dtype)
    return dataclasses.replace(ctx, positions_BL=positions_BM, segments_BL=batch["source_segments_BM"])


def pair(source: np.ndarray, target: np.ndarray, start: int, sizes: tuple[int, int]) -> dict[str, np.ndarray]:
    """An example of a source and a target (its end included), padded to `sizes` positions; what is longer is cut."""
    source, target = source[: sizes[0]], target[: sizes[1]]
    fill = lambda values, size: np.pad(values, (0, size - len(values))).astype(np.int32)
    real_L = fill(np.ones(len(target)), sizes[1])
    return {
        "source_M": fill(source, sizes[0]),
        "source_segments_M": fill(np.ones(len(source)), sizes[0]),
        "tokens_L": fill(np.concatenate([[start], target[:-1]]), sizes[1]),
        "targets_L": fill(target, sizes[1]),
        "weights_L": real_L.astype(np.float32),
        "segments_L": real_L,
        "positions_L": np.arange(sizes[1], dtype=np.int32),
    }


class Paired(Task):
    """The base of tasks whose decoder reads what an encoder made of a source."""

    def context(self, model, batch, key, dtype):
        return read_source(model, batch, key, dtype)

    def shape(self, batch):
        return Shape(*batch["tokens_BL"].shape, memory=batch["source_BM"].shape[1])


@config
class Seq2Seq(Paired):
    """Write the target that belongs to a source, for data that gives pairs. A row counts as whole where all is hit.

    start, end: ids of the data that stand before and after a target; without them no text can be generated.
    """

    smoothing: float = 0.0
    start: int | None = None
    end: int | None = None

    def ask(self, prompt, vocab):
        if self.start is None or self.end is None:
            raise ValueError("Seq2Seq needs `start` and `end`, the ids around a target, to write one")
        return Question([self.start], prompt, (self.end,))

    def loss(self, model, batch, key, dtype):
        return predict(self, model, batch, key, dtype, whole_rows, smoothing=self.smoothing)


@config
class Continuation(Paired):
    """Read the first part of a window of text and write the rest; two ids follow those of the data: start and end.

    share: of the window that is read.
    """

    share: float = 0.5

    extra = 2

    def check(self):
        if not 0 < self.share < 1:
            raise ValueError(f"Continuation.share is {self.share}; both parts need some of the window")

    def ask(self, prompt, vocab):
        return Question([vocab], prompt, (vocab + 1,))

    def prepare(self, example, random, pieces):
        tokens_L, real = example["tokens_L"], int((example["segments_L"] > 0).sum())
        cut = min(max(1, round(self.share * len(tokens_L))), len(tokens_L) - 1)
        start, end = len(pieces), len(pieces) + 1
        target = np.append(tokens_L[cut:real], end)
        found = pair(tokens_L[: min(cut, real)], target, start, (cut, len(tokens_L) - cut + 1))
        return found if real > cut else found | {"weights_L": np.zeros_like(found["weights_L"])}

    def loss(self, model, batch, key, dtype):
        return predict(self, model, batch, key, dtype)


class Denoiser(Config):
    """Which tokens of a text are taken out: sizes(length) -> (tokens taken, spans); noise(length, random) -> mask.

    `mode` is the number of the id that tells the model of it, where a task has several modes.
    """


@config
class Spans(Denoiser):
    """Random spans (Raffel et al., 2020, section 3.1.4). rate: share of the tokens. mean: tokens of a span."""

    rate: float = 0.15
    mean: float = 3.0
    mode: int = 0

    def check(self):
        if not (0 < self.rate < 1 and self.mean >= 1):
            raise ValueError(f"Spans: rate {self.rate} is between 0 and 1, mean {self.mean} at least 1")

    def sizes(self, length: int) -> tuple[int, int]:
        taken = min(max(round(length * self.rate), 1), length - 1)
        return taken, min(max(round(taken / self.mean), 1), taken, length - taken)

    def noise(self, length: int, random: np.random.Generator) -> np.ndarray:
        """True on what is taken; the text begins with a part that stays."""
        taken, spans = self.sizes(length)
        lengths = np.empty(2 * spans, np.int64)
        lengths[0::2], lengths[1::2] = parts(length - taken, spans, random), parts(taken, spans, random)
        return np.repeat(np.arange(2 * spans) % 2 == 1, lengths)


@config
class Suffix(Denoiser):
    """All after a random place: a prefix is read, the rest is written (UL2's S-denoiser). rate: share on average."""

    rate: float = 0.25
    mode: int = 0

    def check(self):
        if not 0 < self.rate <= 0.5:
            raise ValueError(f"Suffix.rate is {self.rate}; half of the text at most is taken on average")

    def sizes(self, length):
        return min(max(round(2 * length * self.rate), 1), length - 1), 1

    def noise(self, length, random):
        return np.arange(length) >= length - random.integers(1, self.sizes(length)[0] + 1)


def parts(total: int, count: int, random: np.random.Generator) -> np.ndarray:
    """A whole in so many parts of 1 or more, every way as likely."""
    cuts = np.sort(random.choice(total - 1, count - 1, replace=False)) + 1
    return np.diff(cuts, prepend=0, append=total)


@config
class SpanCorruption(Paired):
    """Write what was taken out of a text (T5). Each span is replaced by one sentinel, which stands before it in the
    target. Of several denoisers each text gets one by chance; with several modes, an id at the source's start tells it.
    After the ids of the data follow: start, end, the sentinels, the modes.
    """

    denoisers: tuple[Denoiser, ...] = (Spans(),)
    sentinels: int = 100

    def check(self):
        if not self.denoisers or self.sentinels < 1:
            raise ValueError("SpanCorruption needs a denoiser and a sentinel, or more of them")

    @property
    def extra(self) -> int:
        return 2 + self.sentinels + self.modes

    @property
    def modes(self) -> int:
        """Ids that tell modes: none where there is only one."""
        count = 1 + max(denoiser.mode for denoiser in self.denoisers)
        return count if count > 1 else 0

    def ask(self, prompt, vocab):
        return Question([vocab], [*prompt, vocab + 1], (vocab + 1,))

    def lengths(self, length: int) -> tuple[int, int]:
        """(positions of the source, of the target) that every text of a length fits in; multiples of 8."""
        sizes = [denoiser.sizes(length) for denoiser in self.denoisers]
        least = [1 if isinstance(d, Suffix) else taken for d, (taken, _) in zip(self.denoisers, sizes)]
        source = max(length - low + spans for low, (_, spans) in zip(least, sizes)) + 1 + (self.modes > 0)
        target = max(taken + spans for taken, spans in sizes) + 1
        if max(spans for _, spans in sizes) > self.sentinels:
            raise ValueError(
                f"a text of {length} tokens has {max(s for _, s in sizes)} spans and there are {self.sentinels} "
                "sentinels; raise task.sentinels, or shorten data.length"
            )
        return 8 * math.ceil(source / 8), 8 * math.ceil(target / 8)

    def prepare(self, example, random, pieces):
        length = len(example["tokens_L"])
        text = example["tokens_L"][example["segments_L"] > 0]
        number = int(random.integers(len(self.denoisers)))
        start, end, sentinel = len(pieces), len(pieces) + 1, len(pieces) + 2
        if len(text) < 2:  # nothing can be taken out
            found = pair(text, np.array([end]), start, self.lengths(length))
            return found | {"weights_L": np.zeros_like(found["weights_L"])}
        noise = self.denoisers[number].noise(len(text), random)
        source, target = replace(text, noise, sentinel), replace(text, ~noise, sentinel)
        if self.modes:
            source = np.append(sentinel + self.sentinels + self.denoisers[number].mode, source)
        return pair(np.append(source, end), np.append(target, end), start, self.lengths(length))

    def loss(self, model, batch, key, dtype):
        return predict(self, model, batch, key, dtype)


def replace(text: np.ndarray, noise: np.ndarray, sentinel: int) -> np.ndarray:
    """`text` with each run of noise replaced by one sentinel, numbered from 0."""
    first = noise & ~np.concatenate([[False], noise[:-1]])
    numbered = np.where(first, sentinel + np.cumsum(first) - 1, text)
    return numbered[~noise | first]


def ul2(sentinels: int = 100) -> SpanCorruption:
    """UL2's seven denoisers (Tay et al., 2022, table 1) in three modes: regular, sequential, extreme."""
    regular = (Spans(mean=3.0, rate=0.15), Spans(mean=8.0, rate=0.15))
    extreme = tuple(Spans(mean=m, rate=r, mode=2) for m, r in ((3.0, 0.5), (8.0, 0.5), (64.0, 0.15), (64.0, 0.5)))
    return SpanCorruption(denoisers=(*regular, Suffix(mode=1), *extreme), sentinels=sentinels)
