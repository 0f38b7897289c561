"""The product of rows with the matrix of the group that each row belongs to, as experts need it.

On TPU it is XLA's ragged product. Elsewhere that one computes every row for every group (on CUDA and CPU, as of jax
0.12), so here each group's rows begin at a multiple of a block and a scan takes block by block: FLOPs are those of the
rows and of less than one block of padding for each group, and how many blocks there can be is known beforehand.

Letters of this file: A, items that are laid out; R, rows of the layout; r, rows of a block; n, blocks. E, D and F stand
for groups, for what is summed and for what comes out.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from llmlab import axes
from llmlab.kernels.matmul import dot
from llmlab.kernels.receipt import note

LARGEST = {"cpu": 128, "gpu": 512}  # rows of a block: enough for the product of one to run at full speed
SMALLEST = 8


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Groups:
    """How many of `rows` rows each group has. Groups stand in order, each from a multiple of `block` on."""

    sizes_E: jax.Array
    rows: int = dataclasses.field(metadata={"static": True})
    block: int = dataclasses.field(metadata={"static": True})

    @property
    def starts_E(self) -> jax.Array:
        """The first row of each group."""
        blocks_E = _divide_up(self.sizes_E, self.block)
        return (jnp.cumsum(blocks_E) - blocks_E) * self.block


def plan_rows(items: int, groups: int, block: int | None = None) -> tuple[int, int]:
    """(rows, block): rows that hold `items` whatever their groups are, for blocks of that size or of the platform's."""
    if block is None and axes.platform() == "tpu":
        block = 1
    elif block is None:
        share = max(items // (4 * groups), SMALLEST)  # so that padding adds about an eighth, at most a quarter
        block = min(LARGEST[axes.platform()], 1 << (share.bit_length() - 1))
    begun = min(groups, items)  # at worst so many groups have one item in their last block
    return (begun + (items - begun) // block) * block, block


def lay_out(groups_A: jax.Array, groups: int, most: int, block: int | None = None) -> tuple[Groups, jax.Array]:
    """(the layout, row_A: the row of each item), items of a group in their order.

    groups_A: the group of each item, `groups` for an item of none, whose row is then the number of rows. most: how many
    items can have a group.
    """
    rows, block = plan_rows(most, groups, block)
    sizes_E = (groups_A[:, None] == jnp.arange(groups)).sum(0, dtype=jnp.int32)
    found = Groups(sizes_E, rows, block)
    none_A = groups_A >= groups
    start_A = found.starts_E[jnp.minimum(groups_A, groups - 1)]
    return found, jnp.where(none_A, rows, start_A + rank(groups_A, groups))


def rank(groups_A: jax.Array, groups: int) -> jax.Array:
    """How many items of its group stand before each item."""
    order_A = jnp.argsort(groups_A, stable=True)
    sizes = (groups_A[:, None] == jnp.arange(groups + 1)).sum(0, dtype=jnp.int32)  # those of no group come last
    first = jnp.cumsum(sizes) - sizes
    rank_A = jnp.arange(len(groups_A), dtype=jnp.int32) - first[groups_A[order_A]]
    return jnp.zeros_like(rank_A).at[order_A].set(rank_A, unique_indices=True)


def grouped_matmul(x_RD: jax.Array, w_EDF: jax.Array, groups: Groups) -> jax.Array:
    """Each row times the matrix of its group, summed in float32, in the type of x.

    Rows of no group must be zero; what comes out there is not to be read.
    """
    if axes.platform() == "tpu" and groups.block == 1:
        note("grouped matmul", "XLA's ragged product")
        # It sums in float32 whatever it gives; asked for float32 it would hold twice the bytes, of gradients too.
        y_RF = jax.lax.ragged_dot(x_RD, w_EDF, groups.sizes_E, preferred_element_type=x_RD.dtype)
    else:
        note("grouped matmul", f"blocks of {groups.block} rows")
        blocks = groups.rows // groups.block
        group_n = jnp.searchsorted(groups.starts_E, jnp.arange(blocks) * groups.block, side="right") - 1
        used_n = jnp.arange(blocks) < _divide_up(groups.sizes_E, groups.block).sum()
        skips = axes.platform() == "cpu"  # a branch costs a GPU more than a product with zeros
        y_RF = _by_blocks(skips, x_RD, w_EDF, group_n, used_n)
    return checkpoint_name(y_RF, "products")


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _by_blocks(skips: bool, x_RD, w_EDF, group_n, used_n):
    def step(_, inputs):
        x_rD, group, used = inputs
        zeros_rF = jnp.zeros((x_rD.shape[0], w_EDF.shape[2]), x_rD.dtype)
        return None, _where(skips, used, lambda _: dot(x_rD, w_EDF[group], 1, 0).astype(x_rD.dtype), zeros_rF)

    return _rows(jax.lax.scan(step, None, (_blocks(x_RD, group_n), group_n, used_n))[1])


def _forward(skips, x_RD, w_EDF, group_n, used_n):
    return _by_blocks(skips, x_RD, w_EDF, group_n, used_n), (x_RD, w_EDF, group_n, used_n)


def _backward(skips, saved, dy_RF):
    x_RD, w_EDF, group_n, used_n = saved

    def step(dw_EDF, inputs):
        x_rD, dy_rF, group, used = inputs

        def product(carry):
            dw_EDF, _ = carry
            dx_rD = dot(dy_rF, w_EDF[group], 1, 1).astype(x_RD.dtype)
            return dw_EDF.at[group].add(dot(x_rD, dy_rF, 0, 0)), dx_rD

        return _where(skips, used, product, (dw_EDF, jnp.zeros_like(x_rD)))

    blocks = (_blocks(x_RD, group_n), _blocks(dy_RF, group_n), group_n, used_n)
    dw_EDF, dx_nrD = jax.lax.scan(step, jnp.zeros(w_EDF.shape, jnp.float32), blocks)
    return _rows(dx_nrD), dw_EDF.astype(w_EDF.dtype), None, None


_by_blocks.defvjp(_forward, _backward)


def _where(skips: bool, used, product, otherwise):
    """product(otherwise); where blocks may be skipped, `otherwise` itself for a block that no group uses."""
    return jax.lax.cond(used, product, lambda same: same, otherwise) if skips else product(otherwise)


def _blocks(x_RD, group_n):
    return x_RD.reshape(len(group_n), -1, x_RD.shape[1])


def _rows(x_nrD):
    return x_nrD.reshape(-1, x_nrD.shape[2])


def _divide_up(a, b):
    return -(-a // b)
