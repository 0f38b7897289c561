"""Each kernel as the platform chooses it: its time forward and backward, and its distance from plain arithmetic.

The plain form is written here from the definition, runs on the same numbers in float32 at the highest precision, and
never meets a kernel. Letters of this file: J, query heads of one key head; A, rows in any order.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from llmlab.kernels.attention import Mask, attend
from llmlab.kernels.chunked import delta_rule, linear_attention
from llmlab.kernels.cross_entropy import Form, cross_entropy
from llmlab.kernels.grouped_matmul import grouped_matmul, lay_out
from llmlab.kernels.norm import rms_norm
from llmlab.kernels.receipt import receipt
from llmlab.kernels.scan import selective_scan

BOUNDS = {"float32": 1e-4, "bfloat16": 3e-2}  # of the largest difference, as a share of the largest number
EXPERTS = 4


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Rows, positions, heads, key heads, head size, width, vocabulary, channels, state of a channel."""

    B: int = 2
    L: int = 256
    H: int = 4
    G: int = 2
    K: int = 64
    D: int = 64
    V: int = 512
    C: int = 64
    S: int = 16


SMALL, LARGE = Sizes(), Sizes(B=4, L=2048, H=16, G=4, K=128, D=2048, V=50_304, C=2048)
MEDIUM = Sizes(B=2, L=512, H=8, G=2, K=64, D=512, V=8192, C=512)  # what is timed on CPU


@dataclasses.dataclass(frozen=True)
class Case:
    """letters: of each operand; they are normal numbers, of which `prepare` makes what the kernel takes.
    fast, plain: from segments and operands to the result."""

    letters: tuple[str, ...]
    fast: Callable
    plain: Callable
    prepare: Callable = lambda *given: given


