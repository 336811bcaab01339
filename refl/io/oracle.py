"""The oracle file: one explanation in one safetensors file, for anything that can read safetensors.

    input_ids, relevance                      the input's, (T,); relevance (H, W) for a picture
    decoder_ids, decoder_relevance, picture   where there are any
    pairs                                     (T, T) of a second-order method
    vector                                    (D,) that a cosine of features is to
    activation/<site>                         in the shape of the activation, no batch axis
    relevance/<site>
    gradient/<site>                           the g of R = x g, where the method propagates it

The metadata are facts, each a JSON string: `format`, `about` (versions, model, fingerprint),
`method` with every parameter, `tokens`, `target`, `seed`, `ledger`, the `order` of sites from the
output down (the file sorts its arrays), `aliases` of sites, and so on. Some are optional: `types`
of tokens, the explained `position`, the `span` of an answer, whether features are a `mean`, and in
an audited ledger every `rounding_scale`; who does not know a name passes it over, so they need no
new format.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refl.arrays import Array
from refl.errors import ReflError, quoted, shown
from refl.io import ORACLE_FORMAT, format_1
from refl.io.config import once_each
from refl.io.facts import FACTS, check_arrays
from refl.io.safetensors import read_safetensors, write_safetensors

GROUPS = ("activation", "relevance", "gradient")


@dataclass(frozen=True)
class Oracle:
    """What an oracle file holds."""

    facts: dict[str, Any]
    """What JSON can hold."""
    arrays: dict[str, Array]
    """Those of no site: the input's ids and relevance, a decoder's, the picture."""
    sites: dict[str, dict[str, Array]]
    """Group -> site -> array, sites from the output down."""


def save(path: str | Path, oracle: Oracle) -> None:
    """Writes the file, all of it or nothing. Raises ReflError where it cannot be written."""
    facts = oracle.facts | {"format": ORACLE_FORMAT, "order": list(oracle.sites["activation"])}
    arrays = oracle.arrays | {
        f"{group}/{site}": array
        for group in GROUPS
        for site, array in oracle.sites.get(group, {}).items()
    }
    write_safetensors(path, arrays, {key: json.dumps(value) for key, value in facts.items()})


def load(path: str | Path) -> Oracle:
    """An oracle file of format 1 or 2. Raises ReflError for a file that is none."""
    arrays, metadata = read_safetensors(path)
    return _read(path, arrays, metadata)


def _read(path: str | Path, arrays: dict[str, Array], metadata: Mapping[str, str]) -> Oracle:
    try:
        facts = format_1.translated({key: _parsed(key, value) for key, value in metadata.items()})
        if facts.get("format", ORACLE_FORMAT) != ORACLE_FORMAT:
            raise ReflError(
                f"it is of format {quoted(facts['format'])}, this refl reads formats 1 to "
                f"{ORACLE_FORMAT}"
            )
        FACTS("", facts)
        inputs = {name: array for name, array in arrays.items() if "/" not in name}
        groups = {group: _of_group(group, arrays) for group in GROUPS}
        check_arrays(facts, inputs, groups)
    except ReflError as reason:
        raise refused(path, reason) from reason
    order = facts.get("order", [])
    return Oracle(facts, inputs, {group: _ordered(groups[group], order) for group in GROUPS})


def _parsed(key: str, text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=once_each)
    except RecursionError:
        raise ReflError(f"{shown(key)} is nested too deeply to be read") from None
    except ValueError as error:  # no JSON, a name given twice, a number of thousands of digits
        raise ReflError(f"{shown(key)} is not valid JSON: {error}") from None


def refused(path: str | Path, reason: Exception) -> ReflError:
    """For a file that says something else than an oracle file does."""
    said = str(reason) if isinstance(reason, ReflError) else f"{type(reason).__name__} {reason}"
    return ReflError(f"{shown(path)} is no oracle file of refl: {said}")


def _of_group(group: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    prefix = f"{group}/"
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


def _ordered(arrays: dict[str, Array], order: list[str]) -> dict[str, Array]:
    return {site: arrays[site] for site in order if site in arrays} | arrays
