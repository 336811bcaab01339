"""Conformance reports of other libraries:  python -m refl.verification.peers.peer_reports [FOLDER]

Each library is run on the conformance vectors through its adapter, and every failure is traced: to
a mistake that is known (mistakes.py), or to one of the explanations below. An explanation is no
opinion: it says what the library computes, and it counts for a case only where that computation
gives the very numbers that came out (or the exception that was raised). What a library documents is
named as its convention and not as a failure.

The pages are generated and dated. Numbers on them have six digits, for the seventh may differ
between two builds of torch.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import importlib.metadata
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from refl.io.files import atomic_write
from refl.verification.conformance import report
from refl.verification.conformance import wrong_parts as wrong
from refl.verification.conformance.adapter import Adapter
from refl.verification.conformance.diagnosis import mistakes_behind
from refl.verification.conformance.mistakes import MISTAKES, NoDifference
from refl.verification.conformance.planting import Answering, planted
from refl.verification.conformance.reference_rules import ReferenceRules
from refl.verification.conformance.results import (
    CONVENTION,
    FAILED,
    NOT_COVERED,
    PASSED,
    CaseResult,
    size,
)
from refl.verification.conformance.runner import about, rule_result, run_case
from refl.verification.conformance.wrong_parts import naive_probabilities
from refl.verification.markdown import table
from refl.verification.vectors import model_vectors
from refl.verification.vectors.case import UNDERFLOW, UNITS, Case
from refl.verification.vectors.catalogue import CATALOGUE
from refl.verification.vectors.model_vectors import ModelCase
from refl.verification.vectors.rule_vectors import load, signatures

FOLDER = Path(__file__).parents[1] / "reports"
PACKAGE = "refl.verification.peers"

Array = Any

MEASURED_BEFORE = (
    "eps-unsigned",
    "softmax-dim",
    "mask-finfo",
    "cp-half",
    "moe-degree-0",
    "constant-eats-share",
    "relu-identity-lost",
    "rule-forgotten",
    "zero-input",
    "vacuous-check",
    "fp16-nan",
)
"""Faults of these libraries that were measured by hand before there were vectors; the vectors have
to show them again.
"""

SHOWN = 6
"""Entries of an answer on a page."""


# -- explanations ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cause:
    """What is behind a failure."""

    ids: tuple[str, ...]
    says: str
    """In words; where empty, the known mistakes' own."""
    explains: Callable[[CaseResult], bool]
    documented: str = ""
    """Where the library says so: then it is its convention."""


def reproduces(answer: Answering, digits: str = "") -> Callable[[CaseResult], bool]:
    """The computation gives the numbers that came out, to half the digits
    of the case's format (or of `digits`).
    """

    def explains(v: CaseResult) -> bool:
        if not v.got:
            return False
        with np.errstate(all="ignore"):
            answers = dict(zip(v.case.returns, answer(v.case), strict=True))
        return all(
            _alike(v.case, answers[name], got, v.case.condition[name], digits)
            for name, got in v.got.items()
        )

    return explains


def _alike(
    case: Case, wrong: Array | None, got: Array | None, condition: Array | None, digits: str
) -> bool:
    if wrong is None or got is None or condition is None:
        return all(a is None or not np.any(a) for a in (wrong, got))
    u = UNITS[digits or case.dtype]
    near = u**0.5 * np.abs(wrong) + case.units * u * condition + UNDERFLOW[case.dtype]
    with np.errstate(all="ignore"):
        return bool(
            np.all(np.where(np.isfinite(wrong), np.abs(got - wrong) <= near, ~np.isfinite(got)))
        )


def raised(words: str) -> Callable[[CaseResult], bool]:
    return lambda v: v.message.startswith("raised ") and words in v.message


def no_number(v: CaseResult) -> bool:
    """NaN or infinity somewhere in float16."""
    return v.case.dtype == "float16" and any(
        a is not None and not np.isfinite(a).all() for a in v.got.values()
    )


def right_in_float32(v: CaseResult) -> bool:
    """A float64 answer that is right to what float32 allows."""
    if v.case.dtype != "float64" or not v.got:
        return False
    allowed = {
        name: v.case.units * UNITS["float32"] * c + UNDERFLOW["float32"]
        for name, c in v.case.condition.items()
        if c is not None
    }
    return all(
        got is not None and bool(np.all(np.abs(got - v.case.expected[name]) <= allowed[name]))
        for name, got in v.got.items()
        if name in allowed
    )


def known(mistake: str, says: str = "") -> Cause:
    """A mistake of the table, wherever it gives these numbers, whatever else would."""
    return Cause(
        (mistake,),
        says,
        lambda v: any(m.id == mistake for m in (*v.mistakes, *mistakes_behind(v.case, v.got))),
    )


def made(mistake: str) -> Callable[[CaseResult], bool]:
    """A mistake of the table gives the numbers, to half the digits of the case's format."""
    forms = [form for m in MISTAKES if m.id == mistake for form in m.forms]

    def explains(v: CaseResult) -> bool:
        for form in forms:
            with suppress(NoDifference):
                if reproduces(form)(v):
                    return True
        return False

    return explains


def where(
    condition: Callable[[Case], bool], test: Callable[[CaseResult], bool]
) -> Callable[[CaseResult], bool]:
    return lambda v: condition(v.case) and test(v)


# what LXT computes


PLAIN: dict[str, Any] = {"stabilized": lambda self, z, eps, kind: z + eps}
"""LXT's only stabilizer."""


def _shared_buffer(case: Case) -> tuple[Any, ...]:
    """torch hands every operand of a sum the same gradient; multiplied in place by each in turn, it
    ends as s times all of them.
    """
    operands = [a.astype(np.float64) for a in case.inputs["operands"]]
    product = math.prod(operands[1:], start=operands[0])
    s = case.inputs["r"].astype(np.float64) / (sum(operands) + case.options["eps"])
    return tuple(s * product for _ in operands)


