"""The contract: what every model and part must keep, checked on the real thing with small batches.

A check raises Violation with what was seen and where. `check_model` runs the battery on a model of any config, from
the package or from outside; `check_mixer` and `check_ffn` put a part into a small decoder first. What a part declares
(llmlab/nn/parts.py, Declared) decides which checks apply; what is violated without being declared fails.

Letters of this file: l, the positions whose outputs are looked at; M, those whose inputs are varied.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import tempfile
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

from llmlab import axes
from llmlab.config import nodes, put, swap
from llmlab.cost import traced_flops
from llmlab.data import Data, Supply
from llmlab.mesh import Mesh
from llmlab.models import Block, Decoder
from llmlab.models.decoder import Model
from llmlab.nn import FeedForward, Mixer, Segment, Stack, repeat
from llmlab.nn.module import Rngs, abstract, merge, specs, split
from llmlab.nn.parts import Context
from llmlab.optim.sharding import state_shardings
from llmlab.tasks import CausalLM, Task, example_batch

LENGTH, BATCH = 16, 8
ROUNDING = 1e-6  # of the largest gradient: an FFT, or a quotient of decays, gives zeros only up to rounding
MOVED = 1e-5  # of the largest output: what is equal but for that rounding


class Violation(AssertionError):
    """A part does not keep the contract."""


class NotApplicable(Exception):
    """A check that says nothing about this model, and why."""


class Subject:
    """A model under test: at most two repeats of each pattern, with parameters, and a task to give it batches.

    data: what the task's batches are made of, its `length` in particular.
    """

    def __init__(self, model: Model, task: Task = CausalLM(), data: Supply = Data(length=LENGTH)):
        self.config = swap(model, Segment, lambda s: dataclasses.replace(s, repeats=min(s.repeats, 2)))
        self.task = task
        self.model = abstract(self.config.build)
        self.structure = split(self.model)[0]
        build = lambda key: split(self.config.build(Rngs(params=key)))[1:]
        self.params, self.stats = jax.jit(build)(jax.random.key(0))
        self.data = data
        self.batch = example_batch(task, data, self.config.vocab, BATCH)
        self.declared = self.config.declared()

    @property
    def tokens_BL(self):
        return jnp.asarray(self.batch["tokens_BL"])

    def merged(self, params):
        return merge(self.structure, params, self.stats)

    def loss(self, params, batch=None):
        out = self.task.loss(self.merged(params), batch or self.batch, None, "float32")
        return out.loss / out.weight

    @functools.cached_property
    def gradients(self):
        return jax.jit(jax.value_and_grad(self.loss))(self.params)

    def context(self, model, rows: int = BATCH, **changes) -> Context:
        """What the task tells the layers of its first rows, with whole rows that begin at position 0."""
        batch = {name: a[:rows] for name, a in self.batch.items()}
        ctx, _ = self.task.context(model, batch, None, changes.pop("dtype", "float32"))
        positions_BL = jnp.broadcast_to(jnp.arange(ctx.positions_BL.shape[1]), ctx.positions_BL.shape)
        return dataclasses.replace(ctx, **{"positions_BL": positions_BL, "segments_BL": None} | changes)

    def reach(self, segments_L=None) -> np.ndarray:
        """|d output[l] / d input[M]| of one row, through everything between embedding and head."""
        tokens_1L, changes = self.tokens_BL[:1], {}
        if segments_L is not None:  # sorted, so that its documents begin where each number first stands
            positions_L = np.arange(len(segments_L)) - np.searchsorted(segments_L, segments_L)
            changes = {"positions_BL": jnp.asarray(positions_L)[None], "segments_BL": jnp.asarray(segments_L)[None]}

        @jax.jit
        def reach(params):
            model = self.merged(params)
            ctx = self.context(model, rows=1, **changes)
            x_1MD = model.embed(tokens_1L, ctx)
            weights_D = jax.random.normal(jax.random.key(1), (self.config.width,))
            outputs = lambda x: model.body(x, ctx)[0][0] @ weights_D
            return jnp.abs(jax.jacrev(outputs)(x_1MD))[:, 0].sum(-1)

        return np.asarray(reach(self.params))

    def shifts(self) -> np.ndarray:
        """How far output l of the first row moves, as a share of the largest output, when the inputs from M on become
        those of another row: the most over the other rows. A choice, such as a router's, moves and has no gradient."""

        @jax.jit
        def shifts(params):
            model = self.merged(params)
            ctx, every = self.context(model, rows=1), self.context(model)
            x_BMD = model.embed(self.tokens_BL, every)
            outputs = lambda x_MD: model.body(x_MD[None], ctx)[0][0]
            length, before_lD = x_BMD.shape[1], outputs(x_BMD[0])

            def shift(case):
                row, start = case // length + 1, case % length
                changed_MD = jnp.where(jnp.arange(length)[:, None] < start, x_BMD[0], x_BMD[row])
                return jnp.abs(outputs(changed_MD) - before_lD).max(-1)

            # One case at a time: rows of one batch may meet, in experts that are full.
            moved_l = jax.lax.map(shift, jnp.arange((len(x_BMD) - 1) * length))
            return moved_l.reshape(-1, length, length).max(0).T / jnp.abs(before_lD).max()

        return np.asarray(shifts(self.params))


