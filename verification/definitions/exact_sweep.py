"""A whole model in exact arithmetic: the forward of every operation and the relevance of every
value, with 60 digits.

Of a recorded run only its structure is taken: which operation stands on which, their attributes,
the weights, the ids, masks and routing. No number the engine computed goes in. Each operation's
forward is computed again, cosines and sines included; then the records are walked from the last to
the first, each by the definition (lift.py) that the table of the method (METHODS, written from the
papers once more) names; what meets at a value is summed here.

    forward(records, config)                           value -> its entries
    sweep(records, values, at, start, method, config)  site -> relevance, rule and what is absorbed,
                                                       which adds up to the output, to 1e-40

A condition number comes from running the same again with `Noise`: every number that is read or
formed is multiplied by (1 + d xi), xi in [-1, 1] and d = 1e-20. What moves, over d, is how many
units of roundoff a correct floating-point run may be off (stochastic arithmetic, Vignes 1993).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, TypeAlias, TypeVar

import numpy as np

from refl.trace import Parameter, Record, Value
from refl.verification.definitions import exact_experts, lift
from refl.verification.definitions.exact import MP
from refl.verification.definitions.lift import Call

Exact: TypeAlias = Any
"""An array of dtype object whose entries are mpf of 60 digits. The first axis counts examples."""
Absorbed: TypeAlias = list[dict[str, list[Any]]]
"""For each example: cause -> the messages that ended there."""

ZERO = MP.mpf(0)
D = MP.mpf("1e-20")
"""The size of the noise: its square is far below the condition
numbers looked for, and far above 60 digits.
"""


class Noise:
    """Multiplies numbers by (1 + d xi). Without a seed there is no noise."""

    def __init__(self, seed: int | None = None) -> None:
        self.random = None if seed is None else random.Random(seed)

    def __call__(self, array: Exact) -> Exact:
        if self.random is None or array is None:
            return array
        noisy = (v * (1 + D * (2 * self.random.random() - 1)) for v in array.flat)
        return lift.array(array.shape, noisy)


SILENT = Noise()


def exactly(array: Any) -> Exact:
    """The same numbers as mpf; a float has a finite binary expansion, so nothing is lost."""
    return lift.lifted(array, MP.mpf)


def rounded(array: Exact) -> Any:
    """To float64, each entry once."""
    return np.array([float(v) for v in array.flat], dtype=np.float64).reshape(array.shape)


def _zeros(shape: tuple[int, ...]) -> Exact:
    return np.full(shape, ZERO, dtype=object)


# -- one record, ready to be computed --------------------------------------------------------------


class Weights:
    """The parameters of a run, read exactly, each once."""

    def __init__(self) -> None:
        self.read: dict[tuple[str, bool, bool], Exact] = {}

    def __call__(self, p: Parameter) -> Exact:
        key = (p.name, p.transposed, p.kernel)
        if key not in self.read:
            self.read[key] = exactly(p.array)
        return self.read[key]


def rotation_tables(
    config: Any, site: str, length: int, width: int
) -> tuple[Exact, Exact]:  # -> cos, sin (T, d)
    """cos(t f_i) and sin(t f_i), f_i = theta^(-2i/d), of both halves; Gemma 3 has another theta
    where a block has a window.
    """
    layer = next((int(part) for part in site.split(".") if part.isdigit()), 0)
    local = hasattr(config, "local_rope") and config.windows[layer] is not None
    rope = config.local_rope if local else config.rope
    if rope.kind != "default" or rope.width != width:
        raise ValueError(
            f"exact tables of rope_type {rope.kind!r} with {rope.width} of {width} "
            "features are not written"
        )
    angles = [
        t * MP.mpf(rope.theta) ** (-MP.mpf(2 * i) / width)
        for t in range(length)
        for i in (*range(width // 2), *range(width // 2))
    ]
    cos, sin = (lift.array((length, width), map(f, angles)) for f in (MP.cos, MP.sin))
    return cos, sin


def _call(
    record: Record, values: Mapping[Value, Exact], weights: Weights, config: Any, noise: Noise
) -> Call:
    """The record's operands and attributes as exact numbers."""
    options = dict(record.attributes)
    operands = [
        None if o is None else noise(weights(o) if isinstance(o, Parameter) else values[o])
        for o in record.operands
    ]
    for name in ("norm_eps", "offset", "factor"):
        if name in options:
            options[name] = MP.mpf(float(options[name]))
    for name in ("counted", "values"):
        if name in options:
            options[name] = exactly(options[name])
    if record.operation == "rotary":
        length, width = options["cos"].shape[-2:]
        tables = rotation_tables(config, record.output.site, length, width)
        options |= dict(zip(("cos", "sin"), map(noise, tables), strict=True))
    return Call(operands, options=options)