LXT_SOFTMAX = planted(
    filled=lambda self, x, mask: x if mask is None else np.where(mask, x, -np.inf),
    unmasked=lambda self, filled: np.ones_like(filled),
    sum_along=lambda self, r, axis: r.sum(-1, keepdims=True),
    probabilities=naive_probabilities,
)
"""Sums over the last axis, whatever stands there; only -inf counts as masked."""

TWO_FORMS: dict[str, Any] = {
    "context_product": lambda self, a, v, r, **o: self.matmul_uniform(
        a, v, r, **o | {"denominator": "2(z+eps)"}
    ),
    "score_product": lambda self, a, v, r, **o: self.matmul_uniform(
        a, v, r, **o | {"denominator": "2z+eps"}
    ),
}
LOWEST: dict[str, Any] = {
    "filled": lambda self, x, mask: np.where(mask, x, self.lowest),
    "probabilities": naive_probabilities,
    "softmax_taylor": lambda self, x, r, *, mask: np.where(
        mask, ReferenceRules.softmax_taylor(self, x, r, mask=mask), 0.0
    ),
}
"""Attention whose masks are the lowest finite number, which no relevance passes on the way back."""
HALVED: dict[str, Any] = {
    "matmul_second": lambda self, a, v, r, **o: self.matmul_uniform(a, v, r, **o)[1]
}
LXT_RENORMALIZE = planted(
    **PLAIN,
    renormalize_identity=lambda self, x, r: self.renormalize_epsilon(
        x, r, eps=1e-8, stabilizer="plain"
    ),
)


def _uniform_mean(case: Case) -> tuple[Any, ...]:
    """The mean of all relevance that arrived over everything that is handed something."""
    shapes = [case.inputs[name].shape for name in case.returns]
    return tuple(
        np.full(s, case.inputs["r"].astype(np.float64).sum() / sum(map(math.prod, shapes)))
        for s in shapes
    )


def _constant_shares(case: Case) -> tuple[Any, ...]:
    share = case.inputs["r"].astype(np.float64) / len(case.inputs["operands"])
    fixed = case.options["constant"] or [False] * len(case.inputs["operands"])
    return tuple(None if each else share for each in fixed)


def _bridged(case: Case) -> tuple[Any, ...]:
    """The right answer, divided by x + 1e-10 s(x) and multiplied by x."""
    x, eps = case.inputs["x"].astype(np.float64), 0.0 if case.dtype == "float16" else 1e-10
    return (case.expected["x"] * x / (x + np.where(x >= 0, eps, -eps)),)


def _lands_on_zero(case: Case) -> bool:
    return bool(np.any((case.inputs["x"] == 0) & (case.expected["x"] != 0)))


# what zennit computes


def _bias_squared(case: Case) -> tuple[Any, ...]:
    square, r, b = (
        case.inputs["w"].astype(np.float64) ** 2,
        case.inputs["r"].astype(np.float64),
        case.inputs["b"],
    )
    total = square.sum(-1) + (0.0 if b is None else b.astype(np.float64) ** 2)
    return (np.where(total == 0, 0.0, r / np.where(total == 0, 1.0, total)) @ square,)


def _gelu_of_torch(case: Case) -> tuple[Any, ...]:
    """The right network, but for the values of GELU, which are torch's in the case's format."""
    return planted(forward=_forward_of_torch)(case)


def _forward_of_torch(self: ReferenceRules, layer: dict[str, Any], x: Array) -> Array:
    import torch

    if layer.get("kind") not in ("gelu", "gelu_tanh"):
        return ReferenceRules.forward(self, layer, x)
    values = torch.nn.functional.gelu(
        torch.tensor(x, dtype=getattr(torch, self.dtype)),
        approximate="tanh" if layer["kind"] == "gelu_tanh" else "none",
    )
    return np.asarray(values.double().numpy())


# what captum computes

CAPTUM_EPS = 1e-9
"""What it adds to denominators by itself."""


def _captum(weights: Callable[..., Array]) -> Callable[..., Array]:
    """z over changed weights and the bias as it is, 1e-9 with the sign of z added."""

    def rule(
        self: ReferenceRules, x: Array, w: Array, b: Array | None, r: Array, **options: Any
    ) -> Array:
        changed = weights(w, **options)
        return self.linear_epsilon(x, changed, b, r, eps=CAPTUM_EPS)

    return rule


CAPTUM_PARTS: dict[str, Any] = {
    "linear_gamma": _captum(lambda w, *, gamma: w + gamma * np.maximum(w, 0)),
    "linear_z_plus": _captum(lambda w: np.maximum(w, 0)),
    "linear_alpha_beta": _captum(lambda w, **o: np.maximum(w, 0)),
}
CAPTUM = planted(**CAPTUM_PARTS)
FIXED_EPS = planted(divided=lambda self, r, d: r / (d + np.where(d >= 0, CAPTUM_EPS, -CAPTUM_EPS)))


def _identity_behind_relu(case: Case) -> tuple[Any, ...]:
    """The identity rule's own hook is passed over: the layer's gradient of R / f, taken for
    relevance, arrives at the ReLU.
    """

    class Lost(ReferenceRules):
        def backward(
            self, layers: Sequence[dict[str, Any]], xs: Sequence[Array], r: Array
        ) -> Array:
            for n in reversed(range(len(layers))):
                behind = (
                    n > 0
                    and layers[n]["operation"] == "activation"
                    and layers[n - 1].get("kind") == "relu"
                )
                r = (
                    self.lost(layers[n], xs[n], r)
                    if behind
                    else self.layer_backward(layers[n], xs[n], r)
                )
            return r

        def lost(self, layer: dict[str, Any], x: Array, r: Array) -> Array:
            f = self.forward(layer, x)
            return self.activation_gradient(
                x, r / (f + np.where(f >= 0, CAPTUM_EPS, -CAPTUM_EPS)), kind=layer["kind"]
            )

    return Lost(case.dtype).answer(case)


