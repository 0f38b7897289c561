"""Models with weights: load a checkpoint or a run, call it, score it, generate, embed, save it for other tools.

    model = llmlab.from_pretrained("SmolLM2-135M")
    logits_BLV = model(tokens_BL)
    tokens_BL = model.generate(tokens_BL, max_new_tokens=32)
    llmlab.save_pretrained(model, "copy")

Ids and masks may be numpy or jax arrays or nested lists; what comes back are jax arrays. A mask is 1 on tokens and 0 on
padding, on either side of a row; padded rows give what they give without it.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from llmlab import axes
from llmlab.axes import Rules
from llmlab.generate import Beam, Generator, Sampling, search
from llmlab.generate.decode import few
from llmlab.interop.checkpoint import Checkpoint, open_checkpoint, shapes, write_checkpoint
from llmlab.interop.safetensors import parse_json
from llmlab.interop.tokenizers import BESIDE, home_of, load_tokenizer
from llmlab.mesh import Mesh
from llmlab.models.decoder import Model
from llmlab.models.encdec import EncoderDecoder
from llmlab.models.heads import First, Mean, Pooled, Pooling, Tagged
from llmlab.nn.module import merge, split
from llmlab.presets.family import trunk_of
from llmlab.tasks.pairs import read_source, source_context
from llmlab.tasks.task import row_context
from llmlab.train.program import precision

IGNORED = -100  # a label that is not scored


def from_pretrained(
    directory: str | Path,
    mesh: Mesh | jax.sharding.Mesh = Mesh(),
    rules: Rules = axes.every(),
    dtype: str = "auto",
    stored: str = "auto",
) -> Pretrained:
    """The model of a checkpoint (a directory with config.json and safetensors, or a GGUF file) or of a run of llmlab,
    with its weights.

    mesh, rules: where the weights go. dtype: of activations; "auto" is bfloat16 on accelerators and float32 on CPU.
    stored: of weights; "auto" is float32, but for matrices that the file holds in the activations' type. Raises an
    error that names file and tensor when the checkpoint is not whole; nothing that is pickled or is code is loaded.
    """
    directory, grid = Path(directory), mesh.build() if isinstance(mesh, Mesh) else mesh
    rules = rules.relaxed("BLM")
    if (directory / "run.json").is_file():
        from llmlab.train.restore import restore_model
        from llmlab.train.run import load

        experiment = load(directory)
        _, state, _ = restore_model(directory, experiment, mesh=grid)
        place = Place(grid, rules, precision(dtype, grid), directory)
        return kind_of(experiment.model)(experiment.model, state["params"], state["stats"], place, experiment)
    checkpoint = open_checkpoint(directory)
    place = Place(grid, rules, precision(dtype, grid), checkpoint.directory)
    types = ("float32", place.dtype) if stored == "auto" else (precision(stored, grid),)
    return kind_of(checkpoint.model)(checkpoint.model, checkpoint.params(grid, rules, *types), {}, place, checkpoint)


def save_pretrained(model: Pretrained, directory: str | Path, dtype: str = "float32") -> list[Path]:
    """Writes a directory that `transformers` opens: config.json, weights, and the files of the tokenizer, if any.

    Raises ConfigError when no published family has such a model, with what differs.
    """
    origin = model.origin if isinstance(model.origin, Checkpoint) else None
    family, settings = (origin.family, origin.settings) if origin else (None, None)
    files = write_checkpoint(directory, model.config, model.params, family, settings, dtype)
    for name in BESIDE:
        source, target = model.home / name, Path(directory) / name
        if source.is_file() and source.resolve() != target.resolve():
            files.append(Path(shutil.copyfile(source, target)))
    return files


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a model lives: devices, rules, type of activations, and the directory it came from."""

    mesh: jax.sharding.Mesh
    rules: Rules
    dtype: str
    directory: Path