def _output(operation: str, call: Call, noise: Noise) -> Exact:
    if operation == "source":
        return call.options["values"]
    if operation == "top_k" and noise.random is None:
        _check_choice(call)
    return lift.FORWARD[operation](call)


def _check_choice(call: Call) -> None:
    """The choice of experts is the record's;
    that it is the exact probabilities' own too is checked.
    """
    for at in np.ndindex(*call.x.shape[:-1]):
        chosen = list(call.options["chosen"][at[0]][at[1]])
        if exact_experts.top_k(call.x[at].tolist(), len(chosen)) != chosen:
            raise ValueError(
                f"the recorded choice of experts {chosen} is not that of the exact probabilities"
            )


def forward(records: Sequence[Record], config: Any, noise: Noise = SILENT) -> dict[Value, Exact]:
    """Every value of a run recorded operation by operation (`plain`, without `recompute`).
    `config`: the net's, for rotary tables.
    """
    values: dict[Value, Exact] = {}
    weights = Weights()
    for record in records:
        call = _call(record, values, weights, config, noise)
        values[record.output] = noise(_output(record.operation, call, noise))
    return values


# -- methods ---------------------------------------------------------------------------------------

Line: TypeAlias = tuple[str, str, str, dict[str, Any]]
"""Operation, pattern of the sites, rule, options."""


@dataclass(frozen=True)
class Method:
    """A method's table; its first line that fits an operation at a site gives the rule."""

    formulation: str
    lines: tuple[Line, ...]

    def line(self, operation: str, names: Sequence[str]) -> Line:
        return next(
            one
            for one in self.lines
            if one[0] == operation and any(fnmatchcase(name, one[1]) for name in names)
        )

    def identifier(self, operation: str, rule: str) -> str:
        """The rule's name in lift.RULES."""
        if self.formulation == "gradient_x_input":
            rule = IN_GRADIENT_FORM.get(rule, rule)
        return f"{operation}_{rule}"


IN_GRADIENT_FORM = {
    "constant": "constant_gxi",
    "factor": "gradient",
    "identity": "identity_gxi",
    "leaf": "leaf_gxi",
    "mean": "gradient",
    "second": "second_gxi",
    "sum": "gradient",
    "transpose": "gradient",
    "true": "gradient",
}
"""What a table of a gradient x input method calls a rule (what it does to a gradient) -> the end of
the rule's identifier, where that is another.
"""


def _table(options: dict[str, Any] | None = None, **rules: str) -> tuple[Line, ...]:
    return tuple((operation, "*", rule, dict(options or {})) for operation, rule in rules.items())


def _paper(eps: str, kind: str) -> tuple[Line, ...]:
    """A eqs. 8, 9, 15 and props. 3.1 to 3.4."""
    options = {"eps": MP.mpf(float(eps)), "kind": kind}
    dividing = _table(
        options,
        add="epsilon",
        combine="epsilon",
        layer_norm="epsilon",
        linear="epsilon",
        matmul="uniform",
        pooling="epsilon",
        rotary="epsilon",
    )
    rest = _table(
        activation="identity",
        embedding="leaf",
        gather="pass_through",
        learned="leaf",
        movement="pass_through",
        multiply="uniform",
        renormalize="identity",
        rms_norm="identity",
        scale="pass_through",
        softmax="taylor",
        source="leaf",
        top_k="pass_through",
    )
    return (*dividing, *rest)


