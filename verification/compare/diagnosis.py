"""Which option, or which known mistake, turns one implementation's relevance into another's?

`alternatives` changes a method in one thing at a time: the stabilizer, a convention that differs
between papers and libraries, or a mistake that has been made before. `diagnose` runs refl under
each of them and keeps those that give the other side's numbers; a stabilizer's size between the
steps of its grid is found by a search.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from refl.arrays import Array, asnumpy
from refl.errors import ReflError
from refl.explainer import with_pixel_bounds
from refl.io.images import Image
from refl.model import Model
from refl.rules import layer_norm
from refl.rules.add import fold
from refl.rules.balance import RuleOutput
from refl.rules.composites import GRADIENT_RULES, METHODS, Chosen, Composite, Rule
from refl.seeds import Seed
from refl.sweep import Sweep
from refl.trace import Trace, Value
from refl.verification.compare.rounding import (
    DIVIDED,
    Divides,
    Site,
    SiteError,
    activation_error,
    relevance_errors,
)

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


# -- one change at a time --------------------------------------------------------------------------


@dataclass(frozen=True)
class Altered(Composite):
    """A composite whose rules are changed on their way out of the table: (operation, names, rule)
    -> rule.
    """

    change: Callable[[str, Sequence[str], Chosen], Chosen] = lambda operation, names, chosen: chosen

    def rule(self, operation: str, names: Sequence[str]) -> Chosen:
        return self.change(operation, names, super().rule(operation, names))


def alternatives(composite: Composite) -> Iterator[tuple[str, Composite, Factor]]:
    """The method with one thing changed: what in words, the changed method, and the factor on all
    its relevance.

    In the order in which they are preferred where several give the same numbers.
    """
    tried, said = [_table(composite)], set()
    yield (
        "seed: multiplied by the logit (a gradient x input form that starts from the "
        "logit, not from 1)",
        composite,
        by_logit,
    )
    yield (
        "seed: divided by the logit (a relevance form that starts from 1, not from the logit)",
        composite,
        over_logit,
    )
    for words, made in (*_stabilizers(composite), *_tables(composite)):
        changed = _made(made)
        if changed is not None and (table := _table(changed)) not in tried:
            tried.append(table)
            said.add(words)
            yield words, changed, once
    for words, fault in _mistakes(composite):
        if words not in said:
            yield words, fault, once
    for name, other in METHODS.items():
        if _table(other) not in tried:
            yield f"method: {name}", other, once


Make = Callable[[], Composite]


def _made(make: Make) -> Composite | None:
    """None where the composite has nothing to change."""
    try:
        return make()
    except ReflError:
        return None


def _table(c: Composite) -> tuple[Any, ...]:
    """What makes a composite another: what it carries, and its rules with every option."""
    return c.formulation, c.as_dict()["rules"]


def _stabilizers(c: Composite) -> Iterator[tuple[str, Make]]:
    yield "stabilizer: none", lambda: c.with_options(stabilizer="none")
    yield (
        "stabilizer: plain, z + eps without the sign of z",
        lambda: c.with_options(stabilizer="plain"),
    )
    yield "stabilizer: sign, z + eps s(z)", lambda: c.with_options(stabilizer="sign")
    for eps in EPS:
        yield f"eps: {eps:.0e}", functools.partial(c.with_options, eps=eps)
    for eps in EPS:
        yield (
            f"stabilizer: plain, with eps {eps:.0e}",
            functools.partial(c.with_options, eps=eps, stabilizer="plain"),
        )
    yield (
        "matmul: every product divides by 2 (z + eps)",
        lambda: c.with_options(denominator="2(z+eps)"),
    )
    yield "matmul: every product divides by 2 z + eps", lambda: c.with_options(denominator="2z+eps")


_CONSTANT = (Rule("matmul", "second", "*context"), Rule("softmax", "constant"))


def _tables(c: Composite) -> Iterator[tuple[str, Make]]:
    def lines(*rules: Rule) -> Make:
        return lambda: c.override(*rules)

    yield (
        "layer norm: identity for the whole layer (prop. 3.4)",
        lines(Rule("layer_norm", "identity")),
    )
    yield (
        "layer norm: eps-rule with 1/std constant (section 3.3.3)",
        lines(Rule("layer_norm", "epsilon")),
    )
    yield "softmax: attention weights are constants (CP)", lines(*_CONSTANT)
    yield "softmax: identity", lines(Rule("softmax", "identity"))
    yield "softmax: its Taylor expansion (prop. 3.1)", lines(Rule("softmax", "taylor"))
    yield "gates: a gated unit's gate is a constant", lines(Rule("multiply", "second"))
    yield "attention weights and gates are constants", lines(*_CONSTANT, Rule("multiply", "second"))
    yield (
        "experts: eps-rule through the renormalized weights, which hands on nothing",
        lines(Rule("renormalize", "epsilon")),
    )
    yield "experts: renormalization as identity", lines(Rule("renormalize", "identity"))
    yield "in gradient x input form, without any eps", lambda: _propagated(c, "gradient_x_input")
    yield "propagated as relevance, with an eps", lambda: _propagated(c, "relevance")


def _propagated(c: Composite, form: str) -> Composite:
    if c.formulation == form:
        raise ReflError(f"composite {c.name} carries {form}s already")
    bare = (
        tuple(replace(line, options=()) for line in c.rules)
        if form == "gradient_x_input"
        else c.rules
    )
    return Composite(f"{c.name} ({form})", bare, form, c.source, c.summary, c.score)


# -- mistakes that have been made ------------------------------------------------------------------

Change = Callable[[Step, str], Step]
"""(rule, what it carries) -> the rule with the mistake in it."""


def _mistakes(c: Composite) -> Iterator[tuple[str, Composite]]:
    for words, operation, pattern, change in MISTAKES:
        yield words, _altered(c, operation, pattern, change)
    yield (
        "softmax: attention weights are constants (CP), and V gets half",
        _altered(c.override(*_CONSTANT), "matmul", "*context", _scaled(0.5)),
    )


def _altered(c: Composite, operation: str, pattern: str, change: Change) -> Composite:
    def changed(found: str, names: Sequence[str], chosen: Chosen) -> Chosen:
        if not Rule(operation, chosen.name, pattern).fits(found, names):
            return chosen
        return replace(chosen, function=change(chosen.function, c.formulation))

    return Altered(c.name, c.rules, c.formulation, c.source, c.summary, c.score, changed)


def _scaled(*factors: float) -> Change:
    """Each operand's share times its factor; the last factor is for all that follow."""

    def change(rule: Step, formulation: str) -> Step:
        def scaled(*arrays: Any, **options: Any) -> RuleOutput:
            passed = rule(*arrays, **options)
            each = [*factors, *[factors[-1]] * len(passed.inputs)]
            return passed._replace(
                inputs=tuple(
                    None if r is None else r * f for r, f in zip(passed.inputs, each, strict=False)
                )
            )

        return scaled

    return change


