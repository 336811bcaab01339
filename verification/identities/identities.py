"""The twelve identities a relevance has to obey, measured on a checkpoint: what `refl verify`
prints.

Each is a function of a `Subject` (a model and one input) that yields `Row`s: what was measured, how
far it may be off, and what it means; or why it does not apply to this net. Nothing is looked up:
every number is computed from the weights at hand.

Bounds come from conditioning. `rounding(e)` is 8 u times the sum over all sites of the |terms| that
the rules added up, which the audited ledger hold: an attribution is a chain of such sums, so
nothing finer than this is decided by float arithmetic. Whatever has to be the same bit for bit has
the bound 0. Identities of the limit eps -> 0 are measured on methods that have no eps.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations, pairwise
from math import factorial
from typing import Any

import numpy as np

from refl.arrays import Array, asnumpy
from refl.errors import ReflError
from refl.explanation import Explanation
from refl.ledger import Ledger
from refl.model import DTYPES, Model
from refl.network import CLASSIFIES
from refl.rules import attention
from refl.rules.balance import RuleOutput
from refl.rules.composites import (
    ATTNLRP,
    ATTNLRP_GRADIENT,
    CP_LRP,
    GRADIENT_RULES,
    LRP_0,
    METHODS,
    RULES,
    Chosen,
    Composite,
    Rule,
)
from refl.seeds import KINDS
from refl.sweep import Sweep, Swept
from refl.trace import FORWARD, Record, Trace, Value
from refl.verification.identities import reparametrized
from refl.verification.definitions import surrogate
from refl.verification.identities.reparametrized import CHANGES, Graph

WITHOUT_EPS = ("lrp-0", "attnlrp-gradient", "cp-lrp", "input-x-gradient")
"""At the limit eps -> 0, where the invariances hold exactly."""

VARIANT = {
    "attnlrp": "attnlrp",
    "lrp-0": "attnlrp",
    "attnlrp-gradient": "attnlrp",
    "cp-lrp": "cp-lrp",
    "input-x-gradient": "gradient",
}
"""Method -> the surrogate whose gradient it is."""

EPS = (1e-9, 1e-6, 1e-2)
LENGTH = 8
"""Tokens of the text where none is given."""


# -- what is measured ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One line of the table. `measured` and `bound` are None where the identity does not apply, and
    `reason` says why.
    """

    number: int
    identity: str
    means: str
    measured: float | None = None
    bound: float | None = None
    found: str = ""
    reason: str = ""
    small: bool = False
    """Shown on a small net built for it, not on the model."""

    @property
    def holds(self) -> bool:
        """What does not apply cannot fail; a deviation that is no number does."""
        return self.measured is None or self.bound is None or self.measured <= self.bound

    @property
    def verdict(self) -> str:
        return "does not apply" if self.measured is None else "holds" if self.holds else "FAILS"

    def as_dict(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "identity": self.identity,
            "verdict": self.verdict,
            "measured": self.measured,
            "bound": self.bound,
            "found": self.found,
            "means": self.means,
            "reason": self.reason,
            "on": "a small net" if self.small else "the model",
        }


@dataclass
class Worst:
    """Of many deviations the one that is largest beside its bound."""

    measured: float = 0.0
    bound: float = 0.0
    where: str = ""
    count: int = 0
    share: float = -1.0

    def see(self, got: Any, want: Any, bound: float, where: str = "") -> None:
        """Two arrays that have to agree within `bound`, everywhere."""
        got, want = asnumpy(got), asnumpy(want)
        same = np.shape(got) == np.shape(want)
        self.weigh(float(np.abs(got - want).max(initial=0.0)) if same else math.inf, bound, where)

    def weigh(self, measured: float, bound: float, where: str = "") -> None:
        self.count += 1
        share = (
            math.inf
            if math.isnan(measured)
            else 0.0
            if measured == 0
            else measured / bound
            if bound > 0
            else math.inf
        )
        if share > self.share:
            self.measured, self.bound, self.where, self.share = measured, bound, where, share

    def row(self, number: int, identity: str, means: str, found: str = "", **how: Any) -> Row:
        at = f"; worst at {self.where}" if self.where and self.measured != 0 else ""
        return Row(number, identity, means, self.measured, self.bound, found + at, **how)


def rounding(*explanations: Explanation) -> float:
    return max(rounding_of(e.ledger) for e in explanations)


def rounding_of(ledger: Ledger) -> float:
    return (
        8
        * ledger.roundoff
        * sum(
            float(entry.rounding_scale.sum())
            for entry in ledger
            if entry.rounding_scale is not None
        )
    )


