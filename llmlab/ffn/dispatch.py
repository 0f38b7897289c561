"""Tokens to their experts and back, on one device or many.

Two layouts. Rows (dropless): each device sorts its tokens by expert and multiplies as many rows as there are choices.
Buckets: each expert has the same number of slots in each row of the batch. Where the rules share experts over devices,
tokens travel to them and back by all-to-all. Rows do so in rounds of a fixed size: one is enough when choices are
nearly even, and since a device may be chosen by all, more follow while any token is left. Which mesh axes these are
follows from the letters B, L, E and F, in a `shard_map`.

Letters of this file: k, choices of a token; c, slots of an expert in a row; e, experts, whole on every device; l,
positions, whole; T, tokens of a device; A, their choices; R, rows sorted by expert (kernels/grouped_matmul.py); P,
places of a round: as many for each device of the group.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from llmlab import axes
from llmlab.config import Config, config
from llmlab.cost import RARE
from llmlab.kernels.grouped_matmul import grouped_matmul, lay_out, plan_rows, rank
from llmlab.kernels.receipt import note
from llmlab.nn.activation import activate
from llmlab.nn.parts import Declared

ARRIVED = jax.checkpoint_policies.save_only_these_names("arrived")  # what came from other devices
Weights = dict[str, jax.Array]  # of "gate" (where there is one), "up" and "down"
LETTERS = {"gate": "EdF", "up": "EdF", "down": "EFd"}  # the width is whole where experts work
Product = Callable[[jax.Array, jax.Array], jax.Array]  # of rows and the matrices of their experts


def places(**dims: int) -> dict[str, tuple[str, ...]]:
    """The mesh axes that share B, L, E and F under the rules in force, of those that have a size here."""
    place, found = dict.fromkeys("BLEF", ()), axes.scope()
    if found is None or found[0].size == 1:
        return place
    mesh, rules = found
    for letters in ("BL", "EF"):  # of tokens, of weights: axes that share both are moved between them
        letters = "".join(letter for letter in letters if letter in dims)
        parts = axes.spec(letters, tuple(dims[letter] for letter in letters), rules.live, dict(mesh.shape))
        for letter, part in zip(letters, parts):
            place[letter] = () if part is None else (part,) if isinstance(part, str) else tuple(part)
    return place


def spread(function: Callable, place: dict[str, tuple[str, ...]], letters, out) -> Callable:
    """`function` on each device's part of its operands. letters, out: those of its operands and results, as a tree."""
    if not any(place.values()):
        return function
    spec = lambda names: PartitionSpec(*(place.get(letter) or None for letter in names))
    return jax.shard_map(
        function,
        mesh=axes.scope()[0],
        in_specs=jax.tree.map(spec, letters),
        out_specs=jax.tree.map(spec, out),
        check_vma=False,
    )