class Pretrained:
    """A model with weights. config: its value. params: nested dicts of arrays. origin: its checkpoint or experiment."""

    def __init__(self, config: Model, params: dict, stats: dict, place: Place, origin):
        self.config, self.params, self.stats, self.place, self.origin = config, params, stats, place, origin
        self.structure = split(shapes(config))[0]
        self._run = jax.jit(self._apply, static_argnames="states")
        self._score = jax.jit(self._loss)

    @property
    def home(self) -> Path:
        """The directory of the tokenizer's files: the checkpoint's, or that of the one which a run began with."""
        data = None if isinstance(self.origin, Checkpoint) else self.origin.data
        return home_of(getattr(data, "tokenizer", None), self.place.directory)

    @functools.cached_property
    def tokenizer(self):
        """What turns text into ids, of the directory. Raises an error that says what was looked for."""
        if isinstance(self.origin, Checkpoint):
            return load_tokenizer(self.place.directory)
        return self.origin.open_data(lambda text: None).encoder

    def generate(
        self,
        tokens_BL,
        attention_mask=None,
        max_new_tokens=20,
        temperature=0.0,
        stop=None,
        seed=0,
        beams: Beam | None = None,
        **sampling,
    ) -> jax.Array:
        """tokens_BL (of an encoder-decoder: the start) with what the model wrote behind them, padded behind the end.

        temperature 0 takes the likeliest token; further options are those of `llmlab.generate.Sampling`. stop: ids that
        end a row, by default those of the checkpoint. beams: searches for the likeliest whole text, with
        llmlab.generate.Beam(width=4). Of an encoder-decoder, tokens_BL is the source.
        """
        rows, sources = self.prompts(_ids(tokens_BL), _mask(attention_mask))
        stop = self.ends if stop is None else tuple(np.atleast_1d(stop).tolist())
        most, sampling = max_new_tokens - self.forced, Sampling(temperature=temperature, **sampling)
        if beams is None:
            found = self.generator.stream(rows, most, sampling, stop, seed, sources)
            new_BL = np.concatenate(list(found), axis=1)
        elif sampling != Sampling(temperature=0.0):
            raise ValueError("a search with beams draws nothing: leave out temperature and the options of drawing")
        else:
            texts = [tokens for tokens, _ in search(self.generator, rows, most, beams, stop, sources)]
            new_BL = np.full((len(rows), max(map(len, texts))), -1)
            for row, tokens in zip(new_BL, texts):
                row[: len(tokens)] = tokens
        last = self._setting("forced_eos_token_id")
        if last is not None and new_BL.shape[1] == most:  # of a text that is cut
            new_BL[:, -1] = np.where(new_BL[:, -1] < 0, -1, last)
        return jnp.concatenate([self.lead(_ids(tokens_BL)), jnp.where(new_BL < 0, self.padding, new_BL)], axis=1)

    forced = 0  # tokens of a text that are given, behind the first

    @functools.cached_property
    def generator(self) -> Generator:
        """The generator of this model (llmlab/generate), for streams and beams."""
        if not self.config.declared().decodable:
            raise ValueError(f"{type(self.config).__name__} cannot generate: a part of it has no decode state")
        place = self.place
        return Generator(self.structure, self.params, self.stats, place.mesh, place.rules, place.dtype)

    def embed(self, texts: list[str], pooling: Pooling | None = None) -> jax.Array:
        """A vector of length 1 for each text, vectors_BD.

        pooling: of the last hidden states; by default what the directory says (1_Pooling), else the mean of the tokens.
        Raises ValueError for a text without tokens, and for one that is longer than the model has positions.
        """
        rows = [self.tokenizer.encode(text, special=True) for text in texts]
        longest = trunk_of(shapes(self.config)).longest
        for text, row in zip(texts, rows):
            if not 0 < len(row) <= (longest or len(row)):
                raise ValueError(f"{text[:40]!r} is {len(row)} tokens; a vector is made of 1 to {longest or 'any'}")
        size = few(max(map(len, rows)))
        size = min(size, longest or size)
        tokens_BL = np.stack([np.pad(row, (0, size - len(row))) for row in rows]).astype(np.int32)
        mask_BL = np.stack([np.arange(size) < len(row) for row in rows])
        hidden_BLD = self.hidden(tokens_BL, mask_BL)
        vectors_BD = (pooling or self._pooling())(hidden_BLD, mask_BL).astype(jnp.float32)
        return vectors_BD / jnp.maximum(jnp.linalg.norm(vectors_BD, axis=-1, keepdims=True), 1e-12)

    def _pooling(self) -> Pooling:
        if isinstance(self.config, Pooled) and self.config.transform is None and self.config.classes is None:
            return self.config.pooling
        file = self.place.directory / "1_Pooling" / "config.json"
        told = parse_json(file) if file.is_file() else {}
        return First() if told.get("pooling_mode_cls_token") else Mean()

    def merged(self, params: dict | None = None):
        return merge(self.structure, self.params if params is None else params, self.stats)

    def _setting(self, *keys: str):
        """The first of these in generation_config.json or config.json; None for a run."""
        if not isinstance(self.origin, Checkpoint):
            return None
        file = self.place.directory / "generation_config.json"
        told = parse_json(file) if file.is_file() else {}
        both = [told.get(key, self.origin.settings.get(key)) for key in keys]
        return next((value for value in both if value is not None), None)

    @functools.cached_property
    def ends(self) -> tuple[int, ...]:
        """Ids that end a text."""
        found = self._setting("eos_token_id")
        return () if found is None else tuple(np.atleast_1d(found).tolist())

    @functools.cached_property
    def context(self) -> int | None:
        """Positions that the model was made for; None where nothing says."""
        found = self._setting("max_position_embeddings", "n_positions", "max_context_length", "n_ctx", "seq_length")
        return self.origin.data.length if not isinstance(self.origin, Checkpoint) else found

    @functools.cached_property
    def padding(self) -> int:
        """The id that fills a row behind its end."""
        found = self._setting("pad_token_id")
        return found if found is not None else (self.ends or (0,))[0]