def _has(case: Case, rule: str) -> bool:
    return any(layer["rule"] == rule for layer in case.inputs["layers"])


# what tdhook computes


ONE_FORM: dict[str, Any] = {
    "matmul_uniform": lambda self, a, v, r, **o: ReferenceRules.matmul_uniform(
        self, a, v, r, **o | {"denominator": "2(z+eps)"}
    ),
}


def _tdhook_softmax(case: Case) -> tuple[Any, ...]:
    """p from torch along the axis, the sum along the last one, masked logits as they stand."""
    x, r, mask = case.inputs["x"], case.inputs["r"].astype(np.float64), case.options["mask"]
    x = np.where(True if mask is None else mask, x.astype(np.float64), -np.inf)
    p = ReferenceRules(case.dtype).probabilities(x, case.options["axis"])
    return (x * (r - p * r.sum(-1, keepdims=True)),)


def _ratio_at_zero_is_zero(case: Case) -> tuple[Any, ...]:
    return (np.where(case.inputs["x"] == 0, 0.0, case.expected["x"]),)


# what autoLRP computes


def _sizes(a: Array, b: Array, eps: float) -> Array:
    """|a| / (|a| + |b|)"""
    return np.abs(a) / (np.abs(a) + np.abs(b) + eps)


def _plain(case: Case, *names: str) -> Iterator[Array]:
    return (np.asarray(case.inputs[name], np.float64) for name in names)


def _sum_by_size(case: Case) -> tuple[Any, ...]:
    a, b, r = _plain(case, "a", "b", "r")
    return tuple(_summed_to(r * _sizes(p, q, case.options["eps"]), p) for p, q in ((a, b), (b, a)))


def _summed_to(r: Array, a: Array) -> Array:
    r = r.sum(tuple(range(r.ndim - a.ndim)))
    return r.sum(tuple(n for n, size in enumerate(a.shape) if size == 1), keepdims=True)


def _product_by_size(case: Case) -> tuple[Any, ...]:
    """Two by two, from the left: the last product's relevance is split first."""
    operands = [np.asarray(a, np.float64) for a in case.inputs["operands"]]
    fixed = case.options["constant"] or [False] * len(operands)
    r = np.asarray(case.inputs["r"], np.float64)
    handed: list[Any] = []
    for n in reversed(range(1, len(operands))):
        rest, last = math.prod(operands[:n]), operands[n]
        share = 0.0 if fixed[n] else 1.0 if all(fixed[:n]) else _sizes(last, rest, 1e-30)
        handed.append(None if fixed[n] else _summed_to(r * share, last))
        r = _summed_to(
            r * (1 - share if fixed[n] or all(fixed[:n]) else _sizes(rest, last, 1e-30)), rest
        )
    return (None if fixed[0] else _summed_to(r, operands[0]), *reversed(handed))


def _masked_as_numbers(case: Case) -> tuple[Any, ...]:
    x, r, mask = case.inputs["x"], case.inputs["r"].astype(np.float64), case.options["mask"]
    axis = case.options["axis"]
    x = np.where(True if mask is None else mask, x.astype(np.float64), -np.inf)
    p = ReferenceRules(case.dtype).probabilities(x, axis)
    return (x * (r - p * r.sum(axis, keepdims=True)),)


def _passed_whole(case: Case) -> tuple[Any, ...]:
    return (case.inputs["r"].astype(np.float64),)


def _norm_not_recognized(case: Case) -> tuple[Any, ...]:
    """x times 1 / rms split by size; what 1 / rms got, evenly over x."""
    x, r = _plain(case, "x", "r")
    scale = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + case.options["norm_eps"])
    of_scale = (r * _sizes(scale, x, 1e-30)).sum(-1, keepdims=True)
    return (r * _sizes(x, scale, 1e-30) + of_scale / x.shape[-1],)


def _ratio_in_relevance_form(case: Case) -> tuple[Any, ...]:
    x, r = _plain(case, "x", "r")
    f = ReferenceRules(case.dtype).forward({"operation": "activation", **case.options}, x)
    return (np.where(x == 0, 0.0, r * f / np.where(x == 0, 1.0, x)),)


def _same_but_for_ties(v: CaseResult) -> bool:
    """What equal numbers get together is right."""
    x, got, expected = v.case.inputs["x"], v.got.get("x"), v.case.expected["x"]
    if got is None or expected is None or not bool(np.isfinite(got).all()):
        return False
    equal = x[..., :, None] == x[..., None, :]
    apart = (equal * (got - expected)[..., None, :]).sum(-1)
    return bool(np.all(np.abs(apart) <= x.shape[-1] * v.case.u * np.abs(expected).max()))


TIES = "torch.topk: which of equal numbers it takes is left open"

BOTH_FORMS = (
    "Scores divide by 2 z + eps, contexts by 2 (z + eps), each without the sign of z; whichever "
    "denominator is asked for, one of the two is the other."
)
BRIDGE = (
    "Relevance is divided by x + 1e-10 s(x) on the way through the bridge, and multiplied by x at "
    "the end: what lands on an input near 0 loses 1e-10 / |x| of itself, in float16, where 1e-10 "
    "is 0, all."
)
COUNTED = (
    "Relevance that stands at masked entries enters the row's sum, where the definition records it "
    "as absorbed by the mask. In a model it does not arise: a masked probability is 0, and the "
    "product below hands it none."
)
ROW_HIDDEN = (
    "A query that sees no key attends to all of them alike, for what hides them is the lowest "
    "finite number: values that it does not see get its relevance."
)
WHOLE_ROW = (
    "The softmax is left to torch, for which a row that is masked whole is NaN, and so is its "
    "gradient."
)


