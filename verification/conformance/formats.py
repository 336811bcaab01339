"""A conformance report as one HTML page, as JSON, and as JUnit XML for build servers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from xml.etree import ElementTree

from refl.show.markup import document, safe, table
from refl.verification.conformance.planting import Mistake
from refl.verification.conformance.report import (
    MOST_ENTRIES,
    MOST_MISTAKES,
    Report,
    call,
    examples,
    excerpt,
    failure,
    headline,
    looks_like,
    side_by_side,
)
from refl.verification.conformance.results import (
    CONVENTION,
    FAILED,
    INCOMPLETE,
    NOT_COVERED,
    PARTLY,
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
        "failed": report.failed,
        "partly_covered": report.partly,
        "summary": headline(report),
        "rules": [_rule_dict(r) for r in report.rules],
        "models": [_model_dict(m) for m in report.models],
    }


def _rule_dict(r: RuleResult) -> dict[str, Any]:
    return {
        "rule": r.rule,
        "status": r.status,
        "coverage": r.coverage,
        "cases": {status: r.count(status) for status in STATUSES if r.count(status)},
        "required": {
            "cases": sum(v.case.required for v in r.cases),
            "not covered": [v.case.id for v in r.missing],
        },
        "mistakes": [
            {
                "id": m.id,
                "says": m.says,
                "met_in": m.met_in,
                "kind": m.kind,
                "documented": r.conventions.get(m.id),
                "explains": r.explained[m.id],
                "of": r.failing,
            }
            for m in r.mistakes
        ],
        "unexplained": [v.case.id for v in r.unexplained],
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
    """One test suite per rule, one test per case, and one named `required cases` that is skipped,
    with a count, where some are not covered. What is not covered is skipped, and so are documented
    conventions.
    """
    root = ElementTree.Element("testsuites", name=_xml(f"{report.name} {report.version}".strip()))
    for r in report.rules:
        words = {"status": r.status, "coverage": r.coverage, "looks like": looks_like(r)}
        _suite(root, r.rule, [_test(v) for v in r.cases] + _required(r), words)
    for m in report.models:
        _suite(root, m.rule, [(m.name, m.status, m.message)], {})
    ElementTree.indent(root)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))


Test = tuple[str, str, str]
"""Name, status, words."""


def _test(v: CaseResult) -> Test:
    return v.case.id, v.status, failure(v) if v.failed else v.message


def _required(r: RuleResult) -> list[Test]:
    if not r.missing or r.status == NOT_COVERED:
        return []
    return [("required cases", PARTLY, f"{r.coverage}; {r.partly}")]


def _suite(
    root: ElementTree.Element, name: str, tests: Sequence[Test], words: dict[str, str]
) -> None:
    failures = sum(status == FAILED for _, status, _ in tests)
    skipped = sum(status in _SKIPPED for _, status, _ in tests)
    suite = ElementTree.SubElement(
        root,
        "testsuite",
        name=name,
        tests=str(len(tests)),
        failures=str(failures),
        skipped=str(skipped),
        errors="0",
    )
    if any(words.values()):
        properties = ElementTree.SubElement(suite, "properties")
        for key, value in words.items():
            ElementTree.SubElement(properties, "property", name=key, value=_xml(value))
    for test in tests:
        _testcase(suite, name, *test)


_SKIPPED = (NOT_COVERED, CONVENTION, PARTLY)


def _testcase(suite: ElementTree.Element, rule: str, case: str, status: str, words: str) -> None:
    test = ElementTree.SubElement(suite, "testcase", classname=rule, name=_xml(case))
    first = _xml(words.strip().split("\n")[0])
    if status == FAILED:
        ElementTree.SubElement(test, "failure", message=first).text = _xml(words)
    elif status in _SKIPPED:
        ElementTree.SubElement(test, "skipped", message=first or status)


def _xml(said: str) -> str:
    """Without the characters that XML has no way to write."""
    return "".join(c if c in "\n\t" or c.isprintable() else "\ufffd" for c in said)


# -- HTML ------------------------------------------------------------------------------------------

CSS = """\
:root { --good: #1a7f37; --bad: #b2182b; --else: #8a6100 }
@media (prefers-color-scheme: dark) { :root { --good: #5fce7f; --bad: #ff8a75; --else: #e3b341 } }
.passed { color: var(--good) }
.failed { color: var(--bad); font-weight: 600 }
.convention, .partly-covered { color: var(--else) }
.not-covered { color: var(--soft) }
.strip { display: flex; flex-wrap: wrap; gap: 3px; margin: .8rem 0 }
.strip a { width: 1.1rem; height: 1.1rem; border-radius: 2px }
.strip a { background: currentColor; display: block }
.strip a.not-covered { background: none; border: 1px solid currentColor }
.call { background: color-mix(in srgb, var(--line) 35%, transparent) }
.call { padding: .5rem .7rem; border-radius: 4px; overflow-x: auto }
.result { font-size: 1.1rem; font-weight: 600 }
details > summary { cursor: pointer }
td code[id] { white-space: nowrap }
"""


def html(report: Report) -> str:
    """One page: what failed comes first, what passed is folded below."""
    title = f"Conformance: {report.name} {report.version}".strip()
    body = [
        _html_head(report, title),
        *_html_failures(report),
        _html_models(report),
        _html_rules(report),
        _html_about(report),
    ]
    return document(title, "\n".join(body), CSS)


_ORDER = (FAILED, PARTLY, CONVENTION, PASSED, NOT_COVERED)
"""Of whatever is listed: what somebody has to look at comes first."""


def _html_head(report: Report, title: str) -> str:
    ranked = sorted(report.rules, key=lambda r: _ORDER.index(r.status))
    squares = "".join(
        f'<a class="{_class(r.status)}" href="#{safe(r.rule)}" title="{safe(r.rule)}: '
        f'{r.status}" aria-label="{safe(r.rule)}: {r.status}"></a>'
        for r in ranked
    )
    result = (FAILED if report.failed else PARTLY if report.partly else PASSED).capitalize()
    return (
        f'<header><h1>{safe(title)}</h1><p class="result {_class(result.lower())}">{result}</p>'
        f'<p>{safe(headline(report))}.</p><div class="strip">{squares}</div></header>'
    )


def _class(status: str) -> str:
    return status.replace(" ", "-")


def _html_rules(report: Report) -> str:
    """Every rule; folded where something failed, which stands above."""
    if not report.rules:
        return ""
    opened = [r for r in report.rules if r.status in (FAILED, PARTLY, CONVENTION)]
    rest = [r for r in report.rules if r not in opened]
    return "<section><h2>Every rule</h2>" + "".join(
        (
            _rule_table(sorted(opened, key=lambda r: _ORDER.index(r.status))) if opened else "",
            _folded(rest, PASSED),
            _folded(rest, NOT_COVERED),
            "</section>",
        )
    )


def _folded(rules: Sequence[RuleResult], status: str) -> str:
    some = [r for r in rules if r.status == status]
    what = f"{len(some)} rule{'s' if len(some) != 1 else ''} {status}"
    return f"<details><summary>{what}</summary>{_rule_table(some)}</details>" if some else ""


def _rule_table(rules: Sequence[RuleResult]) -> str:
    rows = [
        (
            f'<code id="{safe(r.rule)}">{safe(r.rule)}</code>',
            f'<span class="{_class(r.status)}">{r.status}</span>',
            str(r.count(PASSED)),
            str(r.count(FAILED)),
            str(r.count(CONVENTION)),
            str(r.count(*INCOMPLETE)),
            str(len(r.cases)),
            safe(looks_like(r) or r.partly),
        )
        for r in rules
    ]
    head = ("rule", "result", "are right", "are wrong", "convention", "not covered", "cases", "")
    return table(head, rows, (2, 3, 4, 5, 6))


def _html_models(report: Report) -> str:
    tried = sorted(
        (m for m in report.models if m.status != NOT_COVERED),
        key=lambda m: _ORDER.index(m.status),
    )
    if not tried:
        return ""
    wrong = [m for m in tried if m.status != PASSED]
    right = [m for m in tried if m.status == PASSED]
    folded = f"<details><summary>{len(right)} right</summary>{_model_table(right)}</details>"
    return (
        f"<section><h2>Whole models</h2>{_model_table(wrong) if wrong else ''}"
        f"{folded if right else ''}</section>"
    )


def _model_table(models: Sequence[ModelResult]) -> str:
    rows = [
        (
            f"<code>{safe(m.name)}</code>",
            f'<span class="{_class(m.status)}">{m.status}</span>',
            safe(m.message),
        )
        for m in models
    ]
    return table(("model, input, method", "result", ""), rows)


def _html_failures(report: Report) -> Iterator[str]:
    for r in sorted(report.rules, key=lambda r: _ORDER.index(r.status)):
        if r.status in (FAILED, CONVENTION):
            yield (
                f"<section><h2 class='{_class(r.status)}'>{safe(r.rule)}: {r.status}</h2>"
                f"{_html_failure(r)}</section>"
            )
        if r.status == PARTLY:
            yield (
                f"<section><h2 class='{_class(r.status)}'>{safe(r.rule)}: {r.status}</h2>"
                f"<p>{safe(r.coverage)}; {safe(r.partly)}. That is no pass.</p></section>"
            )


def _html_failure(r: RuleResult) -> str:
    s = r.cases[0].case.signature
    named = "".join(_html_mistake(r, m) for m in r.mistakes[:MOST_MISTAKES])
    return "".join(
        (
            f"<p><code>{safe(s.equation)}</code> <span class='note'>{safe(s.source)}</span></p>",
            f"<p>{safe(r.coverage)}{safe('; ' + r.partly if r.partly else '')}.</p>",
            named or "<p>No known mistake gives these numbers.</p>",
            *(_html_case(before, v) for before, v in examples(r)),
        )
    )


def _html_case(before: str, v: CaseResult) -> str:
    picked, left, left_wrong = excerpt(side_by_side(v), 4 * MOST_ENTRIES)
    rows = [
        (
            f"<code>{safe(a)}</code>",
            b,
            f'<span class="{"failed" if bad else ""}">{c}</span>',
            d,
            '<span class="failed">wrong</span>' if bad else "",
        )
        for a, b, c, d, bad in picked
    ]
    head = ("", "expected", "got", "allowed deviation", "")
    case = f"<code>{safe(v.case.id)}</code> in {v.case.dtype}"
    more = f"<p class='note'>and {left} more entries, {left_wrong} of them wrong</p>"
    return "".join(
        (
            f"<p>{safe(before[0].upper() + before[1:])}{case}: {safe(v.case.note)}</p>",
            f"<p class='call'><code>{safe(call(v.case))}</code></p>",
            f"<p class='failed'>{safe(v.message)}</p>" if v.message else "",
            table(head, rows, (1, 2, 3)) if rows else "",
            more if left else "",
        )
    )


def _html_mistake(r: RuleResult, m: Mistake) -> str:
    return (
        f"<p><strong>Looks like {safe(m.id)}</strong>, which {safe(r.fraction(m))}. {safe(m.says)} "
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
