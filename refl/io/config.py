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
    missing, too large, not JSON, not an object, or says one thing twice.
    """
    return read_json(checkpoint_folder(folder) / "config.json", _CONFIG_LIMIT, once_each)


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
    """A hook that refuses a name given twice: two readers of the file could take different
    values.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the name {shown(twice)} is given twice")
    return found


# -- facts -----------------------------------------------------------------------------------------


def eos_ids(raw: dict[str, Any]) -> frozenset[int]:
    """The ids that end a text. Raises ReflError for what is no id, nor a list of them."""
    end = raw.get("eos_token_id")
    if end is None:
        return frozenset()
    return frozenset(_id("eos_token_id", i) for i in (end if isinstance(end, list) else [end]))


def decoder_start_id(raw: dict[str, Any]) -> int:
    """decoder_start_token_id; T5's way, the padding token, where a config names none.
    Raises ReflError for what is no id.
    """
    keys = ("decoder_start_token_id", "pad_token_id")
    return next((_id(key, raw[key]) for key in keys if raw.get(key) is not None), 0)


def _id(key: str, value: Any) -> int:
    if type(value) is not int or abs(value) >= 1 << 31:
        raise ReflError(f"config.json has {key} = {shown(repr(value)[:80])}: expected a token id")
    return value


def labels(raw: dict[str, Any], count: int) -> dict[int, str]:
    """id2label, or plain numbers for a config that only counts its labels.
    Raises ReflError for keys that are not the numbers of the outputs.
    """
    names = raw.get("id2label")
    if not names:
        return {i: f"LABEL_{i}" for i in range(count)}
    found = {_number(key): str(name) for key, name in names.items()}
    if found.keys() != set(range(count)):
        raise ReflError(
            f"config.json has id2label with the keys {shown(list(names)[:10])}: expected the "
            f"numbers of its {count} outputs, from 0"
        )
    return dict(sorted(found.items()))


PROBLEMS = {
    "single_label_classification": "softmax",
    "multi_label_classification": "sigmoid",
    "regression": "none",
}
"""problem_type of a classifier -> what makes probabilities of its logits."""


def probability(raw: dict[str, Any], count: int) -> str:
    """What makes probabilities of a classifier's logits: "softmax" where one class is right,
    "sigmoid" where each is by itself, "none" where the outputs are numbers, as a single one is.
    Raises ReflError for a problem_type that is none.
    """
    kind = raw.get("problem_type")
    if kind is None:
        return "softmax" if count > 1 else "none"
    if not isinstance(kind, str) or kind not in PROBLEMS:
        raise ReflError(
            f"config.json has problem_type = {shown(repr(kind)[:80])}: expected "
            f"{', '.join(PROBLEMS)}, or null"
        )
    return "none" if PROBLEMS[kind] == "softmax" and count == 1 else PROBLEMS[kind]


def _number(key: str) -> int:
    return int(key) if len(key) < 10 and key.isascii() and key.isdecimal() else -1
