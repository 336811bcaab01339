"""What an oracle file says, whoever wrote it."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from refl.errors import ReflError, shown
from refl.explanation import Explanation
from refl.io.facts import check_ids, check_sites
from refl.io.format_1 import translated
from refl.io.safetensors import read_safetensors
from refl.rules.composites import Composite
from refl.rules.published import METHODS
from refl.verification.compare.rounding import Site


@dataclass(frozen=True)
class Oracle:
    """What an oracle file says, whoever wrote it; only `relevance` has to be there."""

    name: str
    relevance: dict[str, Any]
    activations: dict[str, Any] = field(default_factory=dict)
    gradients: dict[str, Any] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    """Sites from the output down."""
    ledger: list[dict[str, Any]] = field(default_factory=list)
    """Its entries: site, operation, rule, passed (site -> amount)."""
    composite: Composite | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    """Everything else of its metadata, and the ids."""
    picture: Any = None
    inputs: dict[str, Any] = field(default_factory=dict)
    """`relevance` and `decoder_relevance`: those of the tokens, of no site."""

    @functools.cached_property
    def _called(self) -> dict[str, set[str]]:
        called: dict[str, set[str]] = {}
        for alias, site in self.aliases.items():
            called.setdefault(site, {site}).add(alias)
        return called

    def names(self, site: str) -> set[str]:
        return self._called.get(site, {site})

    def site(self, name: str) -> Site:
        return Site(self.relevance[name], self.activations.get(name), self.gradients.get(name))

    @property
    def about(self) -> dict[str, Any]:
        about = self.metadata.get("about")
        return about if isinstance(about, dict) else {}


def read(path: str | Path) -> Oracle:
    """An oracle file. Raises ReflError for a file that is none:
    no safetensors file, or without relevance.
    """
    arrays, texts = read_safetensors(path)
    metadata = translated({key: _json(value) for key, value in texts.items()})
    groups = {group: _group(group, arrays) for group in ("relevance", "activation", "gradient")}
    if not groups["relevance"]:
        raise ReflError(
            f"{path} is no oracle file: expected arrays named relevance/<site> (refl "
            "explain TEXT --save FILE writes one)"
        )
    try:
        check_sites(groups)
        for name in ("input_ids", "decoder_ids"):
            if name in arrays:
                metadata[name] = _ids(name, arrays[name])
        if "vector" in arrays:
            metadata["vector"] = arrays["vector"].ravel().tolist()
    except ReflError as reason:
        raise ReflError(f"{shown(path)} is no oracle file: {reason}") from None
    ledger, aliases, order = (
        metadata.pop("ledger", None),
        metadata.pop("aliases", None),
        metadata.pop("order", None),
    )
    return Oracle(
        Path(path).name,
        groups["relevance"],
        groups["activation"],
        groups["gradient"],
        {str(k): str(v) for k, v in aliases.items()} if isinstance(aliases, dict) else {},
        [str(s) for s in order] if isinstance(order, list) else [],
        _ledger_entries(ledger),
        _composite(metadata.get("method")),
        metadata,
        arrays.get("picture"),
        {name: arrays[name] for name in _INPUTS if name in arrays},
    )


def of(e: Explanation, name: str = "") -> Oracle:
    """The same of an explanation that was never written."""
    gxi = e.sites.formulation == "gradient_x_input"
    metadata = {key: value for key, value in e.as_dict().items() if key != "relevance"}
    ledger, method = metadata.pop("ledger"), e.method
    return Oracle(
        name or f"{method.title} on {e.about.get('model', 'a model')}",
        {s: e[s] for s in e},
        {s: e.activation(s) for s in e},
        {s: e.gradient(s) for s in e} if gxi else {},
        dict(e.sites.aliases),
        list(e),
        _ledger_entries(ledger),
        method if isinstance(method, Composite) else _composite(method.as_dict()),
        metadata,
        e.picture,
        {name: getattr(e, name) for name in _INPUTS if getattr(e, name) is not None},
    )


_INPUTS = ("relevance", "decoder_relevance")


def _ids(name: str, array: Any) -> list[int]:
    """Token ids, which others may write as floats, or with a batch axis."""
    ids = array.ravel()
    if ids.dtype.kind == "f" and np.all(np.abs(ids) <= _LARGEST_ID) and np.all(ids == np.rint(ids)):
        ids = ids.astype(np.int64)
    check_ids(name, ids)
    return [int(i) for i in ids]


_LARGEST_ID = 2**53


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _group(group: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of numbers under a prefix."""
    found = {
        name.removeprefix(f"{group}/"): a
        for name, a in arrays.items()
        if name.startswith(f"{group}/")
    }
    return {site: a for site, a in found.items() if np.issubdtype(a.dtype, np.floating) and a.size}


def _ledger_entries(ledger: Any) -> list[dict[str, Any]]:
    entries = ledger.get("sites") if isinstance(ledger, dict) else None
    entries = entries if isinstance(entries, list) else []
    return [
        e
        for e in entries
        if isinstance(e, dict)
        and isinstance(e.get("site"), str)
        and isinstance(e.get("passed"), dict)
    ]


def _composite(method: Any) -> Composite | None:
    """The method a file says, where refl knows all of its rules; a file that gives nothing but the
    name of one means that one.
    """
    if not isinstance(method, dict):
        return METHODS.get(method) if isinstance(method, str) else None
    try:
        found = Composite.from_dict(
            {"source": "", "summary": "", "score": "sum", "rules": []} | method
        )
    except (ReflError, KeyError, TypeError, ValueError, AttributeError):
        return None
    return found if found.rules else METHODS.get(found.name)