def softmax_of(seen: Callable) -> Callable:
    def plain(segments_BL, q_BLHK, k_BMGK, v_BMGK):
        (batch, length, heads, size), groups = q_BLHK.shape, k_BMGK.shape[2]
        q_BLGJK = q_BLHK.reshape(batch, length, groups, heads // groups, size)
        scores_BGJLM = jnp.einsum("BLGJK,BMGK->BGJLM", q_BLGJK, k_BMGK) * size**-0.5
        row_L1, column_M = jnp.arange(length)[:, None], jnp.arange(length)
        same_BLM = segments_BL[:, :, None] == segments_BL[:, None]
        seen_BLM = jnp.broadcast_to(seen(row_L1, column_M, same_BLM), same_BLM.shape)
        probs_BGJLM = jax.nn.softmax(jnp.where(seen_BLM[:, None, None], scores_BGJLM, -jnp.inf), axis=-1)
        return jnp.einsum("BGJLM,BMGK->BLGJK", probs_BGJLM, v_BMGK).reshape(q_BLHK.shape)

    return plain


def attention(mask: Callable) -> Callable:
    return lambda segments_BL, q, k, v: attend(q, k, v, mask(segments_BL), q.shape[-1] ** -0.5)


def plain_loss(segments_BL, x_BLD, w_VD):
    logits_BLV = jnp.einsum("BLD,VD->BLV", x_BLD, w_VD)
    target_BL = jnp.take_along_axis(logits_BLV, targets(segments_BL, w_VD)[..., None], -1)[..., 0]
    return jax.nn.logsumexp(logits_BLV, -1).sum() - target_BL.sum()


def fused_loss(segments_BL, x_BLD, w_VD):
    weights_BL, form = jnp.ones(segments_BL.shape), Form(vocab=len(w_VD))
    return cross_entropy(x_BLD, w_VD, None, targets(segments_BL, w_VD), weights_BL, form)[0]


def targets(segments_BL, w_VD):
    return (jnp.arange(segments_BL.size).reshape(segments_BL.shape) * 7919) % len(w_VD)


def plain_scan(segments_BL, x_BLC, step_BLC, rate_CS, b_BLS, c_BLS):
    def step(h_BCS, now):
        x_BC, step_BC, b_BS, c_BS, begins_B = now
        h_BCS = jnp.where(begins_B[:, None, None], 0, h_BCS) * jnp.exp(step_BC[..., None] * rate_CS)
        h_BCS += (step_BC * x_BC)[..., None] * b_BS[:, None]
        return h_BCS, (h_BCS * c_BS[:, None]).sum(-1)

    return loop(step, (*x_BLC.shape[::2], rate_CS.shape[1]), x_BLC, step_BLC, b_BLS, c_BLS, begins(segments_BL))


def plain_recurrence(segments_BL, q_BLHS, k_BLHS, v_BLHK, decay_BLH, beta_BLH=None):
    def step(h_BHSK, now):
        q_BHS, k_BHS, v_BHK, decay_BH, beta_BH, begins_B = now
        h_BHSK = jnp.where(begins_B[:, None, None, None], 0, h_BHSK) * jnp.exp(decay_BH)[..., None, None]
        if beta_BLH is not None:
            v_BHK = beta_BH[..., None] * (v_BHK - jnp.einsum("BHS,BHSK->BHK", k_BHS, h_BHSK))
        h_BHSK += k_BHS[..., None] * v_BHK[:, :, None]
        return h_BHSK, jnp.einsum("BHS,BHSK->BHK", q_BHS, h_BHSK)

    share = v_BLHK.shape[2] // q_BLHS.shape[2]
    q_BLHS, k_BLHS = (jnp.repeat(a, share, axis=2) for a in (q_BLHS, k_BLHS))
    shape = (*v_BLHK.shape[::2], q_BLHS.shape[3], v_BLHK.shape[3])
    beta = decay_BLH if beta_BLH is None else beta_BLH
    return loop(step, shape, q_BLHS, k_BLHS, v_BLHK, decay_BLH, beta, begins(segments_BL))


def loop(step, shape, *arrays_BL):
    """The results of `step` at all positions, from a state of zeros."""
    return jnp.swapaxes(jax.lax.scan(step, jnp.zeros(shape), [jnp.swapaxes(a, 0, 1) for a in arrays_BL])[1], 0, 1)


def begins(segments_BL):
    return jnp.diff(segments_BL, axis=1, prepend=-1) != 0


def experts_of(segments_BL):
    return (jnp.arange(segments_BL.size) * 31 % 7) % EXPERTS


def grouped(segments_BL, x_BLD, w_EDF):
    x_AD = x_BLD.reshape(-1, x_BLD.shape[2])
    groups, row_A = lay_out(experts_of(segments_BL), EXPERTS, len(x_AD))
    x_RD = jnp.zeros((groups.rows, x_AD.shape[1]), x_AD.dtype).at[row_A].set(x_AD)
    return grouped_matmul(x_RD, w_EDF, groups)[row_A].reshape(x_BLD.shape)


def plain_grouped(segments_BL, x_BLD, w_EDF):
    chosen_EA = (experts_of(segments_BL) == jnp.arange(EXPERTS)[:, None]).astype(x_BLD.dtype)
    x_AD = x_BLD.reshape(-1, x_BLD.shape[2])
    return jnp.einsum("EA,AD,EDF->AF", chosen_EA, x_AD, w_EDF).reshape(x_BLD.shape)


def unit(a):
    return a / np.linalg.norm(a, axis=-1, keepdims=True)


def steps(x, step, rate, b, c):
    return x, np.exp(step - 3), -np.exp(rate), b, c


def decays(q, k, v, decay, *beta):
    return unit(q), unit(k), v, -np.exp(decay - 2), *(1 / (1 + np.exp(-a)) for a in beta)


HEADS = ("BLHK", "BLGK", "BLGK")
CASES = {
    "attention": Case(HEADS, attention(lambda s: Mask()), softmax_of(lambda i, j, same: i >= j)),
    "attention, packed": Case(
        HEADS, attention(lambda s: Mask(segments_BL=s, segments_BM=s)), softmax_of(lambda i, j, same: (i >= j) & same)
    ),
    "attention, window": Case(
        HEADS, attention(lambda s: Mask(window=100)), softmax_of(lambda i, j, same: (i >= j) & (i - j < 100))
    ),
    "attention, both sides": Case(HEADS, attention(lambda s: Mask(causal=False)), softmax_of(lambda i, j, same: True)),
    "cross-entropy": Case(("BLD", "VD"), fused_loss, plain_loss, lambda x, w: (x, w * x.shape[2] ** -0.5)),
    "selective scan": Case(
        ("BLC", "BLC", "CS", "BLS", "BLS"), lambda s, *given: selective_scan(*given, begins(s))[0], plain_scan, steps
    ),
    "linear attention": Case(
        ("BLGS", "BLGS", "BLHK", "BLH"),
        lambda s, *given: linear_attention(*given, starts_BL=begins(s))[0],
        plain_recurrence,
        decays,
    ),
    "delta rule": Case(
        ("BLHS", "BLHS", "BLHK", "BLH", "BLH"),
        lambda s, q, k, v, decay, beta: delta_rule(q, k, v, beta, decay, begins(s))[0],
        plain_recurrence,
        decays,
    ),
    "grouped matmul": Case(("BLD", "EDD"), grouped, plain_grouped, lambda x, w: (x, w * x.shape[2] ** -0.5)),
    "RMS norm": Case(
        ("BLD", "D"),
        lambda s, x, scale: rms_norm(x, scale, 1e-6),
        lambda s, x, scale: x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * scale,
    ),
}


def operands(case: Case, sizes: Sizes, dtype: str) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """(segments_BL, of three documents a row; the operands, in `dtype` but for decays and steps)."""
    random, dims = np.random.default_rng(0), {**dataclasses.asdict(sizes), "E": EXPERTS}
    drawn = [random.normal(size=[dims[letter] for letter in letters]).astype(np.float32) for letters in case.letters]
    exact = lambda letters: letters in ("BLH", "CS", "D")
    given = [
        jnp.asarray(a, "float32" if exact(letters) else dtype) for letters, a in zip(case.letters, case.prepare(*drawn))
    ]
    segments_BL = np.broadcast_to(np.arange(sizes.L) * 3 // sizes.L + 1, (sizes.B, sizes.L))
    return jnp.asarray(segments_BL), tuple(given)


def both_ways(function: Callable, segments_BL, given) -> Callable:
    """From operands, and the weights of each number of the result, to (result, gradients of the weighted sum)."""

    def weighted(*operands):
        *operands, weights = operands
        y = function(segments_BL, *operands)
        return (y.astype(jnp.float32) * weights).sum(), y

    return jax.value_and_grad(weighted, tuple(range(len(given))), has_aux=True)


def weights_of(function: Callable, segments_BL, given) -> jax.Array:
    shape = jax.eval_shape(function, segments_BL, *given).shape
    return jnp.cos(jnp.arange(math.prod(shape), dtype=jnp.float32)).reshape(shape)


def check(name: str, dtype: str) -> dict:
    """A row with the largest difference of result and gradients from the plain form."""
    case = CASES[name]
    segments_BL, given = operands(case, SMALL, dtype)
    with receipt() as ran, jax.default_matmul_precision("highest" if dtype == "float32" else "default"):
        weights = weights_of(case.fast, segments_BL, given)
        (_, y), gradients = jax.jit(both_ways(case.fast, segments_BL, given))(*given, weights)
    with jax.default_matmul_precision("highest"):
        exact = [a.astype(jnp.float32) for a in given]
        (_, wanted_y), wanted = jax.jit(both_ways(case.plain, segments_BL, given))(*exact, weights)
    error = {
        part: max(float(jnp.abs(a.astype(jnp.float32) - b).max() / jnp.abs(b).max()) for a, b in pairs)
        for part, pairs in (("value", [(y, wanted_y)]), ("gradient", list(zip(gradients, wanted))))
    }
    right = max(error.values()) <= BOUNDS[dtype]
    row = {"suite": "correctness", "name": name, "precision": dtype, "bound": BOUNDS[dtype], "right": right}
    return row | {"error": error, "kernels": dict(ran)}


def measure(name: str, sizes: Sizes, dtype: str, rounds: int, theirs: Iterator | None) -> dict:
    """A row with the seconds of result and gradients together. theirs: the peer's turns."""
    case = CASES[name]
    segments_BL, given = operands(case, sizes, dtype)
    with receipt() as ran:
        given = (*given, weights_of(case.fast, segments_BL, given))
        run = jax.jit(both_ways(case.fast, segments_BL, given[:-1])).lower(*given).compile()
    seen, others = [], []
    for number in range(rounds + 1):  # the first is not counted
        began = time.perf_counter()
        jax.block_until_ready(run(*given))
        seen.append(time.perf_counter() - began)
        others += [next(theirs)[0]] if theirs and number else []
    best = lambda walls: {"seconds": statistics.median(walls), "seconds_best": min(walls)}
    row = {"suite": "kernels", "name": name, "precision": dtype, **dataclasses.asdict(sizes), **best(seen[1:])}
    row |= {"temporary_bytes": run.memory_analysis().temp_size_in_bytes, "kernels": dict(ran), "torch": None}
    if not others:
        return row
    pairs = (("median", "seconds"), ("best", "seconds_best"))
    ratio = {name: round(best(others)[end] / row[end], 3) for name, end in pairs}
    return row | {"torch": best(others), "ratio_to_torch": ratio}