def configured(names: Iterable[str] = METHODS) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every method, those with a stabilizer at three sizes of it and without."""
    for name in names:
        composite = METHODS[name]
        yield name, {}
        if composite.formulation == "relevance" and name != "lrp-0":
            yield name, {"stabilizer": "none"}
            yield from ((name, {"eps": eps}) for eps in EPS)


class Cast(Mapping[str, Array]):
    """Weights in another dtype, each converted when it is first asked for."""

    def __init__(self, weights: Mapping[str, Array], dtype: str) -> None:
        self.weights, self.dtype, self.known = weights, dtype, dict[str, Array]()

    def __getitem__(self, name: str) -> Array:
        if name not in self.known:
            self.known[name] = asnumpy(self.weights[name]).astype(self.dtype)
        return self.known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


@dataclass
class Subject:
    """A model, one input, and the output that is explained.

    item       token ids, or a picture
    decoder    what a decoder has written
    target     the explained output; of a net without a head `at` names the neuron, and target is
               its number among the features
    tick       called with (done, of) on the way
    """

    model: Model
    item: Any
    decoder: list[int] | None = None
    at: tuple[str, tuple[int, ...]] | None = None
    target: int = 0
    tick: Callable[[int, int], object] = field(default=lambda done, of: None, repr=False)

    def explain(
        self, method: str | Composite, model: Model | None = None, **how: Any
    ) -> Explanation:
        """Audited; every option of `Model.explain` may be given."""
        what = {"at": self.at} if self.at else {} if "contrast" in how else {"target": self.target}
        options = {"audit": True, "decoder": self.decoder, **what, **how}
        e: Explanation = (model or self.model).explain(self.item, self.composite(method), **options)
        return e

    def composite(self, method: str | Composite) -> Composite:
        """A method; where it needs the bounds of a pixel and nobody has said them, those of this
        picture.
        """
        composite = METHODS[method] if isinstance(method, str) else method
        if not self.model.takes_images or self.model.preparation is not None:
            return composite
        pixels = self.model.read(self.item).pixels
        box = (("low", float(pixels.min())), ("high", float(pixels.max())))
        lines = tuple(
            replace(line, options=box) if line.rule == "z_box" and not line.options else line
            for line in composite.rules
        )
        return replace(composite, rules=lines)

    def within(self, dtype: str) -> Subject:
        """The same in a dtype."""
        if dtype == self.model.dtype:
            return self
        model = replace(self.model, weights=Cast(self.model.weights, dtype), dtype=dtype)
        return replace(self, model=model)

    @property
    def methods(self) -> list[str]:
        """The published methods; those tuned for pictures where there is one."""
        return [name for name in METHODS if self.model.takes_images or "-vit" not in name]

    @cached_property
    def traced(self) -> tuple[Trace, Value]:
        """The recorded run, attention in its plain form, and the logits that are explained; of a
        net without a head all features.
        """
        if self.at is None:
            return self.model.trace([self.item], decoder=self.decoder)
        trace = Trace(self.model.weights)
        return trace, self.model.forward(trace, self.model.batch([self.item], every=True))

    @cached_property
    def graph(self) -> Graph:
        return Graph(self.traced[0].records, self.traced[1])

    @property
    def embedded(self) -> list[Record]:
        """What an explanation hands out relevance to: embeddings of tokens, pixels."""
        return [r for r in self.graph.records if r.attributes.get("role") in ("tokens", "pixels")]

    @cached_property
    def stages(self) -> list[str]:
        """The embeddings and what every block puts out."""
        return [r.output.site for r in self.embedded] + [
            name for name in self.traced[0].values if re.search(r"\.\d+$", name)
        ]

    @property
    def sums(self) -> list[str]:
        """Those of the stages that no norm puts out: its weight belongs to what it puts out."""
        values = self.traced[0].values
        return [
            name
            for name in self.stages
            if self.graph.made[values[name]].operation not in reparametrized.NORMS
        ]


def scores(e: Explanation) -> Any:
    """Everything an explanation says of its input, in one row."""
    return np.concatenate(
        [np.ravel(r) for r in (e.relevance, e.decoder_relevance) if r is not None]
    )


def subject(model: Model, item: Any = None, decoder: Any = None) -> Subject:
    """A model ready to be measured on an input: a text, token ids, a picture; random ones where
    none is given.

    Raises ReflError for an input that the model does not take.
    """
    if model.task == "masked-token" and model.mask_id is None:
        model = replace(model, mask_id=model.config.vocab_size - 1)
    item = _drawn(model, LENGTH) if item is None else item
    item = item if model.takes_images else model.encode(item)
    if model.task == "sequence-to-sequence":
        decoder = model.decoder_prefix(
            [model.decoder_start_id, *_drawn(model, 3, seed=1)] if decoder is None else decoder
        )
    s = Subject(model, item, decoder)
    at = _feature(s) if model.task == "features" else None
    return replace(
        s, at=at, target=at[1][-1] if at else int(asnumpy(s.traced[1].array)[0, 0].argmax())
    )


def _drawn(model: Model, length: int, seed: int = 0) -> Any:
    """Random token ids, one of them the mask where there has to be one; or a random picture."""
    random = np.random.default_rng(seed)
    if model.takes_images:
        return random.standard_normal((model.config.num_channels, *model.config.image))
    ids = [
        int(i)
        for i in random.integers(0, model.config.vocab_size, min(length, model.config.longest))
    ]
    return masked(model, ids)


def masked(model: Model, ids: list[int]) -> list[int]:
    """For a model that guesses a masked token: exactly one stands in the ids."""
    if model.task != "masked-token" or ids.count(model.mask_id or 0) == 1:
        return ids
    at = len(ids) // 2
    return [
        int(model.mask_id or 0)
        if t == at
        else i
        if i != model.mask_id
        else (i + 1) % model.config.vocab_size
        for t, i in enumerate(ids)
    ]


def _feature(s: Subject) -> tuple[str, tuple[int, ...]]:
    """The largest feature of the first token."""
    trace = Trace(s.model.weights)
    out = s.model.forward(trace, s.model.batch([s.model.read(s.item)], every=True))
    return out.site, (0, int(asnumpy(out.array)[0, 0].argmax()))


# -- small nets written on a trace -----------------------------------------------------------------


def source(t: Trace, name: str, array: Any) -> Value:
    """An input that has a site, so that the sweep keeps what arrives there."""
    return t.scale(name, Value(array, f"{name}.given"), 1.0)


def swept(t: Trace, at: Value, seed: Any, composite: Composite = LRP_0) -> Swept:
    return Sweep(composite, keep=lambda names: True, audit=True).run(t, at, seed)


def shapley(f: Callable[[tuple[int, ...]], Any], i: int, n: int) -> Any:
    """The mean of what i adds to a coalition, over all orders in which n players can come together:
    the sum over all coalitions.
    """
    others = [j for j in range(n) if j != i]
    return sum(
        factorial(k) * factorial(n - k - 1) / factorial(n) * (f((*some, i)) - f(some))
        for k in range(n)
        for some in combinations(others, k)
    )


# -- 1 ---------------------------------------------------------------------------------------------


def balance(s: Subject) -> Iterator[Row]:
    """sum R = sum over operands of sum R_operand + absorbed, at every operation, under every rule,
    for every eps, in either dtype.

    Measured in units of u sum|terms|, the R that arrived counted among the terms. (The two forms of
    attention have ledger of their own.)
    """
    for dtype in DTYPES:
        worst, sites, n = Worst(), dict[str, float](), 0
        for n, (name, e) in enumerate(_balanced_runs(s.within(dtype))):
            s.tick(n + 100 * DTYPES.index(dtype), 200)
            sites |= {
                site: float(np.abs(e[site]).sum()) for site in e
            }  # a sweep that keeps none comes second
            for entry in e.ledger:
                assert entry.rounding_scale is not None
                conservation_error, unit = (
                    abs(float(entry.conservation_error[0])),
                    e.ledger.roundoff
                    * max(float(entry.rounding_scale[0]), sites.get(entry.site, 0.0)),
                )
                bound = 8.0 if e.composite.rules[0].rule != "flat" else max(8.0, _longest_row(e))
                worst.weigh(
                    conservation_error / unit if unit else math.inf if conservation_error else 0.0,
                    bound,
                    f"{entry.site} ({entry.rule}; {name})",
                )
        found = (
            f"{worst.count:,} ledger of {n + 1} sweeps over {len(sites)} sites, in units of u "
            "sum|terms|"
        )
        yield worst.row(
            1,
            f"received = passed on + absorbed ({dtype})",
            "no rule creates or loses relevance, at any site",
            found,
        )


def _longest_row(e: Explanation) -> float:
    """n: under the flat rule all n shares of a row are one number, so the errors of their sum are
    alike and add up, to n u sum|terms|.
    """
    return float(max(e.activation(site).shape[-1] for site in e))


def _balanced_runs(s: Subject) -> Iterator[tuple[str, Explanation]]:
    operations = {r.operation for r in s.graph.records}
    for method, how in configured(s.methods):
        for keep in ("*", ()):
            yield _run_name(method, how), s.explain(method, keep=keep, **how)
    for base, known in ((ATTNLRP, RULES), (ATTNLRP_GRADIENT, GRADIENT_RULES)):
        for operation in sorted(operations & known.keys()):
            for rule in known[operation] if len(known[operation]) > 1 else ():
                yield (
                    f"{base.name} with {rule}",
                    s.explain(base.override(Rule(operation, rule, options=_box(rule)))),
                )


def _box(rule: str) -> tuple[tuple[str, Any], ...]:
    """Bounds for z_box: wide enough for most activations. (Its ledger close for any.)"""
    return (("low", -8.0), ("high", 8.0)) if rule == "z_box" else ()


def _run_name(method: str, how: Mapping[str, Any]) -> str:
    return " ".join(
        [method, *(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in how.items())]
    )


# -- 2 ---------------------------------------------------------------------------------------------


DIRECTIONS = 4
SITES = 400
"""More sites than this are thinned out."""


def frozen_surrogate(s: Subject) -> Iterator[Row]:
    """R(eps -> 0) = x * d f/dx,  f the net with norms' scales and activation ratios frozen and
                                  every product split evenly.

    The gradient is taken by complex step, in float64, along random directions x * (+-1, ..., +-1):
    all of them see any difference.
    """
    s = s.within("float64")
    around = {r.output.site: r for r in s.traced[0].records}
    sites = list(around)[:: -(-len(around) // SITES)]
    worst = Worst()
    for n, site in enumerate(sites):
        s.tick(n, len(sites))
        known = {variant: _slopes(s, site, variant, around) for variant in set(VARIANT.values())}
        for method in WITHOUT_EPS:
            signs, slopes = known[VARIANT[method]]
            e = _whole(s, method)
            worst.see(
                (signs * e[site]).reshape(len(signs), -1).sum(axis=1),
                slopes,
                rounding(e),
                f"{site} ({method})",
            )
    found = (
        f"{len(sites)} sites, {DIRECTIONS} directions each; {', '.join(WITHOUT_EPS)}, in float64"
    )
    yield worst.row(
        2,
        "relevance = x * gradient of the frozen surrogate",
        "at eps -> 0 the sweep is the method that was published",
        found,
    )
    yield _linear_in_eps(s)


def _whole(s: Subject, method: str) -> Explanation:
    """An explanation with every site, computed once."""
    known = s.__dict__.setdefault("_explained", {})
    if method not in known:
        known[method] = s.explain(method)
    e: Explanation = known[method]
    return e


def _slopes(
    s: Subject, site: str, variant: str, around: Mapping[str, Record]
) -> tuple[Any, Any]:  # -> (K, ...), (K,)
    """Directions of +-1, and the derivative of the explained output along x times each."""
    x = around[site].output.array[0]
    signs = np.random.default_rng(len(site)).choice((-1.0, 1.0), size=(DIRECTIONS, *x.shape))
    step = 1j * surrogate.STEP * signs * x
    z = surrogate.logits(
        s.model,
        s.item,
        around,
        variant=variant,
        edits={site: lambda a: a + step},
        decoder=s.decoder,
    )
    return signs, np.broadcast_to(z[:, s.target].imag / surrogate.STEP, (DIRECTIONS,))


def _linear_in_eps(s: Subject) -> Row:
    """R(2 eps) - 2 R(eps) + R(0) = 0 for an eps so far below the smallest denominator that its
    square is below rounding.
    """
    eps = 1e-7 * min(
        float(np.abs(a[a != 0]).min(initial=np.inf))
        for a in (r.output.array for r in s.graph.of("linear", "add", "matmul"))
    )
    none, once, twice = (
        s.explain("attnlrp", **how)
        for how in ({"stabilizer": "none"}, {"eps": eps}, {"eps": 2 * eps})
    )
    worst = Worst()
    for site in s.stages:
        worst.see(twice[site] + none[site], 2 * once[site], 4 * rounding(none, once, twice), site)
    moved = max(float(np.abs(once[site] - none[site]).max()) for site in s.stages)
    return worst.row(
        2,
        "what eps adds is linear in eps",
        "nothing but the stabilizer stands between attnlrp and its limit",
        f"at eps = {eps:.0e} relevance moves by {moved:.1e}, at twice that by twice as much",
    )


# -- 3 ---------------------------------------------------------------------------------------------


def whole_account(s: Subject) -> Iterator[Row]:
    """explained output = sum over tokens + everything absorbed."""
    worst, logit, runs = Worst(), _own_logit(s), [*configured(s.methods)]
    for n, (method, how) in enumerate(runs):
        s.tick(n, len(runs))
        e = s.explain(method, keep=(), **how)
        worst.weigh(abs(float(e.ledger.conservation_error[0])), rounding(e), _run_name(method, how))
        worst.weigh(abs(e.explained - logit), rounding(e), f"{method}: the model's own output")
        if e.composite.score == "sum":
            worst.weigh(
                abs(float(scores(e).sum() - e.ledger.tokens[0])),
                rounding(e),
                f"{method}: the sum of what is shown",
            )
    for seed in () if s.at else KINDS:
        e = s.explain("attnlrp", seed=seed, keep=())
        worst.weigh(abs(float(e.ledger.conservation_error[0])), rounding(e), f"seed {seed}")
    yield worst.row(
        3,
        "output = relevance on the input + absorbed",
        "the account closes: nothing is unexplained",
        _account(s),
    )


def _own_logit(s: Subject) -> float:
    """The explained output by the unrecorded forward pass."""
    if s.at or s.model.task in CLASSIFIES:
        return float(s.model.logits(s.item)[0, s.target])
    row = s.item.index(s.model.mask_id) if s.model.task == "masked-token" else -1
    return float(s.model.logits(s.item, s.decoder)[row, s.target])


def _account(s: Subject) -> str:
    ledger = s.explain("attnlrp", keep=()).ledger
    parts = [
        f"{float(a[0]):+.4g} {cause}"
        for cause, a in ledger.absorbed.items()
        if abs(float(a[0])) > 5e-5
    ]
    return (
        f"attnlrp: {float(ledger.explained[0]):.4g} = {float(ledger.tokens[0]):.4g} on "
        f"{ledger.destination} {' '.join(parts)}"
    )


# -- 4 ---------------------------------------------------------------------------------------------


def relu_layers(s: Subject) -> Iterator[Row]:
    """The model's own linear - relu - linear, on what they read in this run."""
    name, means = (
        "LRP-0 of a ReLU net = gradient * input",
        "what is missing from the output is sum over layers of b . df/dz: the biases",
    )
    worst, found = Worst(), []
    for r in s.graph.of("activation"):
        (readers, made) = (
            s.graph.readers.get(r.output, []),
            s.graph.made[reparametrized.values_of(r)[0]],
        )
        if (
            r.attributes["kind"] == "relu"
            and made.operation == "linear"
            and [q.operation for q in readers] == ["linear"]
        ):
            relu_net(
                [_parameters(made), _parameters(readers[0])],
                asnumpy(made.arrays[0]),
                worst,
                r.output.site,
            )
            found.append(r)
    kinds = sorted({r.attributes["kind"] for r in s.graph.of("activation")})
    if not found:
        yield Row(
            4,
            name,
            means,
            reason="no relu stands between two linear layers here (activations: "
            f"{', '.join(kinds) or 'none'})",
        )
        return
    yield worst.row(
        4, name, means, f"{len(found)} pieces linear - relu - linear of the model, with its inputs"
    )