class PretrainedModel(Pretrained):
    """A model of one row of tokens: decoder, encoder, or a head on one of them."""

    def __call__(self, tokens_BL, attention_mask=None, positions=None, token_types=None, hidden_states=False):
        """What its head gives, in float32: logits_BLV of a model of language, logits_BJ of a classifier, logits_BLJ of
        one for tokens (start and end of an answer for question answering), pooled_BD or hidden_BLD without a head.

        hidden_states: gives (that, [embedded tokens, stream after each layer]), the last one normalised as the head
        reads it.
        """
        batch = _batch(tokens_BL, attention_mask, positions, token_types)
        out, found = self._run(self.params, batch, states=bool(hidden_states))
        return (out, found) if hidden_states else out

    def loss(self, tokens_BL, labels, attention_mask=None, token_types=None, params: dict | None = None) -> jax.Array:
        """The mean loss in nats. Labels: tokens_BL itself for the next token (they are moved by one here), ids at
        masked places, classes of rows or tokens; -100 is not scored. params: others to differentiate by."""
        labels = jnp.asarray(labels, jnp.int32)
        batch = _batch(tokens_BL, attention_mask, token_types=token_types)
        return self._score(self.params if params is None else params, batch, labels)

    def hidden(self, tokens_BL, attention_mask=None) -> jax.Array:
        """hidden_BLD as the head reads it."""
        return self(tokens_BL, attention_mask, hidden_states=True)[1][-1]

    def prompts(self, tokens_BL, mask_BL):
        return _rows(tokens_BL, mask_BL), None

    def lead(self, tokens_BL):
        return jnp.asarray(tokens_BL)

    def _apply(self, params, batch, states: bool):
        with axes.use(self.place.mesh, self.place.rules):
            model = self.merged(params)
            ctx = row_context(batch, None, self.place.dtype)
            trunk = getattr(model, "trunk", model)
            found = trunk.stack.trace(trunk.embed(batch["tokens_BL"], ctx), ctx) if states else None
            hidden_BLD = _finish(found, trunk.norm) if states else model(batch["tokens_BL"], ctx)[0]
            return self._head(model, hidden_BLD, ctx), found

    def _head(self, model, hidden_BLD, ctx):
        if isinstance(self.config, Tagged):
            return model.tag(hidden_BLD, ctx)
        if isinstance(self.config, Pooled):
            pooled = model.pool if self.config.classes is None else model.classify
            return pooled(hidden_BLD, ctx)
        return model.logits(hidden_BLD)

    def _loss(self, params, batch, labels):
        with axes.use(self.place.mesh, self.place.rules):
            model, tokens_BL = self.merged(params), batch["tokens_BL"]
            ctx = row_context(batch, None, self.place.dtype)
            hidden_BLD, _ = model(tokens_BL, ctx)
            if isinstance(self.config, Pooled):
                logp_BJ = jax.nn.log_softmax(model.classify(hidden_BLD, ctx))
                return -jnp.take_along_axis(logp_BJ, labels[:, None], 1).mean()
            if not isinstance(self.config, Tagged) and self.config.declared().causal:
                labels = jnp.pad(labels[:, 1:], ((0, 0), (0, 1)), constant_values=IGNORED)
            return _mean_nll(model, hidden_BLD, labels)