def check_causality(subject: Subject) -> str:
    """No output has a gradient with respect to a later input, or moves when later inputs change."""
    if not subject.declared.causal:
        raise NotApplicable("it declares that it is not causal")
    reach_lM = subject.reach()
    ahead_lM = np.triu(reach_lM, 1)
    if ahead_lM.max() > ROUNDING * reach_lM.max():
        at, later = np.unravel_index(ahead_lM.argmax(), ahead_lM.shape)
        raise Violation(f"looks ahead: the output at position {at} depends on the input at {later}")
    moved_lM = np.triu(subject.shifts(), 1)
    if moved_lM.max() > MOVED:
        at, later = np.unravel_index(moved_lM.argmax(), moved_lM.shape)
        raise Violation(
            f"looks ahead by a choice: the output at position {at} moves with the inputs from {later} on, by "
            f"{moved_lM.max():.1e} of the largest, and has no gradient there"
        )
    return "no gradient from later positions, and they move nothing"


def check_isolation(subject: Subject) -> str:
    """Documents packed in one row do not see each other."""
    if not subject.declared.isolated:
        raise NotApplicable("it declares that packed documents see each other")
    length = subject.tokens_BL.shape[1]
    segments_L = np.where(np.arange(length) < length // 2 - 1, 1, 2)
    reach_lM = subject.reach(segments_L)
    across_lM = np.where(segments_L[:, None] != segments_L[None], reach_lM, 0)
    if across_lM.max() > ROUNDING * reach_lM.max():
        at, other = np.unravel_index(across_lM.argmax(), across_lM.shape)
        raise Violation(f"mixes packed documents: position {at} of one depends on position {other} of another")
    return "no gradient between packed documents"


def check_decode(subject: Subject) -> str:
    """Prefill and step-by-step decoding give what the parallel form gives, with prompts of different lengths."""
    if not subject.declared.decodable:
        raise NotApplicable("it declares that it is not decodable")
    prefill, pad, length = 5, 3, subject.tokens_BL.shape[1]

    @jax.jit
    def both(params):
        model, tokens_BL = subject.merged(params), subject.tokens_BL
        whole = subject.context(model)
        whole_BLD, _ = model(tokens_BL, whole)
        shift_B1 = jnp.where(jnp.arange(BATCH) % 2, pad, 0)[:, None]  # odd rows begin with padding
        positions_BL = jnp.arange(length + pad)[None] - pad + jnp.zeros_like(shift_B1)
        positions_BL = jnp.where(shift_B1 > 0, positions_BL, positions_BL + pad)
        index_BL = jnp.clip(positions_BL, 0, length - 1)
        moved_BL = jnp.take_along_axis(tokens_BL, index_BL, 1)
        positions_BL = jnp.where(positions_BL < 0, -1, positions_BL)
        here = lambda places_BL: Context(positions_BL=places_BL)  # what extend() is told: the memory is start()'s
        ctx = here(positions_BL[:, :prefill])
        state = model.start(BATCH, length + pad, dataclasses.replace(whole, positions_BL=ctx.positions_BL))
        first, state = model.extend(moved_BL[:, :prefill], state, ctx)

        def step(state, at):
            part = lambda a_BL: jax.lax.dynamic_slice_in_dim(a_BL, at, 1, axis=1)
            y_BLD, state = model.extend(part(moved_BL), state, here(part(positions_BL)))
            return state, y_BLD[:, 0]

        _, rest_LBD = jax.lax.scan(step, state, jnp.arange(prefill, length))
        stepped_BLD = jnp.concatenate([first, jnp.moveaxis(rest_LBD, 0, 1)], axis=1)
        expected_BLD = jnp.take_along_axis(whole_BLD, index_BL[:, :length, None], 1)
        wrong_BL = jnp.where(positions_BL[:, :length] >= 0, jnp.abs(stepped_BLD - expected_BLD).max(-1), 0)
        return wrong_BL, jnp.abs(whole_BLD).max()

    wrong_BL, size = map(np.asarray, both(subject.params))
    row, at = np.unravel_index(wrong_BL.argmax(), wrong_BL.shape)
    if not wrong_BL.max() <= 1e-4 * max(size, 1.0):
        padded = " of a row that begins with padding" if row % 2 else ""
        raise Violation(f"decoding differs from the parallel form by {wrong_BL.max():.1e} at step {at}{padded}")
    return f"largest difference {wrong_BL.max():.0e}"


def check_scan(subject: Subject) -> str:
    """Scanned layers give what a Python loop over them gives, gradients too."""
    if not any(isinstance(node, Stack) for _, node in nodes(subject.config)):
        raise NotApplicable("it has no stack")
    unrolled = swap(subject.config, Stack, lambda stack: dataclasses.replace(stack, unroll=0))
    twin = Subject(unrolled, subject.task, subject.data)
    loss, grads = jax.jit(jax.value_and_grad(twin.loss))(subject.params)
    return _equal("the scan differs from the loop over layers", subject.gradients, (loss, grads), 1e-4)


def check_sharding(subject: Subject, meshes: Iterable[Mesh] | None = None) -> str:
    """Loss and gradients are those of one device under every rule, and under products of them."""
    if jax.device_count() < 8:
        raise NotApplicable(f"it needs 8 devices and there are {jax.device_count()} (--cpu-devices 8)")
    done, left = [], []
    for mesh in meshes or (Mesh(fsdp=2, tensor=2), Mesh(data=4, sequence=2), Mesh(fsdp=4, sequence=2)):
        shown = dataclasses.replace(mesh, **mesh.resolve(8)).shown()
        try:
            found = sharded_gradients(subject, mesh.build(jax.devices()[:8]))
        except axes.LayoutError as error:
            left.append(f"{shown} ({error})")
            continue
        _equal(f"sharded over {shown} it differs from one device", subject.gradients, found, 1e-4)
        done.append(shown)
    if not done:
        raise NotApplicable("no mesh divides it: " + "; ".join(left))
    return "; ".join(done) + (f"; not divided by {'; '.join(left)}" if left else "")


def sharded_gradients(subject: Subject, mesh: jax.sharding.Mesh, rules: axes.Rules = axes.every()):
    """(loss, gradients) computed over a mesh."""
    shardings = state_shardings(subject.params, specs(subject.model), mesh, rules)
    live = lambda name, a: axes.spec(axes.letters_of(name), a.shape, rules.live, dict(mesh.shape))
    place = lambda name, a: jax.device_put(a, jax.sharding.NamedSharding(mesh, live(name, a)))
    batch = {name: place(name, a) for name, a in subject.batch.items()}

    def loss(params, batch):
        with axes.use(mesh, rules):
            return subject.loss(params, batch=batch)

    step = jax.jit(jax.value_and_grad(loss), in_shardings=(shardings, None))
    return jax.device_get(step(jax.device_put(subject.params, shardings), batch))


def check_restore(subject: Subject) -> str:
    """Parameters saved from one mesh and restored on another are equal in every bit."""
    if jax.device_count() < 8:
        raise NotApplicable(f"it needs 8 devices and there are {jax.device_count()} (--cpu-devices 8)")
    from llmlab.train.checkpoint import Checkpoints

    table, rules = specs(subject.model), axes.every()

    def laid_out(mesh: Mesh):
        return state_shardings(subject.params, table, mesh.build(jax.devices()[:8]), rules)

    try:
        old, new = laid_out(Mesh(fsdp=4)), laid_out(Mesh(fsdp=2, tensor=2))
    except axes.LayoutError as error:
        raise NotApplicable(f"no mesh divides it: {error}") from error
    abstract = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), subject.params, new)
    with tempfile.TemporaryDirectory() as directory:
        checkpoints = Checkpoints(directory)
        state = {"step": jnp.zeros((), jnp.int32), "params": jax.device_put(subject.params, old)}
        checkpoints.save(1, state, {})
        checkpoints.wait()
        restored = checkpoints.restore_parts(1, {"params": abstract})["params"]
        checkpoints.close()
    for path, value in jax.tree_util.tree_leaves_with_path(subject.params):
        again = functools.reduce(lambda tree, key: tree[key.key], path, restored)
        if not np.array_equal(np.asarray(value), np.asarray(again)):
            raise Violation(f"{jax.tree_util.keystr(path)} changed when restored on another mesh")
    return "fsdp 4 -> fsdp 2 x tensor 2, equal in every bit"


