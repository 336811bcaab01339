"""Identities 1, 3 and 12: what an operation receives it passes on or absorbs; the account of a
whole net; and what the true derivative of a norm absorbs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from refl.explanation import Explanation
from refl.ledger import Entry, Ledger
from refl.model import DTYPES
from refl.network import CLASSIFIES
from refl.rules.composites import Chosen, Rule
from refl.rules.operations import OPERATIONS, rules_in
from refl.rules.published import ATTNLRP, ATTNLRP_GRADIENT
from refl.seeds import KINDS
from refl.verification.definitions import surrogate
from refl.verification.identities.conditioning import FACTOR, rounding_bound, rule_rounding
from refl.verification.identities.graph import host_arrays
from refl.verification.identities.methods import configured_methods, run_name
from refl.verification.identities.model_under_test import ModelUnderTest, input_scores
from refl.verification.identities.rows import Row, WorstDeviation

# -- 1 ---------------------------------------------------------------------------------------------


def conservation_at_every_operation(m: ModelUnderTest) -> Iterator[Row]:
    """sum R = sum over operands of sum R_operand + absorbed, at every operation, under every rule,
    for every eps, in either dtype.

    Measured in units of u sum|terms|, as rules/rounding.py counts them. Each method is swept twice,
    with attention in one piece and in blocks.
    """
    for n, dtype in enumerate(DTYPES):
        worst, runs, sites = WorstDeviation(), 0, set[str]()
        for name, e in _conserving_runs(m.within(dtype)):
            m.progress(runs + 100 * n, 200)
            runs += 1
            sites |= {entry.site for entry in e.ledger}
            _add_conservation_errors(e, name, worst)
        yield worst.row(
            1,
            f"received = passed on + absorbed ({dtype})",
            "no rule creates or loses relevance, at any site",
            f"{worst.count:,} entries of {runs} sweeps over {len(sites)} sites, in units of u "
            "sum|terms|",
        )


def _add_conservation_errors(e: Explanation, name: str, worst: WorstDeviation) -> None:
    u = e.ledger.roundoff
    for entry in e.ledger:
        unit, error = u * _scale(entry), abs(float(entry.conservation_error))
        measured = error / unit if 0 < unit < math.inf else math.inf if error or unit else 0.0
        where = f"{entry.site} ({entry.rule}; {name})"
        worst.add(measured, FACTOR, where, size=1 / u if unit else 0.0)


def _scale(entry: Entry) -> float:
    assert entry.rounding_scale is not None
    return float(entry.rounding_scale)


def _conserving_runs(m: ModelUnderTest) -> Iterator[tuple[str, Explanation]]:
    """Every method, and every rule that some operation has a choice of."""
    for method, options in configured_methods(m.methods):
        for keep in ("*", ()):
            yield run_name(method, options), m.explain(method, keep=keep, **options)
    operations = {r.operation for r in m.graph.records}
    for base, known in (
        (ATTNLRP, rules_in("relevance")),
        (ATTNLRP_GRADIENT, rules_in("gradient_x_input")),
    ):
        for operation in sorted(operations & known.keys()):
            for rule in known[operation] if len(known[operation]) > 1 else ():
                composite = base.override(Rule(operation, rule, options=_box(rule)))
                yield f"{base.name} with {rule}", m.explain(composite)


def _box(rule: str) -> tuple[tuple[str, Any], ...]:
    """Bounds for z_box: wide enough for most activations. (It conserves for any.)"""
    return (("low", -8.0), ("high", 8.0)) if rule == "z_box" else ()


# -- 3 ---------------------------------------------------------------------------------------------


def whole_account(m: ModelUnderTest) -> Iterator[Row]:
    """explained output = sum over tokens + everything absorbed."""
    worst, logit, runs = WorstDeviation(), _own_logit(m), [*configured_methods(m.methods)]
    for n, (method, options) in enumerate(runs):
        m.progress(n, len(runs))
        e = m.explain(method, keep=(), **options)
        _add_account_error(e, run_name(method, options), worst)
        own, shown = f"{method}: the model's own output", f"{method}: the sum of what is shown"
        worst.add(abs(e.explained - logit), rounding_bound(e), own, abs(logit))
        if e.composite.score == "sum":
            scores = input_scores(e)
            error = abs(float(scores.sum() - e.ledger.tokens))
            worst.add(error, rounding_bound(e), shown, float(np.abs(scores).sum()))
    for seed in () if m.at else KINDS if m.model.probability == "softmax" else ("logit",):
        _add_account_error(m.explain("attnlrp", seed=seed, keep=()), f"seed {seed}", worst)
    yield worst.row(
        3,
        "output = relevance on the input + absorbed",
        "the account closes: nothing is unexplained",
        _account(m.explain("attnlrp", keep=()).ledger),
    )


def _add_account_error(e: Explanation, where: str, worst: WorstDeviation) -> None:
    """Held against the largest amount of the account: some seeds add up to 0."""
    ledger = e.ledger
    amounts = [ledger.explained, ledger.tokens, *ledger.absorbed.values()]
    size = max(abs(float(amount)) for amount in amounts)
    worst.add(abs(float(ledger.conservation_error)), rounding_bound(e), where, size)


def _own_logit(m: ModelUnderTest) -> float:
    """The explained output by the unrecorded forward pass."""
    if m.at or m.model.task in CLASSIFIES:
        return float(m.model.logits(m.item)[0, m.target])
    row = m.item.index(m.model.mask_id) if m.model.task == "masked-token" else -1
    return float(m.model.logits(m.item, m.decoder)[row, m.target])


def _account(ledger: Ledger) -> str:
    explained, tokens = float(ledger.explained), float(ledger.tokens)
    amounts = {cause: float(amount) for cause, amount in ledger.absorbed.items()}
    parts = [f"{amount:+.4g} {cause}" for cause, amount in amounts.items() if abs(amount) > 5e-5]
    return f"attnlrp: {explained:.4g} = {tokens:.4g} on {ledger.destination} {' '.join(parts)}"


# -- 12 --------------------------------------------------------------------------------------------


JACOBIANS = {
    "layer_norm": ("LayerNorm", "LayerNorm's Taylor series absorbs Var/(Var + eps)"),
    "rms_norm": ("RMSNorm", "RMSNorm's Jacobian passes N eps/(|x|^2 + N eps)"),
}


def norm_jacobians(m: ModelUnderTest) -> Iterator[Row]:
    """The model's own norms, on what they read in this run."""
    means = "why norms need a rule of their own: the true derivative would hand on next to nothing"
    for operation, (name, identity) in JACOBIANS.items():
        worst, passed_on = WorstDeviation(), []
        for r in m.graph.of(operation):
            at = r.output.site
            passed_on.append(norm_jacobian(operation, host_arrays(r), r.attributes, worst, at))
        if not passed_on:
            yield Row(12, identity, means, reason=f"the net has no {name}")
            continue
        found = (
            f"{len(passed_on)} norms, against a complex step too; they pass on "
            f"{min(passed_on):.1e} to {max(passed_on):.1e}"
        )
        yield worst.row(12, identity, means, found)


