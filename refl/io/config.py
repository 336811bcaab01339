"""config.json and what it says beside the net; JSON of a regular file of bounded size, where every
error is a sentence.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from refl.errors import ReflError, shown
from refl.io.files import checkpoint_folder, read_bytes

Hook: TypeAlias = Callable[[list[tuple[str, Any]]], dict[str, Any]]

_CONFIG_LIMIT = 16 << 20


def read_config(folder: str | Path) -> dict[str, Any]:
    """config.json of a checkpoint folder, as parsed.

    Raises ReflError for a folder that is missing or is a file, and for a config.json that is
    missing, too large, not JSON, or not an object.
    """
    return read_json(checkpoint_folder(folder) / "config.json", _CONFIG_LIMIT)


def read_json(path: Path, limit: int, hook: Hook | None = None) -> dict[str, Any]:
    """The JSON object in a file of at most `limit` bytes; `hook` makes each object in it
    (json.loads).

    Raises ReflError for anything else, NaN and infinity apart: some configurations hold them.
    """
    parsed = parse_json(path, read_bytes(path, limit), hook)
    if not isinstance(parsed, dict):
        raise ReflError(
            f"expected a JSON object in {shown(path)}, it holds a {type(parsed).__name__}"
        )
    return parsed


def parse_json(path: Path, data: bytes, hook: Hook | None) -> Any:
    try:
        return json.loads(data, object_pairs_hook=hook)
    except RecursionError:
        raise ReflError(f"{shown(path)} is nested too deeply to be read") from None
    except ValueError as error:  # also what is no Unicode, and integers of thousands of digits
        raise ReflError(f"{shown(path)} is not valid JSON: {error}") from None


def once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A hook that refuses a tensor named twice:
    two readers of the file could take different ones.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the name {shown(twice)} is given twice")
    return found


# -- facts -----------------------------------------------------------------------------------------


def eos_ids(raw: dict[str, Any]) -> frozenset[int]:
    """The ids that end a text."""
    end = raw.get("eos_token_id")
    return frozenset(i for i in (end if isinstance(end, list) else [end]) if isinstance(i, int))


def decoder_start_id(raw: dict[str, Any]) -> int:
    """decoder_start_token_id; T5's way, the padding token, where a config names none."""
    return next(
        (
            i
            for key in ("decoder_start_token_id", "pad_token_id")
            if isinstance(i := raw.get(key), int)
        ),
        0,
    )


def labels(raw: dict[str, Any]) -> dict[int, str]:
    """id2label, or plain numbers for a config that only counts its labels."""
    names = raw.get("id2label")
    if not isinstance(names, dict):
        count = raw.get("num_labels")
        return {i: f"LABEL_{i}" for i in range(count if isinstance(count, int) else 2)}
    try:
        return {int(i): str(name) for i, name in names.items()}
    except ValueError as reason:
        raise ReflError(
            f"config.json has id2label with a key that is no number: {reason}"
        ) from reason