def _parameters(r: Record) -> tuple[Any, Any]:
    _, w, b = r.arrays
    return asnumpy(w), None if b is None else asnumpy(b)


def relu_net(
    layers: Sequence[tuple[Any, Any]], x: Any, worst: Worst, where: str = "", seed: Any = None
) -> None:
    """R = x df/dx, biases included (Shrikumar et al. 2016);  f - sum R = sum over layers of b .
    df/dz.
    f = seed . z, the gradient by hand.
    """
    t = Trace(
        {f"{k}.weight": w for k, (w, _) in enumerate(layers)}
        | {f"{k}.bias": b for k, (_, b) in enumerate(layers) if b is not None}
    )
    h = source(t, "x", x)
    for k, (_, b) in enumerate(layers):
        h = t.activation(f"act{k}", h, "relu") if k else h
        h = t.linear(str(k), h, bias=b is not None)
    seed = (
        np.random.default_rng(0).standard_normal(h.array.shape).astype(x.dtype)
        if seed is None
        else seed
    )
    run, bound = swept(t, h, h.array * seed), 0.0
    d, missing = seed, 0.0
    for k, (w, b) in reversed([*enumerate(layers)]):
        missing = missing + (0.0 if b is None else (d @ b).reshape(len(x), -1).sum(axis=1))
        d = d @ w
        d = d * (t.values[str(k - 1)].array > 0) if k else d
    bound = rounding_of(run.ledger)
    worst.see(run.propagated["x"], x * d, bound, where)
    worst.see(
        run.ledger.absorbed.get("bias", np.zeros(len(x))),
        missing + np.zeros(len(x)),
        bound,
        f"{where} (biases)",
    )
    worst.see(
        run.propagated["x"].reshape(len(x), -1).sum(axis=1) + missing,
        (h.array * seed).reshape(len(x), -1).sum(axis=1),
        bound,
        where,
    )


