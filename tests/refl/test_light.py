"""Activations that are let go of behind their block and formed again in the sweep: no bit of any
result depends on it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from surrogate_truth import text

from refl import trace
from refl.model import Model
from refl.rules.published import ATTNLRP
from refl.sweep import Sweep
from refl.trace import LIGHT, Value
from refl.verification.random_models import ARCHITECTURES, random_model

NETS = ("llama", "gpt2", "t5", "gemma2", "albert", "mixtral")


def net(name: str) -> Model:
    config = ARCHITECTURES[name]
    if name == "albert":
        config = config | {"architectures": ["AlbertForSequenceClassification"]}
    return random_model(config, 6, "float32")


def held(value: Value) -> bool:
    """Without forming it again."""
    return value._array is not None


def same(one: Any, other: Any) -> None:
    assert set(one) == set(other)
    assert np.array_equal(one.relevance, other.relevance)
    for site in one:
        assert np.array_equal(one[site], other[site]), site
        assert np.array_equal(one.activation(site), other.activation(site)), site
    assert one.ledger.as_dict() == other.ledger.as_dict()


@pytest.mark.parametrize("keep", ["*", ()])
@pytest.mark.parametrize("name", NETS)
def test_no_bit_depends_on_it(name: str, keep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is explained alone, for two outputs of one forward, and with recomputed blocks."""
    model = net(name)
    texts = [text(model, 6), text(model, 4, seed=1)]

    def explained() -> list[Any]:
        both = model.explain_each(texts[0], (0, 1), keep=keep)
        recomputed = model.explain(texts, keep=keep, recompute=True)
        return [
            *model.explain(texts, keep=keep),
            *model.explain(texts, "attnlrp-gradient", keep=keep),
            *both,
            *recomputed,
        ]

    found = {}
    for heavy in (math.inf, 0):
        monkeypatch.setattr(trace, "HEAVY", heavy)
        found[heavy] = explained()
    for one, other in zip(found[math.inf], found[0], strict=True):
        same(one, other)


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("name", NETS)
def test_they_are_gone_after_the_forward(
    name: str, plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every block all that is light but its own output; what is asked for is there again."""
    model = net(name)
    kept, _ = model.trace([text(model, 6)], plain=plain)
    assert all(held(record.output) for record in kept.records)
    monkeypatch.setattr(trace, "HEAVY", 0)
    run, logits = model.trace([text(model, 6)], plain=plain)
    gone = [record for record in run.records if not held(record.output)]
    assert {record.operation for record in gone} <= LIGHT
    assert len(gone) >= 4 * 2  # of two blocks at least
    assert held(logits)
    for record in gone:
        wanted = kept.values[record.output.site].array
        assert np.array_equal(record.output.array, wanted) and held(record.output)


def test_a_sweep_lets_go_of_them_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """And of all the others where it is the last."""
    monkeypatch.setattr(trace, "HEAVY", 0)
    run, logits = net("llama").trace([[1, 2, 3, 4]])
    gone = [record.output for record in run.records if not held(record.output)]
    seed = np.ones_like(logits.array)
    first = Sweep(ATTNLRP).run(run, logits, seed)
    assert gone and not any(map(held, gone))
    assert sum(held(record.output) for record in run.records) == len(run.records) - len(gone)
    again = Sweep(ATTNLRP, release=True).run(run, logits, seed)
    assert first.ledger.as_dict() == again.ledger.as_dict()
    assert not any(held(record.output) for record in run.records)
    assert all(record.output.array is None for record in run.records)


def test_small_arrays_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = net("llama"), [1, 2, 3, 4]
    size = len(ids) * model.config.intermediate_size
    for heavy, some in ((size, False), (size - 1, True)):
        monkeypatch.setattr(trace, "HEAVY", heavy)
        run, _ = model.trace([ids])
        assert any(not held(record.output) for record in run.records) == some