def check_flops(subject: Subject) -> str:
    """The FLOPs that parts declare as executed are those of the matrix products in the traced program."""
    declared = subject.model.cost(subject.task.shape(subject.batch)).executed
    traced = traced_flops(subject.loss, subject.params)
    if declared != traced:
        raise Violation(f"declares {declared:,.0f} executed FLOPs, and the traced program has {traced:,}")
    return f"{traced:,} FLOPs"


def check_gradients(subject: Subject) -> str:
    """Every parameter has a gradient that is finite and not zero."""
    _, grads = subject.gradients
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        if not np.isfinite(grad).all():
            raise Violation(f"the gradient of {jax.tree_util.keystr(path)} is not finite")
        if not np.any(grad):
            raise Violation(f"the gradient of {jax.tree_util.keystr(path)} is zero: nothing uses it")
    return f"{len(jax.tree.leaves(grads))} parameters"


def check_precision(subject: Subject) -> str:
    """What goes into the head is in bfloat16 nearly what it is in float32."""

    @jax.jit
    def difference(params):
        tokens_BL, model = subject.tokens_BL, subject.merged(params)
        exact, half = (
            model(tokens_BL, subject.context(model, dtype=dtype))[0].astype(jnp.float32)
            for dtype in ("float32", "bfloat16")
        )
        return jnp.linalg.norm(half - exact) / jnp.linalg.norm(exact)

    error = float(difference(subject.params))
    if not error <= 0.1:
        raise Violation(f"the hidden states in bfloat16 differ from those in float32 by {error:.0%} of their size")
    return f"hidden states differ by {error:.1%}"