def _squares_overflow(case: Case) -> bool:
    x = case.inputs["x"].astype(np.float64)
    return case.dtype == "float16" and bool(np.all((x * x).sum(-1) > GREATEST_HALF))


def _nothing(case: Case) -> tuple[Any, ...]:
    return tuple(np.zeros_like(case.inputs[name], np.float64) for name in case.returns)


GREATEST_HALF = 65504
"""The largest number of float16."""

INSIDE = (
    "A float64 model's value is computed in float32 on the way, as transformers does it: right to "
    "float32's digits and no further. In float32 and half precision it is right."
)
AS_WEIGHTS = (
    "Weights are cut or amplified by their sign where the rule goes by the sign of contributions: "
    "the same only where no input is negative (for z+ reported as captum issue 1234). The bias "
    "stays whole, gamma amplifies below negative outputs too, and z is stabilized with 1e-9."
)
FORGOTTEN = (
    "Rules set by the user are deleted after the first call: the second answers with default "
    "rules, or raises where a layer has none (captum issue 1059)."
)
LOST = (
    "An identity rule on the layer right behind a ReLU is passed over: what arrives at the ReLU as "
    "relevance is the layer's own gradient of R divided by its output. Behind a LayerNorm that "
    "sums to 0."
)
ITS_DEFAULT = (
    "eps = 1e-8, LXT's own default for sums and matrix products, is 0 in float16: where an "
    "output is 0, NaN."
)
UNDERFLOWS = (
    "The eps that was asked for, 1e-8, is 0 in float16, and a dead unit is divided by it. "
    "zennit's default, 1e-6, is not 0."
)

BY_SIZE_PRODUCT = (
    "A product's relevance is split by |a| / (|a| + |b|), two operands at a time; there is no "
    "other rule for products."
)
BY_SIZE_NORM = (
    "With the deviation held constant, LayerNorm's relevance is split by size three times: "
    "between output and beta, between x and its mean, and the mean's part over all x."
)
STATISTIC = (
    "torch writes F.rms_norm out on the CPU, and 1 / rms is taken for a constant only where "
    "scaling x leaves the output the same within 1e-4, which norm_eps prevents when x is small. "
    "Then x and 1 / rms are two operands of a product, split by size."
)
HALF_FIRST = (
    "R is halved and divided by z + eps then, so the denominator is 2 (z + eps), and no argument "
    "asks for 2 z + eps."
)
MASKED_PASSED = "Relevance that stands at masked entries is passed on like any other."
QUOTIENT_16 = (
    "An output near 0 is divided by a stabilizer that is 0 in float16, or whose quotient is "
    "infinite there, and 0 times it is NaN."
)
IN_FLOAT32 = (
    "The stabilizer is formed as epsilon * ((-1) ** (z < 0)), which torch makes an array of "
    "float32: in float64, eps is right to seven digits, and an eps below 1e-45 is 0."
)
HALVED_BEFORE = (
    "R is divided by z + eps and halved then, so the denominator is 2 (z + eps), and no argument "
    "asks for 2 z + eps. Its eps is formed in float32, as everywhere."
)
MASK_AS_NUMBER = (
    "Masked logits are multiplied like any other: -inf gives -inf or NaN, the lowest finite number "
    "an enormous relevance where the least arrives at a masked entry, and a row that is masked "
    "whole NaN."
)
RATIO_AT_ZERO = (
    "The factor is f(x) / (x + eps s(x)): 0 at x = 0, where its limit is f'(0). The gradient of "
    "a unit that is exactly 0 is lost."
)
QUOTIENT = (
    "R / (z + eps s(z)) is formed in float32 and handed to torch in float16, where it is infinite "
    "if z is near 0, and 0 times it is NaN."
)

OVERFLOW = Cause(
    ("fp16-overflow",),
    "A sum of contributions that is empty is divided by the stabilizer alone, 1e-6: in float16 "
    "the quotient is infinite, and 0 times it is NaN. float16 has no stabilizer that is small and "
    "safe at once.",
    no_number,
)
FIXED = Cause(
    ("stabilizer-added",),
    "1e-9 is added to the denominator, with its sign; there is no argument for another.",
    reproduces(FIXED_EPS),
    documented="captum.attr._utils.lrp_rules.PropagationRule: STABILITY_FACTOR assures that no "
    "division is by zero",
)
WEIGHTS_CUT = Cause(("plus-weights",), AS_WEIGHTS, reproduces(CAPTUM))

