"""Attention by itself, in each of the forms in which it runs, and masks of any kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest

from refl import attention, trace
from refl.rules.composites import Composite
from refl.sweep import Sweep, Swept
from refl.trace import Trace, Value

FAST = ("parts", "tiles")
"""The forms in which T x T is never held."""


@dataclass(frozen=True, eq=False)
class Given:
    """A mask that is any array, for refl.mask.Mask."""

    array: Any  # bool (1|B, 1, J, I)

    def visible(self, rows: slice) -> slice:
        keys = np.flatnonzero(self.array[:, 0, rows].any(axis=(0, 1)))
        every = slice(0, self.array.shape[-1])
        return slice(int(keys[0]), int(keys[-1]) + 1) if keys.size else every

    def part(self, rows: slice, columns: slice) -> Any:
        part = self.array[..., rows, columns]
        return None if part.all() else part


def in_form(patch: pytest.MonkeyPatch, form: str, queries: int = 2, keys: int = 3) -> None:
    """From now on attention that is not plain runs in this form, so many queries and keys at a
    time, however short it is.
    """
    patch.setattr(trace, "FEW", 0)
    patch.setattr(trace, "QUERIES", queries)
    patch.setattr(attention, "QUERIES", queries)
    patch.setattr(attention, "KEYS", keys)
    if form == "parts":
        patch.setattr(attention, "computable", lambda *operands, **how: None)


def counted(patch: pytest.MonkeyPatch, function: str) -> list[str]:
    """One name for each call of a function of refl/attention.py."""
    calls: list[str] = []
    called = getattr(attention, function)

    def counting(*arguments: Any) -> Any:
        calls.append(function)
        return called(*arguments)

    patch.setattr(attention, function, counting)
    return calls


class Operands(NamedTuple):
    """Of one attention: q (B, H, J, d), k and v (B, H, I, d), bias (1|B, H, J, I)."""

    q: Any
    k: Any
    v: Any
    bias: Any = None


class Attended(NamedTuple):
    """What one attention gave, and its sweep, with what came to its operands kept."""

    z: Any
    swept: Swept

    def to(self, operand: str) -> Any:
        """What the operand of this name received."""
        return self.swept.propagated[f"layer.0.attn.{operand}"]


def attended(
    composite: Composite,
    operands: Operands,
    mask: Any = None,
    *,
    plain: bool,
    cap: float | None = None,
    audit: bool = False,
    seed: Callable[[Any], Any] = np.cos,
) -> Attended:
    """Attention between values that have an operation of their own, explained at its output z from
    seed(z).
    """
    t = Trace({}, plain=plain)
    with t.inside("layer.0"), t.inside("attn"):
        q, k, v, bias = (
            None if x is None else t.scale(name, Value(x, name.upper()), 1.0)
            for name, x in operands._asdict().items()
        )
        assert q is not None and k is not None and v is not None
        z = t.attention(q, k, v, mask, bias=bias, cap=cap)
    keep = {f"layer.0.attn.{name}" for name in Operands._fields}
    sweep = Sweep(composite, audit=audit, keep=lambda names: names[0] in keep)
    array = z.array
    return Attended(array, sweep.run(t, z, seed(array)))


def same_ledger(found: Swept, wanted: Swept, bound: Any) -> None:
    """The same entries: sites, operations, rules, and every number within `bound` (B,)."""
    got, want = found.entries, wanted.entries
    assert got.keys() == want.keys()
    assert np.all(np.abs(found.ledger.explained - wanted.ledger.explained) <= bound)
    for site, entry in want.items():
        other = got[site]
        assert (other.operation, other.rule) == (entry.operation, entry.rule), site
        for numbers in ("passed", "absorbed"):
            mine, its = getattr(other, numbers), getattr(entry, numbers)
            assert mine.keys() == its.keys(), (site, numbers)
            for name in its:
                assert np.shape(mine[name]) == np.shape(its[name]), (site, name)
                assert np.all(np.abs(mine[name] - its[name]) <= bound), (site, name)
        assert np.all(np.abs(other.received - entry.received) <= bound), site