_GRADIENT = _table(
    activation="identity",
    add="sum",
    combine="sum",
    embedding="leaf",
    gather="pass_through",
    layer_norm="epsilon_gxi",
    learned="leaf",
    linear="transpose",
    matmul="uniform_gxi",
    movement="pass_through",
    multiply="uniform_gxi",
    pooling="mean",
    renormalize="identity_gxi",
    rms_norm="identity_gxi",
    rotary="transpose",
    scale="factor",
    softmax="true",
    source="leaf",
    top_k="pass_through",
)

_DERIVATIVES = _table(
    activation="gradient",
    layer_norm="gradient",
    matmul="gradient",
    multiply="gradient",
    renormalize="gradient",
    rms_norm="gradient",
)

_CONSTANT_ATTENTION: tuple[Line, ...] = (
    ("matmul", "*.context", "second", {}),
    ("matmul", "context", "second", {}),
    *_table(softmax="constant", multiply="second"),
)

_FLOAT = {name: MP.mpf(float(name)) for name in ("1e-8", "1e-6", "0.05", "0.25")}

_LXT: tuple[Line, ...] = (
    (
        "matmul",
        "*context",
        "uniform",
        {"eps": _FLOAT["1e-6"], "kind": "plain", "denominator": "2(z+eps)"},
    ),
    ("layer_norm", "*", "epsilon", {"eps": _FLOAT["1e-6"], "kind": "plain"}),
    ("pooling", "*", "epsilon", {"eps": _FLOAT["1e-6"], "kind": "plain"}),
    ("combine", "*", "epsilon", {"eps": _FLOAT["1e-8"], "kind": "plain"}),
)

_VISION: tuple[Line, ...] = (
    *(
        ("linear", f"*.{name}", "epsilon", {"eps": _FLOAT["1e-6"], "kind": "sign"})
        for name in ("query", "key", "value", "attention.output.dense")
    ),
    ("linear", "*.patch_embeddings.projection", "gamma", {"gamma": _FLOAT["0.25"]}),
    ("linear", "*", "gamma", {"gamma": _FLOAT["0.05"]}),
    ("softmax", "*", "z_plus", {}),
)

METHODS: dict[str, Method] = {
    "attnlrp": Method("relevance", _paper("1e-6", "sign")),
    "attnlrp-gradient": Method("gradient_x_input", _GRADIENT),
    "cp-lrp": Method("gradient_x_input", (*_CONSTANT_ATTENTION, *_GRADIENT)),
    "input-x-gradient": Method("gradient_x_input", (*_DERIVATIVES, *_GRADIENT)),
    "lrp-0": Method("relevance", _paper("0", "none")),
    "ding-2017": Method("relevance", (*_table(softmax="identity"), *_paper("0", "none"))),
    "lxt-explicit": Method("relevance", (*_LXT, *_paper("1e-8", "plain"))),
    "attnlrp-vit": Method("relevance", (*_VISION, *_paper("1e-6", "sign"))),
}
"""A: AttnLRP, language models and vision; Ali et al. 2022; Shrikumar et al. 2016; Bach et al. 2015;
Ding et al. 2017; LXT 2.1's relevance form.
"""


# -- the walk --------------------------------------------------------------------------------------


@dataclass
class Swept:
    """The answer, in the order of the sweep: from the output to the inputs."""

    relevance: dict[str, Exact] = field(default_factory=dict)
    """Site -> relevance (x g where gradients are propagated); zeros where nothing arrives."""
    propagated: dict[str, Exact] = field(default_factory=dict)
    rules: dict[str, str] = field(default_factory=dict)
    absorbed: dict[str, Absorbed] = field(default_factory=dict)
    """Site -> for each example cause -> messages."""
    conservation_errors: dict[str, list[Any]] = field(default_factory=dict)
    """Site -> for each example what its entries in the ledger miss: 0 to 60 digits."""
    explained: list[Any] = field(default_factory=list)

    def total(self, b: int = 0) -> dict[str, Any]:
        """Cause -> amount over all sites, of one example."""
        causes: dict[str, Any] = {}
        for absorbed in self.absorbed.values():
            for cause, messages in absorbed[b].items():
                causes[cause] = causes.get(cause, ZERO) + sum(messages)
        return causes


Target = int | Sequence[int]
"""The number of a logit, those of several tokens counted through; or of several that are summed."""


