"""Arrays of another implementation, laid beside ours: by any name of a site, in our shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from refl.errors import ReflError


def known_sites(
    names: Mapping[str, str], ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> dict[str, Any]:
    """Their arrays under our sites, in our shapes; what has no place here is left out."""
    found = {
        names[name]: fitted(ours[names[name]], np.asarray(r))
        for name, r in theirs.items()
        if names.get(name) in ours
    }
    fit = {site: r for site, r in found.items() if r is not None}
    if not fit:
        raise ReflError(
            f"none of the {len(theirs)} sites has a name and a shape of this model: "
            f"expected sites such as {', '.join(list(ours)[-3:])}"
        )
    return fit


def fitted(a: Any, b: Any) -> Any:
    """b in the shape of a, or None where it does not fit (`place`)."""
    at = place(a, b)
    return None if at is None else b[at].reshape(a.shape)


def place(a: Any, b: Any) -> tuple[int | slice, ...] | None:
    """Where a's elements stand in b: batch axes of one do not count; of many rows it is the only
    one with a number in it, where a is one row; beyond a's last there may be padding, which is
    zero. None where it does not fit."""
    ours, theirs = _bare(a), _bare(b)
    if ours == theirs:
        return ()
    if b.shape[1:] == ours:
        rows = np.flatnonzero((b != 0).reshape(b.shape[0], -1).any(axis=1))
        return (int(rows[0]),) if len(rows) == 1 else None
    within = tuple(slice(0, n) for n in ours)
    if (
        len(ours) == b.ndim
        and all(n <= m for n, m in zip(ours, b.shape, strict=True))
        and np.count_nonzero(b) == np.count_nonzero(b[within])
    ):
        return within
    return None


def _bare(a: Any) -> tuple[int, ...]:
    """The shape without leading ones."""
    shape = tuple(a.shape)
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape
