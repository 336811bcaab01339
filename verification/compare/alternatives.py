"""A method with one thing changed: an option, a reading that differs between papers and libraries,
or a known mistake planted in refl's rules.

Ids and words of mistakes are the catalogue's (vectors/mistakes.toml), the same as for single rules.
How a mistake is made here is written apart from conformance/mistakes.py: that one answers single
calls in float64, these run inside refl's own sweep, in either formulation, on a whole model.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from refl.arrays import Array
from refl.errors import ReflError
from refl.rules import layer_norm
from refl.rules.add import fold
from refl.rules.composites import Chosen, Composite, Rule
from refl.rules.conservation import RuleOutput
from refl.rules.operations import rules_in
from refl.rules.published import METHODS
from refl.verification.vectors.catalogue import CATALOGUE

Factor = Callable[[float], float]
"""The explained logit -> what all relevance is multiplied by."""
Step = Callable[..., RuleOutput]
"""A rule, as composites hold it."""

EPS = (*(10.0**n for n in range(-12, -1)),)
"""The grid of stabilizers."""


def once(explained: float) -> float:
    return 1.0


def by_logit(explained: float) -> float:
    return explained


def over_logit(explained: float) -> float:
    return 1.0 / explained if explained else math.nan


@dataclass(frozen=True)
class Alternative:
    """A method with one thing changed."""

    composite: Composite
    mistakes: tuple[str, ...] = ()
    """Of the catalogue: what the change amounts to."""
    where: str = ""
    """In which of its forms, or at which operation."""
    option: str = ""
    """What is shown for an option of the method, in place of the mistakes' words."""
    factor: Factor = once
    eps: float | None = None
    """The stabilizer's size, where that is what was changed."""

    @property
    def says(self) -> str:
        if self.option:
            return self.option
        where = f" ({self.where})" if self.where else ""
        return " ".join(str(CATALOGUE[id]) for id in self.mistakes) + where


def alternatives(composite: Composite) -> Iterator[Alternative]:
    """In the order in which they are preferred where several give the same numbers."""
    yield Alternative(composite, ("logit-squared",), factor=by_logit)
    yield Alternative(composite, ("seed-one",), factor=over_logit)
    tried, said = [_table(composite)], set()
    for made in (*_stabilizers(composite), *_readings(composite)):
        if made is not None and (table := _table(made.composite)) not in tried:
            tried.append(table)
            said.add(made.says)
            yield made
    yield from (a for a in _planted(composite) if a.says not in said)
    for name, other in METHODS.items():
        if _table(other) not in tried:
            yield Alternative(other, option=f"method: {name}")


def _table(c: Composite) -> tuple[Any, ...]:
    """What makes a composite another: its formulation, and its rules with every option."""
    return c.formulation, c.as_dict()["rules"]


# -- options and readings --------------------------------------------------------------------------


def _changed(make: Callable[[], Composite], *mistakes: str, **words: Any) -> Alternative | None:
    """None where the composite has nothing to change."""
    try:
        return Alternative(make(), mistakes, **words)
    except ReflError:
        return None


def _stabilizers(c: Composite) -> Iterator[Alternative | None]:
    def made(*mistakes: str, option: str = "", eps: float | None = None, **how: Any) -> Any:
        options = how if eps is None else how | {"eps": eps}
        change = functools.partial(c.with_options, **options)
        return _changed(change, *mistakes, option=option, eps=eps)

    yield made("other-eps", option="stabilizer: none", stabilizer="none")
    yield made("eps-unsigned", stabilizer="plain")
    yield made(option="stabilizer: sign, z + eps s(z)", stabilizer="sign")
    yield from (with_eps(c, eps) for eps in EPS)
    yield from (unsigned(c, eps) for eps in EPS)
    for form in ("2(z+eps)", "2z+eps"):
        said = f"matmul: every product divides by {form}"
        yield made("eps-two-forms", option=said, denominator=form)


def with_eps(c: Composite, eps: float) -> Alternative | None:
    make = functools.partial(c.with_options, eps=eps)
    return _changed(make, "other-eps", option=f"eps: {_digits(eps)}", eps=eps)


def unsigned(c: Composite, eps: float) -> Alternative | None:
    make = functools.partial(c.with_options, eps=eps, stabilizer="plain")
    return _changed(make, "eps-unsigned", where=f"eps {_digits(eps)}", eps=eps)


def _digits(eps: float) -> str:
    return f"{eps:.0e}" if eps in EPS else f"{eps:.4g}"


_CONSTANT = (Rule("matmul", "second", role="attention.context"), Rule("softmax", "constant"))
_GATE = Rule("multiply", "second")


def _readings(c: Composite) -> Iterator[Alternative | None]:
    def lines(*rules: Rule) -> Callable[[], Composite]:
        return lambda: c.override(*rules)

    for rule, words in (
        ("identity", "identity for the whole layer, prop. 3.4"),
        ("epsilon", "eps-rule with 1/std constant, section 3.3.3"),
    ):
        yield _changed(lines(Rule("layer_norm", rule)), "layer-norm-reading", where=words)
    yield _changed(lines(*_CONSTANT), "probabilities-constant")
    for rule, words in (("identity", "identity"), ("taylor", "its Taylor expansion, prop. 3.1")):
        yield _changed(lines(Rule("softmax", rule)), "softmax-other-rule", where=words)
    yield _changed(lines(_GATE), "gate-constant")
    yield _changed(lines(*_CONSTANT, _GATE), "probabilities-constant", "gate-constant")
    yield _changed(lines(Rule("renormalize", "epsilon")), "moe-degree-0")
    yield _changed(lines(Rule("renormalize", "identity")), "renormalize-identity")
    for form, option in (
        ("gradient_x_input", "in gradient x input form, without any eps"),
        ("relevance", "in relevance form, with an eps"),
    ):
        yield _changed(functools.partial(_in_form, c, form), option=option)


def _in_form(c: Composite, form: str) -> Composite:
    if c.formulation == form:
        raise ReflError(f"composite {c.name} has the formulation {form} already")
    bare = (
        tuple(replace(line, options=()) for line in c.rules)
        if form == "gradient_x_input"
        else c.rules
    )
    return Composite(f"{c.name} ({form})", bare, form, c.source, c.summary, c.score)


# -- mistakes, planted -----------------------------------------------------------------------------

Change = Callable[[Step, bool], Step]
"""(rule, whether in gradient x input form) -> the rule with the mistake in it."""


@dataclass(frozen=True)
class Altered(Composite):
    """A composite whose rules are changed on their way out of the table."""

    change: Callable[[str, Sequence[str], str, Chosen], Chosen] = (
        lambda operation, names, role, chosen: chosen
    )

    def rule(self, operation: str, names: Sequence[str], role: str = "") -> Chosen:
        return self.change(operation, names, role, super().rule(operation, names, role))


def _planted(c: Composite) -> Iterator[Alternative]:
    for mistake, where, operation, role, change in PLANTED:
        yield Alternative(altered(c, operation, role, change), (mistake,), where)
    halved = altered(c.override(*_CONSTANT), "matmul", "attention.context", _scaled(0.5))
    yield Alternative(halved, ("probabilities-constant", "cp-half"))


def altered(c: Composite, operation: str, role: str, change: Change) -> Composite:
    """The composite with a mistake in its rules for operations of a role (a pattern)."""

    def changed(found: str, names: Sequence[str], of: str, chosen: Chosen) -> Chosen:
        if not Rule(operation, chosen.name, role=role).fits(found, names, of):
            return chosen
        gxi = c.formulation == "gradient_x_input"
        return replace(chosen, function=change(chosen.function, gxi))

    return Altered(c.name, c.rules, c.formulation, c.source, c.summary, c.score, changed)


def _relevance(r: Array, z: Array, gxi: bool) -> Array:
    """The relevance of an output, of which the gradient x input form propagates r with R = z r."""
    return r * z if gxi else r


def _propagated(r: Array, x: Array, gxi: bool) -> Array:
    """What is propagated to an input, given its relevance: its g in gradient x input form."""
    return _quotient(r, x) if gxi else r


def _quotient(r: Array, z: Array) -> Array:
    return np.divide(r, z, out=np.zeros_like(r), where=z != 0)


def _scaled(*factors: float) -> Change:
    """What each operand gets times its factor; the last factor is for all that follow."""

    def change(rule: Step, gxi: bool) -> Step:
        def scaled(*arrays: Any, **options: Any) -> RuleOutput:
            out = rule(*arrays, **options)
            each = [*factors, *[factors[-1]] * len(out.inputs)]
            return _with_inputs(
                out, (None if r is None else r * f for r, f in zip(out.inputs, each, strict=False))
            )

        return scaled

    return change


def _with_inputs(out: RuleOutput, inputs: Iterable[Array | None]) -> RuleOutput:
    return out._replace(inputs=tuple(inputs))


def _split(portions: Callable[[list[Array]], list[Array]]) -> Change:
    """R_k = portion_k R, in either form."""

    def change(rule: Step, gxi: bool) -> Step:
        def split(*arrays: Any, **options: Any) -> RuleOutput:
            *operands, z, r = arrays
            r = _relevance(r, z, gxi)
            each = [
                (fold(p * r, a.shape), a) for p, a in zip(portions(operands), operands, strict=True)
            ]
            return RuleOutput(tuple(_propagated(part, a, gxi) for part, a in each), {})

        return split

    return change


def _by_magnitude(operands: list[Array]) -> list[Array]:
    sizes = [np.abs(a) for a in np.broadcast_arrays(*operands)]
    return [_quotient(s, sum(sizes[1:], start=sizes[0])) for s in sizes]


def _evenly(operands: list[Array]) -> list[Array]:
    return [np.full((1,), 1 / len(operands)) for _ in operands]


def _derivative(operation: str) -> Change:
    """The true derivative; where relevance is propagated, on r / z and times x."""
    gradient = rules_in("gradient_x_input")[operation]["gradient"]

    def change(rule: Step, gxi: bool) -> Step:
        def true(*arrays: Any, **options: Any) -> RuleOutput:
            *operands, z, r = arrays
            for name in ("eps", "stabilizer", "denominator"):
                options.pop(name, None)
            out = gradient(*operands, z, r if gxi else _quotient(r, z), **options)
            if gxi:
                return out
            pairs = zip(operands, out.inputs, strict=True)
            return _with_inputs(out, (None if g is None else a * g for a, g in pairs))

        return true

    return change


def _lower_triangular(rule: Step, gxi: bool) -> Step:
    return lambda *arrays, **options: rule(*arrays[:-1], np.tril(arrays[-1]), **options)


def _without_bias(rule: Step, gxi: bool) -> Step:
    def wrong(x: Array, w: Array, b: Array | None, z: Array, r: Array, **how: Any) -> RuleOutput:
        bare = z if b is None else z - b
        return rule(x, w, None, bare, _quotient(r * z, bare) if gxi else r, **how)

    return wrong


def _factor_on_relevance(rule: Step, gxi: bool) -> Step:
    return lambda x, z, r, **options: RuleOutput((_quotient(r * z, x),), {})


def _factor_with_eps(rule: Step, gxi: bool) -> Step:
    """LXT's factor f(x)/(x + 1e-10)."""
    return lambda x, z, r, **options: RuleOutput((_quotient(r * (z if gxi else x), x + 1e-10),), {})


def _shifted(rule: Step, gxi: bool) -> Step:
    def wrong(x: Array, p: Array, r: Array, *, mask: Array | None = None, **how: Any) -> RuleOutput:
        visible = x if mask is None else np.where(mask, x, -np.inf)
        top = visible.max(axis=-1, keepdims=True)
        moved = x - np.where(np.isfinite(top), top, 0.0)
        out = rule(moved, p, r, mask=mask, **how)
        if not gxi or out.inputs[0] is None:
            return out
        return _with_inputs(out, (_quotient(moved * out.inputs[0], x),))  # (x - max) g in all

    return wrong