EXPLAINED: Mapping[tuple[str, str], tuple[Cause, ...]] = {
    ("lxt_explicit", "sum_epsilon"): (
        Cause(
            ("shared-gradient",),
            "The epsilon rule multiplies the gradients by the operands in place. Those of a sum "
            "are one and the same array in torch, so each operand gets s times the product of all "
            "operands: 1 + 2 gets 2 and 2 of 3. Its add2 for two operands is right.",
            reproduces(_shared_buffer),
        ),
    ),
    ("lxt_explicit", "matmul_second"): (
        Cause(
            ("constant-first",),
            "Documented to give a constant operand nothing, the uniform epsilon rule looks "
            "gradients up by the operand's place among all, and finds none where a constant comes "
            "first: it raises.",
            raised("IndexError"),
        ),
    ),
    ("lxt_explicit", "softmax_taylor"): (
        known("softmax-dim"),
        known("mask-finfo"),
        known("mask-counted", COUNTED),
        Cause(
            ("softmax-dim", "mask-counted"),
            "",
            where(lambda case: case.options["axis"] != -1, reproduces(LXT_SOFTMAX)),
        ),
        Cause(("mask-finfo", "mask-counted"), "", reproduces(LXT_SOFTMAX)),
    ),
    ("lxt_explicit", "attention_attnlrp"): (
        Cause(("eps-two-forms",), "", reproduces(planted(**TWO_FORMS))),
        Cause(
            ("eps-two-forms", "eps-unsigned"), BOTH_FORMS, reproduces(planted(**PLAIN, **TWO_FORMS))
        ),
        Cause(
            ("mask-finfo", "eps-two-forms"),
            ROW_HIDDEN,
            reproduces(planted(**PLAIN, **TWO_FORMS, **LOWEST)),
        ),
    ),
    ("lxt_explicit", "attention_cp"): (
        Cause(("cp-half",), "", reproduces(planted(**HALVED))),
        Cause(("cp-half", "eps-unsigned"), "", reproduces(planted(**PLAIN, **HALVED))),
        Cause(
            ("mask-finfo", "cp-half"), ROW_HIDDEN, reproduces(planted(**PLAIN, **HALVED, **LOWEST))
        ),
    ),
    ("lxt_explicit", "multiply_uniform"): (
        Cause(("constant-eats-share",), "", reproduces(_constant_shares)),
    ),
    ("lxt_explicit", "renormalize_identity"): (
        Cause(("moe-degree-0",), "", reproduces(LXT_RENORMALIZE)),
    ),
    ("lxt_explicit", "*"): (
        Cause(("eps-unsigned",), "", made("eps-unsigned")),
        known("fp16-nan", ITS_DEFAULT),
        Cause(("fp16-nan",), ITS_DEFAULT, no_number),
    ),
    ("lxt_explicit", "linear_epsilon"): (
        Cause(("vacuous-check",), "", reproduces(_uniform_mean, "float32")),
    ),
    ("lxt_gradient", "softmax_gradient"): (known("mask-finfo", WHOLE_ROW),),
    ("lxt_gradient", "activation_identity_gxi"): (known("ratio-eps"),),
    ("lxt_gradient", "linear_gradient"): (known("logit-squared"),),
    ("lxt_gradient", "linear_*"): (
        Cause(("zero-input",), "", where(_lands_on_zero, reproduces(_bridged))),
        Cause(("bridge-eps",), BRIDGE, reproduces(_bridged)),
    ),
    ("lxt_gradient", "convolution_z_plus"): (Cause(("bridge-eps",), BRIDGE, reproduces(_bridged)),),
    ("lxt_gradient", "renormalize_identity_gxi"): (
        Cause(
            ("moe-degree-0",),
            "",
            reproduces(planted(renormalize_identity_gxi=ReferenceRules.renormalize_gradient)),
        ),
    ),
    ("lxt_gradient", "layer_norm_epsilon_gxi"): (
        Cause(("norm-in-half",), "", where(_squares_overflow, reproduces(_nothing))),
    ),
    ("lxt_gradient", "rms_norm_identity_gxi"): (Cause(("narrowed",), INSIDE, right_in_float32),),
    ("lxt_gradient", "attention_attnlrp_gxi"): (Cause(("narrowed",), INSIDE, right_in_float32),),
    ("zennit_rules", "linear_epsilon"): (
        Cause(
            ("lrp-0-divides",),
            "eps = 0, documented as LRP-0, divides by an output that is exactly 0: "
            "infinity, or NaN further down.",
            where(
                lambda case: case.options["stabilizer"] == "none",
                lambda v: any(not np.isfinite(a).all() for a in v.got.values() if a is not None),
            ),
        ),
    ),
    ("zennit_rules", "linear_gamma"): (known("gamma-at-zero"),),
    ("zennit_rules", "linear_w_square"): (
        Cause(
            ("bias-counted",),
            "The bias counts among the squared weights and keeps its share. With "
            "zero_params='bias' it does not, and the rule is the classic one.",
            reproduces(_bias_squared),
            documented="zennit.rules.WSquare, parameter zero_params: no parameter is set to zero "
            "unless it is named",
        ),
    ),
    ("zennit_rules", "network"): (
        Cause(
            ("torch-gelu-tail",),
            "Not zennit's: torch's GELU loses its digits where x is well below 0, for it "
            "forms 1 + erf; at -6 in float32 it is 0 in place of -5.9e-9.",
            where(lambda case: case.dtype != "float16", reproduces(_gelu_of_torch)),
        ),
    ),
    ("captum_lrp", "network"): (
        Cause(
            ("rule-forgotten",),
            FORGOTTEN,
            lambda v: v.behavior == "again",
        ),
        Cause(("relu-identity-lost",), LOST, reproduces(_identity_behind_relu)),
        Cause(
            ("gamma-weights",),
            AS_WEIGHTS,
            where(lambda case: not _has(case, "z_plus"), reproduces(CAPTUM)),
        ),
        Cause(
            ("plus-weights",),
            AS_WEIGHTS,
            where(lambda case: not _has(case, "gamma"), reproduces(CAPTUM)),
        ),
        Cause(("plus-weights", "gamma-weights"), AS_WEIGHTS, reproduces(CAPTUM)),
    ),
    ("captum_lrp", "linear_gamma"): (
        FIXED,
        Cause(("gamma-weights",), AS_WEIGHTS, reproduces(CAPTUM)),
    ),
    ("captum_lrp", "*_z_plus"): (FIXED, WEIGHTS_CUT),
    ("captum_lrp", "linear_alpha_beta"): (FIXED, WEIGHTS_CUT),
    ("captum_lrp", "*"): (Cause(("fp16-nan",), "", no_number),),
    ("zennit_rules", "*"): (
        Cause(
            ("fp16-nan",),
            UNDERFLOWS,
            where(lambda case: case.options.get("eps", 1) < 2**-25, no_number),
        ),
        OVERFLOW,
    ),
    ("lxt_gradient", "*"): (OVERFLOW,),
    ("autolrp_rules", "linear_gamma"): (
        Cause(
            ("gamma-at-zero",),
            "",
            where(
                lambda case: case.inputs["b"] is None,
                reproduces(planted(linear_gamma=wrong.gamma_off_zero)),
            ),
        ),
    ),
    ("autolrp_rules", "linear_*"): (known("bias-by-size"),),
    ("autolrp_rules", "convolution_*"): (known("bias-by-size"),),
    ("autolrp_rules", "add_epsilon"): (
        Cause(("residual-absolute",), "", reproduces(_sum_by_size)),
    ),
    ("autolrp_rules", "multiply_uniform"): (
        Cause(("product-proportional",), BY_SIZE_PRODUCT, reproduces(_product_by_size)),
    ),
    ("autolrp_rules", "matmul_uniform"): (
        Cause(("eps-two-forms",), HALF_FIRST, reproduces(planted(**ONE_FORM))),
    ),
    ("autolrp_rules", "softmax_taylor"): (
        Cause(("mask-finfo",), MASK_AS_NUMBER, reproduces(_masked_as_numbers)),
    ),
    ("autolrp_rules", "softmax_identity"): (
        Cause(("mask-ignored",), MASKED_PASSED, reproduces(_passed_whole)),
    ),
    ("autolrp_rules", "pooling_epsilon"): (known("mean-by-size"),),
    ("autolrp_rules", "layer_norm_epsilon"): (known("mean-by-size", BY_SIZE_NORM),),
    ("autolrp_rules", "rms_norm_identity"): (
        Cause(("statistic-missed",), STATISTIC, reproduces(_norm_not_recognized)),
    ),
    ("autolrp_rules", "top_k_pass_through"): (
        Cause(("top-k-ties",), "", _same_but_for_ties, documented=TIES),
    ),
    ("autolrp_rules", "activation_identity"): (
        Cause(("identity-in-wrong-form",), "", reproduces(_ratio_in_relevance_form)),
    ),
    ("autolrp_rules", "*"): (Cause(("fp16-overflow",), QUOTIENT_16, no_number),),
    ("tdhook_rules", "linear_w_square"): (Cause(("bias-counted",), "", reproduces(_bias_squared)),),
    ("tdhook_rules", "multiply_uniform"): (
        Cause(("constant-eats-share",), "", reproduces(_constant_shares)),
    ),
    ("tdhook_rules", "matmul_uniform"): (
        Cause(
            ("eps-two-forms",), HALVED_BEFORE, reproduces(planted(**ONE_FORM, **wrong.IN_FLOAT32))
        ),
    ),
    ("tdhook_rules", "softmax_taylor"): (
        Cause(
            ("softmax-dim",),
            "",
            where(lambda case: case.options["axis"] != -1, reproduces(_tdhook_softmax)),
        ),
        Cause(("mask-finfo",), MASK_AS_NUMBER, reproduces(_tdhook_softmax)),
    ),
    ("tdhook_rules", "layer_norm_epsilon"): (known("vjp-for-relevance"),),
    ("tdhook_rules", "activation_identity_gxi"): (
        Cause(("ratio-eps",), RATIO_AT_ZERO, reproduces(_ratio_at_zero_is_zero)),
    ),
    ("tdhook_rules", "network"): (
        Cause(
            ("one-target",),
            "",
            lambda v: v.behavior == "targets",
        ),
    ),
    ("tdhook_rules", "*"): (
        Cause(("eps-in-float32",), IN_FLOAT32, reproduces(planted(**wrong.IN_FLOAT32))),
        Cause(("fp16-overflow",), QUOTIENT, no_number),
    ),
}
"""(Adapter, rules) -> what may be behind a failure, the first that explains it counts."""


