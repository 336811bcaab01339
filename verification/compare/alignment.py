"""Arrays of another implementation, laid beside ours: by any name of a site, in our shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from refl.errors import ReflError
from refl.verification.vectors.placing import place


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