def _other_axis(rule: Step, gxi: bool) -> Step:
    def wrong(x: Array, p: Array, r: Array, **how: Any) -> RuleOutput:
        r = _relevance(r, p, gxi)
        inner = np.where(p > 0, r - p * r.sum(axis=-2, keepdims=True), 0.0)
        return RuleOutput((inner if gxi else np.where(p > 0, x, 0.0) * inner,), {})

    return wrong


def _copies(take: Callable[[Any], Any]) -> Change:
    """Copies of key and value heads, laid out (B, K, times, T, d),
    brought back in a way of one's own.
    """

    def change(rule: Step, gxi: bool) -> Step:
        def wrong(*arrays: Any, kind: str, **how: Any) -> RuleOutput:
            if kind != "repeat_heads":
                return rule(*arrays, kind=kind, **how)
            x, _, r = arrays
            copies = r.reshape(x.shape[0], x.shape[1], how["times"], *x.shape[2:])
            return RuleOutput((take(copies),), {})

        return wrong

    return change


def _wrong_groups(r: Any) -> Any:  # (B, K, n, T, d) -> (B, K, T, d)
    return r.reshape(r.shape[0], r.shape[2], r.shape[1], *r.shape[3:]).sum(axis=1)


def norm_as_identity(rule: Step, gxi: bool) -> Step:
    """R_x = R, in either form."""
    return lambda x, w, b, z, r, **options: RuleOutput(
        (_propagated(_relevance(r, z, gxi), x, gxi), None, None), {}
    )


def _mean_constant(rule: Step, gxi: bool) -> Step:
    def wrong(
        x: Array, w: Array, b: Array | None, z: Array, r: Array, *, norm_eps: float, **how: Any
    ) -> RuleOutput:
        c = w * (r if gxi else _quotient(r, z)) * layer_norm.standardized(x, norm_eps)[1]
        return RuleOutput((c if gxi else x * c, None, None), {})

    return wrong


PLANTED: tuple[tuple[str, str, str, str, Change], ...] = (
    (
        "layer-norm-reading",
        "identity for the whole layer, prop. 3.4",
        "layer_norm",
        "*",
        norm_as_identity,
    ),
    ("halved-linear", "", "linear", "*", _scaled(0.5)),
    ("bias-ignored", "", "linear", "*", _without_bias),
    ("cp-half", "", "matmul", "attention.context", _scaled(1.0, 0.5)),
    ("product-doubled", "every matrix product", "matmul", "*", _derivative("matmul")),
    ("product-doubled", "q k^T alone", "matmul", "attention.scores", _derivative("matmul")),
    ("product-doubled", "p v alone", "matmul", "attention.context", _derivative("matmul")),
    ("product-doubled", "gates", "multiply", "*", _derivative("multiply")),
    ("product-proportional", "", "multiply", "*", _split(_by_magnitude)),
    ("residual-absolute", "", "add", "*", _split(_by_magnitude)),
    ("residual-halves", "", "add", "*", _split(_evenly)),
    ("slope-for-ratio", "", "activation", "*", _derivative("activation")),
    ("identity-in-wrong-form", "", "activation", "*", _factor_on_relevance),
    ("ratio-eps", "eps 1e-10", "activation", "*", _factor_with_eps),
    ("relu-identity-lost", "every activation", "activation", "*", _scaled(0.0)),
    ("softmax-shifted", "", "softmax", "*", _shifted),
    ("softmax-dim", "", "softmax", "*", _other_axis),
    ("tril-always", "", "softmax", "*", _lower_triangular),
    ("norm-jacobian", "RMSNorm", "rms_norm", "*", _derivative("rms_norm")),
    ("norm-jacobian", "LayerNorm", "layer_norm", "*", _derivative("layer_norm")),
    ("mean-not-centered", "", "layer_norm", "*", _mean_constant),
    ("gqa-repeat", "only one copy counts", "movement", "*", _copies(lambda r: r[:, :, 0])),
    ("gqa-repeat", "averaged, not summed", "movement", "*", _copies(lambda r: r.mean(axis=2))),
    ("gqa-repeat", "summed over the wrong groups", "movement", "*", _copies(_wrong_groups)),
)
"""Mistake, in which of its forms, for which operation and role, and how it is planted."""
