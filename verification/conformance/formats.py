"""A conformance report as one HTML page, as JSON, and as JUnit XML for build servers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from xml.etree import ElementTree

from refl.show.markup import document, safe, table
from refl.verification.conformance.planting import Mistake
from refl.verification.conformance.report import (
    MOST_ENTRIES,
    Report,
    call,
    failure,
    headline,
    side_by_side,
)
from refl.verification.conformance.results import (
    CONVENTION,
    FAILED,
    NOT_COVERED,
    PASSED,
    STATUSES,
    CaseResult,
    ModelResult,
    RuleResult,
)

# -- JSON ------------------------------------------------------------------------------------------


def as_dict(report: Report) -> dict[str, Any]:
    return {
        "adapter": report.name,
        "version": report.version,
        "about": dict(report.about),
        "passed": report.passed,
        "rules": [_rule_dict(r) for r in report.rules],
        "models": [_model_dict(m) for m in report.models],
    }


def _rule_dict(r: RuleResult) -> dict[str, Any]:
    return {
        "rule": r.rule,
        "status": r.status,
        "cases": {status: r.count(status) for status in STATUSES if r.count(status)},
        "mistakes": [
            {
                "id": m.id,
                "says": m.says,
                "met_in": m.met_in,
                "kind": m.kind,
                "documented": r.conventions.get(m.id),
            }
            for m in r.mistakes
        ],
        "failures": [_case_dict(v) for v in r.cases if v.failed],
    }


def _case_dict(v: CaseResult) -> dict[str, Any]:
    return {
        "case": v.case.id,
        "dtype": v.case.dtype,
        "status": v.status,
        "note": v.case.note,
        "flags": list(v.case.flags),
        "message": v.message,
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


def _model_dict(m: ModelResult) -> dict[str, Any]:
    return {
        "case": m.name,
        "status": m.status,
        "compared": m.compared,
        "deviations": [
            {
                "site": d.site,
                "deviation": d.deviation,
                "allowed": d.allowed,
                "got": d.got,
                "expected": d.expected,
            }
            for d in m.deviations
        ],
        "mistakes": list(m.mistakes),
        "reasons": list(m.reasons),
        "message": m.message,
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
            [(v.case.id, v.status, failure(v) if v.failed else v.message) for v in r.cases],
        )
    for m in report.models:
        _suite(root, m.rule, [(m.name, m.status, m.message)])
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
.strip a { width: 1.1rem; height: 1.1rem; border-radius: 2px }
.strip a { background: currentColor; display: block }
.strip a.not-covered { background: none; border: 1px solid currentColor }
.call { background: color-mix(in srgb, var(--line) 35%, transparent) }
.call { padding: .5rem .7rem; border-radius: 4px; overflow-x: auto }
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
            safe(m.message),
        )
        for m in tried
    ]
    found = table(("model, input, method", "result", ""), rows)
    return f"<section><h2>Whole models</h2>{found}</section>"


def _html_failures(report: Report) -> Iterator[str]:
    for r in report.rules:
        v = r.smallest
        if r.status in (FAILED, CONVENTION) and v is not None:
            yield (
                f"<section><h2 class='{_class(r.status)}'>{safe(r.rule)}</h2>"
                f"{_html_failure(r, v)}</section>"
            )


def _html_failure(r: RuleResult, v: CaseResult) -> str:
    s = v.case.signature
    named = "".join(_html_mistake(r, m) for m in r.mistakes[:3])
    rows = [
        (f"<code>{safe(a)}</code>", b, f'<span class="{"failed" if bad else ""}">{c}</span>', d)
        for a, b, c, d, bad in side_by_side(v)[: 4 * MOST_ENTRIES]
    ]
    head = ("", "expected", "got", "allowed deviation")
    case = f"<code>{safe(v.case.id)}</code> in {v.case.dtype}"
    return "".join(
        (
            f"<p><code>{safe(s.equation)}</code> <span class='note'>{safe(s.source)}</span></p>",
            named or "<p>No known mistake gives these numbers.</p>",
            f"<p>The smallest such case, {case}: {safe(v.case.note)}</p>",
            f"<p class='call'><code>{safe(call(v.case))}</code></p>",
            f"<p class='failed'>{safe(v.message)}</p>" if v.message else "",
            table(head, rows, (1, 2, 3)) if rows else "",
        )
    )


def _html_mistake(r: RuleResult, m: Mistake) -> str:
    return (
        f"<p><strong>Looks like {safe(m.id)}.</strong> {safe(m.says)} "
        f"<span class='note'>Met in: {safe(m.met_in)}.</span>{_documented(r, m)}</p>"
    )


def _documented(r: RuleResult, m: Mistake) -> str:
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
        "<section><h2>How to read this</h2><p>An answer is right where it deviates from the "
        "expected one by no more than units times u times condition: u is the unit roundoff of "
        "the case's format, condition the sum of what one rounding of every factor can move. "
        "Expected numbers come from the definitions of the rules in 60-digit arithmetic. For a "
        "wrong answer every known mistake is worked out on the same case, and those that give the "
        f"same wrong numbers are named.</p><dl>{rows}</dl></section>"
    )
