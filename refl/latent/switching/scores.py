"""Scores by which neurons are ranked: the relevance of a table of rules, or |z|, summed over the
positions of an input.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np

from refl.arrays import asnumpy
from refl.components import Mlp
from refl.latent.switching.inputs import Asked
from refl.latent.switching.pool import Pool
from refl.ledger import UnknownSite
from refl.methods import Table
from refl.network import Reading


def ranked(
    one: Asked, pool: Pool, by: str | Table, tokens: Any = None
) -> Any:  # -> float64 (neurons,)
    """The scores of all neurons of one input: relevance, or |z|, summed over positions (or over
    those of `tokens`). Of an expert that did not run they are 0.
    """
    if isinstance(by, Table):
        subject = one.subject
        sites = [m.neurons for m in mlps(pool)]
        (e,) = by.explain(subject.question, [subject.reading], [subject.target], keep=sites)
        found = dict[str, Any]()
        for site in sites:
            with suppress(UnknownSite):
                found[site] = e[site]
    else:
        found = {site: np.abs(z) for site, z in activations(one, one.subject.reading, pool).items()}
    return np.concatenate([_summed(found.get(m.neurons), m.width, tokens) for m in mlps(pool)])


def _summed(scores: Any, width: int, tokens: Any) -> Any:  # (T, width) -> (width,)
    if scores is None:
        return np.zeros(width)
    return (scores if tokens is None else scores[tokens]).sum(axis=0, dtype=np.float64)


def activations(one: Asked, reading: Reading, pool: Pool) -> dict[str, Any]:  # -> (T, width) each
    """Of every MLP that ran, in this reading, asked the same."""
    values = one.subject.question.forward([reading]).trace.values
    sites = [m.neurons for m in mlps(pool)]
    return {site: asnumpy(values[site].array)[0].copy() for site in sites if site in values}


def mlps(pool: Pool) -> list[Mlp]:
    return [owner for owner in pool.owners if isinstance(owner, Mlp)]


def first(scores: Any, k: int) -> Any:  # (neurons,) -> int (k,)
    """Numbers of the k largest; of equals the first in the net."""
    return np.argsort(-scores, kind="stable")[:k]