# -- tracing ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Traced:
    """A case that did not pass, and what is behind it."""

    result: CaseResult
    ids: tuple[str, ...]
    """Empty where nothing explains it."""
    says: str
    documented: str

    @property
    def status(self) -> str:
        return CONVENTION if self.documented else FAILED


@dataclass(frozen=True)
class Row:
    """One rule by one way that the library offers to it."""

    rule: str
    way: str
    cases: tuple[CaseResult, ...]
    traced: tuple[Traced, ...]

    def count(self, status: str) -> int:
        if status in (PASSED, NOT_COVERED):
            return sum(v.status == status for v in self.cases)
        return sum(t.status == status for t in self.traced)

    @property
    def covered(self) -> bool:
        return self.count(NOT_COVERED) < len(self.cases)


@dataclass(frozen=True)
class Peer:
    """A library, by one of its forms."""

    adapter: str
    page: str
    title: str
    formulation: str
    """What its own rules hand down; rules of the other kind are not listed as missing."""
    about: str
    beside: tuple[str, ...] = ("torch",)

    @property
    def name(self) -> str:
        return self.title.split()[0]


PEERS = (
    Peer(
        "lxt_explicit",
        "lxt-explicit-2.1.md",
        "LXT 2.1, relevance form",
        "relevance",
        "lxt.explicit, the relevance form: autograd functions that hand relevance down. Attention "
        "is put together of them as its models do. Those models (lxt.explicit.models) are not in "
        "the wheel: what is called theirs here is their operations, placed where the repository "
        "places them.",
        ("torch", "transformers"),
    ),
    Peer(
        "lxt_gradient",
        "lxt-gradient-2.1.md",
        "LXT 2.1, gradient x input form",
        "gradient_x_input",
        "lxt.efficient, the gradient x input form: patches of transformers after which x times "
        "gradient is relevance. What LXT leaves to autograd is asked of autograd. The rules of "
        "linear layers in relevance form (gamma, z+, flat, ...) it takes from zennit through a "
        "bridge.",
        ("torch", "transformers", "zennit"),
    ),
    Peer(
        "zennit_rules",
        "zennit-0.5.1.md",
        "zennit 0.5.1",
        "relevance",
        "Rules put on torch modules as hooks.",
    ),
    Peer(
        "captum_lrp",
        "captum-0.9.0.md",
        "captum 0.9.0",
        "relevance",
        "captum.attr.LRP with rules set as attributes of the layers. It explains one score: "
        "relevance r at the output is asked for by a score whose gradient there is r.",
    ),
    Peer(
        "tdhook_rules",
        "tdhook-0.3.0.md",
        "tdhook 0.3.0",
        "relevance",
        "Rules registered on torch modules, adapted, as its sources say, from zennit and LXT.",
        ("torch", "tensordict"),
    ),
    Peer(
        "autolrp_rules",
        "autolrp-0.2.0.md",
        "autoLRP 0.2.0",
        "relevance",
        "Rules for the nodes of torch's autograd graph, by their names. What it calls constant is "
        "what does not come from the wrapped input.",
    ),
)