def _split(portion: Callable[[list[Array]], list[Array]]) -> Change:
    """R_k = portion_k R, in either form."""

    def change(rule: Step, formulation: str) -> Step:
        def split(*arrays: Any, **options: Any) -> RuleOutput:
            *operands, z, r = arrays
            r = r * z if formulation == "gradient_x_input" else r
            shares = [
                fold(p * r, a.shape) for p, a in zip(portion(operands), operands, strict=True)
            ]
            return RuleOutput(
                tuple(
                    _over(s, a) if formulation == "gradient_x_input" else s
                    for s, a in zip(shares, operands, strict=True)
                ),
                {},
            )

        return split

    return change


def _over(r: Array, z: Array) -> Array:
    return np.divide(r, z, out=np.zeros_like(r), where=z != 0)


def _by_magnitude(operands: list[Array]) -> list[Array]:
    sizes = [np.abs(a) for a in np.broadcast_arrays(*operands)]
    return [_over(s, sum(sizes[1:], start=sizes[0])) for s in sizes]


def _evenly(operands: list[Array]) -> list[Array]:
    return [np.full((1,), 1 / len(operands)) for _ in operands]


def _derivative(operation: str) -> Change:
    """The true derivative; where relevance is propagated, on r / z and times x."""
    gradient = GRADIENT_RULES[operation]["gradient"]

    def change(rule: Step, formulation: str) -> Step:
        def true(*arrays: Any, **options: Any) -> RuleOutput:
            *operands, z, r = arrays
            known = {
                key: value
                for key, value in options.items()
                if key not in ("eps", "stabilizer", "denominator")
            }
            passed = gradient(
                *operands, z, r if formulation == "gradient_x_input" else _over(r, z), **known
            )
            if formulation == "gradient_x_input":
                return passed
            return passed._replace(
                inputs=tuple(
                    None if g is None else a * g
                    for a, g in zip(operands, passed.inputs, strict=True)
                )
            )

        return true

    return change


def _on_relevance(change: Callable[[Any], Any]) -> Callable[[Step, str], Step]:
    """`change` of what arrives, before the rule sees it."""

    def changed(rule: Step, formulation: str) -> Step:
        return lambda *arrays, **options: rule(*arrays[:-1], change(arrays[-1]), **options)

    return changed


def _without_bias(rule: Step, formulation: str) -> Step:
    def wrong(
        x: Array, w: Array, b: Array | None, z: Array, r: Array, **options: Any
    ) -> RuleOutput:
        bare = z if b is None else z - b
        return rule(
            x,
            w,
            None,
            bare,
            _over(r * z, bare) if formulation == "gradient_x_input" else r,
            **options,
        )

    return wrong


def _ratio_on_relevance(rule: Step, formulation: str) -> Step:
    return lambda x, z, r, **options: RuleOutput((_over(r * z, x),), {})


def _unsigned(rule: Step, formulation: str) -> Step:
    """LXT's factor f(x)/(x + 1e-10)."""
    return lambda x, z, r, **options: RuleOutput(
        (_over(r * (z if formulation == "gradient_x_input" else x), x + 1e-10),), {}
    )


def _shifted(rule: Step, formulation: str) -> Step:
    def wrong(
        x: Array, p: Array, r: Array, *, mask: Array | None = None, **options: Any
    ) -> RuleOutput:
        seen = x if mask is None else np.where(mask, x, -np.inf)
        moved = x - np.where(np.isfinite(top := seen.max(axis=-1, keepdims=True)), top, 0.0)
        passed = rule(moved, p, r, mask=mask, **options)
        if formulation == "gradient_x_input":  # x g has to become (x - max) g
            return passed._replace(
                inputs=(None if passed.inputs[0] is None else _over(moved * passed.inputs[0], x),)
            )
        return passed

    return wrong


def _other_axis(rule: Step, formulation: str) -> Step:
    def wrong(
        x: Array, p: Array, r: Array, *, mask: Array | None = None, **options: Any
    ) -> RuleOutput:
        r = r * p if formulation == "gradient_x_input" else r
        inner = np.where(p > 0, r - p * r.sum(axis=-2, keepdims=True), 0.0)
        return RuleOutput(
            (inner if formulation == "gradient_x_input" else np.where(p > 0, x, 0.0) * inner,), {}
        )

    return wrong


def _copies(take: Callable[[Any], Any]) -> Change:
    """Copies of key and value heads, laid out (B, K, times, T, d), brought back in a way of one's
    own.
    """

    def change(rule: Step, formulation: str) -> Step:
        def wrong(*arrays: Any, kind: str, **how: Any) -> RuleOutput:
            if kind != "repeat_heads":
                return rule(*arrays, kind=kind, **how)
            x, _, r = arrays
            return RuleOutput(
                (take(r.reshape(x.shape[0], x.shape[1], how["times"], *x.shape[2:])),), {}
            )

        return wrong

    return change


def _wrong_groups(r: Any) -> Any:  # (B, K, n, T, d) -> (B, K, T, d)
    return r.reshape(r.shape[0], r.shape[2], r.shape[1], *r.shape[3:]).sum(axis=1)


def _identity(rule: Step, formulation: str) -> Step:
    """R_x = R, in either form."""
    return lambda x, w, b, z, r, **options: RuleOutput(
        (_over(r * z, x) if formulation == "gradient_x_input" else r, None, None), {}
    )