def norm_jacobian(
    operation: str,
    arrays: Sequence[Any],
    attributes: Mapping[str, Any],
    worst: WorstDeviation,
    where: str = "",
) -> float:
    """For any g:  sum_i x_i (J^T g)_i = g . J x
                   along each row, J x by complex step and in closed form

        LayerNorm    (1 - Var/(Var + eps)) sum_i g_i (z_i - b_i)
        RMSNorm      (1 - |x|^2/(|x|^2 + N eps)) sum_i g_i z_i

    Returns the largest ratio that a row passes on."""
    x, b = arrays[0], arrays[2] if len(arrays) > 2 and arrays[2] is not None else 0.0
    z = OPERATIONS[operation].forward(*arrays, **attributes)
    g = np.random.default_rng(0).standard_normal(z.shape).astype(z.dtype)
    rule = Chosen("gradient", rules_in("gradient_x_input")[operation]["gradient"], {})
    output = rule.function(*arrays, z, g, **attributes)
    ratio, along = _ratio_passed_on(operation, x, attributes["norm_eps"]), g * (z - b)
    bound = rule_rounding(operation, rule, arrays, z, g, "gradient_x_input", **attributes)
    got = (x * output.inputs[0]).sum(axis=-1)
    step = (g * _along_itself(operation, arrays, attributes)).sum(axis=-1)
    worst.compare(got, step, bound, f"{where} (complex step)")
    worst.compare(got, ratio * along.sum(axis=-1), bound, where)
    absorbed = ((1 - ratio) * along.sum(axis=-1)).reshape(len(x), -1).sum(axis=1)
    worst.compare(output.absorbed["norm_offset"], absorbed, bound, f"{where} (absorbed)")
    return float(ratio.max())


def _along_itself(operation: str, arrays: Sequence[Any], attributes: Mapping[str, Any]) -> Any:
    """J x, by complex step."""
    x, *rest = arrays
    z = surrogate.TRUE[operation](None, x * (1 + 1j * surrogate.STEP), *rest, **attributes)
    return z.imag / surrogate.STEP


def _ratio_passed_on(operation: str, x: Any, eps: float) -> Any:  # (..., N) -> (...)
    if operation == "layer_norm":
        centered = x - x.mean(axis=-1, keepdims=True)
        return eps / ((centered**2).mean(axis=-1) + eps)
    n = x.shape[-1]
    return n * eps / ((x * x).sum(axis=-1) + n * eps)