def trace(adapter: str, conventions: Mapping[str, str], v: CaseResult) -> Traced:
    for cause in causes(adapter, v.case.rule):
        if cause.explains(v):
            return Traced(
                v,
                cause.ids,
                cause.says or _words(cause.ids),
                cause.documented or _documented(cause.ids, conventions),
            )
    ids = tuple(m.id for m in v.mistakes[:1])
    return Traced(v, ids, _words(ids), _documented(ids, conventions))


def causes(adapter: str, rule: str) -> Iterator[Cause]:
    for (name, pattern), each in EXPLAINED.items():
        if name == adapter and fnmatchcase(rule, pattern):
            yield from each


def _words(ids: Sequence[str]) -> str:
    return " ".join(CATALOGUE[name].says for name in ids if name in CATALOGUE)


def _documented(ids: Sequence[str], conventions: Mapping[str, str]) -> str:
    """A convention only if all of it is one."""
    return conventions[ids[0]] if ids and all(name in conventions for name in ids) else ""


def rows(peer: Peer) -> list[Row]:
    """Every rule of the library's adapter, then the further ways to the same rules."""
    module = importlib.import_module(f"{PACKAGE}.{peer.adapter}")
    sources = {"": module} | getattr(module, "VARIANTS", {})
    return [
        _row(peer, Adapter(source), rule, way)
        for way, source in sources.items()
        for rule in Adapter(source).covers()
    ]


@dataclass(frozen=True)
class ModelRow:
    """One architecture by one method, all its inputs."""

    architecture: str
    method: str
    compared: int
    """Sites, over all inputs."""
    parting: int
    because: str
    """Empty where nothing explains it."""

    @property
    def result(self) -> str:
        return PASSED if not self.parting else CONVENTION if self.because else FAILED


WITHOUT_EPS = "without the eps in f(x) / (x + eps)"


def models(peer: Peer) -> list[ModelRow]:
    """Whole models, where the adapter runs them; what is parted there is run again without LXT's
    eps in activations.
    """
    module = importlib.import_module(f"{PACKAGE}.{peer.adapter}")
    if not hasattr(module, "model"):
        return []
    found = []
    for architecture in model_vectors.architectures():
        if "-" in architecture:  # another head of an architecture: peers are run as language models
            continue
        for method in METHODS:
            cases = model_vectors.load(architecture, [method])
            with suppress(NotImplementedError):
                found.append(model_row(module, architecture, method, cases))
    return found


METHODS = ("attnlrp", "attnlrp-gradient", "cp-lrp", "input-x-gradient")


def model_row(module: Any, architecture: str, method: str, cases: Sequence[ModelCase]) -> ModelRow:
    compared = [_sites(module.model, case) for case in cases]
    parted = sum(len(wrong) for _, wrong in compared)
    again = [_sites(module.VARIANTS[WITHOUT_EPS].model, case) for case in cases] if parted else []
    explained = bool(again) and not any(wrong for _, wrong in again)
    return ModelRow(
        architecture, method, sum(n for n, _ in compared), parted, "ratio-eps" if explained else ""
    )


def _sites(model: Callable[..., Any], case: ModelCase) -> tuple[int, list[Any]]:
    """How many were compared, and those that part."""
    (got,) = model(case.folder)(case.item, [case.target], case.method, position=case.position)
    known = len(got) - len(model_vectors.unknown(case, got))
    return known, model_vectors.check(case, got, "float64")


def _row(peer: Peer, adapter: Adapter, rule: str, way: str) -> Row:
    found = rule_result(rule, [run_case(adapter, case) for case in load(rule)], adapter.conventions)
    failed = [v for v in found.cases if v.failed]
    return Row(
        rule,
        way,
        found.cases,
        tuple(trace(peer.adapter, adapter.conventions, v) for v in failed),
    )


# -- pages -----------------------------------------------------------------------------------------


COUNTED_BY = (
    "Cases of each rule, by what came of them. A convention is a deviation that the library "
    "documents."
)