def _mean_constant(rule: Step, formulation: str) -> Step:
    def wrong(
        x: Array, w: Array, b: Array | None, z: Array, r: Array, *, norm_eps: float, **options: Any
    ) -> RuleOutput:
        g = r if formulation == "gradient_x_input" else _over(r, z)
        c = w * g * layer_norm._parts(x, norm_eps)[1]
        return RuleOutput((c if formulation == "gradient_x_input" else x * c, None, None), {})

    return wrong


MISTAKES: tuple[tuple[str, str, str, Change], ...] = (
    ("layer norm: identity for the whole layer (prop. 3.4)", "layer_norm", "*", _identity),
    ("linear: every linear layer hands on half", "linear", "*", _scaled(0.5)),
    ("linear: the bias is left out of the denominator", "linear", "*", _without_bias),
    ("matmul: V gets half of its share", "matmul", "*context", _scaled(1.0, 0.5)),
    ("matmul: each factor gets the whole, not half", "matmul", "*", _derivative("matmul")),
    (
        "matmul: each factor of q k^T gets the whole, not half",
        "matmul",
        "*scores",
        _derivative("matmul"),
    ),
    (
        "matmul: each factor of p v gets the whole, not half",
        "matmul",
        "*context",
        _derivative("matmul"),
    ),
    ("product: each factor gets the whole, not half", "multiply", "*", _derivative("multiply")),
    ("product: split by the factors' magnitudes", "multiply", "*", _split(_by_magnitude)),
    ("residual: split by absolute values", "add", "*", _split(_by_magnitude)),
    ("residual: split in halves", "add", "*", _split(_evenly)),
    ("activation: the true derivative, not identity", "activation", "*", _derivative("activation")),
    (
        "activation: the gradient x input form's factor f(x)/x applied to relevance",
        "activation",
        "*",
        _ratio_on_relevance,
    ),
    (
        "activation: the factor f(x)/(x + 1e-10), as LXT's gradient x input form has it",
        "activation",
        "*",
        _unsigned,
    ),
    ("activation: nothing is handed on", "activation", "*", _scaled(0.0)),
    ("softmax: logits shifted by their maximum taken as x", "softmax", "*", _shifted),
    ("softmax: the sum over another axis", "softmax", "*", _other_axis),
    ("softmax: a lower-triangular cut", "softmax", "*", _on_relevance(np.tril)),
    ("norm: RMSNorm by its full Jacobian", "rms_norm", "*", _derivative("rms_norm")),
    ("norm: LayerNorm by its full Jacobian", "layer_norm", "*", _derivative("layer_norm")),
    ("norm: LayerNorm with the mean taken as a constant too", "layer_norm", "*", _mean_constant),
    (
        "grouped queries: only one copy of each key and value head counts",
        "movement",
        "*",
        _copies(lambda r: r[:, :, 0]),
    ),
    (
        "grouped queries: copies are averaged, not summed",
        "movement",
        "*",
        _copies(lambda r: r.mean(axis=2)),
    ),
    (
        "grouped queries: copies are summed over the wrong groups",
        "movement",
        "*",
        _copies(_wrong_groups),
    ),
)
"""What, for which operation and sites, and the rule with the mistake in it."""


# -- running them ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """What was explained: the input, and the output's number."""

    item: Any
    target: int
    against: int | None = None
    seed: str = "logit"
    position: int | None = None
    decoder: Sequence[int] | None = None