def check_start(subject: Subject) -> str:
    """An untrained model knows nothing: its loss is near ln V, the entropy of all its choices."""
    loss, expected = float(subject.gradients[0]), math.log(subject.config.outcomes)
    if not abs(loss - expected) < 0.5:
        raise Violation(f"the loss of the initial parameters is {loss:.3f}; ln V is {expected:.3f}")
    return f"{loss:.3f}, ln V = {expected:.3f}"


CHECKS: dict[str, Callable[[Subject], str]] = {
    "causality": check_causality,
    "packing isolation": check_isolation,
    "decode = teacher forcing": check_decode,
    "scan = unrolled": check_scan,
    "sharded = single device": check_sharding,
    "restored on another mesh": check_restore,
    "executed = traced FLOPs": check_flops,
    "finite gradients": check_gradients,
    "bfloat16 near float32": check_precision,
    "initial loss near ln V": check_start,
}


def check_model(
    model: Model, task: Task = CausalLM(), only: Iterable[str] | None = None, data: Supply = Data(length=LENGTH)
) -> dict[str, str]:
    """{check: what was seen}. Raises the first Violation; checks that do not apply say why."""
    subject, found = Subject(model, task, data), {}
    for name in only or CHECKS:
        try:
            found[name] = CHECKS[name](subject)
        except NotApplicable as reason:
            found[name] = f"not applicable: {reason}"
    return found


def check_mixer(mixer: Mixer, width: int = 32, only: Iterable[str] | None = None) -> dict[str, str]:
    """The battery on a mixer of any file, in a small decoder."""
    return check_model(put(small(width), "stack.segments.0.pattern.0.mixer", mixer), only=only)


def check_ffn(ffn: FeedForward, width: int = 32, only: Iterable[str] | None = None) -> dict[str, str]:
    """The battery on a feed-forward of any file, in a small decoder."""
    return check_model(put(small(width), "stack.segments.0.pattern.0.ffn", ffn), only=only)


def small(width: int = 32) -> Decoder:
    """A decoder of two blocks, for tests."""
    from llmlab.ffn import Gated
    from llmlab.mixers import Attention

    return Decoder(vocab=64, width=width, stack=repeat(Block(mixer=Attention(heads=4), ffn=Gated(hidden=48)), 2))


def _equal(what: str, expected, found, tolerance: float) -> str:
    """Compares (loss, gradients); each gradient relative to its largest element."""
    worst = 0.0
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(found)):
        a, b = np.asarray(a), np.asarray(b)
        error = np.abs(a - b).max() / max(np.abs(a).max(), 1e-6)
        if not error <= tolerance:
            raise Violation(f"{what}: {jax.tree_util.keystr(path)} by {error:.1e} of its largest value")
        worst = max(worst, error)
    return f"largest difference {worst:.0e}"
