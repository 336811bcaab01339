"""Identity 9: what must make no difference. Later tokens, other members of a batch, padding, how K
and V are stored, and how it is run.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from operator import attrgetter, itemgetter
from typing import Any, cast

import numpy as np

from refl import attention
from refl.arrays import Array, asnumpy
from refl.explanation import Explanation
from refl.model import Model
from refl.trace import QUERIES
from refl.verification.identities.conditioning import RunComparison
from refl.verification.identities.invariance import compare_models
from refl.verification.identities.methods import WITHOUT_EPS
from refl.verification.identities.model_under_test import (
    ModelUnderTest,
    input_scores,
    with_mask,
)
from refl.verification.identities.rows import Row, WorstDeviation, deviation

TILE = 60
"""Queries and keys of a tile, where several are looked at."""


def ways_to_run(m: ModelUnderTest) -> Iterator[Row]:
    parts = (causality, batches, grouped_keys, recomputed, forward_passes, attention_in_blocks)
    for n, part in enumerate(parts):
        m.progress(n, len(parts))
        yield from part(m)


# -- later tokens ----------------------------------------------------------------------------------


def causality(m: ModelUnderTest) -> Iterator[Row]:
    """Explaining position t: R = 0 exactly at every later one,
    and R is that of the text which ends at t.
    """
    identity, means = (
        "no relevance after the explained position",
        "a causal net is explained by what it has seen",
    )
    ids = m.item if m.decoder is None else m.decoder
    if reason := _no_causality(m, ids):
        yield Row(9, identity, means, reason=reason)
        return
    end, after, prefix = len(ids) // 2, WorstDeviation(), WorstDeviation()
    for method in m.methods:
        _compare_prefix(m, method, ids[:end], after, prefix)
    found = f"position {end - 1} of {len(ids)}, {len(m.methods)} methods"
    yield after.row(9, identity, means, found)
    identity, means = (
        "a prefix is explained as if it stood alone",
        "what follows a token does not change its explanation",
    )
    if reason := _positions_depend_on_length(m, len(ids)):
        yield Row(9, identity, means, reason=reason)
        return
    yield prefix.row(9, identity, means, f"the first {end} of {len(ids)} tokens")


def _positions_depend_on_length(m: ModelUnderTest, length: int) -> str:
    """Why a text's positions are others beside a longer one; "" where they are not."""
    rope = getattr(m.model.config, "rope", None)
    if rope is None or not rope.batch_dependent(length):
        return ""
    named = ("original_" if rope.trained != rope.positions else "") + "max_position_embeddings"
    return (
        f"{rope.kind} rotary positions turn by other angles in a text of {length} tokens, for it "
        f"is longer than {named}, {rope.trained}: a text alone is another function"
    )


def _no_causality(m: ModelUnderTest, ids: Any) -> str:
    if m.model.task not in ("next-token", "sequence-to-sequence"):
        return f"every {'patch' if m.model.takes_images else 'token'} sees all others"
    return "the text has one token" if len(ids) < 2 else ""


def _compare_prefix(
    m: ModelUnderTest, method: str, ids: list[int], after: WorstDeviation, prefix: WorstDeviation
) -> None:
    """`ids`: the first ones of what is causal, the decoder's where there is one."""
    short, end = _cut(m, ids), len(ids)
    alone = short.explain(method, keep=(), target=None)
    explain = partial(short.explain, method, keep=(), target=alone.target_id)
    e = m.explain(method, position=end - 1, target=alone.target_id, keep=())
    read = attrgetter("relevance" if m.decoder is None else "decoder_relevance")
    r = read(e)
    after.compare(r[end:], np.zeros_like(r[end:]), 0.0, method, size=float(np.abs(r).max()))
    RunComparison(m.model, alone, explain, prefix).compare(r[:end], read, method, e)


def _cut(m: ModelUnderTest, ids: list[int]) -> ModelUnderTest:
    return replace(m, item=ids) if m.decoder is None else replace(m, decoder=ids)


# -- batches and padding ---------------------------------------------------------------------------


def batches(m: ModelUnderTest) -> Iterator[Row]:
    """Inputs explained together get what each gets alone; padding gets exactly nothing."""
    worst, padding, (items, decoders) = WorstDeviation(), WorstDeviation(), _batch(m)
    together = (
        "together = each alone",
        "an explanation does not depend on what else is in the batch",
    )
    padded = "padding has no relevance", "what pads a batch is no part of any input"
    longest = 0 if m.model.takes_images else max(map(len, items))
    if reason := _positions_depend_on_length(m, longest):
        yield from (Row(9, *row, reason=reason) for row in (together, padded))
        return
    for method in m.methods:
        for keep in ("*", ()) if method == "attnlrp" else ("*",):
            for e, run in _members(m, method, items, decoders, keep, worst):
                run.compare(input_scores(e), input_scores, method)
                _compare_sites(e, run, padding, method)
    lengths = "" if m.model.takes_images else f" of {', '.join(str(len(i)) for i in items)} tokens"
    found = f"{len(items)} inputs{lengths}, {len(m.methods)} methods"
    yield worst.row(9, *together, found)
    nothing = "" if padding.count else "inputs of one length need no padding"
    yield padding.row(9, *padded, f"{padding.count:,} padded sites", nothing)