class Forward:
    """One recorded forward pass, swept as often as one likes."""

    def __init__(self, model: Model, asked: Asked) -> None:
        self.model = model
        self.trace = Trace(model.weights)
        ids = [model.read(asked.item)]
        written = model.decoder_prefixes(1, None if asked.decoder is None else list(asked.decoder))
        self.logits: Value = model.forward(
            self.trace, model.batch(ids, asked.position, decoder_prefix=written)
        )
        self.rows = asnumpy(self.logits.array).reshape(-1)
        self.seed = Seed(asked.seed, asked.target, asked.against)

    @functools.cached_property
    def names(self) -> dict[str, str]:
        """Every name of a value -> its site."""
        return {name: value.site for value in self.trace.values.values() for name in value.names}

    @functools.cached_property
    def activations(self) -> dict[str, Any]:
        """Without the batch axis."""
        return {
            record.output.site: asnumpy(record.output.array)[0] for record in self.trace.records
        }

    @property
    def explained(self) -> float:
        return float(self.seed.relevance(self.rows).sum())

    def divides(self, composite: Composite) -> Divides:
        """Where a composite divides relevance by an activation."""
        if composite.formulation == "gradient_x_input":
            return Divides(())
        return Divides(
            {r.output.site for r in self.trace.records if r.operation in DIVIDED},
            least_eps(composite),
        )

    def relevance(
        self, composite: Composite
    ) -> dict[str, Any]:  # site -> array without the batch axis, from the output down
        """Raises ReflError where the composite has no rule for an operation."""
        if self.model.takes_images:
            composite = with_pixel_bounds(
                composite, self.model.preparation, self.model.config.num_channels
            )
        start = (
            self.seed.gradient(self.rows)
            if composite.formulation == "gradient_x_input"
            else self.seed.relevance(self.rows)
        )
        swept = Sweep(composite, keep=lambda names: True).run(
            self.trace, self.logits, start.reshape(self.logits.array.shape)
        )
        propagated = {site: asnumpy(c)[0] for site, c in swept.propagated.items()}
        if composite.formulation == "relevance":
            return propagated
        return {site: c * asnumpy(swept.activations[site])[0] for site, c in propagated.items()}


@dataclass(frozen=True)
class Suspect:
    """An alternative, and how near it comes to the other side."""

    words: str
    composite: Composite
    factor: Factor
    error: float
    """The largest deviation left at any site, in units of the largest there."""
    rest: float
    """The same, root mean square over sites of the relative 2-norm."""
    equal: bool
    """Whether no site parts beyond rounding."""
    of: int
    """Sites that were looked at."""
    eps: float | None = None
    """Where it was searched for."""
    parted: int = 0
    """Sites that still part; counted for the nearest."""

    def as_dict(self) -> dict[str, Any]:
        return {
            "words": self.words,
            "method": self.composite.name,
            "error": self.error,
            "equal": self.equal,
            "parted": self.parted,
            "of": self.of,
            "eps": self.eps,
        }


def diagnose_model(
    model: Model,
    ids: Any,
    target: int,
    composite: Composite,
    theirs: Mapping[str, Any],
    *,
    against: int | None = None,
    seed: str = "logit",
    position: int | None = None,
    decoder: Sequence[int] | None = None,
    tolerance: float | None = None,
) -> list[Suspect]:
    """Which alternatives of `composite` give the relevance `theirs` (site or alias -> array without
    the batch axis) on this model?

    Empty where the composite itself gives it. Otherwise those that do, or, where none does, the
    three that come nearest. Raises ReflError where no site has a name that the model knows, with a
    shape that fits.
    """
    forward = Forward(model, Asked(ids, target, against, seed, position, decoder))
    return diagnose(
        forward, composite, known_sites(forward.names, forward.activations, theirs), tolerance
    )


