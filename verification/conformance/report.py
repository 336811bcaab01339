"""The conformance report, as text for a terminal.

A failure is shown by its smallest case: what the rule was called with, what was expected and what
came, entry by entry, and which known mistake gives the same numbers. As a page, as JSON and as
JUnit XML it is written by formats.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from refl.errors import ReflError
from refl.show.lines import Line, grid, paragraph, plain
from refl.show.text import printable, shorten
from refl.verification.conformance.answers import Array
from refl.verification.conformance.results import (
    CONVENTION,
    FAILED,
    NOT_COVERED,
    PARTLY,
    PASSED,
    CaseResult,
    ModelResult,
    RuleResult,
    size,
)
from refl.verification.vectors import rule_vectors
from refl.verification.vectors.case import Case, Signature

STYLES = {
    PASSED: "green",
    FAILED: "bold red",
    CONVENTION: "yellow",
    PARTLY: "yellow",
    NOT_COVERED: "dim",
}
MOST_MODELS = 6
"""Failing models in full."""
MOST_ENTRIES = 8
"""Of an answer, side by side; the rest is counted."""
MOST_MISTAKES = 3
"""Named for a rule."""


@dataclass(frozen=True)
class Report:
    """What came of everything."""

    name: str
    version: str
    rules: tuple[RuleResult, ...]
    models: tuple[ModelResult, ...] = ()
    about: Mapping[str, str] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """Something failed, or nothing passed."""
        statuses = self._statuses()
        return FAILED in statuses or not statuses & {PASSED, CONVENTION}

    @property
    def partly(self) -> bool:
        """Something was answered right, but not all that must be: that is no pass."""
        return PARTLY in self._statuses()

    @property
    def passed(self) -> bool:
        """Nothing failed, something passed, and nothing is covered in part alone."""
        return not (self.failed or self.partly)

    def _statuses(self) -> set[str]:
        return {*(r.status for r in self.rules), *(m.status for m in self.models)}

    def __getitem__(self, rule: str) -> RuleResult:
        return next(r for r in self.rules if r.rule == rule)

    def __str__(self) -> str:
        return plain(lines(self, 100))


# -- words -----------------------------------------------------------------------------------------


def headline(report: Report) -> str:
    counts = [
        (status, sum(r.status == status for r in report.rules))
        for status in (PASSED, CONVENTION, FAILED, PARTLY, NOT_COVERED)
    ]
    said = ", ".join(f"{n} {_STATUS[status]}" for status, n in counts if n)
    parts = [f"of {len(report.rules)} rules {said}"] if report.rules else []
    parts += [f"whole models: {_models_said(report)}"] if report.models else []
    return f"{' '.join(part for part in (report.name, report.version) if part)}: {'; '.join(parts)}"


_STATUS = {
    PASSED: "passed",
    CONVENTION: "follow a convention of their own",
    FAILED: "failed",
    PARTLY: "partly covered (which is no pass)",
    NOT_COVERED: "not covered",
}


def _models_said(report: Report) -> str:
    count = Counter(m.status for m in report.models)
    covered = len(report.models) - count[NOT_COVERED]
    if not covered:
        return "not covered"
    others = (
        (count[CONVENTION], "by a convention of their own"),
        (count[PARTLY], _STATUS[PARTLY]),
        (count[NOT_COVERED], "not covered"),
    )
    also = "".join(f", {n} {what}" for n, what in others if n)
    return f"{count[PASSED]} of {covered} right{also}"


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


def side_by_side(v: CaseResult) -> list[Row]:
    """The entries of the arrays that are wrong."""
    rows = []
    for name in dict.fromkeys(d.name for d in v.deviations):
        expected, condition, got = _arrays(v, name)
        allowed = v.case.allowed(condition)
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


def _arrays(v: CaseResult, name: str) -> list[Array]:
    """What is expected, its condition, and what came; zero where nothing is passed on."""
    case = v.case
    if name.startswith("absorbed "):
        entry, zero = name.removeprefix("absorbed "), np.zeros(case.batch)
        sides = (case.absorbed, case.absorbed_condition, v.absorbed)
        return [side.get(entry, zero) for side in sides]
    arrays = (case.expected[name], case.condition[name], v.got.get(name))
    shape = next(a.shape for a in arrays if a is not None)
    return [np.zeros(shape) if a is None else a for a in arrays]


def failure(v: CaseResult) -> str:
    """A failed case in plain text: for an AssertionError."""
    return "\n" + plain(_case_lines(v, 100)).rstrip()


# -- terminal --------------------------------------------------------------------------------------


def lines(report: Report, width: int = 100, every: bool = False) -> list[Line]:
    """A table of the rules (those not covered only with `every`), then each failure."""
    shown = [r for r in report.rules if every or r.status != NOT_COVERED]
    out: list[Line] = [*paragraph(printable(headline(report)), width, "bold", ""), []]
    out += _table(shown, width)
    for r in report.rules:
        if r.status in (FAILED, CONVENTION):
            out += [[], *rule_lines(r, width)]
    failed = [
        m for status in (FAILED, PARTLY, CONVENTION) for m in report.models if m.status == status
    ]
    for m in failed[: len(failed) if every else MOST_MODELS]:
        out += [[], *model_lines(m, width)]
    if len(failed) > MOST_MODELS and not every:
        out += [
            [],
            *paragraph(
                f"and {len(failed) - MOST_MODELS} more models (--all shows them)", width, "dim", ""
            ),
        ]
    for r in report.rules:
        if r.status == PARTLY:
            said = f"{r.rule}: partly covered, which is no pass: {r.partly}."
            out += [[], *paragraph(printable(said), width, STYLES[PARTLY], "")]
    left = [r.rule for r in report.rules if r.status == NOT_COVERED]
    if left and not every:
        out += [[], *paragraph(f"Not covered: {', '.join(left)}.", width, "dim", "")]
    return out


def _table(shown: Sequence[RuleResult], width: int) -> list[Line]:
    """A line for each rule; below it what its failures look like."""
    if not shown:
        return []
    head, *rows = grid(
        [
            [(cell, "dim") for cell in ("rule", "result", "cases that are right")],
            *([(r.rule, ""), (r.status, STYLES[r.status]), (r.coverage, "")] for r in shown),
        ],
        "lll",
    )
    below = [paragraph(looks_like(r), width, "", "    ") for r in shown]
    return [head, *(line for row, more in zip(rows, below, strict=True) for line in (row, *more))]


def looks_like(r: RuleResult) -> str:
    """The mistakes, with how much of what is wrong each explains, and what none does."""
    said = [f"{m.id} ({r.fraction(m)})" for m in r.mistakes[:MOST_MISTAKES]]
    found = f"{_likeness(r)} {', '.join(said)}" if said else ""
    left = f"{len(r.unexplained)} of {r.failing} failing cases not explained"
    return "; ".join([*([found] if found else []), *([left] if r.unexplained else [])])


def _likeness(r: RuleResult) -> str:
    """Nothing is called the cause that explains few of the failing cases."""
    return "looks like" if r.cause else "in part like"


def rule_lines(r: RuleResult, width: int) -> list[Line]:
    v = r.smallest
    assert v is not None
    fail = "deviate" if r.status == CONVENTION else "fail"
    out: list[Line] = [[(f"{r.rule}: {r.failing} of {r.tried} cases {fail}", STYLES[r.status])]]
    out += paragraph(f"{v.case.signature.equation}   ({v.case.signature.source})", width, "dim")
    for m in r.mistakes[:MOST_MISTAKES]:
        also = f" Documented: {r.conventions[m.id]}" if m.id in r.conventions else ""
        out += paragraph(
            f"{_likeness(r)} {m} (gives the same wrong numbers: {r.fraction(m)}; "
            f"met in: {m.met_in}){printable(also)}",
            width,
        )
    raised = Counter(x.message for x in r.cases if x.failed and x.message and not x.behavior)
    for words, count in raised.most_common(2):
        out += paragraph(f"{count} of {r.failing} {printable(words)}", width, "red")
    if not r.mistakes and sum(raised.values()) < r.failing:
        out += paragraph("no known mistake gives these numbers", width)
    if r.partly:
        out += paragraph(printable(r.partly), width)
    return out + [line for before, each in examples(r) for line in _case_lines(each, width, before)]


def examples(r: RuleResult) -> list[tuple[str, CaseResult]]:
    """The failing cases that are shown: the smallest, and the smallest that no mistake explains."""
    if r.smallest is None:
        return []
    unexplained = r.unexplained[0] if r.unexplained else None
    if not r.mistakes or r.smallest is unexplained:
        return [("the smallest failing case: ", r.smallest)]
    shown = [("the smallest such case: ", r.smallest)]
    if unexplained is not None:
        shown.append((f"the smallest that {_none_of(r)} explains: ", unexplained))
    return shown


def _none_of(r: RuleResult) -> str:
    return f"no known mistake, {r.mistakes[0].id} included,"


def _case_lines(v: CaseResult, width: int, before: str = "") -> list[Line]:
    out = paragraph(f"{before}{v.case.id} in {v.case.dtype}: {v.case.note}", width)
    out += paragraph(printable(call(v.case)), width)
    if v.message:
        out += paragraph(printable(v.message), width, "red")
    rows = side_by_side(v)
    picked, left, left_wrong = excerpt(rows, MOST_ENTRIES)
    if picked:
        head = [("", ""), *((cell, "dim") for cell in ("expected", "got", "allowed", ""))]
        table = [
            [
                (f"    {a}", ""),
                (b, ""),
                (c, "red" if bad else ""),
                (d, "dim"),
                ("wrong" if bad else "", "red"),
            ]
            for a, b, c, d, bad in picked
        ]
        out += grid([head, *table], "lrrrl")
    if left:
        said = f"and {left} more entries, {left_wrong} of them wrong"
        out += paragraph(said, width, "dim", "    ")
    if not before and v.mistakes:
        out += paragraph("; ".join(f"looks like {m}" for m in v.mistakes[:2]), width)
    return out


Row = tuple[str, str, str, str, bool]
"""Entry, expected, got, allowed, whether it is wrong."""


def excerpt(rows: list[Row], most: int) -> tuple[list[Row], int, int]:
    """At most so many entries in their order: wrong ones, and some that are right beside them where
    there are any; how many are left out, and how many of these are wrong."""
    wrong = [k for k, row in enumerate(rows) if row[4]]
    right = [k for k, row in enumerate(rows) if not row[4]]
    room = min(len(right), max(most // 4, most - len(wrong)))
    kept = sorted([*wrong[: most - room], *right[:room]])
    return [rows[k] for k in kept], len(rows) - len(kept), max(len(wrong) - (most - room), 0)


def model_lines(m: ModelResult, width: int) -> list[Line]:
    return [
        [(f"model {m.name}: {m.status}", STYLES[m.status])],
        *paragraph(printable(m.message), width),
    ]


def signatures(pattern: str, width: int) -> list[Line]:
    """How each rule is called, with its equation and its source, and how whole models are."""
    out: list[Line] = []
    for rule, s in rule_vectors.signatures().items():
        if fnmatchcase(rule, pattern):
            out += [[(_called(rule, s), "bold")]]
            for text in (_shapes(rule), f"{s.equation}   ({s.source})"):
                out += paragraph(text, width, "dim", "    ")
    if fnmatchcase("model", pattern):
        out += [[("model(folder) -> explain(ids, targets, method, **more)", "bold")]]
        for text in _OF_MODELS.split("\n\n"):
            out += paragraph(text, width, "dim", "    ")
    if not out:
        raise ReflError(
            f"no rule is called {pattern!r}: there are {', '.join(rule_vectors.rules())} and model"
        )
    return [
        *(line for text in _OF_ALL.split("\n\n") for line in paragraph(text, width, "", "")),
        [],
        *out,
    ]


def _called(rule: str, s: Signature) -> str:
    if rule == "network":
        return "network(layers) -> explain(x, seeds) -> z, [x for each seed]"
    options = ", ".join(
        name if name in s.required else f"{name}={default!r}" for name, default in s.options.items()
    )
    called = ", ".join((*s.operands, s.propagated)) + (f", *, {options}" if options else "")
    return f"{rule}({called}) -> {', '.join(s.returns)}"


def _shapes(rule: str) -> str:
    """Of the largest case that has to be answered, and what options look like."""
    cases = rule_vectors.load(rule)
    case = max(cases, key=lambda c: (c.required, c.batch > 1, size(c)))
    required = sum(c.required for c in cases)
    return f"shapes, for example: {_shape_of(case)}; {required} of {len(cases)} cases are required"


def _shape_of(case: Case) -> str:
    held = {**case.inputs, **{n: v for n, v in case.options.items() if v is not None}}
    return ", ".join(f"{name} {_form(value)}" for name, value in held.items())


def _form(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return "x".join(map(str, value.shape)) or "a number"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_form(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list) and any(isinstance(each, (np.ndarray, Mapping)) for each in value):
        return f"[{', '.join(map(_form, value))}]"
    return "None" if value is None else shorten(f"= {value!r}", 40)


_OF_ALL = """\
Operands come by position, the relevance r of the output (for gradient x input rules its gradient
g) last, options by name. One that a function lacks is not given, and such cases are not covered
unless it is at its default. The first axis is the batch: examples must not touch each other.
Masks are true where something is visible; b may be None.

Give back the relevance (or gradient) of each operand to the right of the arrow, in the operand's
shape: one array, or a tuple in that order; None where nothing is passed on. Or {'relevance':
that, 'absorbed': {'bias': (B,), 'stabilizer': (B,), ...}}, and the ledger is compared too. Raise
NotImplementedError for what is not covered.

A rule is passed where all of its required cases are right: those in float64 and float32 whose
options are at their defaults.
"""
_OF_MODELS = """\
folder is a Hugging Face checkpoint (config.json, model.safetensors). ids is a list of token ids,
or for a vision model its pixels, (C, H, W), or for CLIP (ids, pixels); targets a list of ids of
logits or classes; method one of attnlrp, attnlrp-gradient, cp-lrp, ... more is position=N where
the output at another position than the last is explained, and decoder_ids=[...] for an
encoder-decoder.

Give back a list with a dictionary for each target, all from one forward: {site: relevance,
'logit': number}. A site is a module's path for its output (model.layers.0.mlp), with .input for
its input; relevance has its activation's shape, with or without a batch axis of one in front.
Where refl keeps one row alone (lm_head, poolers, classifiers) all may be given, the others
without relevance. Which sites are given is free. For a pass the embeddings (or pixels) must be
among them, and several targets answered.
"""