def best(scores: jax.Array, count: int, letters: str) -> tuple[jax.Array, jax.Array]:
    """The `count` highest of the last dimension and their places, on each device by itself: XLA would gather them."""
    place = places(**{letter: size for letter, size in zip(letters, scores.shape) if letter in "BL"})
    return spread(lambda scores: tuple(jax.lax.top_k(scores, count)), place, (letters,), (letters, letters))(scores)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Choice:
    """What each token chose: experts (`count` for none) and their weights."""

    experts_BLk: jax.Array
    weights_BLk: jax.Array
    count: int = dataclasses.field(metadata={"static": True})
    rounds: int = dataclasses.field(default=1, metadata={"static": True})  # as in Dropless
    room: float = dataclasses.field(default=1.25, metadata={"static": True})

    def run(self, x_BLD: jax.Array, weights: Weights, activation: str) -> jax.Array:
        """The weighted sum of what the experts make of each token; none is dropped."""
        place = _places(x_BLD, weights)
        gathered = tuple(axis for axis in place["E"] if axis in place["B"] + place["L"])
        travels = gathered and gathered == place["E"]
        if gathered:
            note("experts", "tokens travel by all-to-all" if travels else "tokens are gathered")
        summed = tuple(axis for axis in place["E"] if axis not in gathered) + place["F"]

        def local(x_BLD, experts_BLk, weights_BLk, weights):
            x_TD = x_BLD.reshape(-1, x_BLD.shape[2])
            chosen = [a.reshape(len(x_TD), -1) for a in (experts_BLk, weights_BLk)]
            if travels:
                y_TD = self._travel(x_TD, *chosen, weights, activation, place)
            else:
                if gathered:
                    x_TD, *chosen = (jax.lax.all_gather(a, gathered, tiled=True) for a in (x_TD, *chosen))
                y_TD = _sorted(x_TD, chosen[0] - _first(place["E"], weights), chosen[1], weights, activation)
                if gathered:
                    y_TD = jax.lax.psum_scatter(y_TD, gathered, tiled=True)
            y_TD = jax.lax.psum(y_TD, summed) if summed else y_TD
            return y_TD.reshape(x_BLD.shape).astype(x_BLD.dtype)

        letters = ("BLd", "BLk", "BLk", {name: LETTERS[name] for name in weights})
        return spread(local, place, letters, "BLd")(x_BLD, self.experts_BLk, self.weights_BLk, weights)

    def _travel(self, x_TD, experts_TK, weights_TK, weights: Weights, activation: str, place):
        """What the experts of all devices of the group make of this one's tokens, by all-to-all in rounds."""
        group, (tokens, choices) = place["E"], experts_TK.shape
        devices = math.prod(axes.scope()[0].shape[axis] for axis in group)
        here, most = self.count // devices, tokens * min(choices, self.count // devices)  # `most` choose one device
        size = min(math.ceil(self.room * tokens * choices / devices / self.rounds), most)
        whole = math.ceil(most / size)
        always = min(self.rounds, whole)
        experts_A, weights_A = experts_TK.reshape(-1), weights_TK.reshape(-1)
        device_A = jnp.minimum(experts_A // here, devices)  # `devices` for a choice of none
        rank_A = jnp.where(device_A < devices, rank(device_A, devices), -1)
        send = lambda a: jax.lax.all_to_all(a, group, 0, 0, tiled=True)

        def work(weights, given):
            """One round: there, through the experts, and back."""
            x_PD, experts_P, weights_P = given
            weights = {name: w.astype(x_PD.dtype) for name, w in weights.items()}
            x_PD = checkpoint_name(send(x_PD), "arrived")
            y_PD = _sorted(x_PD, send(experts_P)[:, None], send(weights_P)[:, None], weights, activation)
            return send(y_PD.astype(x_PD.dtype))

        def run(first, count, work):
            """The sum of what comes back in the rounds from `first` on."""
            round_A, place_A = jnp.divmod(rank_A - first * size, size)
            place_A, places = (round_A * devices + device_A) * size + place_A, count * devices * size
            place_A = jnp.where((round_A < 0) | (round_A >= count), places, place_A)
            put = lambda a, empty: jnp.full(places, empty, a.dtype).at[place_A].set(a, mode="drop")
            choice_P = put(jnp.arange(tokens * choices), tokens * choices)
            x_PD = take(x_TD, choice_P // choices, place_A.reshape(tokens, choices))
            given = (x_PD, put(experts_A % here, here), put(weights_A, 0))
            given = jax.tree.map(lambda a: a.reshape(count, -1, *a.shape[1:]), given)
            if count == 1:
                y_PD = work(weights, jax.tree.map(lambda a: a[0], given))
            else:
                wide = jax.tree.map(lambda w: w.astype(jnp.float32), weights)  # so gradients of the rounds add up
                y_PD = jax.lax.map(partial(work, wide), given).reshape(places, -1)
            return collect(y_PD, choice_P // choices, place_A.reshape(tokens, choices))

        again = jax.checkpoint(work, prevent_cse=False, policy=ARRIVED)
        y_TD = run(0, always, again if always > 1 else work)
        if always == whole:
            return y_TD
        needed = jax.lax.pmax(rank_A.max(), place["B"] + place["L"]) // size + 1  # all devices do as many

        def more(y_TD, number):
            add = jax.checkpoint(lambda y_TD: y_TD + run(number, 1, work), prevent_cse=False)
            with jax.named_scope(RARE):
                return jax.lax.cond(number < needed, add, lambda y_TD: y_TD, y_TD), None

        return jax.lax.scan(more, y_TD, jnp.arange(always, whole))[0]


@jax.custom_vjp
def take(x_SD: jax.Array, source_P: jax.Array, places_SK: jax.Array) -> jax.Array:
    """The row that fills each place, zeros where none does (`source_P` is S then).

    places_SK: the places that a row fills, P for none. With them the gradient is no scatter but a sum of rows.
    """
    return x_SD.at[source_P].get(mode="fill", fill_value=0)


@jax.custom_vjp
def collect(y_PD: jax.Array, source_P: jax.Array, places_SK: jax.Array) -> jax.Array:
    """The sum over the places that a row fills, in float32: `take` transposed."""
    return y_PD.at[places_SK].get(mode="fill", fill_value=0).sum(1, dtype=jnp.float32)


take.defvjp(
    lambda x_SD, *places: (take(x_SD, *places), places),
    lambda places, dy_PD: (collect(dy_PD, *places).astype(dy_PD.dtype), None, None),
)
collect.defvjp(  # of y the type is kept, as an array of nothing
    lambda y_PD, *places: (collect(y_PD, *places), (places, jnp.zeros(0, y_PD.dtype))),
    lambda saved, dy_SD: (take(dy_SD.astype(saved[1].dtype), *saved[0]), None, None),
)


def _sorted(x_TD, experts_TK, weights_TK, weights: Weights, activation: str):
    """The sum over each token's choices among the experts whose weights are here, in float32."""
    (tokens, choices), experts = experts_TK.shape, len(weights["up"])
    experts_A = experts_TK.reshape(-1)
    experts_A = jnp.where((experts_A < 0) | (experts_A > experts), experts, experts_A)
    groups, row_A = lay_out(experts_A, experts, tokens * min(choices, experts))
    choice_R = jnp.full(groups.rows, tokens * choices).at[row_A].set(jnp.arange(tokens * choices), mode="drop")
    x_RD = take(x_TD, choice_R // choices, row_A.reshape(tokens, choices))
    y_RD = feed(x_RD, weights, activation, lambda x, w: grouped_matmul(x, w, groups))
    y_TKD = take(y_RD, row_A, choice_R[:, None]).reshape(tokens, choices, -1)
    return (y_TKD.astype(jnp.float32) * weights_TK[..., None]).sum(1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Buckets:
    """The position in its row that each slot of each expert holds (the length of the row for none), and its weight."""

    tokens_Bec: jax.Array
    weights_Bec: jax.Array

    def run(self, x_BLD: jax.Array, weights: Weights, activation: str) -> jax.Array:
        """The weighted sum of what the experts make of each token that has a slot."""
        place = _places(x_BLD, weights)
        moved = bool(place["E"]) and set(place["E"]) <= set(place["B"] + place["L"])
        if not moved and set(place["E"]) & set(place["B"] + place["L"]):
            raise ValueError(
                f"the rules share experts over {place['E']}, rows over {place['B']} and positions over {place['L']}; "
                "for buckets the axes of E must all be among those of B and L, or none of them"
            )
        summed = (() if moved else place["E"]) + place["F"]
        # The devices that share the positions of a row share its slots.
        parts = math.prod(axes.scope()[0].shape[axis] for axis in place["L"]) if place["L"] else 1
        more = -self.tokens_Bec.shape[2] % parts
        tokens_Bec = jnp.pad(self.tokens_Bec, ((0, 0), (0, 0), (0, more)), constant_values=x_BLD.shape[1])
        weights_Bec = jnp.pad(self.weights_Bec, ((0, 0), (0, 0), (0, more)))

        def local(x_BlD, tokens_BeL, weights_BeL, weights):
            experts = len(weights["up"])
            if not moved:
                own = lambda a_BeL: jax.lax.dynamic_slice_in_dim(a_BeL, _first(place["E"], weights), experts, axis=1)
                tokens_BeL, weights_BeL = own(tokens_BeL), own(weights_BeL)
            x_BEcD = _take(x_BlD, tokens_BeL)
            if moved:
                x_BEcD = jax.lax.all_to_all(x_BEcD, place["E"], 1, 0, tiled=True)
            x_EBcD = jnp.swapaxes(x_BEcD, 0, 1)
            y_EAD = feed(x_EBcD.reshape(experts, -1, x_BlD.shape[2]), weights, activation, _batched)
            y_BEcD = jnp.swapaxes(y_EAD.reshape(x_EBcD.shape), 0, 1)
            if moved:
                y_BEcD = jax.lax.all_to_all(y_BEcD, place["E"], 0, 1, tiled=True)
            y_BlD = _add(y_BEcD.astype(jnp.float32) * weights_BeL[..., None], tokens_BeL, x_BlD.shape[1])
            if place["L"]:
                y_BlD = jax.lax.psum_scatter(y_BlD, place["L"], scatter_dimension=1, tiled=True)
            return (jax.lax.psum(y_BlD, summed) if summed else y_BlD).astype(x_BlD.dtype)

        letters = ("Bld", "BeL", "BeL", {name: LETTERS[name] for name in weights})
        return spread(local, place, letters, "BLd")(x_BLD, tokens_Bec, weights_Bec, weights)


def _take(x_BlD, tokens_Bec):
    """The tokens of each slot, zeros where there is none."""
    return jax.vmap(lambda x_lD, token_ec: x_lD.at[token_ec].get(mode="fill", fill_value=0))(x_BlD, tokens_Bec)


def _add(y_BecD, tokens_Bec, length: int):
    """The sum over the slots of each token."""
    add = lambda y_ecD, token_ec: jnp.zeros((length, y_ecD.shape[2])).at[token_ec].add(y_ecD, mode="drop")
    return jax.vmap(add)(y_BecD, tokens_Bec)


def _batched(x_EAD, w_EDF):
    """Every expert has as many rows."""
    y_EAF = jnp.einsum("EAD,EDF->EAF", x_EAD, w_EDF, preferred_element_type=jnp.float32)
    return y_EAF.astype(x_EAD.dtype)


def feed(x, weights: Weights, activation: str, product: Product):
    """The feed-forwards of the experts on rows that `product` knows the experts of."""
    factors = [product(x, weights[name]) for name in ("gate", "up") if name in weights]
    return product(activate(activation, *factors), weights["down"])


def _places(x_BLD, weights: Weights):
    (batch, length, _), (experts, _, hidden) = x_BLD.shape, weights["up"].shape
    return places(B=batch, L=length, E=experts, F=hidden)


def _first(shared: tuple[str, ...], weights: Weights):
    """The index of the first expert that this device has."""
    return jax.lax.axis_index(shared) * len(weights["up"]) if shared else 0


class Form(Config):
    """How the choices of tokens are carried out."""

    def declared(self) -> Declared:
        return Declared()

    def arrange(self, routed: Choice | Buckets, top_k: int) -> tuple[Choice | Buckets, dict]:
        """What is carried out of the choices, and what is to be told of it."""
        raise TypeError(f"{type(self).__name__} must define arrange(routed, top_k)")

    def rows(self, batch: int, length: int, experts: int, top_k: int) -> int:
        """How many rows the experts compute on one device."""
        raise TypeError(f"{type(self).__name__} must define rows(batch, length, experts, top_k)")


@config
class Dropless(Form):
    """Every choice is carried out (Gale et al., 2022).

    Where experts are shared over devices, tokens travel in `rounds`, which together have `room` times the places that
    even choices need; more of that size follow while any token is left. Of several rounds the experts hold the hidden
    units of one at a time, and the backward pass computes each again.
    """

    rounds: int = 1
    room: float = 1.25

    def check(self):
        if self.rounds < 1 or self.room <= 0:
            raise ValueError(f"Dropless: rounds is {self.rounds}, 1 or more; room is {self.room}, above 0")

    def arrange(self, routed, top_k):
        if isinstance(routed, Buckets):
            return routed, {}
        return dataclasses.replace(routed, rounds=self.rounds, room=self.room), {}

    def rows(self, batch, length, experts, top_k):
        return plan_rows(batch * length * min(top_k, experts), experts)[0]


@config
class Capacity(Form):
    """In each row of the batch an expert takes `factor` times its even share of choices and drops those beyond it.

    First choices come before second ones, then earlier positions before later ones (GShard, 2020). A row is a group, so
    what is dropped depends neither on the other rows nor on the mesh. It does depend on the other tokens of the row: a
    later token's first choice takes the slot of an earlier token's second one, also across packed documents. And a
    token decoded by itself is never dropped. So nothing is declared to hold, though gradients show none of it. To
    generate with the same parameters, give the model `form=Dropless()`.
    """

    factor: float = 1.25

    def check(self):
        if self.factor <= 0:
            raise ValueError(f"Capacity.factor is {self.factor}; it multiplies the even share of an expert: above 0")

    def declared(self):
        return Declared(causal=False, isolated=False, decodable=False)

    def arrange(self, routed, top_k):
        """Buckets, and under "dropped" the share of choices that found no slot."""
        count, (_, length, choices) = routed.count, routed.experts_BLk.shape
        size = slots(length, count, top_k, self.factor)

        def fill(experts_Lk, weights_Lk):
            experts_A = experts_Lk.T.reshape(-1)  # first choices first
            rank_A = rank(experts_A, count)
            kept_A = (experts_A < count) & (rank_A < size)
            slot_A = jnp.where(kept_A, experts_A * size + rank_A, count * size)
            position_A = jnp.tile(jnp.arange(length), choices)
            tokens = jnp.full(count * size, length).at[slot_A].set(position_A, mode="drop")
            weights = jnp.zeros(count * size).at[slot_A].set(weights_Lk.T.reshape(-1), mode="drop")
            return tokens.reshape(count, size), weights.reshape(count, size), kept_A.sum()

        tokens_Bec, weights_Bec, kept_B = jax.vmap(fill)(routed.experts_BLk, routed.weights_BLk)
        asked = (routed.experts_BLk < count).sum()
        return Buckets(tokens_Bec, weights_Bec), {"dropped": (asked - kept_B.sum()) / jnp.maximum(asked, 1)}

    def rows(self, batch, length, experts, top_k):
        return batch * experts * slots(length, experts, top_k, self.factor)


def slots(length: int, experts: int, top_k: int, factor: float) -> int:
    """Slots of an expert in a row: its even share times `factor`, rounded up; never more than there are tokens."""
    return min(math.ceil(length * top_k * factor / experts), length)