def seed(method: str, logits: Exact, targets: Sequence[Target]) -> Exact:
    """What the sweep starts from: each example's target logit itself,
    or 1 where gradients are propagated.
    """
    start = _zeros(logits.shape)
    for z, s, target in zip(logits, start, targets, strict=True):
        for number in [target] if isinstance(target, int) else target:
            at = np.unravel_index(number, z.shape)
            gradient = METHODS[method].formulation == "gradient_x_input"
            s[at] = MP.mpf(1) if gradient else z[at]
    return start


def sweep(
    records: Sequence[Record],
    values: Mapping[Value, Exact],
    at: Value,
    start: Exact,
    method: str,
    config: Any,
    noise: Noise = SILENT,
) -> Swept:
    """`start` at the value `at`, brought down to every value of the run."""
    table, swept, weights = METHODS[method], Swept(), Weights()
    incoming: dict[Value, Exact] = {at: start}
    swept.explained = [sum(e.flat) for e in _worth(table, values[at], start)]
    for record in reversed(records):
        z, r = values[record.output], incoming.pop(record.output, None)
        site = record.output.site
        swept.propagated[site] = _zeros(z.shape) if r is None else r
        swept.relevance[site] = _worth(table, z, swept.propagated[site])
        if r is None:
            continue
        _, _, rule, options = table.line(record.operation, record.output.names)
        call = _call(record, values, weights, config, noise)
        # an implementation may form z again, in its own order
        again = z if noise.random is None else noise(_output(record.operation, call, noise))
        call.z = None if record.operation in SUMS else again
        call.options = {**call.options, **_by_lifted_names(options)}
        call.r = noise(r)
        received, absorbed = _apply(table.identifier(record.operation, rule), record, call)
        _record(swept, table, record, r, values, received, absorbed)
        swept.rules[site] = rule
        for operand, given in received:
            given = noise(given)
            incoming[operand] = incoming[operand] + given if operand in incoming else given
    return swept


def _by_lifted_names(options: Mapping[str, Any]) -> dict[str, Any]:
    return {"stabilizer" if name == "kind" else name: value for name, value in options.items()}


def _apply(
    identifier: str, record: Record, call: Call
) -> tuple[list[tuple[Value, Exact]], Absorbed]:
    """What each operand that is an activation receives,
    and the messages absorbed of each example.
    """
    found = lift.collected(lift.RULES[identifier](call), len(call.operands))
    absorbed: Absorbed = [{} for _ in range(len(call.r))]
    for (cause, b), messages in found.absorbed.items():
        absorbed[b][cause] = messages
    ends = record.operation in LEAVES
    received = [
        (o, found.received(k, values.shape, ZERO))
        for k, (o, values) in enumerate(zip(record.operands, call.operands, strict=True))
        if isinstance(o, Value) and values is not None and not ends
    ]
    return received, absorbed


LEAVES = ("embedding", "learned", "source")
SUMS = ("add", "combine")
"""Here z is the sum of the operands as the rule reads them."""


def _worth(table: Method, x: Exact, propagated: Exact) -> Exact:
    return x * propagated if table.formulation == "gradient_x_input" else propagated


def _record(
    swept: Swept,
    table: Method,
    record: Record,
    r: Exact,
    values: Mapping[Value, Exact],
    received: list[tuple[Value, Exact]],
    absorbed: Absorbed,
) -> None:
    """Keeps what is absorbed and, for each example, what relevance - received - absorbed leaves."""
    site, worth = record.output.site, _worth(table, values[record.output], r)
    swept.absorbed[site] = absorbed
    errors = [
        sum(worth[b].flat) - sum(m for messages in absorbed[b].values() for m in messages)
        for b in range(len(r))
    ]
    for operand, given in received:
        passed = _worth(table, values[operand], given)
        errors = [error - sum(passed[b].flat) for b, error in enumerate(errors)]
    swept.conservation_errors[site] = errors


# -- a whole answer --------------------------------------------------------------------------------


