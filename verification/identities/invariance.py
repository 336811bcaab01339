"""Identity 7: relevance is a property of the function, not of how its weights are written; and a
shift of softmax logits, under which the softmax rule moves in a known way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from operator import itemgetter
from typing import Any

import numpy as np

from refl.arrays import asnumpy
from refl.explanation import Explanation
from refl.model import Model
from refl.rules.operations import OPERATIONS
from refl.rules.published import LRP_0
from refl.trace import Record
from refl.verification.identities.conditioning import RunComparison, rule_rounding
from refl.verification.identities.graph import host_arrays
from refl.verification.identities.methods import WITHOUT_EPS
from refl.verification.identities.model_under_test import ModelUnderTest, input_scores
from refl.verification.identities.reparametrized import CHANGES
from refl.verification.identities.rows import Row, WorstDeviation, deviation, largest

INVARIANCES = {
    "key_bias": (
        "a constant in the key bias changes nothing",
        "no key has a bias that reaches the scores as it is (none, or something stands between: "
        + "positions, a norm, a cap)",
    ),
    "query_key": (
        "another basis inside Q K changes nothing",
        "queries and keys are normed head by head",
    ),
    "value_out": ("another basis inside V O changes nothing", "there is no attention"),
    "heads": ("the order of heads changes nothing", "every attention has one head"),
    "neurons": (
        "the order of neurons changes nothing",
        "no two linear layers have an activation alone between them",
    ),
    "norms": (
        "norm weights folded into the next layer: no change",
        "no norm is read by linear layers of its own alone",
    ),
}
"""Change -> the identity, and why there may be no place for it."""


def invariances(m: ModelUnderTest) -> Iterator[Row]:
    """R(the same function written with other weights) = R, at the input and after each block, for
    methods without eps.
    """
    for n, change in enumerate(INVARIANCES):
        m.progress(n, len(INVARIANCES) + 1)
        yield _invariance(m, change)
    yield _softmax_shift(m)


def _invariance(m: ModelUnderTest, change: str) -> Row:
    means = "relevance is a property of the function, not of how its weights are written"
    identity, reason = INVARIANCES[change]
    other, worst = CHANGES[change](m.model, m.graph), WorstDeviation()
    if other is None:
        return Row(7, identity, means, reason=reason)
    if not _rewritten(m.model, other):
        reason = "written anew, the weights are what they were: a norm's are all 1, say, or all 0"
        return Row(7, identity, means, reason=reason)
    for method in WITHOUT_EPS:
        stages = m.stages_without_norms if change == "norms" else m.stages
        compare_models(m, other, method, worst, stages)
    moved = _moved_at_large_eps(m, other) if change == "query_key" else ""
    tensors = len(other.weights.maps[0])  # type: ignore[attr-defined]
    found = f"{tensors} tensors rewritten; {', '.join(WITHOUT_EPS)}{moved}"
    return worst.row(7, identity, means, found)


def _rewritten(model: Model, other: Model) -> bool:
    """Whether any weight is another number."""
    changed = other.weights.maps[0]  # type: ignore[attr-defined]
    return any(
        not np.array_equal(asnumpy(w), asnumpy(model.weights[n])) for n, w in changed.items()
    )


def compare_models(
    m: ModelUnderTest, other: Model, method: str, worst: WorstDeviation, stages: Sequence[str]
) -> None:
    """Both models explain alike: output, input, and what each block puts out."""
    explain = partial(m.explain, method)
    run, e = RunComparison(m.model, m.explained(method), explain, worst), explain(other)
    run.compare(_logit(e), _logit, f"{method}: the output itself", e)
    run.compare(input_scores(e), input_scores, f"{method}: the input", e)
    for site in stages:
        run.compare(e[site], itemgetter(site), f"{site} ({method})", e)


def _logit(e: Explanation) -> Any:
    return np.asarray(e.logit)


def _moved_at_large_eps(m: ModelUnderTest, other: Model) -> str:
    """How far a stabilizer breaks it, which shows that the comparison notices."""
    runs = (m.explain("attnlrp", model, eps=1e-2, keep=()) for model in (m.model, other))
    one, two = map(input_scores, runs)
    moved = deviation(one, two) / (largest(one) or 1.0)
    return f" (attnlrp at eps = 1e-2 does move, by {moved:.0e} of the largest)"


# -- a shift of softmax logits ---------------------------------------------------------------------


def _softmax_shift(m: ModelUnderTest) -> Row:
    """R(x + c) - R(x) = c (R_i - p_i sum_j R_j), which sums to 0 along each row: on the model's
    scores and the relevance that comes in there.
    """
    worst, e, records = WorstDeviation(), m.explained("lrp-0"), [*m.graph.of("softmax")]
    moved = [_shift_one(r, e[r.output.site][None], worst) for r in records]
    return worst.row(
        7,
        "a shift of softmax logits moves R, never its sum",
        "the softmax rule is a Taylor expansion, offset and all",
        f"{len(records)} softmaxes with what arrives there; single entries move by up to "
        f"{max(moved, default=0.0):.1e}",
        nothing="" if records else "the net has no softmax",
    )


def _shift_one(record: Record, incoming: Any, worst: WorstDeviation) -> float:
    """Returns how far the farthest entry moves."""
    (x,), p, at = host_arrays(record), asnumpy(record.output.array), record.output.site
    r, mask = incoming.astype(x.dtype), record.attributes["mask"]
    c = np.random.default_rng(1).standard_normal((*x.shape[:-1], 1)).astype(x.dtype)
    (before, bound), (after, bound_shifted) = (_softmax_rule(y, r, mask) for y in (x, x + c))
    bound = 2 * max(bound, bound_shifted)
    worst.compare(before.sum(axis=-1), after.sum(axis=-1), bound, f"{at} (sums)")
    want = c * (r - p * r.sum(axis=-1, keepdims=True)) * (p > 0)
    worst.compare(after - before, want, bound, at)
    return float(np.abs(after - before).max())


def _softmax_rule(x: Any, r: Any, mask: Any) -> tuple[Any, float]:
    """Relevance of the logits, and its rounding."""
    rule, p = LRP_0.rule("softmax", ["*"]), OPERATIONS["softmax"].forward(x, mask=mask)
    output = rule.function(x, p, r, mask=mask, **rule.options)
    return asnumpy(output.inputs[0]), rule_rounding("softmax", rule, (x,), p, r, mask=mask)