# -- 5 ---------------------------------------------------------------------------------------------


def products(s: Subject) -> Iterator[Row]:
    """The model's own products, on the operands of this run."""
    worst, count = Worst(), {"multiply": 0, "matmul": 0}
    for r in s.graph.of(*count):
        rule, count[r.operation] = LRP_0.rule(r.operation, r.output.names), count[r.operation] + 1
        if r.operation == "matmul":
            a, v = _arrays(r)
            matrix_product(rule, a, v, asnumpy(r.output.array), worst, r.output.site)
        else:
            product(rule, _arrays(r), worst, r.output.site, r.attributes["constant"])
    name, means = (
        "uniform rule = Shapley = integrated gradients",
        "a product is split without favor: the share of each operand is the fair one",
    )
    if not any(count.values()):
        yield Row(5, name, means, reason="the net multiplies no two activations")
        return
    yield worst.row(
        5,
        name,
        means,
        f"{count['matmul']} matrix products and {count['multiply']} products by element of "
        "the model",
    )


def _arrays(r: Record) -> list[Any]:
    """What an operation read, on the host."""
    return [None if a is None else asnumpy(a) for a in r.arrays]


def _given(passed: RuleOutput, k: int, operand: Any) -> Any:
    """What operand number k received: zeros where a rule gives it nothing."""
    r = passed.inputs[k]
    return np.zeros_like(operand) if r is None else r


def _rounding_of_rule(*passed: RuleOutput) -> float:
    """The same scale for single applications of a rule that ledger its terms."""
    return max(
        8 * _unit(r) * float(p.rounding_scale().sum())
        for p in passed
        if p.rounding_scale is not None
        for r in p.inputs[:1]
    )


