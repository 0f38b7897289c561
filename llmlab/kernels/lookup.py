"""Rows of a table by their index, where the table is shared over devices.

Either the table is gathered on every device, or ids travel to where columns are stored and what is found travels back:
the second sends one vector for each token and not the whole table, twice a step, and its gradient needs no reduction.
Left to itself, XLA rematerialises the gather from a table that is shared by its rows.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from llmlab import axes
from llmlab.axes import shard
from llmlab.kernels.receipt import note


def look_up(table_VD: jax.Array, tokens_BL: jax.Array) -> jax.Array:
    """x_BLD, the row of each token; the table lies as it is stored."""
    found = axes.scope()
    if found is None or found[0].size == 1:
        return table_VD[tokens_BL]
    mesh, rules = found
    sizes = dict(mesh.shape)
    entries, columns = (axes.flat([part]) for part in axes.spec("VD", table_VD.shape, rules.stored, sizes))
    row = axes.spec("BL", tokens_BL.shape, rules.live, sizes)
    here = tokens_BL.size // _product(sizes, axes.flat(row))
    travels = columns and set(columns) <= set(axes.flat([row[0]])) and not set(entries) & set(axes.flat(row))
    if not travels or here > len(table_VD):
        note("embedding", "whole table on every device")
        return shard(table_VD, "vD")[tokens_BL]
    note("embedding", "tokens travel to the table")

    def local(table_VD, tokens_BL):
        tokens_BL = jax.lax.all_gather(tokens_BL, columns, axis=0, tiled=True)
        if entries:
            tokens_BL = tokens_BL - jax.lax.axis_index(entries) * len(table_VD)
            outside_BL = (tokens_BL < 0) | (tokens_BL >= len(table_VD))
            tokens_BL = jnp.where(outside_BL, len(table_VD), tokens_BL)
        x_BLD = table_VD.at[tokens_BL].get(mode="fill", fill_value=0)
        x_BLD = jax.lax.all_to_all(x_BLD, columns, split_axis=0, concat_axis=2, tiled=True)
        return jax.lax.psum(x_BLD, entries) if entries else x_BLD

    stored = axes.spec("VD", table_VD.shape, rules.stored, sizes)
    return jax.shard_map(local, mesh=mesh, in_specs=(stored, row), out_specs=PartitionSpec(*row, None))(
        table_VD, tokens_BL
    )


def _product(sizes: dict[str, int], names: tuple[str, ...]) -> int:
    found = 1
    for name in names:
        found *= sizes[name]
    return found