class PretrainedPair(Pretrained):
    """An encoder-decoder: it reads a source and writes a target."""

    def __call__(self, source_BL, target_BL, source_mask=None, target_mask=None, hidden_states=False):
        """logits_BLV in float32 at each position of the target, which begins with the start id.

        hidden_states: gives (that, ([source, after each layer], [target, after each layer])).
        """
        batch = self._pair(source_BL, source_mask, target_BL, target_mask)
        out, found = self._run(self.params, batch, states=bool(hidden_states))
        return (out, found) if hidden_states else out

    def loss(self, source_BL, labels, source_mask=None, params: dict | None = None) -> jax.Array:
        """The mean loss in nats of writing labels_BL (-100 is not scored), each after those before it."""
        labels_BL = jnp.asarray(labels, jnp.int32)
        before_BL = jnp.pad(labels_BL[:, :-1], ((0, 0), (1, 0)), constant_values=self.first)
        target_BL = jnp.where(before_BL == IGNORED, self.padding, before_BL)
        batch = self._pair(source_BL, source_mask, target_BL, None)
        return self._score(self.params if params is None else params, batch, labels_BL)

    def hidden(self, source_BL, source_mask=None) -> jax.Array:
        """hidden_BMD: what the encoder makes of the source."""
        start_BL = np.full((len(_ids(source_BL)), 1), self.first)
        return self(source_BL, start_BL, source_mask, hidden_states=True)[1][0][-1]

    def prompts(self, tokens_BL, mask_BL):
        return self.lead(tokens_BL).tolist(), _rows(tokens_BL, mask_BL)

    def lead(self, tokens_BL):
        """What each target begins with: the start, and the first token if the checkpoint forces one."""
        second = self._setting("forced_bos_token_id")
        ids = [self.first] if second is None else [self.first, second]
        return jnp.tile(jnp.array(ids, jnp.int32), (len(tokens_BL), 1))

    @property
    def forced(self) -> int:
        return self.lead([0]).shape[1] - 1

    @functools.cached_property
    def first(self) -> int:
        """The id that a target begins with."""
        found = self._setting("decoder_start_token_id", "bos_token_id")
        return self.padding if found is None else found

    def _pair(self, source_BM, source_mask, target_BL, target_mask) -> dict:
        source_BM = _ids(source_BM)
        source = _batch(source_BM, np.ones(source_BM.shape) if source_mask is None else source_mask)
        renamed = {"tokens_BL": "source_BM", "segments_BL": "source_segments_BM", "positions_BL": "source_positions_BM"}
        return _batch(target_BL, target_mask) | {renamed[name]: array for name, array in source.items()}

    def _apply(self, params, batch, states: bool):
        with axes.use(self.place.mesh, self.place.rules):
            model = self.merged(params)
            ctx, _ = read_source(model, batch, None, self.place.dtype)
            if not states:
                return model.logits(model(batch["tokens_BL"], ctx)[0]), None
            near = source_context(batch, None, self.place.dtype)
            source, target = model.trace(batch["source_BM"], batch["tokens_BL"], near, ctx)
            return model.logits(target[-1]), (source, target)

    def _loss(self, params, batch, labels_BL):
        with axes.use(self.place.mesh, self.place.rules):
            model = self.merged(params)
            ctx, _ = read_source(model, batch, None, self.place.dtype)
            return _mean_nll(model, model(batch["tokens_BL"], ctx)[0], labels_BL)


def kind_of(config: Model) -> type[Pretrained]:
    return PretrainedPair if isinstance(trunk_of(config), EncoderDecoder) else PretrainedModel


def _finish(states: list, norm):
    """The last of the states as the head reads it, which takes its place in the list."""
    if norm is not None:
        states[-1] = norm(states[-1])
    return states[-1]


def _mean_nll(model, hidden_BLD, labels_BL):
    weights_BL = (labels_BL != IGNORED).astype(jnp.float32)
    total, _ = model.nll(hidden_BLD, jnp.where(labels_BL == IGNORED, 0, labels_BL), weights_BL)
    return total / jnp.maximum(weights_BL.sum(), 1)


def _ids(tokens) -> np.ndarray:
    """ids_BL of what was given. Raises ValueError for what are no rows of ids."""
    found = np.asarray(tokens)
    if found.ndim != 2 or not np.issubdtype(found.dtype, np.integer):
        raise ValueError(f"tokens are rows of ids, [batch, length]; these are {found.dtype} of shape {found.shape}")
    return found.astype(np.int32)


def _mask(mask) -> np.ndarray | None:
    return None if mask is None else (np.asarray(mask) != 0).astype(np.int32)


def _batch(tokens_BL, attention_mask=None, positions=None, token_types=None) -> dict:
    """The arrays of a batch. Positions count the tokens of a row, padding not among them."""
    tokens_BL, mask_BL, batch = _ids(tokens_BL), _mask(attention_mask), {}
    if mask_BL is not None:
        if mask_BL.shape != tokens_BL.shape:
            raise ValueError(f"the mask has the shape {mask_BL.shape} and the tokens {tokens_BL.shape}; they are equal")
        batch["segments_BL"] = mask_BL
        batch["positions_BL"] = np.maximum(np.cumsum(mask_BL, axis=1) - 1, 0).astype(np.int32)
    if positions is not None:
        batch["positions_BL"] = np.broadcast_to(np.asarray(positions, np.int32), tokens_BL.shape)
    if token_types is not None:
        batch["types_BL"] = np.asarray(token_types, np.int32)
    return {"tokens_BL": tokens_BL, **batch}


def _rows(tokens_BL: np.ndarray, mask_BL: np.ndarray | None) -> list[list[int]]:
    """Rows without their padding."""
    if mask_BL is None:
        return tokens_BL.tolist()
    return [row[mask != 0].tolist() for row, mask in zip(tokens_BL, mask_BL)]