def product(
    rule: Chosen,
    operands: Sequence[Any],
    worst: Worst,
    where: str = "",
    constant: tuple[bool, ...] = (),
) -> None:
    """For f = c a_1 ... a_N: the Shapley value with baseline 0, by all coalitions, and the integral
    from 0 to 1 of a_k df/da_k(t a) dt.
    """
    constant = constant or (False,) * len(operands)
    z = FORWARD["multiply"](*operands, constant=constant)
    c = np.random.default_rng(0).standard_normal(z.shape).astype(z.dtype)
    passed = rule.function(*operands, z, z * c, constant=constant, **rule.options)
    live = [k for k, fixed in enumerate(constant) if not fixed]

    def f(present: tuple[int, ...]) -> Any:
        return c * math.prod(
            a if k not in live or live.index(k) in present else 0 * a
            for k, a in enumerate(operands)
        )

    for i, k in enumerate(live):
        got, bound = (
            _given(passed, k, operands[k]),
            8 * _unit(z) * float(np.abs(z * c).max()) * max(1, z.size // operands[k].size),
        )
        fair = _folded(shapley(f, i, len(live)), operands[k].shape)
        path = sum(w * t ** (len(live) - 1) for t, w in _nodes()) * z * c
        worst.see(got, fair, bound, f"{where} (Shapley)")
        worst.see(got, _folded(path, operands[k].shape), bound, f"{where} (integrated gradients)")


def matrix_product(rule: Chosen, a: Any, v: Any, z: Any, worst: Worst, where: str = "") -> None:
    """f = sum c_jp A_ji V_ip, the players A and V, or, along the path, every entry of them:  A_ji integral of sum_p c_jp t V_ip dt."""
    c = np.random.default_rng(0).standard_normal(z.shape).astype(z.dtype) * (z != 0)
    passed = rule.function(a, v, z, z * c, **rule.options)
    bound, r_a, r_v = _rounding_of_rule(passed), _given(passed, 0, a), _given(passed, 1, v)
    path = sum(w * t for t, w in _nodes())
    worst.see(r_a, path * a * (c @ v.swapaxes(-1, -2)), bound, f"{where} (integrated gradients)")
    worst.see(r_v, path * v * (a.swapaxes(-1, -2) @ c), bound, f"{where} (integrated gradients)")

    def f(present: tuple[int, ...]) -> Any:
        return (c * ((a if 0 in present else 0 * a) @ (v if 1 in present else 0 * v))).sum(
            axis=(-1, -2)
        )

    for i, r in enumerate((r_a, r_v)):
        worst.see(r.sum(axis=(-1, -2)), shapley(f, i, 2), bound, f"{where} (Shapley)")


def _nodes() -> list[tuple[float, float]]:
    """Points and weights on [0, 1] that integrate polynomials up to degree 15 exactly (Gauss and
    Legendre).
    """
    t, w = np.polynomial.legendre.leggauss(8)
    return [(float(p), float(q)) for p, q in zip((t + 1) / 2, w / 2, strict=True)]


def _folded(r: Any, shape: tuple[int, ...]) -> Any:
    """Summed over the axes along which an operand of this shape was repeated."""
    axes = tuple(i for i, (n, m) in enumerate(zip(r.shape, shape, strict=True)) if m < n)
    return r.sum(axis=axes, keepdims=True) if axes else r


def _unit(array: Any) -> float:
    return float(np.finfo(array.dtype).eps) / 2


# -- 6 ---------------------------------------------------------------------------------------------


def linear_models(s: Subject) -> Iterator[Row]:
    """The model's last linear layer, and each of its attentions with the layers on either side,
    alone.
    """
    worst, head = Worst(), [*s.graph.of("linear")][-1]
    x, w, _ = _arrays(head)
    x, w = x.reshape(-1, x.shape[-1])[0], w[s.target % len(w)]
    linear_model(w, x, worst)
    yield worst.row(
        6,
        "linear: LRP-0 = leave-one-out = Shapley = w x",
        "where there is one right answer, it is given",
        f"row {s.target} of {head.output.site}, {len(x)} features",
    )
    worst, attentions = Worst(), [*s.graph.attentions()]
    for a in attentions:
        value_attention(s.graph, a, worst)
    yield worst.row(
        6,
        "one attention layer: CP-LRP = leave-one-out",
        "with attention as it is, a token counts what is missing without it",
        f"{len(attentions)} attentions with their value and output layers",
    )


GROUPS = 6


def linear_model(w: Any, x: Any, worst: Worst) -> None:
    """f = sum w_i x_i:  R_i = w_i x_i = f(x) - f(x without i); the Shapley value by all coalitions
    of up to six groups of features.
    """
    t = Trace({"head.weight": w[None]})
    z = t.linear("head", source(t, "x", x[None]))
    run = swept(t, z, z.array)
    relevance, bound = run.propagated["x"][0], rounding_of(run.ledger)
    parts = np.array_split(np.arange(len(x)), min(GROUPS, len(x)))

    def f(present: tuple[int, ...]) -> float:
        return float(sum(w[parts[i]] @ x[parts[i]] for i in present))

    worst.see(relevance, w * x, bound, "w x")
    worst.see(
        relevance, w @ x - (np.where(np.eye(len(x), dtype=bool), 0, x) @ w), bound, "leave-one-out"
    )
    fair = np.asarray([shapley(f, i, len(parts)) for i in range(len(parts))])
    worst.see(np.asarray([relevance[p].sum() for p in parts]), fair, bound, "Shapley")


def value_attention(graph: Graph, a: reparametrized.Attention, worst: Worst) -> None:
    """f(x) = seed . o(p v(x)) with p as it was:  R_token = f(x) - f(x without the token)
                                                  (Ali et al. 2022)

    CP-LRP sweeps the records between x and the output layer; leaving a token out runs value, p and
    output again without it.
    """
    x = reparametrized.values_of(a.value.made)[0]
    records = graph.records[graph.records.index(graph.made[x]) : graph.records.index(a.out) + 1]
    seed = (
        np.random.default_rng(0)
        .standard_normal(a.out.output.array.shape)
        .astype(a.out.output.array.dtype)
    )
    part = Trace({})
    part.records = records
    run = swept(part, a.out.output, seed, CP_LRP)
    x0 = asnumpy(x.array)
    got = (run.propagated[x.site] * x0)[0].sum(axis=-1)
    tokens = np.arange(x0.shape[1])
    less = np.concatenate(
        [x0, np.where(tokens[:, None, None] == tokens[None, :, None], 0, x0)]
    )  # (1 + I, I, D)
    out = (seed * _again(graph, a, less)).reshape(len(less), -1).sum(axis=1)
    above = [e for e in run.ledger if e.site in {r.output.site for r in records[1:]}]
    worst.see(
        got, out[0] - out[1:], rounding_of(replace(run.ledger, entries=above)), a.out.output.site
    )


def _again(graph: Graph, a: reparametrized.Attention, x: Any) -> Any:  # (N, I, D) -> (N, J, D)
    """The value and output layers run again without their biases, attention as it was."""
    v = x @ asnumpy(a.value.made.arrays[1]).T
    _, moved = graph.back(reparametrized.values_of(a.context)[1], reparametrized.MOVED)
    for r in reversed(moved):
        v = FORWARD[r.operation](v, **r.attributes)
    h = asnumpy(a.softmax.output.array) @ v
    (merge,) = graph.readers[a.context.output]
    return FORWARD[merge.operation](h, **merge.attributes) @ asnumpy(a.out.arrays[1]).T


# -- 7 ---------------------------------------------------------------------------------------------


INVARIANCES = {
    "key_bias": (
        "a constant in the key bias changes nothing",
        "no key has a bias that reaches the scores as it is (none, or positions, a norm or "
        "a cap stand between)",
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


def invariances(s: Subject) -> Iterator[Row]:
    """R(the same function written with other weights) = R, at the input and after each block, for
    methods without eps.
    """
    means = "relevance is a property of the function, not of how its weights are written"
    for n, (change, (name, reason)) in enumerate(INVARIANCES.items()):
        s.tick(n, len(INVARIANCES) + 1)
        other = CHANGES[change](s.model, s.graph)
        if other is None:
            yield Row(7, name, means, reason=reason)
            continue
        worst = Worst()
        for method in WITHOUT_EPS:
            same(s, other, method, worst, s.sums if change == "norms" else None)
        moved = _moves(s, other) if change == "query_key" else ""
        tensors = len(other.weights.maps[0])  # type: ignore[attr-defined]
        yield worst.row(
            7, name, means, f"{tensors} tensors rewritten; {', '.join(WITHOUT_EPS)}{moved}"
        )
    yield from softmax_shift(s)


def same(
    s: Subject, other: Model, method: str, worst: Worst, stages: Sequence[str] | None = None
) -> None:
    """Both models explain alike: output, input, and what each block puts out."""
    one, two = _whole(s, method), s.explain(method, other)
    bound = rounding(one, two)
    worst.weigh(abs(one.logit - two.logit), bound, f"{method}: the output itself")
    worst.see(scores(one), scores(two), bound, f"{method}: the input")
    for site in s.stages if stages is None else stages:
        worst.see(one[site], two[site], bound, f"{site} ({method})")


def _moves(s: Subject, other: Model) -> str:
    """How much a stabilizer breaks it: the comparison is sharp."""
    one, two = (
        scores(s.explain("attnlrp", model, eps=1e-2, keep=())) for model in (s.model, other)
    )
    return (
        " (attnlrp at eps = 1e-2 does move, by "
        f"{float(np.abs(one - two).max() / np.abs(one).max()):.0e} of the largest)"
    )


def softmax_shift(s: Subject) -> Iterator[Row]:
    """R(x + c) - R(x) = c (R_i - p_i sum_j R_j), which sums to 0 along each row: on the model's
    scores and what arrives there.
    """
    worst, moved, e = Worst(), 0.0, _whole(s, "lrp-0")
    rule, records = LRP_0.rule("softmax", ["*"]), [*s.graph.of("softmax")]
    for r in records:
        (x,), p, mask = _arrays(r), asnumpy(r.output.array), r.attributes["mask"]
        arrived = e[r.output.site][None].astype(x.dtype)
        c = np.random.default_rng(1).standard_normal((*x.shape[:-1], 1)).astype(x.dtype)
        one, two = (
            rule.function(y, FORWARD["softmax"](y, mask=mask), arrived, mask=mask, **rule.options)
            for y in (x, x + c)
        )
        before, after, bound = (
            asnumpy(one.inputs[0]),
            asnumpy(two.inputs[0]),
            2 * _rounding_of_rule(one, two),
        )
        change = after - before
        worst.see(before.sum(axis=-1), after.sum(axis=-1), bound, f"{r.output.site} (sums)")
        worst.see(
            change,
            c * (arrived - p * arrived.sum(axis=-1, keepdims=True)) * (p > 0),
            bound,
            r.output.site,
        )
        moved = max(moved, float(np.abs(change).max()))
    yield worst.row(
        7,
        "a shift of softmax logits moves R, never its sum",
        "the softmax rule is a Taylor expansion, offset and all",
        f"{len(records)} softmaxes with what arrives there; single entries move by up to "
        f"{moved:.1e}",
    )


# -- 8 ---------------------------------------------------------------------------------------------


def seeds(s: Subject) -> Iterator[Row]:
    """R(2 s - 3 t) = 2 R(s) - 3 R(t) for any seeds s and t, and R(z_a - z_b) = R(z_a) - R(z_b), at
    every site.
    """
    worst, (trace, at) = Worst(), s.traced
    random = np.random.default_rng(6)
    one, two = (random.standard_normal(at.array.shape).astype(at.array.dtype) for _ in "st")
    for n, method in enumerate(s.methods):
        s.tick(n, len(s.methods))
        a, b, both = (
            swept(trace, at, seed, s.composite(method)) for seed in (one, two, 2 * one - 3 * two)
        )
        scale = both.activations if METHODS[method].formulation == "gradient_x_input" else {}
        bound = max(rounding_of(run.ledger) for run in (a, b, both))
        for site, r in both.propagated.items():
            x = scale.get(site, 1.0)
            worst.see(
                r * x,
                (2 * a.propagated[site] - 3 * b.propagated[site]) * x,
                bound,
                f"{site} ({method})",
            )
    for method in ("attnlrp", "cp-lrp") if s.at is None and at.array.shape[-1] > 1 else ():
        contrast(s, method, worst)
    yield worst.row(
        8,
        "R(z_a - z_b) = R(z_a) - R(z_b)",
        "contrasts may be taken before or after the sweep",
        f"every site, {len(s.methods)} methods",
    )


def contrast(s: Subject, method: str, worst: Worst) -> None:
    a, b = s.target, (s.target + 1) % int(s.traced[1].array.shape[-1])
    both, *single = (
        s.explain(method, contrast=(a, b)),
        *(s.explain(method, target=t) for t in (a, b)),
    )
    for site in both:
        worst.see(
            both[site],
            single[0][site] - single[1][site],
            rounding(both, *single),
            f"{site} ({method})",
        )


# -- 9 ---------------------------------------------------------------------------------------------


def orders(s: Subject) -> Iterator[Row]:
    """What must make no difference: later tokens, other members of a batch, padding, how K and V
    are stored, and how it is run.
    """
    for n, part in enumerate((causality, batches, grouped, recomputed, forwards, fast_attention)):
        s.tick(n, 6)
        yield from part(s)


def causality(s: Subject) -> Iterator[Row]:
    """Explaining position t: R = 0 exactly at every later one, and R is that of the text which ends
    at t.
    """
    name, means = (
        "no relevance after the explained position",
        "a causal net is explained by what it has seen",
    )
    if s.model.task not in ("next-token", "sequence-to-sequence"):
        yield Row(
            9,
            name,
            means,
            reason="every token sees all others"
            if not s.model.takes_images
            else "every patch sees all others",
        )
        return
    written = s.decoder is not None
    ids = s.decoder if s.decoder is not None else s.item
    if len(ids) < 2:
        yield Row(9, name, means, reason="the text has one token")
        return
    end, after, prefix = len(ids) // 2, Worst(), Worst()
    for method in s.methods:
        how: dict[str, Any] = {"decoder": ids[:end]} if written else {}
        short = replace(s, item=s.item if written else ids[:end]).explain(
            method, keep=(), target=None, **how
        )
        e = s.explain(method, position=end - 1, target=short.target_id, keep=())
        r, expected = (x.decoder_relevance if written else x.relevance for x in (e, short))
        after.see(r[end:], np.zeros_like(r[end:]), 0.0, method)
        prefix.see(r[:end], expected, rounding(e, short), method)
    yield after.row(9, name, means, f"position {end - 1} of {len(ids)}, {len(s.methods)} methods")
    yield prefix.row(
        9,
        "a prefix is explained as if it stood alone",
        "what follows a token does not change its explanation",
        f"the first {end} of {len(ids)} tokens",
    )


def batches(s: Subject) -> Iterator[Row]:
    """Inputs explained together get what each gets alone; padding gets exactly nothing."""
    worst, padding, (items, decoders) = Worst(), Worst(), _batch(s)
    for method in s.methods:
        for keep in ("*", ()) if method == "attnlrp" else ("*",):
            how: dict[str, Any] = {"keep": keep, "audit": True, "at": s.at}
            for b, e in enumerate(
                s.model.explain(items, s.composite(method), decoder=decoders, **how)
            ):
                how |= {
                    "target": None if s.at else e.target_id,
                    "decoder": None if decoders is None else decoders[b],
                }
                alone = s.model.explain(items[b], s.composite(method), **how)
                worst.see(scores(e), scores(alone), rounding(alone), method)
                _padded(e, alone, worst, padding, method)
    lengths = "" if s.model.takes_images else f" of {', '.join(str(len(i)) for i in items)} tokens"
    yield worst.row(
        9,
        "together = each alone",
        "an explanation does not depend on what else is in the batch",
        f"{len(items)} inputs{lengths}, {len(s.methods)} methods",
    )
    if padding.count:
        yield padding.row(
            9,
            "padding has no relevance",
            "what pads a batch is no part of any input",
            f"{padding.count:,} padded sites",
        )


def _batch(s: Subject) -> tuple[list[Any], list[list[int]] | None]:
    """The input and others: shorter ones where a batch may be padded."""
    if s.model.takes_images:
        x = s.model.read(s.item).pixels
        return [x, np.ascontiguousarray(x[:, ::-1]), 0.5 * x], None
    n = len(s.item)
    lengths = [n] * 3 if s.at else [n, *(m for m in (max(n // 2, 1), 1) if m < n)]
    items = [masked(s.model, s.item[n - m :] if i else s.item) for i, m in enumerate(lengths)]
    if s.at:
        items[1:] = [s.item[::-1], [*s.item[1:], s.item[0]]]
    decoders = (
        None
        if s.decoder is None
        else [s.decoder[: max(len(s.decoder) - i, 1)] for i in range(len(items))]
    )
    return items, decoders


def _padded(e: Explanation, alone: Explanation, worst: Worst, padding: Worst, method: str) -> None:
    """Sites with a row for each token, beyond those that the input alone has."""
    for site in (x for x in e if x in set(alone) and ".experts." not in x and e[x].ndim == 2):
        rows = alone[site].shape[0]
        if e[site].shape[0] > rows and rows == len(alone.input_ids):
            padding.see(e[site][rows:], 0 * e[site][rows:], 0.0, f"{site} ({method})")
            worst.see(e[site][:rows], alone[site], rounding(alone), f"{site} ({method})")


def grouped(s: Subject) -> Iterator[Row]:
    """Key and value matrices written out once for each query head: the same relevance at the input
    and after each block.
    """
    name, means = (
        "grouped K and V = repeated K and V",
        "a group of queries shares its key and value by summing what they give it",
    )
    c = s.model.config
    heads, groups = getattr(c, "num_attention_heads", 0), getattr(c, "kv_heads", 0)
    if not groups or heads == groups:
        yield Row(9, name, means, reason="every query head has a key and value head of its own")
        return
    other = written_out(s.model)
    worst = Worst()
    for method in s.methods:
        same(s, other, method, worst)
    yield worst.row(
        9, name, means, f"{groups} key heads for {heads} query heads, {len(s.methods)} methods"
    )


def written_out(model: Model) -> Model:
    """The same net with a key and value head for each query head: every tensor that has rows for
    key or value heads gets them once for each.
    """
    c = model.config
    config = replace(c, num_key_value_heads=c.num_attention_heads)
    shapes = {name: shape for name, shape, _ in model.net.shapes(config)}
    weights = {}
    for name in model.weights:
        array = model.weights[name]
        if tuple(array.shape) != shapes.get(name, tuple(array.shape)):
            per_head = asnumpy(array).reshape(c.kv_heads, c.width, -1)
            repeated = np.repeat(per_head, c.num_attention_heads // c.kv_heads, axis=0)
            array = model.place(repeated.reshape(shapes[name]))
        weights[name] = array
    return replace(model, weights=weights, config=config)


def recomputed(s: Subject) -> Iterator[Row]:
    """Block by block, each run again when the sweep reaches it: every site and every entry of the
    conservation ledger, bit for bit.
    """
    worst = Worst()
    for method in s.methods:
        for keep in ("*", ()):
            full, less = (
                s.explain(method, keep=keep, recompute=r, audit=False) for r in (False, True)
            )
            worst.see(scores(full), scores(less), 0.0, method)
            for site in full:
                worst.see(full[site], less[site], 0.0, f"{site} ({method})")
            worst.weigh(
                0.0 if full.ledger.as_dict() == less.ledger.as_dict() else math.inf,
                0.0,
                f"the conservation ledger of {method}",
            )
    yield worst.row(
        9,
        "recomputed = held in memory, bit for bit",
        "saving memory costs no digit",
        f"{worst.count:,} arrays, {len(s.methods)} methods",
    )


def forwards(s: Subject) -> Iterator[Row]:
    """Bit by bit the same activations whichever composite follows."""
    worst, first = Worst(), _whole(s, WITHOUT_EPS[0])
    for method in s.methods:
        e = s.explain(method, audit=False)
        for site in first:
            worst.see(first.activation(site), e.activation(site), 0.0, f"{site} ({method})")
    yield worst.row(
        9,
        "the forward pass is the same for every method",
        "explaining does not touch what is explained",
        f"{worst.count:,} activations",
    )


def fast_attention(s: Subject) -> Iterator[Row]:
    """Attention in blocks of queries, without the T x T matrix: the same relevance. Where the net
    takes a text of more than one block.
    """
    worst, long = Worst(), s
    if not s.model.takes_images:
        count = min(attention.ROWS + 2, s.model.config.longest)
        long = replace(s, item=masked(s.model, (s.item * count)[:count]))
    for method in ("attnlrp", "attnlrp-gradient", "cp-lrp"):
        plain, fast = (long.explain(method, keep=keep) for keep in (("*.scores",), ()))
        worst.see(scores(plain), scores(fast), rounding(plain), method)
    found = (
        "the picture"
        if s.model.takes_images
        else f"{len(long.item)} tokens, blocks of {attention.ROWS}"
    )
    yield worst.row(
        9,
        "attention in blocks = attention in one piece",
        "the faster form computes the same",
        found,
    )


# -- 10 --------------------------------------------------------------------------------------------


SHARES = {"(Q K^T) V": (0.25, 0.25, 0.5), "Q (K^T V)": (0.5, 0.25, 0.25)}


def triple_products(s: Subject) -> Iterator[Row]:
    """The model's own queries, keys and values, multiplied without the softmax."""
    attentions = [*s.graph.attentions()]
    for order, shares in SHARES.items():
        worst = Worst()
        for a in attentions:
            q, k = (asnumpy(x) for x in a.scores.arrays)
            triple_product(q, k, asnumpy(a.context.arrays[1]), order, worst, a.context.output.site)
        yield worst.row(
            10,
            f"{order} is split {' : '.join(f'{x:g}' for x in shares)}",
            "the share depends on the order of the products, as published",
            f"q, k and v of {len(attentions)} attentions",
        )


def triple_product(q: Any, kt: Any, v: Any, order: str, worst: Worst, where: str = "") -> None:
    """Sums of R over Q, K and V, each over the sum of all, for R = |O|: no cancellation."""
    t = Trace({})
    a, b, c = (source(t, name, x) for name, x in (("q", q), ("k", kt), ("v", v)))
    o = (
        t.matmul("o", t.matmul("qk", a, b), c)
        if order == "(Q K^T) V"
        else t.matmul("o", a, t.matmul("kv", b, c))
    )
    total = float(np.abs(o.array).sum())
    run = swept(t, o, np.abs(o.array))
    totals = np.asarray([float(run.propagated[name].sum()) / total for name in "qkv"])
    worst.see(totals, np.asarray(SHARES[order]), rounding_of(run.ledger) / total, where)


# -- 11 --------------------------------------------------------------------------------------------


def decomposition(s: Subject) -> Iterator[Row]:
    """With attention, norms, gates and activation ratios frozen the net is affine in its input: the
    part of each token (or patch) in the output, computed forwards as f(that token alone) -
    f(nothing), is its CP-LRP relevance."""
    s = s.within("float64")
    e, edits, count = s.explain("cp-lrp", keep=()), *_alone(s)
    around = {r.output.site: r for r in s.traced[0].records}
    z = surrogate.logits(s.model, s.item, around, variant="cp-lrp", edits=edits, decoder=s.decoder)[
        :, s.target
    ]
    got = e.patches.ravel() if s.model.takes_images else scores(e)
    worst = Worst()
    worst.see(got, z[:count] - z[count], rounding(e))
    yield worst.row(
        11,
        "forward decomposition = CP-LRP",
        "the same shares are found without any sweep, forwards",
        f"{count} {'patches' if s.model.takes_images else 'tokens'}, each run alone "
        "through the frozen net, in float64",
    )


def _alone(s: Subject) -> tuple[dict[str, surrogate.Edit], int]:
    """Edits of the inputs that make a batch in which each example keeps one token or patch, and the
    last none; and their number.
    """
    if s.model.takes_images:
        (record,) = s.embedded
        keep = _patches(s.model.config)
        return {record.output.site: _times(np.concatenate([keep, 0 * keep[:1]]))}, len(keep)
    lengths = [len(s.item), *([] if s.decoder is None else [len(s.decoder)])]
    count, edits, start = sum(lengths), dict[str, surrogate.Edit](), 0
    for record, length in zip(s.embedded, lengths, strict=True):
        edits[record.output.site] = _times(np.eye(count + 1)[:, start : start + length, None])
        start += length
    return edits, count


def _times(keep: Any) -> surrogate.Edit:
    return lambda x: keep * x


def _patches(c: Any) -> Any:  # -> (N, 1, H, W), 1.0 in one patch each
    (height, width), rows, columns = c.patch, c.image[0] // c.patch[0], c.image[1] // c.patch[1]
    keep = np.zeros((rows * columns, 1, *c.image))
    for n in range(rows * columns):
        i, j = divmod(n, columns)
        keep[n, :, i * height : (i + 1) * height, j * width : (j + 1) * width] = 1
    return keep


# -- 12 --------------------------------------------------------------------------------------------


JACOBIANS = {
    "layer_norm": "LayerNorm's Taylor series absorbs Var/(Var + eps)",
    "rms_norm": "RMSNorm's Jacobian passes N eps/(|x|^2 + N eps)",
}


def jacobians(s: Subject) -> Iterator[Row]:
    """The model's own norms, on what they read in this run."""
    for operation, name in JACOBIANS.items():
        records, worst, passed = [*s.graph.of(operation)], Worst(), []
        for r in records:
            passed.append(
                norm_jacobian(r.operation, _arrays(r), r.attributes, worst, r.output.site)
            )
        means = (
            "why norms need a rule of their own: the true derivative would hand on next to nothing"
        )
        if not records:
            yield Row(
                12,
                name,
                means,
                reason=f"the net has no {'LayerNorm' if operation == 'layer_norm' else 'RMSNorm'}",
            )
            continue
        yield worst.row(
            12,
            name,
            means,
            f"{len(records)} norms, against a complex step too; they pass on "
            f"{min(passed):.1e} to {max(passed):.1e}",
        )


def norm_jacobian(
    operation: str,
    arrays: Sequence[Any],
    attributes: Mapping[str, Any],
    worst: Worst,
    where: str = "",
) -> float:
    """For any g:  sum_i x_i (J^T g)_i = g . J x
                   along each row, J x by complex step and in closed form

        LayerNorm    (1 - Var/(Var + eps)) sum_i g_i (z_i - b_i)          RMSNorm
                     (1 - |x|^2/(|x|^2 + N eps)) sum_i g_i z_i

    Returns the largest share that a row passes on."""
    x, b = arrays[0], arrays[2] if len(arrays) > 2 and arrays[2] is not None else 0.0
    z = FORWARD[operation](*arrays, **attributes)
    g = np.random.default_rng(0).standard_normal(z.shape).astype(z.dtype)
    passed = GRADIENT_RULES[operation]["gradient"](*arrays, z, g, **attributes)
    along = (
        surrogate.TRUE[operation](
            None, x * (1 + 1j * surrogate.STEP), *arrays[1:], **attributes
        ).imag
        / surrogate.STEP
    )
    eps, n = attributes["norm_eps"], x.shape[-1]
    if operation == "layer_norm":
        size = ((x - x.mean(axis=-1, keepdims=True)) ** 2).mean(axis=-1)
        share = eps / (size + eps)
    else:
        size = (x * x).sum(axis=-1)
        share = n * eps / (size + n * eps)
    got, bound = (x * passed.inputs[0]).sum(axis=-1), _rounding_of_rule(passed)
    worst.see(got, (g * along).sum(axis=-1), bound, f"{where} (complex step)")
    worst.see(got, share * (g * (z - b)).sum(axis=-1), bound, where)
    offset = passed.absorbed["norm_offset"]
    worst.see(
        offset,
        ((1 - share) * (g * (z - b)).sum(axis=-1)).reshape(len(x), -1).sum(axis=1),
        bound,
        f"{where} (absorbed)",
    )
    return float(share.max())


# -- the rules themselves, on small nets -----------------------------------------------------------


def small_relu_net(worst: Worst) -> str:
    """Identity 4."""
    random, sizes = np.random.default_rng(1), (6, 9, 8, 3)
    layers = [
        (random.standard_normal((o, i)), random.standard_normal(o)) for i, o in pairwise(sizes)
    ]
    x, onehot = random.standard_normal((4, sizes[0])), np.zeros((4, sizes[-1]))
    onehot[:, 1] = 1
    relu_net(layers, x, worst, seed=onehot)
    return "three layers with biases, four inputs"


def small_product(worst: Worst) -> str:
    """Identity 5, with three operands."""
    random = np.random.default_rng(2)
    product(
        LRP_0.rule("multiply", ["*"]), [random.standard_normal((2, 5)) for _ in range(3)], worst
    )
    return "a product of three operands, all eight coalitions"


def small_linear_model(worst: Worst) -> str:
    """Identity 6: every feature a player of its own."""
    random = np.random.default_rng(2)
    linear_model(random.standard_normal(GROUPS), random.standard_normal(GROUPS), worst)
    return f"{GROUPS} features, each a player: all {2**GROUPS} coalitions"


def small_attention(worst: Worst) -> str:
    """Identity 6: one attention without biases and a linear head on its last token."""
    random = np.random.default_rng(3)
    t = Trace(
        {f"{name}.weight": random.standard_normal((4, 4)) for name in "qkv"}
        | {"head.weight": random.standard_normal((3, 4))}
    )
    h = source(t, "x", random.standard_normal((1, 5, 4)))
    q, k, v = (t.move(f"{name}.heads", "split_heads", t.linear(name, h), heads=1) for name in "qkv")
    with t.inside("attn"):
        context = t.attention(
            q, k, v, np.tril(np.ones((5, 5), dtype=bool))[None, None], causal=True
        )
    t.linear("head", t.move("merged", "merge_heads", context))
    graph = Graph(t.records)
    value_attention(graph, next(graph.attentions()), worst)
    return "one head, five tokens, causal"


def small_triple_products(worst: Worst) -> str:
    """Identity 10."""
    random = np.random.default_rng(4)
    q, kt, v = (random.standard_normal((1, 6, 6)) for _ in "qkv")
    for order in SHARES:
        triple_product(q, kt, v, order, worst, order)
    return f"matrices of 6 x 6; {' and '.join(SHARES)}"


def small_norms(worst: Worst) -> str:
    """Identity 12: eps so large that it shows."""
    random = np.random.default_rng(5)
    x, w, b = (
        random.standard_normal((2, 3, 7)),
        random.standard_normal(7),
        random.standard_normal(7),
    )
    norm_jacobian("layer_norm", (x, w, b), {"norm_eps": 0.5}, worst, "LayerNorm")
    norm_jacobian("rms_norm", (x, w), {"norm_eps": 0.5}, worst, "RMSNorm")
    return "LayerNorm and RMSNorm of 7 features, eps = 0.5"


SMALL: dict[int, list[tuple[str, str, Callable[[Worst], str]]]] = {
    4: [
        (
            "LRP-0 of a ReLU net = gradient * input",
            "what is missing from the output are the biases",
            small_relu_net,
        )
    ],
    5: [
        (
            "uniform rule = Shapley = integrated gradients",
            "the share of each operand is the fair one",
            small_product,
        )
    ],
    6: [
        (
            "linear: LRP-0 = leave-one-out = Shapley = w x",
            "where there is one right answer, it is given",
            small_linear_model,
        ),
        (
            "one attention layer: CP-LRP = leave-one-out",
            "a token counts what is missing without it",
            small_attention,
        ),
    ],
    10: [
        (
            "shares of a triple product",
            "they depend on the order of the products, as published",
            small_triple_products,
        )
    ],
    12: [
        (
            "Jacobians of LayerNorm and RMSNorm",
            "the true derivative hands on next to nothing",
            small_norms,
        )
    ],
}
"""Identities of the rules, which need no checkpoint: number -> name, what it means, a function that
measures and says on what.
"""


def on_small_nets(only: Sequence[int]) -> Iterator[Row]:
    for number in sorted(SMALL.keys() & set(only)):
        for name, means, measure in SMALL[number]:
            worst = Worst()
            found = measure(worst)
            yield worst.row(number, name, means, found, small=True)


# -- all of them -----------------------------------------------------------------------------------


IDENTITIES: dict[int, tuple[str, Callable[[Subject], Iterator[Row]]]] = {
    1: ("the balance of every operation", balance),
    2: ("the frozen surrogate", frozen_surrogate),
    3: ("the whole account", whole_account),
    4: ("ReLU nets", relu_layers),
    5: ("products", products),
    6: ("linear models", linear_models),
    7: ("invariances", invariances),
    8: ("linearity in the seed", seeds),
    9: ("order, batches, ways to run", orders),
    10: ("triple products", triple_products),
    11: ("forward decomposition", decomposition),
    12: ("Jacobians of norms", jacobians),
}
"""Number -> its name and what measures it."""

PARTS = 1000
"""Of an identity, for progress."""


def verify(
    s: Subject,
    only: Sequence[int] = tuple(IDENTITIES),
    progress: Callable[[str, int, int], object] | None = None,
    small: bool = True,
) -> Iterator[Row]:
    """The rows of the identities asked for, in order, then those shown on small nets. Raises
    ReflError for a number that is none.
    """
    for number in only:
        if number not in IDENTITIES:
            raise ReflError(
                f"there is no identity {number}: they are numbered 1 to {len(IDENTITIES)}"
            )
    wanted = sorted(set(only))
    for n, number in enumerate(wanted):
        title, measure = IDENTITIES[number]

        def tick(done: int, of: int, n: int = n, label: str = f"{number} {title}") -> None:
            if progress is not None:
                progress(label, n * PARTS + min(done * PARTS // of, PARTS), len(wanted) * PARTS)

        tick(0, 1)
        s.tick = tick
        yield from measure(s)
    if small:
        yield from on_small_nets(wanted)
