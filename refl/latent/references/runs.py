"""Activations and relevance of neurons and heads in a batch, position by position

    neuron    its activation; its relevance
    head      the length of its row of the context, sqrt(sum_i c_i^2); sum_i R_i over that row

in float64 of what was computed. Padding is left out, and the rows of an expert are put back to the
positions of the tokens that chose it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from refl.arrays import asnumpy
from refl.batching import grouped
from refl.components import Attention
from refl.errors import ReflError, argument
from refl.explainer import Explainer, lengths
from refl.latent.references.selection import Group
from refl.model import Model
from refl.network import WHOLE, Reading
from refl.question import Forward, Question, Target
from refl.rules.composites import Composite
from refl.seeds import AnySeed
from refl.sweep import Sweep, Swept
from refl.trace import Index, Record, Trace, Value


@dataclass(frozen=True)
class Ran:
    """What a run left at the sites that were asked for, NumPy with the batch axis. A site of an
    expert that no token chose is in none of them.

    index    of an expert's tokens the positions of its rows, for each example
    """

    activations: Mapping[str, Any]
    index: Mapping[str, Index]
    relevance: Mapping[str, Any] | None = None


def batches(model: Model, readings: Sequence[Reading], batch_tokens: int) -> list[list[int]]:
    """Numbers of the readings that run together: as Question.groups has it, for edits that are
    functions, too.
    """
    sizes = [model.lengths(reading) for reading in readings]
    alone = bool(model.edits)
    return grouped(sizes, batch_tokens, lambda n: alone or model.batch_dependent(n))


# -- a forward pass --------------------------------------------------------------------------------


class Listening(Trace):
    """A trace that records nothing but what is computed at some sites, before any edit of them."""

    def __init__(self, model: Model, sites: frozenset[str]) -> None:
        super().__init__(model.weights, record=False, plain=False, edits=model.edits)
        self.wanted = sites
        self.found: dict[str, Any] = {}
        self.index: dict[str, Index] = {}

    def name(self, value: Value, site: str) -> Value:
        if site in self.wanted:
            self.found[site] = value.array
        return super().name(value, site)

    def _keep(self, record: Record) -> Value:
        site = record.output.site
        if site in self.wanted:
            self.found[site] = record.output.array
            if record.operation == "gather":
                self.index[site] = record.attributes["index"]
        return super()._keep(record)


def activations(model: Model, readings: Sequence[Reading], groups: Sequence[Group]) -> Ran:
    """A forward pass of one batch. Raises ReflError where it is not finite."""
    wanted = {g.site for g in groups} | {g.tokens for g in groups if g.tokens}
    trace = Listening(model, frozenset(wanted))
    batch = model.batch(
        [reading.input for reading in readings],
        None if model.task in WHOLE else 0,  # of no concern here: any token's output will do
        decoder_prefix=[r.prefix for r in readings if r.prefix is not None] or None,
        types=[r.types for r in readings if r.types is not None] or None,
    )
    model.forward(trace, batch)
    return Ran({g.site: asnumpy(trace.found[g.site]) for g in groups if g.site in trace.found},
               trace.index)  # fmt: skip


# -- a forward pass and a sweep --------------------------------------------------------------------


def swept(
    question: Question,
    composite: Composite,
    readings: Sequence[Reading],
    targets: Sequence[Target],
    groups: Sequence[Group],
) -> Ran:
    """The same with the relevance for what is explained of each input, from one sweep, which ends
    at the first of the sites. Raises ReflError as `explain` does.
    """
    forward = question.forward(readings)
    seeds = question.seeds(forward, targets)
    sites = [g.site for g in groups if g.site in forward.trace.values]
    index = {
        r.output.site: r.attributes["index"]
        for r in forward.trace.records
        if r.operation == "gather"
    }
    found = _swept(question, composite, _down_to(forward, sites), seeds, sites)
    places = {site: found.aliases.get(site, site) for site in sites}
    x = {site: asnumpy(found.activations[place]) for site, place in places.items()}
    r = {site: asnumpy(found.propagated[place]) for site, place in places.items()}
    if composite.formulation == "gradient_x_input":
        r = {site: g * x[site] for site, g in r.items()}
    return Ran(x, index, r)


def _down_to(forward: Forward, sites: Sequence[str]) -> Forward:
    """The run from the first of these sites on: no relevance is wanted before it."""
    whole = forward.trace
    wanted = {whole.values[site] for site in sites}
    first = next((n for n, r in enumerate(whole.records) if r.output in wanted), 0)
    trace = Trace(whole.weights, plain=whole.plain)
    trace.records = whole.records[first:]
    return replace(forward, trace=trace)


def _swept(
    question: Question,
    composite: Composite,
    forward: Forward,
    seeds: Sequence[AnySeed],
    sites: Sequence[str],
) -> Swept:
    rows = question.starts(composite, forward, seeds)
    wanted = set(sites)
    keep = Sweep(composite, keep=lambda names: not wanted.isdisjoint(names), release=True)
    return question.sweep(forward, keep, rows)


def fitted(question: Question, composite: Composite) -> Composite:
    """The table for this net: with the bounds of a pixel. Raises ReflError for options that the
    dtype cannot hold.
    """
    return Explainer(question, composite).composite


# -- rows by position ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """Of one group in one batch, the rows of each example in the order of their positions.

    positions     (B, n); there: bool (B, n), False for what is no token
    activation    float64 (B, n, N)
    relevance     the same; None where there was no sweep
    """

    positions: Any
    there: Any
    activation: Any
    relevance: Any = None


def rows_of(group: Group, ran: Ran, readings: Sequence[Reading], dtype: str) -> Rows | None:
    """None for an expert that no token chose. Raises ReflError for numbers that are not finite."""
    if group.site not in ran.activations:
        return None
    x = _by_position(group, ran.activations[group.site], length=True)
    r = None if ran.relevance is None else ran.relevance[group.site]
    r = None if r is None else _by_position(group, r, length=False)
    if group.tokens is not None:
        positions, there, order = _places(ran.index[group.tokens])
        x, r = (None if a is None else np.take_along_axis(a, order, axis=1) for a in (x, r))
    else:
        positions, there = _positions(group, readings, x.shape[1])
    for what, a in (("activation", x), ("relevance", r)):
        if a is not None and not np.isfinite(a).all() and not np.isfinite(a[there]).all():
            raise ReflError(
                f"{what} is not finite in {dtype} at {group.site}: use {argument('dtype')} float64"
            )
    return Rows(positions, there, x, r)


def _by_position(group: Group, array: Any, length: bool) -> Any:  # -> float64 (B, n, N)
    """Of a head one number for each position: the length of its row, or its sum."""
    if not isinstance(group.owner, Attention):
        whole = len(group.numbers) == group.owner.width
        return np.asarray(array if whole else array[..., list(group.numbers)], dtype=np.float64)
    rows = np.ascontiguousarray(array[:, list(group.numbers)], dtype=np.float64)
    return np.swapaxes(lengths(rows) if length else rows.sum(axis=-1), 1, 2)


def _positions(group: Group, readings: Sequence[Reading], most: int) -> tuple[Any, Any]:
    """Of tokens; of a picture all that the net makes of it."""
    at = np.broadcast_to(np.arange(most), (len(readings), most))
    sizes = np.array([_size(group, reading, most) for reading in readings])
    return at, at < sizes[:, None]


def _size(group: Group, reading: Reading, most: int) -> int:
    if not isinstance(reading.input, list):
        return most
    written = group.in_decoder and reading.prefix is not None
    return len(reading.explained if written else reading.input)


def _places(index: Index) -> tuple[Any, Any, Any]:
    """Positions of an expert's rows, which of them are tokens, and the rows in their order."""
    nowhere = 1 + max((t for each in index for t in each if t is not None), default=0)
    at = np.array([[nowhere if t is None else t for t in each] for each in index])
    order = at.argsort(axis=1, kind="stable")
    positions = np.take_along_axis(at, order, axis=1)
    return positions, positions < nowhere, order[..., None]