def _members(
    m: ModelUnderTest,
    method: str,
    items: list[Any],
    decoders: list[list[int]] | None,
    keep: Any,
    worst: WorstDeviation,
) -> Iterator[tuple[Explanation, RunComparison]]:
    """Each input's explanation out of the batch, and what is held against that of it alone."""
    how: dict[str, Any] = {"method": m.composite(method), "keep": keep, "audit": True, "at": m.at}
    together = m.model.explain(items, decoder=decoders, batch_tokens=sys.maxsize, **how)
    for b, e in enumerate(together):
        target = None if m.at else e.target_id
        decoder = None if decoders is None else decoders[b]
        explain = _explainer(items[b], target=target, decoder=decoder, **how)
        yield e, RunComparison(m.model, explain(m.model), explain, worst)


def _explainer(item: Any, **how: Any) -> Callable[[Model], Explanation]:
    return lambda model: cast(Explanation, model.explain(item, **how))


def _batch(m: ModelUnderTest) -> tuple[list[Any], list[list[int]] | None]:
    """The input and others: of other lengths where a batch may be padded. A single token stands
    beside two, of a net that takes two.
    """
    if m.model.takes_images:
        x = m.model.read(m.item).pixels
        items = [x, np.ascontiguousarray(x[:, ::-1]), 0.5 * x]
        if not m.model.takes_features:
            return items, None
        return [one[0] for one in items], [m.decoder or []] * len(items)
    n, others = len(m.item), [(i + 1) % m.model.config.vocab_size for i in m.item]
    if m.at:  # one neuron is explained in inputs of one length
        items = [m.item, m.item[::-1], others]
    elif n == 1:
        items = [m.item, with_mask(m.model, [*m.item, *others][: m.model.config.longest])]
    else:
        shorter = [k for k in (max(n // 2, 1), 1) if k < n]
        items = [m.item, *(with_mask(m.model, m.item[n - k :]) for k in shorter)]
    if m.decoder is None:
        return items, None
    return items, [m.decoder[: max(len(m.decoder) - i, 1)] for i in range(len(items))]


def _compare_sites(
    together: Explanation, run: RunComparison, padding: WorstDeviation, method: str
) -> None:
    """Sites with a row for each token, beyond those that the input alone has."""
    alone = run.e
    for site in (x for x in together if x in set(alone) and ".experts." not in x):
        r, rows = together[site], len(alone[site])
        if r.ndim == 2 and len(r) > rows == len(alone.input_ids):
            size = float(np.abs(r).max())
            padding.compare(r[rows:], 0 * r[rows:], 0.0, f"{site} ({method})", size)
            run.compare(r[:rows], itemgetter(site), f"{site} ({method})")


# -- grouped keys and values -----------------------------------------------------------------------


def grouped_keys(m: ModelUnderTest) -> Iterator[Row]:
    """Key and value matrices stored once for each query head: the same relevance at the input and
    after each block.
    """
    identity, means = (
        "grouped K and V = repeated K and V",
        "a group of queries shares its key and value by summing what they give it",
    )
    c = m.model.config
    heads, groups = getattr(c, "num_attention_heads", 0), getattr(c, "kv_heads", 0)
    if not groups or heads == groups:
        reason = "every query head has a key and value head of its own"
        yield Row(9, identity, means, reason=reason)
        return
    other, worst = with_repeated_keys(m.model), WorstDeviation()
    for method in m.methods:
        compare_models(m, other, method, worst, m.stages)
    found = f"{groups} key heads for {heads} query heads, {len(m.methods)} methods"
    yield worst.row(9, identity, means, found)


def with_repeated_keys(model: Model) -> Model:
    """The same net with a key and value head for each query head: every tensor that has rows for
    key or value heads gets them once for each.
    """
    config = replace(model.config, num_key_value_heads=model.config.num_attention_heads)
    shapes = {name: shape for name, shape, _ in model.net.shapes(config)}
    weights = {
        name: _repeated(model, name, shapes.get(name, model.weights[name].shape))
        for name in model.weights
    }
    return replace(model, weights=weights, config=config)


def _repeated(model: Model, name: str, shape: tuple[int, ...]) -> Array:
    array, c = model.weights[name], model.config
    if tuple(array.shape) == tuple(shape):
        return array
    queries, keys = c.num_attention_heads, c.kv_heads
    one_matrix = array.shape[0] == (queries + 2 * keys) * c.width
    first, count = (queries, queries + 2 * keys) if one_matrix else (0, keys)
    per_head = asnumpy(array).reshape(count, c.width, -1)
    repeated = np.repeat(per_head[first:], queries // keys, axis=0)
    return model.place(np.concatenate([per_head[:first], repeated]).reshape(shape))


# -- ways to run -----------------------------------------------------------------------------------


def recomputed(m: ModelUnderTest) -> Iterator[Row]:
    """Block by block, each run again when the sweep reaches it: every site and every entry of the
    conservation ledger, bit for bit.
    """
    worst = WorstDeviation()
    for method in m.methods:
        for keep in ("*", ()):
            explain = partial(m.explain, method, keep=keep, audit=False)
            _compare_bits(explain(), explain(recompute=True), method, worst)
    yield worst.row(
        9,
        "recomputed = held in memory, bit for bit",
        "saving memory costs no digit",
        f"{worst.count:,} arrays, {len(m.methods)} methods",
    )


def _compare_bits(one: Explanation, other: Explanation, method: str, worst: WorstDeviation) -> None:
    worst.compare(input_scores(one), input_scores(other), 0.0, method)
    _compare_names(one, other, f"the sites of {method}", worst)
    for site in set(one) & set(other):
        worst.compare(one[site], other[site], 0.0, f"{site} ({method})")
        if apart := deviation(one.activation(site), other.activation(site)):
            worst.add(apart, 0.0, f"the activation of {site} ({method})")
    same = one.ledger.as_dict() == other.ledger.as_dict()
    size = float(len(one.ledger.entries))
    worst.add(0.0 if same else math.inf, 0.0, f"the conservation ledger of {method}", size)


def _compare_names(one: Explanation, other: Explanation, where: str, worst: WorstDeviation) -> None:
    if set(one) != set(other):
        worst.add(math.inf, 0.0, where)


def forward_passes(m: ModelUnderTest) -> Iterator[Row]:
    """Bit by bit the same activations whichever composite is used."""
    worst, first = WorstDeviation(), m.explained(WITHOUT_EPS[0])
    for method in m.methods:
        e = m.explain(method, audit=False)
        _compare_names(first, e, f"the sites of {method}", worst)
        for site in set(first) & set(e):
            worst.compare(first.activation(site), e.activation(site), 0.0, f"{site} ({method})")
    yield worst.row(
        9,
        "the forward pass is the same for every method",
        "explaining does not touch what is explained",
        f"{worst.count:,} activations",
    )


def attention_in_blocks(m: ModelUnderTest) -> Iterator[Row]:
    """Attention without the T x T matrix, in blocks of queries and, in NumPy, by tiles of queries
    and keys: the same relevance. Where the net takes a text of more than one block.

    An audited sweep runs in blocks; any other by tiles, where its rules are among those that are
    written for tiles. These are made small, so that there are several both ways.
    """
    identity, means = (
        "attention in blocks = attention in one piece",
        "the faster form computes the same",
    )
    worst, m = WorstDeviation(), _longer_than_a_block(m)
    if (queries := _most_queries(m)) <= QUERIES:
        what = "the picture has" if m.model.takes_images else "the net takes"
        reason = f"{what} {queries} positions at most, and they are one block of {QUERIES}"
        yield Row(9, identity, means, reason=reason)
        return
    for method in ("attnlrp", "attnlrp-gradient", "cp-lrp"):
        plain = partial(m.explain, method, keep=("*.scores",))
        run = RunComparison(m.model, plain(), plain, worst)
        for form, audit in (("in blocks", True), ("by tiles", False)):
            with tiles_of(TILE):
                found = m.explain(method, keep=(), audit=audit)
            run.compare(input_scores(found), input_scores, f"{method}, {form}")
    yield worst.row(9, identity, means, f"{queries} positions, blocks of {QUERIES}")


@contextmanager
def tiles_of(size: int) -> Iterator[None]:
    """Meanwhile attention by tiles takes so many queries and keys at a time."""
    before = attention.QUERIES, attention.KEYS
    attention.QUERIES = attention.KEYS = size
    try:
        yield
    finally:
        attention.QUERIES, attention.KEYS = before


def _most_queries(m: ModelUnderTest) -> int:
    """Of any attention of the net, on this input."""
    return max((r.output.array.shape[-2] for r in m.graph.of("softmax")), default=0)


def _longer_than_a_block(m: ModelUnderTest) -> ModelUnderTest:
    if m.model.takes_images:
        return m
    count = min(QUERIES + 2, m.model.config.longest)
    return replace(m, item=with_mask(m.model, (m.item * count)[:count]))
