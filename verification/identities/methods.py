"""Which methods an identity is measured on, and what a run of one is called."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from refl.rules.published import METHODS

WITHOUT_EPS = ("lrp-0", "attnlrp-gradient", "cp-lrp", "input-x-gradient")
"""At the limit eps -> 0, where the invariances hold exactly."""

EPS = (1e-9, 1e-6, 1e-2)


def configured_methods(names: Iterable[str] = METHODS) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every method, those with a stabilizer at three sizes of it and without."""
    for name in names:
        yield name, {}
        if METHODS[name].formulation == "relevance" and name not in ("lrp-0", "ding-2017"):
            yield name, {"stabilizer": "none"}
            yield from ((name, {"eps": eps}) for eps in EPS)


def run_name(method: str, options: Mapping[str, Any]) -> str:
    said = (f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in options.items())
    return " ".join([method, *said])
