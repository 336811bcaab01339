"""Every metric by name, and items judged for several methods in a plain loop.

A name can carry options: "flip", "flip:baseline=mask", "insert:units=words:steps=20",
"evidence:k=1". The name of a metric is such a name again (refl.evaluation.naming).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

from refl.arrays import asnumpy
from refl.errors import ReflError, nearest, shown
from refl.evaluation import naming
from refl.evaluation.evidence import Evidence
from refl.evaluation.leave_one_out import LeaveOneOut
from refl.evaluation.perturbation import Perturbation
from refl.evaluation.sanity import Sanity
from refl.evaluation.subject import Case, Item, Judged, Metric, Subject
from refl.methods import chosen
from refl.model import Model

METRICS: dict[str, Metric] = {
    "flip": Perturbation("flip"),
    "insert": Perturbation("insert"),
    "evidence": Evidence(),
    "leave-one-out": LeaveOneOut(),
    "sanity": Sanity(),
}
"""With their options at the defaults."""


def metric(which: str | Metric) -> Metric:
    """A metric by its name, with options after colons, or as it is. Raises ReflError for what is
    none.
    """
    if not isinstance(which, str):
        if not callable(getattr(type(which), "judge", None)):
            raise ReflError(
                f"a metric is a {type(which).__name__}: expected a name of {', '.join(METRICS)}, "
                "or a metric of refl.evaluation"
            )
        return which
    name, *options = which.split(":")
    if name not in METRICS:
        near = ", ".join(nearest(name, METRICS, 3)) or "none"
        raise ReflError(
            f"unknown metric {shown(repr(name))}: expected one of {', '.join(METRICS)} "
            f"(nearest: {near})"
        )
    return _with_options(METRICS[name], naming.options(options))


def _with_options(which: Metric, options: Mapping[str, Any]) -> Metric:
    known = [one.name for one in fields(which) if one.init]  # type: ignore[arg-type]
    for name in options:
        if name not in known:
            raise ReflError(
                f"metric {which.name} has no option {shown(repr(name))}: it has "
                f"{', '.join(known) or 'none'}"
            )
    return replace(which, **options) if options else which  # type: ignore[type-var]


# -- methods ---------------------------------------------------------------------------------------


class Scorer(Protocol):
    """Whatever has scores of subjects: scores from elsewhere (refl.evaluation.scores)."""

    def cases(self, subjects: Sequence[Subject]) -> list[Case]: ...


def cases(method: Any, subjects: Sequence[Subject]) -> list[Case]:
    """The scores that a Method or a Scorer gives, of subjects that one net reads; in batches."""
    if callable(getattr(type(method), "cases", None)):
        return list(method.cases(subjects))
    found: list[Any] = [None] * len(subjects)
    groups: dict[int | None, list[int]] = defaultdict(list)
    for n, subject in enumerate(subjects):
        groups[subject.question.position].append(n)
    for numbers in groups.values():
        members = [subjects[n] for n in numbers]
        explained = method.explain(
            members[0].question, [s.reading for s in members], [s.target for s in members], ()
        )
        for n, e in zip(numbers, explained, strict=True):
            written = None if e.decoder_relevance is None else asnumpy(e.decoder_relevance)
            found[n] = Case(subjects[n], asnumpy(e.relevance), written)
    return found


# -- judging ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """What one metric says of one method's scores of one item."""

    item: str
    method: str
    metric: str
    numbers: dict[str, float]
    curves: dict[str, Any] = field(default_factory=dict)


def judged(
    model: Model,
    items: Item | Sequence[Item],
    methods: Mapping[str, Any] | Sequence[Any],
    metrics: Sequence[str | Metric],
    kind: str = "logit",
    **how: Any,
) -> list[Row]:
    """Every metric of every method's scores of every item: item by item, in the order of the
    methods, then of the metrics.

    methods    names, methods of refl.methods, scores from elsewhere; a mapping names them anew
    kind       what is explained: logit, log-probability or probability
    how        batch_tokens and progress of a Question

    Raises ReflError for what cannot be read, explained or judged.
    """
    asked = [metric(one) for one in metrics]
    each = [items] if isinstance(items, Item) else list(items)
    subjects = [Subject.read(model, item, kind, **how) for item in each]
    for one in asked:
        for subject in subjects:
            one.refuse(subject)
    labeled = by_label(methods)
    bound = [by_method(one, labeled) for one in asked]
    named = {label: cases(one, subjects) for label, one in labeled.items()}
    found: dict[tuple[str, int, int], Judged] = {}
    for m, parts in enumerate(bound):
        for one, labels in parts:
            keys = [(label, n, m) for n in range(len(subjects)) for label in labels]
            answers = judge_all(one, [named[label][n] for label, n, _ in keys])
            found.update(zip(keys, answers, strict=True))
    return [
        Row(subject.item.name, label, one.name, answer.numbers, answer.curves)
        for n, subject in enumerate(subjects)
        for label in named
        for m, one in enumerate(asked)
        for answer in (found[label, n, m],)
    ]


def by_label(methods: Mapping[str, Any] | Sequence[Any]) -> dict[str, Any]:
    """Methods by the names that rows have. Raises ReflError for a name that stands twice."""
    if isinstance(methods, Mapping):
        return {label: _method(one) for label, one in methods.items()}
    named: dict[str, Any] = {}
    for one in map(_method, methods):
        if one.name in named:
            raise ReflError(
                f"method {shown(one.name)} stands twice: name them apart, in a mapping of names to "
                "methods"
            )
        named[one.name] = one
    return named


def _method(which: Any) -> Any:
    return which if callable(getattr(type(which), "cases", None)) else chosen(which)


def by_method(which: Metric, methods: Mapping[str, Any]) -> list[tuple[Metric, list[str]]]:
    """The metric with the labels it judges at once: all of them, or each of its own where it asks
    the method again. Raises ReflError for a method that it cannot ask.
    """
    of = getattr(which, "of", None)
    if of is None:
        return [(which, list(methods))]
    return [(of(method), [label]) for label, method in methods.items()]


def judge_all(which: Metric, cases: Sequence[Case]) -> list[Judged]:
    """Of several cases: at once where the metric can, else one by one."""
    at_once = getattr(which, "judge_all", None)
    if at_once is not None:
        return list(at_once(cases))
    return [which.judge(c.subject, c.scores, c.decoder_scores) for c in cases]
