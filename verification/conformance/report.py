"""How a conformance report is shown: on a terminal, as one HTML page, as JSON, and as JUnit XML for
build servers.

A failure is shown by its smallest case: what the rule was called with, what was expected and what
came, entry by entry, and which known mistake gives the same numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any
from xml.etree import ElementTree

import numpy as np

from refl.errors import ReflError
from refl.show.lines import Line, folded, paragraph, plain
from refl.show.markup import document, safe, table
from refl.show.text import printable
from refl.verification.conformance import runner
from refl.verification.conformance.mistakes import Mistake
from refl.verification.conformance.runner import (
    CONVENTION,
    FAILED,
    NOT_COVERED,
    PASSED,
    Report,
    RuleReport,
    Verdict,
)
from refl.verification.vectors.case import Case

STYLES = {PASSED: "green", FAILED: "bold red", CONVENTION: "yellow", NOT_COVERED: "dim"}
MOST_MODELS = 6
"""Failing models in full."""
MOST_ENTRIES = 8
"""Of an answer, side by side; the rest is counted."""


# -- words -----------------------------------------------------------------------------------------


def headline(report: Report) -> str:
    counts = [
        (status, sum(r.status == status for r in report.rules))
        for status in (PASSED, CONVENTION, FAILED, NOT_COVERED)
    ]
    said = ", ".join(f"{n} {_STATUS[status]}" for status, n in counts if n)
    parts = [f"of {len(report.rules)} rules {said}"] if report.rules else []
    parts += [f"whole models: {_models_said(report)}"] if report.models else []
    return f"{' '.join(part for part in (report.name, report.version) if part)}: {'; '.join(parts)}"


_STATUS = {
    PASSED: "passed",
    CONVENTION: "follow a convention of their own",
    FAILED: "failed",
    NOT_COVERED: "not covered",
}


def _models_said(report: Report) -> str:
    right, own = (sum(m.status == status for m in report.models) for status in (PASSED, CONVENTION))
    covered = sum(m.status != NOT_COVERED for m in report.models)
    also = f", {own} by a convention of their own" if own else ""
    return f"{right} of {covered} right{also}" if covered else "not covered"


def named(m: Mistake) -> str:
    return f"{m.id}: {m.says}"


def call(case: Case) -> str:
    """The case as a call, with its numbers; long arrays by their shape."""
    arguments = [
        f"{name}={number(case.inputs[name])}" for name in [*case.signature.operands, case.seed]
    ]
    options = [f"{name}={number(value)}" for name, value in case.options.items()]
    return f"{case.rule}({', '.join(arguments + options)})"


def number(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return (
            str(_plain(value.tolist()))
            if value.size <= 24
            else f"<{'x'.join(map(str, value.shape))}>"
        )
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {number(each)}" for key, each in value.items()) + "}"
    return (
        f"[{', '.join(map(number, value))}]"
        if isinstance(value, list)
        else f"{value!r}"
        if isinstance(value, str)
        else str(value)
    )


def _plain(value: Any) -> Any:
    return (
        [_plain(v) for v in value]
        if isinstance(value, list)
        else value
        if isinstance(value, bool)
        else _Short(value)
    )


class _Short(float):
    def __repr__(self) -> str:
        return f"{float(self):.7g}"


def side_by_side(
    v: Verdict,
) -> list[tuple[str, str, str, str, bool]]:  # entry, expected, got, allowed, wrong
    """The entries of the arrays that are wrong."""
    rows = []
    for name in dict.fromkeys(d.name for d in v.deviations):
        expected, condition, got = _arrays(v, name)
        allowed = runner.bound(v.case, condition)
        for at in np.ndindex(expected.shape):
            wrong = not abs(got[at] - expected[at]) <= allowed[at]
            where = f"{name}[{', '.join(map(str, at))}]"
            rows.append(
                (
                    where,
                    f"{expected[at]:.10g}",
                    f"{got[at]:.10g}",
                    f"{allowed[at]:.1e}",
                    bool(wrong),
                )
            )
    return rows


def _arrays(v: Verdict, name: str) -> tuple[Any, Any, Any]:
    if name.startswith("absorbed "):
        entry, zero = name.removeprefix("absorbed "), np.zeros(v.case.batch)
        return (
            v.case.absorbed.get(entry, zero),
            v.case.absorbed_condition.get(entry, zero),
            v.absorbed.get(entry, zero),
        )
    expected, got = v.case.expected[name], v.got.get(name)
    zero = np.zeros((expected if expected is not None else got).shape)  # type: ignore[union-attr]
    condition = v.case.condition[name]
    return tuple(zero if a is None else a for a in (expected, condition, got))  # type: ignore[return-value]


def failure(v: Verdict) -> str:
    """A failed case in plain text: for an AssertionError."""
    return "\n" + plain(_case_lines(v, 100)).rstrip()


# -- terminal --------------------------------------------------------------------------------------


def text(report: Report, width: int = 100) -> str:
    return plain(lines(report, width))


def lines(report: Report, width: int = 100, every: bool = False) -> list[Line]:
    """A table of the rules (those not covered only with `every`), then each failure."""
    shown = [r for r in report.rules if every or r.status != NOT_COVERED]
    out: list[Line] = [*paragraph(printable(headline(report)), width, "bold", ""), []]
    if shown:
        out += folded(
            [
                [(cell, "dim") for cell in ("rule", "result", "cases", "looks like")],
                *map(_row, shown),
            ],
            "<<><",
            width,
            0,
        )
    for r in report.rules:
        if r.status in (FAILED, CONVENTION):
            out += [[], *_rule_lines(r, width)]
    failed = [m for status in (FAILED, CONVENTION) for m in report.models if m.status == status]
    for m in failed[: len(failed) if every else MOST_MODELS]:
        out += [[], *m.lines(width)]
    if len(failed) > MOST_MODELS and not every:
        out += [
            [],
            *paragraph(
                f"and {len(failed) - MOST_MODELS} more models (--all shows them)", width, "dim", ""
            ),
        ]
    left = [r.rule for r in report.rules if r.status == NOT_COVERED]
    if left and not every:
        out += [[], *paragraph(f"Not covered: {', '.join(left)}.", width, "dim", "")]
    return out


def _row(r: RuleReport) -> Line:
    tried = len(r.verdicts) - r.count(NOT_COVERED)
    named_ = ", ".join(m.id for m in r.mistakes[:3])
    return [
        (r.rule, ""),
        (r.status, STYLES[r.status]),
        (f"{r.count(PASSED)}/{tried}" if tried else "", ""),
        (named_, ""),
    ]


def _rule_lines(r: RuleReport, width: int) -> list[Line]:
    v = r.smallest
    assert v is not None
    failing = r.count(FAILED) + r.count(CONVENTION)
    tried = len(r.verdicts) - r.count(NOT_COVERED)
    out: list[Line] = [
        [
            (
                f"{r.rule}: {failing} of {tried} cases "
                f"{'deviate' if r.status == CONVENTION else 'fail'}",
                STYLES[r.status],
            )
        ]
    ]
    out += paragraph(f"{v.case.signature.equation}   ({v.case.signature.source})", width, "dim")
    for m in r.mistakes[:3]:
        also = f" Documented: {r.conventions[m.id]}" if m.id in r.conventions else ""
        count = sum(m in x.mistakes for x in r.verdicts if x.failed)
        out += paragraph(
            f"looks like {named(m)} (gives the same wrong numbers in {count} of {failing} "
            f"cases; met in: {m.where}){also}",
            width,
        )
    raised = Counter(x.words for x in r.verdicts if x.failed and x.words and not x.behavior)
    for words, count in raised.most_common(2):
        out += paragraph(f"{count} of {failing} {printable(words)}", width, "red")
    if not r.mistakes and sum(raised.values()) < failing:
        out += paragraph("no known mistake gives these numbers", width)
    return out + _case_lines(v, width, "the smallest such case: ")


def _case_lines(v: Verdict, width: int, before: str = "") -> list[Line]:
    out = paragraph(f"{before}{v.case.id} in {v.case.dtype}: {v.case.note}", width)
    out += paragraph(printable(call(v.case)), width)
    if v.words:
        out += paragraph(printable(v.words), width, "red")
    rows = side_by_side(v)
    if rows:
        wrong = [row for row in rows if row[4]]
        picked = rows if len(rows) <= MOST_ENTRIES else wrong[:MOST_ENTRIES]
        head = [("", ""), *((cell, "dim") for cell in ("expected", "got", "allowed"))]
        table = [
            [(f"    {a}", ""), (b, ""), (c, "red" if bad else ""), (d, "dim")]
            for a, b, c, d, bad in picked
        ]
        out += folded([head, *table], "<>>>", width, 0)
        if len(picked) < len(rows):
            out += paragraph(
                f"and {len(rows) - len(picked)} more entries, "
                f"{len(wrong) - min(len(wrong), len(picked))} of them wrong",
                width,
                "dim",
                "    ",
            )
    if not before and v.mistakes:
        out += paragraph("; ".join(f"looks like {named(m)}" for m in v.mistakes[:2]), width)
    return out


def signatures(pattern: str, width: int) -> list[Line]:
    """How each rule is called, with its equation and its source."""
    out: list[Line] = []
    for rule, s in runner.signatures().items():
        if fnmatchcase(rule, pattern):
            options = ", ".join(
                name if name in s.required else f"{name}={default!r}"
                for name, default in s.options.items()
            )
            seed = "seeds" if rule == "network" else s.propagated
            out += [
                [
                    (
                        f"{rule}({', '.join((*s.operands, seed))}{', *, ' if options else ''}{options}) "
                        f"-> {', '.join(s.returns)}",
                        "bold",
                    )
                ]
            ]
            out += paragraph(f"{s.equation}   ({s.source})", width, "dim", "    ")
    if not out:
        raise ReflError(f"no rule is called {pattern!r}: there are {', '.join(runner.rules())}")
    return out


# -- JSON ------------------------------------------------------------------------------------------


def as_dict(report: Report) -> dict[str, Any]:
    return {
        "adapter": report.name,
        "version": report.version,
        "about": dict(report.about),
        "passed": report.passed,
        "rules": [_rule_dict(r) for r in report.rules],
        "models": [m.as_dict() for m in report.models],
    }


def _rule_dict(r: RuleReport) -> dict[str, Any]:
    statuses = (PASSED, FAILED, CONVENTION, NOT_COVERED)
    return {
        "rule": r.rule,
        "status": r.status,
        "cases": {status: r.count(status) for status in statuses if r.count(status)},
        "mistakes": [
            {
                "id": m.id,
                "says": m.says,
                "where": m.where,
                "kind": m.kind,
                "documented": r.conventions.get(m.id),
            }
            for m in r.mistakes
        ],
        "failures": [_verdict_dict(v) for v in r.verdicts if v.failed],
    }


def _verdict_dict(v: Verdict) -> dict[str, Any]:
    return {
        "case": v.case.id,
        "dtype": v.case.dtype,
        "status": v.status,
        "note": v.case.note,
        "flags": list(v.case.flags),
        "words": v.words,
        "worst": [
            {
                "at": f"{d.name}{list(d.index)}",
                "expected": d.expected,
                "got": d.got,
                "allowed": d.allowed,
            }
            for d in v.deviations
        ],
        "mistakes": [m.id for m in v.mistakes],
    }


# -- JUnit XML -------------------------------------------------------------------------------------


def junit(report: Report) -> bytes:
    """One test suite per rule, one test per case; what is not covered is skipped, and so are
    documented conventions.
    """
    root = ElementTree.Element("testsuites", name=_xml(f"{report.name} {report.version}".strip()))
    for r in report.rules:
        _suite(
            root,
            r.rule,
            [(v.case.id, v.status, failure(v) if v.failed else v.words) for v in r.verdicts],
        )
    for m in report.models:
        _suite(root, m.rule, [(m.name, m.status, m.words)])
    ElementTree.indent(root)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))


def _suite(root: ElementTree.Element, name: str, tests: Sequence[tuple[str, str, str]]) -> None:
    failures = sum(status == FAILED for _, status, _ in tests)
    skipped = sum(status in (NOT_COVERED, CONVENTION) for _, status, _ in tests)
    suite = ElementTree.SubElement(
        root,
        "testsuite",
        name=name,
        tests=str(len(tests)),
        failures=str(failures),
        skipped=str(skipped),
        errors="0",
    )
    for case, status, words in tests:
        test = ElementTree.SubElement(suite, "testcase", classname=name, name=case)
        if status == FAILED:
            ElementTree.SubElement(
                test, "failure", message=_xml(words.strip().split("\n")[0])
            ).text = _xml(words)
        elif status in (NOT_COVERED, CONVENTION):
            ElementTree.SubElement(
                test, "skipped", message=_xml(words.strip().split("\n")[0] or status)
            )


def _xml(said: str) -> str:
    """Without the characters that XML has no way to write."""
    return "".join(c if c in "\n\t" or c.isprintable() else "\ufffd" for c in said)


# -- HTML ------------------------------------------------------------------------------------------

CSS = """\
:root { --good: #1a7f37; --bad: #b2182b; --else: #8a6100 }
@media (prefers-color-scheme: dark) { :root { --good: #5fce7f; --bad: #ff8a75; --else: #e3b341 } }
.passed { color: var(--good) }
.failed { color: var(--bad); font-weight: 600 }
.convention { color: var(--else) }
.not-covered { color: var(--soft) }
.strip { display: flex; flex-wrap: wrap; gap: 3px; margin: .8rem 0 }
.strip a { width: 1.1rem; height: 1.1rem; border-radius: 2px; background: currentColor; display: block }
.strip a.not-covered { background: none; border: 1px solid currentColor }
.call { background: color-mix(in srgb, var(--line) 35%, transparent); padding: .5rem .7rem; border-radius: 4px; overflow-x: auto }
td.off { color: var(--bad); font-weight: 600 }
"""


def html(report: Report) -> str:
    title = f"Conformance: {report.name} {report.version}".strip()
    body = [
        _html_head(report, title),
        _html_rules(report),
        *_html_failures(report),
        _html_models(report),
        _html_about(report),
    ]
    return document(title, "\n".join(body), CSS)


def _html_head(report: Report, title: str) -> str:
    squares = "".join(
        f'<a class="{_class(r.status)}" href="#{safe(r.rule)}" title="{safe(r.rule)}: '
        f'{r.status}" aria-label="{safe(r.rule)}: {r.status}"></a>'
        for r in report.rules
    )
    return (
        f"<header><h1>{safe(title)}</h1><p>{safe(headline(report))}.</p><div "
        f'class="strip">{squares}</div></header>'
    )


def _class(status: str) -> str:
    return status.replace(" ", "-")


def _html_rules(report: Report) -> str:
    rows = [
        (
            f'<code id="{safe(r.rule)}">{safe(r.rule)}</code>',
            f'<span class="{_class(r.status)}">{r.status}</span>',
            str(r.count(PASSED)),
            str(r.count(FAILED)),
            str(r.count(CONVENTION)),
            str(r.count(NOT_COVERED)),
            ", ".join(safe(m.id) for m in r.mistakes[:3]),
        )
        for r in report.rules
    ]
    head = ("rule", "result", "passed", "failed", "convention", "not covered", "looks like")
    return f"<section><h2>Every rule</h2>{table(head, rows, (2, 3, 4, 5))}</section>"


def _html_models(report: Report) -> str:
    tried = [m for m in report.models if m.status != NOT_COVERED]
    if not tried:
        return ""
    rows = [
        (
            f"<code>{safe(m.name)}</code>",
            f'<span class="{_class(m.status)}">{m.status}</span>',
            safe(m.words),
        )
        for m in tried
    ]
    return (
        "<section><h2>Whole "
        f"models</h2>{table(('model, input, method', 'result', ''), rows)}</section>"
    )


def _html_failures(report: Report) -> Iterator[str]:
    for r in report.rules:
        v = r.smallest
        if r.status in (FAILED, CONVENTION) and v is not None:
            yield (
                "<section><h2 "
                f"class='{_class(r.status)}'>{safe(r.rule)}</h2>{_html_failure(r, v)}</section>"
            )


def _html_failure(r: RuleReport, v: Verdict) -> str:
    s = v.case.signature
    named_ = "".join(
        f"<p><strong>Looks like {safe(m.id)}.</strong> {safe(m.says)} <span "
        f"class='note'>Met in: {safe(m.where)}.</span>"
        f"{_documented(r, m)}</p>"
        for m in r.mistakes[:3]
    )
    rows = [
        (f"<code>{safe(a)}</code>", b, f'<span class="{"failed" if bad else ""}">{c}</span>', d)
        for a, b, c, d, bad in side_by_side(v)[: 4 * MOST_ENTRIES]
    ]
    words = f"<p class='failed'>{safe(v.words)}</p>" if v.words else ""
    return (
        f"<p><code>{safe(s.equation)}</code> <span "
        f"class='note'>{safe(s.source)}</span></p>{named_ or '<p>No known mistake gives these numbers.</p>'}"
        f"<p>The smallest such case, <code>{safe(v.case.id)}</code> in {v.case.dtype}: "
        f"{safe(v.case.note)}</p>"
        "<p "
        f"class='call'><code>{safe(call(v.case))}</code></p>{words}{table(('', 'expected', 'got', 'allowed deviation'), rows, (1, 2, 3)) if rows else ''}"
    )


def _documented(r: RuleReport, m: Mistake) -> str:
    return (
        f" <em>A documented convention: {safe(r.conventions[m.id])}</em>"
        if m.id in r.conventions
        else ""
    )


def _html_about(report: Report) -> str:
    rows = "".join(
        f"<dt>{safe(key)}</dt><dd>{safe(value)}</dd>" for key, value in report.about.items()
    )
    return (
        "<section><h2>How to read this</h2><p>An answer is right where it deviates from "
        "the expected one by no more than "
        "units times u times condition: u is the unit roundoff of the case's format, "
        "condition the sum of what one rounding of every factor "
        "can move. Expected numbers come from the definitions of the rules in 60-digit "
        "arithmetic. For a wrong answer every known mistake is "
        "worked out on the same case, and those that give the same wrong numbers are "
        f"named.</p><dl>{rows}</dl></section>"
    )