def page(peer: Peer, found: Sequence[Row], whole: Sequence[ModelRow], date: str) -> str:
    module = importlib.import_module(f"{PACKAGE}.{peer.adapter}")
    covered = [row for row in found if row.covered]
    parts = [
        f"# {peer.title}: conformance report",
        "Generated by `python -m refl.verification.peers.peer_reports`, not written by hand.",
        table(("", ""), _head(peer, module, date)),
        peer.about,
        "## In short",
        _short(covered, module.CONVENTIONS),
        "## Rules",
        COUNTED_BY,
        table(
            ("rule", "by", PASSED, CONVENTION, FAILED, NOT_COVERED, "because of"),
            map(_line, covered),
        ),
        _left_out(covered, peer.formulation),
        *_whole(whole),
        "## Causes",
        *_causes(covered, peer.name),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(peer: Peer, module: Any, date: str) -> list[tuple[str, str]]:
    facts = about()
    beside = ", ".join(
        f"{name} {importlib.metadata.version(name).partition('+')[0]}" for name in peer.beside
    )
    return [
        ("date", date),
        ("library", f"{peer.name} {module.VERSION}"),
        ("beside", beside),
        ("refl", facts["refl"]),
        ("vectors", facts["vectors"]),
        ("adapter", f"`verification/peers/{peer.adapter}.py`"),
    ]


def _short(covered: Sequence[Row], conventions: Mapping[str, str]) -> str:
    main = [row for row in covered if not row.way]
    traced = [t for row in covered for t in row.traced]
    right = sum(not row.traced for row in main)
    meant = sum(bool(row.traced) and not row.count(FAILED) for row in main)
    but = f", {meant} but for conventions that it documents" if meant else ""
    lines = [f"- Of {len(main)} rules that the library has, {right} pass every case{but}."]
    failing = [n for n in _ids(traced, FAILED) if n not in conventions]
    for words, names in (
        (
            "Faults known before, shown again by the vectors",
            [n for n in failing if n in MEASURED_BEFORE],
        ),
        ("Further causes of failures", [n for n in failing if n not in MEASURED_BEFORE]),
        ("Documented conventions", _ids(traced, CONVENTION)),
    ):
        if names:
            lines.append(f"- {words}: {', '.join(names)}.")
    return "\n".join(lines)


def _ids(traced: Sequence[Traced], status: str) -> list[str]:
    return list(dict.fromkeys(name for t in traced if t.status == status for name in t.ids))


def _line(row: Row) -> tuple[str, ...]:
    counts = [str(row.count(status)) for status in (PASSED, CONVENTION, FAILED, NOT_COVERED)]
    because = dict.fromkeys(" with ".join(t.ids) or "**unexplained**" for t in row.traced)
    return (row.rule, row.way, *counts, ", ".join(because))


WHOLE = (
    "Small models of random weights under LXT's patches, in float64: x times gradient at the "
    "output of every module, held against exact arithmetic. What parts because of ratio-eps agrees "
    "at every site when that eps is set to 0."
)


def _whole(whole: Sequence[ModelRow]) -> list[str]:
    if not whole:
        return []
    head = ("architecture", "method", "sites compared", "of them parted", "result", "because of")
    body = [
        (m.architecture, m.method, str(m.compared), str(m.parting), m.result, m.because)
        for m in whole
    ]
    return [
        "## Whole models",
        WHOLE,
        table(head, body),
    ]


def _left_out(covered: Sequence[Row], formulation: str) -> str:
    known = {row.rule for row in covered}
    left = [
        rule
        for rule, signature in signatures().items()
        if rule not in known and signature.formulation == formulation
    ]
    if not left:
        return ""
    words = formulation.replace("_", " ")
    return f"Of the rules in {words} form the library has none for: {', '.join(left)}."


def _causes(covered: Sequence[Row], name: str) -> Iterator[str]:
    groups: dict[tuple[str, ...], list[tuple[Row, Traced]]] = {}
    for row in covered:
        for t in row.traced:
            groups.setdefault(t.ids, []).append((row, t))
    for ids, members in groups.items():
        yield from _cause(ids, members, name)


def _cause(ids: tuple[str, ...], members: Sequence[tuple[Row, Traced]], name: str) -> Iterator[str]:
    row, shown = min(members, key=lambda member: _plainness(ids, member[1].result))
    v, by = shown.result, f" by {row.way}" if row.way else ""
    yield f"### {' with '.join(ids) or 'unexplained'}"
    yield shown.says
    if shown.documented:
        yield f"A documented convention: {shown.documented}."
    where_met = dict.fromkeys(
        f"{row.rule} by {row.way}" if row.way else row.rule for row, _ in members
    )
    yield (
        f"{_counted(len(members), 'case')} of {', '.join(where_met)}. For one, {v.case.id}{by}: "
        f"{v.case.note} ({v.case.dtype})"
    )
    yield _case(v, name)


def _plainness(ids: tuple[str, ...], v: CaseResult) -> tuple[Any, ...]:
    """Cases written for the mistake come first, then those of few numbers,
    then those where it does most.
    """
    most = max((abs(d.got - d.expected) for d in v.deviations if math.isfinite(d.got)), default=0.0)
    return (not set(ids) & set(v.case.flags), not v.deviations, size(v.case), -most)


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _case(v: CaseResult, name: str) -> str:
    lines = ["```", report.call(v.case), "```"]
    if v.message:
        words = v.message.partition(" (or ")[0].partition(". ")[0]
        raised = words.startswith("raised")
        lines += ["", f"It {words}." if raised else f"{words[:1].upper()}{words[1:]}."]
    entries = list(_entries(v))
    if entries:
        lines += ["", table(("", "definition", name), entries[:SHOWN])]
    if len(entries) > SHOWN:
        lines += ["", f"and {len(entries) - SHOWN} more."]
    return "\n".join(lines)


def _entries(v: CaseResult) -> Iterator[tuple[str, str, str]]:
    """The wrong ones: name, definition, library."""
    for name in (d.name for d in v.deviations):
        arrays = (v.case.expected[name], v.case.condition[name], v.got[name])
        shape = next(np.shape(a) for a in arrays if a is not None)
        right, condition, got = (np.zeros(shape) if a is None else np.asarray(a) for a in arrays)
        allowed = v.case.allowed(condition)
        for at in np.ndindex(shape):
            if not abs(got[at] - right[at]) <= allowed[at]:
                yield (
                    f"{name}[{', '.join(map(str, at))}]",
                    *_apart(float(right[at]), float(got[at])),
                )


def _apart(expected: float, got: float) -> tuple[str, str]:
    """With six digits, or as many as it takes to tell them apart."""
    for digits in (6, 9, 12, 15):
        pair = f"{expected:.{digits}g}", f"{got:.{digits}g}"
        if pair[0] != pair[1]:
            break
    return pair


def write(peer: Peer, folder: Path = FOLDER, date: str = "") -> str:
    text = page(peer, rows(peer), models(peer), date or datetime.date.today().isoformat())
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / peer.page, text.encode())
    return text


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Run other libraries on the conformance vectors and write a page on each."
    )
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    folder = parser.parse_args().folder
    for peer in PEERS:
        write(peer, folder)
        print(folder / peer.page)


if __name__ == "__main__":
    main()