@dataclass
class Conditioned:
    """Forward and relevance of a run, with what one unit
    of roundoff everywhere may move them by.
    """

    values: dict[str, Any]
    """Site -> activation, float64."""
    logits: Any
    relevance: dict[str, dict[str, Any]]
    """Method -> site -> relevance, float64."""
    absorbed: dict[str, dict[str, float]]
    """Method -> cause -> amount over all sites; of a batch, of its first example."""
    amounts: dict[str, dict[tuple[str, str], tuple[list[float], float]]]
    """Method -> (site, cause) -> the amount absorbed of each example, and its condition."""
    condition: dict[str, dict[str, float]]
    """Method (and "forward", for the activations) -> site -> the largest move of an entry, over the
    size of the noise.
    """
    conservation_error: float
    """The largest absolute conservation error of all records."""


def run(
    records: Sequence[Record],
    at: Value,
    targets: Sequence[Target],
    methods: Sequence[str],
    config: Any,
    runs: int = 4,
) -> Conditioned:
    """Everything at once: the exact answer and `runs` noisy ones."""
    values = forward(records, config)
    swept = {
        m: sweep(records, values, at, seed(m, values[at], targets), m, config) for m in methods
    }
    condition = {
        m: {site: _largest(r) for site, r in s.relevance.items()} for m, s in swept.items()
    }
    condition["forward"] = {v.site: _largest(x) for v, x in values.items()}
    amounts = {m: _amounts(s) for m, s in swept.items()}
    absorbing = {m: {key: _largest(x) for key, x in b.items()} for m, b in amounts.items()}
    for k in range(runs):
        noise = Noise(k)
        moved = forward(records, config, noise)
        _widen(
            condition["forward"],
            {v.site: x for v, x in values.items()},
            {v.site: x for v, x in moved.items()},
        )
        for m in methods:
            noisy = sweep(records, moved, at, seed(m, moved[at], targets), m, config, noise)
            _widen(condition[m], swept[m].relevance, noisy.relevance)
            _widen(absorbing[m], amounts[m], _amounts(noisy))
    for m, s in swept.items():
        absorbing[m] = {
            key: max(absorbing[m][key], scale) for key, scale in _scales(s, condition[m]).items()
        }
    return Conditioned(
        {v.site: rounded(x) for v, x in values.items()},
        rounded(values[at]),
        {m: {site: rounded(r) for site, r in s.relevance.items()} for m, s in swept.items()},
        {
            m: {cause: float(amount) for cause, amount in s.total().items()}
            for m, s in swept.items()
        },
        {
            m: {key: (rounded(x).tolist(), absorbing[m][key]) for key, x in b.items()}
            for m, b in amounts.items()
        },
        condition,
        max(
            abs(float(conservation_error))
            for s in swept.values()
            for conservation_errors in s.conservation_errors.values()
            for conservation_error in conservation_errors
        ),
    )


def _largest(x: Exact) -> float:
    return float(max((abs(v) for v in x.flat), default=ZERO))


def _amounts(swept: Swept) -> dict[tuple[str, str], Exact]:
    """(site, cause) -> the amounts of all examples."""
    causes = {
        (site, cause): absorbed
        for site, absorbed in swept.absorbed.items()
        for each in absorbed
        for cause in each
    }
    return {
        key: lift.array((len(absorbed),), (ZERO + sum(e.get(key[1], [])) for e in absorbed))
        for key, absorbed in causes.items()
    }


def _scales(swept: Swept, condition: Mapping[str, float]) -> dict[tuple[str, str], float]:
    """(site, cause) -> the sum of |messages|, moved as the relevance they are cut from: a sum may
    by chance hardly move in a few runs.
    """
    scales: dict[tuple[str, str], float] = {}
    for site, absorbed in swept.absorbed.items():
        strain = condition[site] / (_largest(swept.relevance[site]) or 1.0)
        for cause, messages in (
            (cause, messages) for each in absorbed for cause, messages in each.items()
        ):
            scales[site, cause] = max(
                scales.get((site, cause), 0.0), strain * float(sum(map(abs, messages)))
            )
    return scales


Key = TypeVar("Key")


def _widen(
    condition: dict[Key, float], true: Mapping[Key, Exact], moved: Mapping[Key, Exact]
) -> None:
    for key, x in true.items():
        condition[key] = max(condition[key], _largest(moved[key] - x) / float(D))
