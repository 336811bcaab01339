"""What a table of rules does, whatever it is called: two tables that choose the same rule with the
same options for every operation are one table here, and what differs is said in words.

    normal       operation -> its lines, without those that change nothing
    changes      what one table has that another has not
    fingerprint  a hash of the whole table, its formulation and its score

A table is given as `Composite.as_dict` spells it out: every option is there, defaults too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

from refl.rules.operations import OPERATIONS

Table = dict[str, Any]
"""Of `Composite.as_dict`: formulation, score, rules."""
Said = tuple[str, str, str, dict[str, str]]
"""A line for one operation: role, site, rule, options as JSON."""


def normal(table: Table) -> dict[str, list[Said]]:
    """The lines that may decide, for each operation that the table has any for."""
    found = {name: _deciding(list(_lines(name, table))) for name in OPERATIONS}
    return {name: lines for name, lines in found.items() if lines}


def _lines(operation: str, table: Table) -> Iterator[Said]:
    """What the table says for one operation; a line for several has options of each."""
    rules = OPERATIONS[operation].rules_in(table["formulation"])
    for line in table["rules"]:
        if fnmatchcase(operation, line["operation"]):
            rule = rules.get(line["rule"])
            known = OPERATIONS[operation].options(rule) if rule else {}
            options = {key: _plain(v) for key, v in line["options"].items() if key in known}
            yield line["role"], line["site"], line["rule"], dict(sorted(options.items()))


def _plain(value: Any) -> str:
    """One spelling for 1 and 1.0, for a list and a tuple."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_plain, value))}]"
    return json.dumps(float(value) if isinstance(value, int | float) else str(value)).strip('"')


def _deciding(lines: list[Said]) -> list[Said]:
    """Without lines below one that fits all they fit, and without those right above one that fits
    more and says the same.
    """
    reached = [m for i, m in enumerate(lines) if not any(_covers(n, m) for n in lines[:i])]
    kept: list[Said] = []
    for line in reversed(reached):
        if not (kept and _covers(kept[0], line) and kept[0][2:] == line[2:]):
            kept.insert(0, line)
    return kept


def _covers(line: Said, other: Said) -> bool:
    """Whether it fits whatever the other fits."""
    return all(a in ("*", b) for a, b in zip(line[:2], other[:2], strict=True))


def changes(table: Table, base: Table) -> tuple[str, ...]:
    """What the table has that its base has not, in words; nothing where the two do the same."""
    mine, known = normal(table), normal(base)
    gone = [name for name in known if name not in mine]
    other = [name for name, lines in mine.items() if _rules(lines) != _rules(known.get(name, []))]
    facts = (
        f"{key.replace('_', ' ')} {table[key]}"
        for key in ("formulation", "score")
        if table[key] != base[key]
    )
    return (
        *facts,
        *(words for name in other for words in _in_words(name, mine[name], known.get(name, []))),
        *_options(mine, known, [name for name in mine if name not in other]),
        *((f"no line for {', '.join(gone)}",) if gone else ()),
    )


def _rules(lines: list[Said]) -> list[tuple[str, str, str]]:
    return [line[:3] for line in lines]


def _in_words(name: str, lines: list[Said], known: list[Said]) -> Iterator[str]:
    """The lines of an operation that are new, and those that are gone."""
    for line in lines:
        if line not in known:
            yield _line(name, line)
    for line in known:
        if line not in lines and line[:2] not in [mine[:2] for mine in lines]:
            yield f"without {_line(name, line)}"


def _line(name: str, line: Said) -> str:
    role, site, rule, options = line
    where = "".join(
        f" {kind} {pattern}" for kind, pattern in (("role", role), ("site", site)) if pattern != "*"
    )
    said = ", ".join(f"{key}={value}" for key, value in options.items())
    return f"{name}{where}: {rule}{f' ({said})' if said else ''}"


def _options(
    mine: dict[str, list[Said]], known: dict[str, list[Said]], names: list[str]
) -> Iterator[str]:
    """`eps=0.001` where every line that takes it has it now, else which operations have."""
    changed: dict[tuple[str, str], list[str]] = {}
    for name in names:
        for line, before in zip(mine[name], known[name], strict=True):
            for key, value in line[3].items():
                if before[3].get(key) != value and name not in changed.setdefault((key, value), []):
                    changed[key, value].append(name)
    for (key, value), where in changed.items():
        have = [line[3][key] for lines in mine.values() for line in lines if key in line[3]]
        everywhere = all(one == value for one in have)
        yield f"{key}={value}" + ("" if everywhere else f" in {', '.join(where)}")


def fingerprint(table: Table) -> str:
    """SHA-256 of what the table does: of its normal form, its formulation and its score."""
    said = [table["formulation"], table["score"], normal(table)]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
