"""Where relevance ends: embeddings, what a net is given, and learned rows."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from backends import Backend
from exact_rules import arrays_of, dtypes, forward_agrees, rule_agrees

from refl.rules import learned, source
from refl.verification.quality.cases import embedding_case


@dtypes
@pytest.mark.parametrize("role", ["tokens", "position"])
@pytest.mark.parametrize("rule", ["leaf", "leaf_gxi"])
def test_embedding(backend: Backend, dtype: str, rule: str, role: str) -> None:
    rule_agrees(backend, dtype, f"embedding_{rule}", partial(embedding_case, role=role))


@dtypes
def test_forward_of_embedding(backend: Backend, dtype: str) -> None:
    """Rows of the table, as they are."""
    forward_agrees(backend, dtype, embedding_case, lambda case, call, z: 0)


@pytest.mark.parametrize("role", ["pixels", "position"])
def test_source(backend: Backend, role: str) -> None:
    eighths = (np.random.default_rng(i).integers(-4, 5, (2, 3, 4, 5)) / 8 for i in range(2))
    x, r = eighths
    values, relevance = arrays_of(backend, x, r)
    assert source.forward(values=values, role=role) is values
    ended = source.leaf(values, relevance, values=values, role=role)
    in_gradient_form = source.leaf_gxi(values, relevance, values=values, role=role)
    assert ended.inputs == in_gradient_form.inputs == ()
    assert np.array_equal(backend.back(ended.absorbed[role]), r.sum(axis=(1, 2, 3)))
    amount = backend.back(in_gradient_form.absorbed[role])
    assert np.array_equal(amount, (x * r).sum(axis=(1, 2, 3)))


def test_learned(backend: Backend) -> None:
    """One row for all examples, recorded for each example apart."""
    table, r = np.arange(6.0).reshape(1, 2, 3), np.arange(24.0).reshape(4, 2, 3)
    placed, beside, relevance = arrays_of(backend, table, np.zeros((4, 7, 3)), r)
    z = learned.forward(placed, beside, role="class_token")
    assert np.array_equal(backend.back(z), np.repeat(table, 4, axis=0))
    ended = learned.leaf(placed, beside, z, relevance, role="class_token")
    in_gradient_form = learned.leaf_gxi(placed, beside, z, relevance, role="class_token")
    assert ended.inputs == in_gradient_form.inputs == (None, None)
    assert np.array_equal(backend.back(ended.absorbed["class_token"]), r.sum(axis=(1, 2)))
    amount = backend.back(in_gradient_form.absorbed["class_token"])
    assert np.array_equal(amount, (r * table).sum(axis=(1, 2)))
