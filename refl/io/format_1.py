"""Oracle files of format 1, which refl 0.1 wrote, in today's words. Only words have changed since,
and lines of composites have got a role.

What is of another type than refl writes is left as it is: whoever reads it next refuses it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

KEYS = {"gap": "conservation_error", "carries": "formulation"}
FORMULATIONS = {"gradient": "gradient_x_input"}
OPERATIONS = {"renormalise": "renormalize"}
RULES = {"follow": "pass_through", "stop": "leaf"}
CAUSES = {"renormalisation_offset": "renormalization_offset"}


Change = Callable[[Any], Any]


def _changed(value: Any, changes: Mapping[str, Change]) -> Any:
    """An object with its keys renamed, and then the values of some changed."""
    if not isinstance(value, dict):
        return value
    renamed = _renamed(KEYS)(value)
    return {key: changes.get(key, _same)(inner) for key, inner in renamed.items()}


def _same(value: Any) -> Any:
    return value


def _renamed(names: Mapping[str, str]) -> Change:
    return lambda value: (
        {names.get(key, key): inner for key, inner in value.items()}
        if isinstance(value, dict)
        else value
    )


def _word(words: Mapping[str, str]) -> Change:
    return lambda value: words.get(value, value) if isinstance(value, str) else value


def _each(change: Change) -> Change:
    return lambda value: [change(one) for one in value] if isinstance(value, list) else value


WORDS = {"operation": _word(OPERATIONS), "rule": _word(RULES)}


def translated(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts of an oracle file, those of format 1 in today's words, any other as they are."""
    if facts.get("format") != 1:
        return facts
    today: dict[str, Any] = {"format": 2}
    if "method" in facts:
        today["method"] = _method(facts["method"])
    if "ledger" in facts:
        today["ledger"] = _ledger(facts["ledger"])
    return facts | today


def _method(method: Any) -> Any:
    return _changed(method, {"formulation": _word(FORMULATIONS), "rules": _each(_rule)})


def _rule(line: Any) -> Any:
    """A line of a composite; format 1 knew no roles, so it is for any."""
    return _changed(line, WORDS) | {"role": "*"} if isinstance(line, dict) else line


def _ledger(ledger: Any) -> Any:
    return _changed(ledger, {"absorbed": _renamed(CAUSES), "sites": _each(_entry)})


def _entry(entry: Any) -> Any:
    return _changed(entry, WORDS | {"absorbed": _renamed(CAUSES)})