def known_sites(
    names: Mapping[str, str], ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> dict[str, Any]:
    """Their arrays under our sites, in our shapes; what has no place here is left out."""
    found = {
        names[name]: fitted(ours[names[name]], np.asarray(r))
        for name, r in theirs.items()
        if names.get(name) in ours
    }
    fit = {site: r for site, r in found.items() if r is not None}
    if not fit:
        raise ReflError(
            f"none of the {len(theirs)} sites has a name and a shape of this model: "
            f"expected sites such as {', '.join(list(ours)[-3:])}"
        )
    return fit


def fitted(a: Any, b: Any) -> Any:
    """b in the shape of a, or None where it does not fit (`place`)."""
    at = place(a, b)
    return None if at is None else b[at].reshape(a.shape)


def place(a: Any, b: Any) -> tuple[int | slice, ...] | None:
    """Where a's elements stand in b: batch axes of one do not count; of many rows it is the only
    one with a number in it, where a is one row; beyond a's last there may be padding, which is
    zero. None where it does not fit."""
    ours, theirs = _bare(a), _bare(b)
    if ours == theirs:
        return ()
    if b.shape[1:] == ours:
        rows = np.flatnonzero((b != 0).reshape(b.shape[0], -1).any(axis=1))
        return (int(rows[0]),) if len(rows) == 1 else None
    within = tuple(slice(0, n) for n in ours)
    if (
        len(ours) == b.ndim
        and all(n <= m for n, m in zip(ours, b.shape, strict=True))
        and np.count_nonzero(b) == np.count_nonzero(b[within])
    ):
        return within
    return None


def _bare(a: Any) -> tuple[int, ...]:
    """The shape without leading ones."""
    shape = tuple(a.shape)
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape


@dataclass
class _Judge:
    forward: Forward
    theirs: dict[str, Any]
    roundoff: float
    tolerance: float | None

    def relevance(self, composite: Composite, factor: Factor) -> dict[str, Any] | None:
        """The alternative's own relevance at their sites; None where it cannot be run here, or
        overflows.
        """
        try:
            with np.errstate(all="ignore"):
                ours = self.forward.relevance(composite)
        except (ReflError, ValueError, TypeError):
            return None
        times = factor(self.forward.explained)
        kept = {site: r * times for site, r in ours.items() if site in self.theirs}
        return kept if all(np.isfinite(r).all() for r in kept.values()) else None

    def errors(self, composite: Composite, ours: dict[str, Any]) -> Iterator[SiteError]:
        x = self.forward.activations
        pairs = ((site, Site(r, x[site]), Site(self.theirs[site])) for site, r in ours.items())
        return relevance_errors(
            pairs, self.roundoff, self.forward.divides(composite), self.tolerance
        )

    def suspect(
        self, words: str, composite: Composite, factor: Factor, eps: float | None = None
    ) -> Suspect | None:
        ours = self.relevance(composite, factor)
        if ours is None:
            return None
        equal = not any(
            e.parts for e in self.errors(composite, ours)
        )  # most part at one of the first sites
        apart = [_apart(r, self.theirs[site]) for site, r in ours.items()]
        rest = math.sqrt(sum(min(norm, 1e6) ** 2 for _, norm in apart) / len(apart))
        return Suspect(
            words,
            composite,
            factor,
            max(largest for largest, _ in apart),
            rest,
            equal,
            len(apart),
            eps,
        )

    def counted(self, s: Suspect) -> Suspect:
        """With the number of sites that still part."""
        ours = self.relevance(s.composite, s.factor) or {}
        return replace(s, parted=sum(e.parts for e in self.errors(s.composite, ours)))


def _apart(a: Any, b: Any) -> tuple[float, float]:
    """The largest deviation of b in units of the largest of a, and the same of 2-norms."""
    difference, largest = np.abs(a - b), float(np.abs(a).max(initial=0.0))
    worst, length = float(difference.max(initial=0.0)), float(np.linalg.norm(a.ravel()))
    return (worst / largest if largest else float(worst > 0)), (
        float(np.linalg.norm(difference.ravel())) / length if length else float(worst > 0)
    )


def diagnose(
    forward: Forward, composite: Composite, theirs: dict[str, Any], tolerance: float | None = None
) -> list[Suspect]:
    """`diagnose_model` on a forward pass that is there already, with their arrays under our
    sites.
    """
    roundoff = max(unit(forward.rows), *(unit(r) for r in theirs.values()))
    judge = _Judge(forward, theirs, roundoff, tolerance)
    as_it_is = judge.suspect("as it is", composite, once)
    if as_it_is is not None and as_it_is.equal:
        return []
    found = [
        s
        for words, c, factor in alternatives(composite)
        if (s := judge.suspect(words, c, factor)) is not None
    ]
    found += _searched(judge, composite, found)
    if equal := [s for s in found if s.equal]:
        return equal
    nearer = [s for s in found if as_it_is is None or s.rest < 0.5 * as_it_is.rest]
    return [judge.counted(s) for s in sorted(nearer, key=lambda s: s.rest)[:3]]


def unit(array: Any) -> float:
    """The unit roundoff of an array's dtype."""
    return float(np.finfo(array.dtype).eps) / 2 if np.issubdtype(array.dtype, np.floating) else 0.0


def least_eps(composite: Composite | None) -> float:
    """The least stabilizer of a composite; 0 where a rule has none."""
    if composite is None or composite.formulation == "gradient_x_input":
        return 0.0
    options = [
        line["options"] for line in composite.as_dict()["rules"] if "stabilizer" in line["options"]
    ]
    return min(
        (0.0 if o["stabilizer"] == "none" else float(o["eps"]) for o in options), default=0.0
    )


# -- an eps between the steps of the grid ----------------------------------------------------------

NEAR = 6
"""Sites the search looks at: the first that part."""
STEPS = 25


def _searched(judge: _Judge, composite: Composite, found: list[Suspect]) -> list[Suspect]:
    """For either form of the stabilizer the eps that comes nearest, unless the grid has met it."""
    results = []
    for form in ("eps: ", "stabilizer: plain, with eps "):
        grid = [s for s in found if s.words.startswith(form)]
        if not grid or any(s.equal for s in found):
            continue
        best = min(grid, key=lambda s: s.rest)
        parted = (
            e.site
            for e in judge.errors(composite, judge.relevance(composite, once) or {})
            if e.parts
        )
        sites = list(itertools.islice(parted, NEAR))
        eps = _nearest_eps(judge, best.composite, sites, least_eps(best.composite))
        results += [s for s in _rounded(judge, best.composite, form, eps) if s is not None]
        if results and results[-1].equal:
            break
    return results


def _nearest_eps(judge: _Judge, composite: Composite, sites: list[str], start: float) -> float:
    """Gauss and Newton on log eps, at most a decade a step: relevance is smooth in eps, and near 0
    linear.
    """
    log = math.log(start)
    theirs = np.concatenate([judge.theirs[s].ravel() for s in sites])
    for _ in range(STEPS):
        here, beside = (_relevance(judge, composite, sites, math.exp(log + h)) for h in (0.0, 1e-4))
        slope, left = (beside - here) / 1e-4, theirs - here
        if not (np.isfinite(slope).all() and (length := float(slope @ slope)) > 0):
            break
        step = max(-2.3, min(2.3, float(slope @ left) / length))
        log = max(math.log(1e-15), min(0.0, log + step))
        if abs(step) < 1e-10:
            break
    return math.exp(log)


def _relevance(judge: _Judge, composite: Composite, sites: list[str], eps: float) -> Any:
    with np.errstate(all="ignore"):
        ours = judge.forward.relevance(composite.with_options(eps=eps))
    return np.concatenate([ours[s].astype(np.float64).ravel() for s in sites])


def _rounded(
    judge: _Judge, composite: Composite, form: str, eps: float
) -> Iterator[Suspect | None]:
    """The eps with as few digits as do; the last try has all of them."""
    for digits in (1, 2, 3, 5, 15):
        short = float(f"{eps:.{digits}e}")
        suspect = judge.suspect(
            f"{form}{short:.4g}", composite.with_options(eps=short), once, short
        )
        if suspect is None or suspect.equal or digits == 15:
            yield suspect
            return


# -- where a file was made -------------------------------------------------------------------------


def picture_of(activations: Mapping[str, Any], picture: Any) -> Image | None:
    """What a net saw, from the activation of its pixels."""
    pixels = next(
        (x for site, x in activations.items() if site.rpartition(".")[2] == "pixel_values"), None
    )
    return None if pixels is None else Image(pixels, picture)


def same_forward(
    forward: Forward, activations: Mapping[str, Any], tolerance: float | None = None
) -> SiteError | None:
    """The first site, in forward order, where refl's activations are others than these; None where
    there is none.
    """
    ours, names = forward.activations, forward.names
    theirs = {names[name]: x for name, x in activations.items() if names.get(name) in ours}
    for site, x in ours.items():
        if site in theirs and x.shape == theirs[site].shape:
            error = activation_error(
                site, x, theirs[site], max(unit(x), unit(theirs[site])), tolerance
            )
            if error.parts:
                return error
    return None
