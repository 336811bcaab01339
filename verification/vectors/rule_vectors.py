"""The conformance vectors of the rules, read from their files.

    for case in cases("softmax_taylor"):
        ...                                          # a Case: what to call, what must come back

Whole models have theirs in model_vectors.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from refl import arguments
from refl.errors import ReflError
from refl.verification.vectors import FORMAT
from refl.verification.vectors.case import NETWORK, SIGNATURES, Case, Signature

FOLDER = Path(__file__).parent / "rules"


def rules() -> list[str]:
    """The rules there are vectors for, in their order."""
    return [*SIGNATURES, "network"]


def signatures() -> Mapping[str, Signature]:
    """Rule -> how it is called: operands, options with their defaults, what is returned, the
    equation and its source.
    """
    return {**SIGNATURES, "network": NETWORK}


@cache
def load(rule: str) -> tuple[Case, ...]:
    """A rule's cases. Raises ReflError for a rule there are no vectors for,
    and for a file that is damaged.
    """
    path = FOLDER / f"{rule}.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != FORMAT or data["rule"] != rule or data["count"] != len(data["cases"]):
            raise ReflError(
                f"{path.name} says format {data['format']}, rule {data['rule']}, "
                f"{data['count']} cases, and holds {len(data['cases'])}: it was changed by hand"
            )
        return tuple(Case.from_json(each, rule) for each in data["cases"])
    except FileNotFoundError as missing:
        raise ReflError(
            f"there are no vectors for {rule!r}: there are {', '.join(rules())}"
        ) from missing
    except (KeyError, TypeError, ValueError) as reason:
        raise ReflError(
            f"{path.name} is no file of vectors: {type(reason).__name__} {reason}"
        ) from reason


def cases(pattern: str = "*", *, flags: str | None = None) -> list[Case]:
    """The cases of all rules that the pattern names (* and ?);
    with `flags`, those written for that mistake.
    """
    pattern = arguments.text("pattern", pattern)
    if flags is not None:
        flags = arguments.text("flags", flags)
    found = [case for rule in rules() if fnmatchcase(rule, pattern) for case in load(rule)]
    if not found:
        raise ReflError(f"no rule is called {pattern!r}: there are {', '.join(rules())}")
    return [case for case in found if flags is None or flags in case.flags]


@cache
def fingerprint() -> str:
    """Of all rule vectors: how many cases, and a digest of their files."""
    digest = hashlib.sha256()
    for rule in rules():
        digest.update((FOLDER / f"{rule}.json").read_bytes())
    return f"{sum(len(load(rule)) for rule in rules())} cases, {digest.hexdigest()[:12]}"
