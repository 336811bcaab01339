"""Composites: which rule, with which parameters, for which operation. The published methods by
name.

A composite is a table. Its lines are read from the top, and the first whose operation and site
pattern fit an operation gives the rule. `carries` says what the sweep hands down: `relevance`, or
`gradient`, the g of R = x g (every stabilizer cancels there).
"""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from refl.errors import ReflError
from refl.rules import (
    activation,
    add,
    combine,
    embedding,
    gather,
    layer_norm,
    learned,
    linear,
    matmul,
    movement,
    multiply,
    pooling,
    renormalize,
    rms_norm,
    rotary,
    scale,
    softmax,
    source,
    top_k,
)
from refl.rules.balance import STABILIZERS, RuleOutput

RULES: dict[str, dict[str, Callable[..., RuleOutput]]] = {
    "activation": {"identity": activation.identity},
    "add": {"epsilon": add.epsilon},
    "combine": {"epsilon": combine.epsilon},
    "embedding": {"leaf": embedding.leaf},
    "gather": {"pass_through": gather.pass_through},
    "layer_norm": {"epsilon": layer_norm.epsilon, "identity": layer_norm.identity},
    "learned": {"leaf": learned.leaf},
    "linear": {
        "epsilon": linear.epsilon,
        "gamma": linear.gamma,
        "z_plus": linear.z_plus,
        "alpha_beta": linear.alpha_beta,
        "flat": linear.flat,
        "w_square": linear.w_square,
        "z_box": linear.z_box,
    },
    "matmul": {"uniform": matmul.uniform, "second": matmul.second},
    "movement": {"pass_through": movement.pass_through},
    "multiply": {"uniform": multiply.uniform, "second": multiply.second},
    "pooling": {"epsilon": pooling.epsilon},
    "renormalize": {"identity": renormalize.identity, "epsilon": renormalize.epsilon},
    "rms_norm": {"identity": rms_norm.identity},
    "rotary": {"epsilon": rotary.epsilon},
    "scale": {"pass_through": scale.pass_through},
    "softmax": {
        "taylor": softmax.taylor,
        "spread": softmax.spread,
        "z_plus": softmax.z_plus,
        "identity": softmax.identity,
        "constant": softmax.constant,
    },
    "source": {"leaf": source.leaf},
    "top_k": {"pass_through": top_k.pass_through},
}
"""Operation -> rule name -> rule, for composites that carry relevance."""

GRADIENT_RULES: dict[str, dict[str, Callable[..., RuleOutput]]] = {
    "activation": {"identity": activation.identity_gxi, "gradient": activation.gradient},
    "add": {"epsilon": add.gradient, "gradient": add.gradient},
    "combine": {"epsilon": combine.gradient, "gradient": combine.gradient},
    "embedding": {"leaf": embedding.leaf_gxi},
    "gather": {"pass_through": gather.pass_through},
    "layer_norm": {"epsilon": layer_norm.epsilon_gxi, "gradient": layer_norm.gradient},
    "learned": {"leaf": learned.leaf_gxi},
    "linear": {"epsilon": linear.gradient, "gradient": linear.gradient},
    "matmul": {
        "uniform": matmul.uniform_gxi,
        "second": matmul.second_gxi,
        "gradient": matmul.gradient,
    },
    "movement": {"pass_through": movement.pass_through},
    "multiply": {
        "uniform": multiply.uniform_gxi,
        "second": multiply.second_gxi,
        "gradient": multiply.gradient,
    },
    "pooling": {"epsilon": pooling.gradient, "gradient": pooling.gradient},
    "renormalize": {
        "identity": renormalize.identity_gxi,
        "epsilon": renormalize.gradient,
        "gradient": renormalize.gradient,
    },
    "rms_norm": {"identity": rms_norm.identity_gxi, "gradient": rms_norm.gradient},
    "rotary": {"epsilon": rotary.gradient, "gradient": rotary.gradient},
    "scale": {"pass_through": scale.gradient},
    "softmax": {
        "taylor": softmax.gradient,
        "constant": softmax.constant_gxi,
        "gradient": softmax.gradient,
    },
    "source": {"leaf": source.leaf_gxi},
    "top_k": {"pass_through": top_k.pass_through},
}
"""The same rules as factors of a gradient, under the same names, and the true derivatives under
`gradient`.
"""


@dataclass(frozen=True)
class Rule:
    """One line of a composite's table: operations and sites it is for (patterns with * and ?), and
    the rule with its options.
    """

    operation: str
    rule: str
    site: str = "*"
    options: tuple[tuple[str, Any], ...] = ()

    def fits(self, operation: str, names: Sequence[str]) -> bool:
        return fnmatchcase(operation, self.operation) and any(
            fnmatchcase(name, self.site) for name in names
        )


@dataclass(frozen=True)
class Chosen:
    """A rule ready to be applied."""

    name: str
    function: Callable[..., RuleOutput]
    options: dict[str, Any]


@dataclass(frozen=True)
class Composite:
    """A method: its table of rules, what it carries, where it is published."""

    name: str
    rules: tuple[Rule, ...]
    formulation: str = "relevance"
    source: str = ""
    summary: str = ""
    score: str = "sum"
    """How a token's features become one number: the `sum` of their relevance, or the `norm` of what
    is propagated.
    """

    def __post_init__(self) -> None:
        if self.formulation not in ("relevance", "gradient_x_input"):
            raise ReflError(
                f"composite {self.name} has the formulation {self.formulation!r}: expected "
                "'relevance' or 'gradient_x_input'"
            )
        for line in self.rules:
            _check(line, self)

    def rule(self, operation: str, names: Sequence[str]) -> Chosen:
        """The rule for an operation whose output has these names. Raises ReflError where the table
        has none.
        """
        for line in self.rules:
            if line.fits(operation, names):
                return Chosen(line.rule, self.known[operation][line.rule], dict(line.options))
        raise ReflError(
            f"composite {self.name} has no rule for {operation} at {names[0]}: add a line "
            "for it to its table"
        )

    @property
    def known(self) -> dict[str, dict[str, Callable[..., RuleOutput]]]:
        """Operation -> rule name -> rule, in the form this composite carries."""
        return GRADIENT_RULES if self.formulation == "gradient_x_input" else RULES

    def override(self, *lines: Rule, name: str | None = None) -> Composite:
        """The same composite with further lines on top, where they win."""
        return replace(self, name=name or f"{self.name} (changed)", rules=(*lines, *self.rules))

    def with_options(self, **options: Any) -> Composite:
        """The same composite with options (eps, stabilizer, ...) set in every line whose rule takes
        them.
        """
        if self.formulation == "gradient_x_input" and "eps" in options:
            raise ReflError(
                f"composite {self.name} is in gradient x input form, in which every eps "
                "cancels: leave eps out, or take another method"
            )
        known = {key for line in self.rules for f in _functions(line, self) for key in _options(f)}
        for key in options:
            if key not in known:
                raise ReflError(
                    f"no rule of composite {self.name} takes the option {key!r}; it knows "
                    f"{', '.join(sorted(known)) or 'none'}"
                )
        return replace(self, rules=tuple(_with(line, options, self) for line in self.rules))

    def as_dict(self) -> dict[str, Any]:
        """The whole table, every option spelled out (defaults too), for the oracle file."""
        return {
            "name": self.name,
            "formulation": self.formulation,
            "source": self.source,
            "summary": self.summary,
            "score": self.score,
            "rules": [
                {
                    "operation": line.operation,
                    "site": line.site,
                    "rule": line.rule,
                    "options": _spelled_out(line, self),
                }
                for line in self.rules
            ],
        }


def _functions(line: Rule, composite: Composite) -> list[Callable[..., RuleOutput]]:
    return [
        rules[line.rule]
        for op, rules in composite.known.items()
        if fnmatchcase(op, line.operation) and line.rule in rules
    ]


_OF_THE_OPERATION = {
    "mask",
    "constant",
    "kind",
    "how",
    "norm_eps",
    "offset",
    "ids",
    "role",
    "cos",
    "sin",
    "factor",
    "counted",
    "values",
    "index",
    "chosen",
    "length",
}


def _options(function: Callable[..., RuleOutput]) -> dict[str, Any]:
    """The options of a rule with their defaults: its keyword arguments less the attributes of the
    operation.
    """
    parameters = inspect.signature(function).parameters.values()
    return {
        p.name: p.default
        for p in parameters
        if p.kind is p.KEYWORD_ONLY and p.name not in _OF_THE_OPERATION
    }


def _spelled_out(line: Rule, composite: Composite) -> dict[str, Any]:
    known: dict[str, Any] = {}
    for function in _functions(line, composite):
        known |= _options(function)
    return known | dict(line.options)


def _with(line: Rule, options: dict[str, Any], composite: Composite) -> Rule:
    taken = {key: value for key, value in options.items() if key in _spelled_out(line, composite)}
    return replace(line, options=tuple((dict(line.options) | taken).items()))


def _check(line: Rule, composite: Composite) -> None:
    operations = [op for op in composite.known if fnmatchcase(op, line.operation)]
    if not operations:
        raise ReflError(
            f"composite {composite.name} names the operation {line.operation!r}; there are "
            f"{', '.join(composite.known)}"
        )
    if not _functions(line, composite):
        known = ", ".join(sorted({name for op in operations for name in composite.known[op]}))
        raise ReflError(
            f"composite {composite.name} names the rule {line.rule!r} for {line.operation}, "
            f"which in the formulation {composite.formulation} there is only under: {known}"
        )
    _check_options(line, composite)


def _check_options(line: Rule, composite: Composite) -> None:
    known = _spelled_out(replace(line, options=()), composite)
    for key, value in line.options:
        if key not in known:
            raise ReflError(
                f"rule {line.rule} for {line.operation} has no option {key!r}; it takes "
                f"{', '.join(known) or 'none'}"
            )
        if key == "stabilizer" and value not in STABILIZERS:
            raise ReflError(f"stabilizer is {value!r}: expected one of {', '.join(STABILIZERS)}")
        if key == "denominator" and value not in matmul.DENOMINATORS:
            raise ReflError(
                f"denominator is {value!r}: expected one of {', '.join(matmul.DENOMINATORS)}"
            )
        if key in ("eps", "gamma", "alpha", "beta"):
            _check_number(key, value, line)
        if key in ("low", "high"):
            _check_bound(key, value)
    options = known | dict(line.options)
    if line.rule == "alpha_beta" and abs(options["alpha"] - options["beta"] - 1) > 1e-12:
        raise ReflError(
            f"alpha_beta needs alpha - beta = 1, got alpha={options['alpha']}, "
            f"beta={options['beta']}"
        )


def _check_bound(key: str, value: Any) -> None:
    numbers = value if isinstance(value, (list, tuple)) else [value]
    if not numbers or not all(
        isinstance(n, (int, float)) and not isinstance(n, bool) and abs(n) < float("inf")
        for n in numbers
    ):
        raise ReflError(f"{key} is {value!r}: expected a finite number, or a list of them")


def _check_number(key: str, value: Any, line: Rule) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value < float("inf"):
        raise ReflError(f"{key} is {value!r}: expected a finite number")
    if key == "eps" and not value > 0:
        raise ReflError(
            f"eps is {value!r}: expected a number above 0; for no stabilizer at all set "
            "stabilizer='none'"
        )
    if value < 0:
        raise ReflError(f"{key} is {value!r}: expected a number of at least 0")


# -- the published methods -------------------------------------------------------------------------

ACHTIBAT = (
    "Achtibat et al. 2024, AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for "
    "Transformers, arXiv 2402.05602"
)


def table(**rules: str | tuple[str, dict[str, Any]]) -> tuple[Rule, ...]:
    """`operation="rule"` or `operation=("rule", {options})`, one line each."""
    pairs = {op: (r, {}) if isinstance(r, str) else r for op, r in rules.items()}
    return tuple(
        Rule(op, name, options=tuple(options.items())) for op, (name, options) in pairs.items()
    )


_PAPER = table(
    linear="epsilon",
    add="epsilon",
    multiply="uniform",
    matmul="uniform",
    softmax="taylor",
    rms_norm="identity",
    layer_norm="epsilon",
    activation="identity",
    rotary="epsilon",
    pooling="epsilon",
    top_k="pass_through",
    renormalize="identity",
    gather="pass_through",
    combine="epsilon",
    scale="pass_through",
    movement="pass_through",
    embedding="leaf",
    learned="leaf",
    source="leaf",
)

ATTNLRP = Composite(
    "attnlrp", _PAPER, source=f"{ACHTIBAT}, eqs. 8, 9, 15, props. 3.1 to 3.4",
    summary="AttnLRP to the letter: epsilon, uniform products, softmax by its Taylor expansion",
)  # fmt: skip

ATTNLRP_GRADIENT = Composite(
    "attnlrp-gradient",
    _PAPER,
    formulation="gradient_x_input",
    source=f"{ACHTIBAT}; the gradient x input form is that of its library LXT",
    summary="AttnLRP in gradient x input form, R = x g: no stabilizer, the limit eps -> 0",
)

_CONSTANT_ATTENTION = (
    Rule("matmul", "second", "*context"),
    Rule("softmax", "constant"),
    Rule("multiply", "second"),
)

CP_LRP = Composite(
    "cp-lrp",
    (*_CONSTANT_ATTENTION, *_PAPER),
    formulation="gradient_x_input",
    source="Ali et al. 2022, XAI for Transformers: Better Explanations through Conservative "
    "Propagation, ICML, arXiv 2202.07304",
    summary="attention weights and gates are constants: relevance flows through the values alone, "
    "and in full",
)

LRP_0 = Composite(
    "lrp-0",
    _PAPER,
    source="Bach et al. 2015, PLoS ONE 10(7), eq. 56, with AttnLRP's rules for what is not "
    "linear; no stabilizer anywhere",
    summary="AttnLRP without any stabilizer; what lands on an exact zero is absorbed",
).with_options(stabilizer="none")

_ATTENTION_PROJECTIONS = ("query", "key", "value", "attention.output.dense")
_PATCHES = "*.patch_embeddings.projection"

_VISION = (
    *(Rule("linear", "epsilon", f"*.{name}") for name in _ATTENTION_PROJECTIONS),
    Rule("linear", "gamma", _PATCHES, (("gamma", 0.25),)),
    Rule("linear", "gamma", options=(("gamma", 0.05),)),
)

ATTNLRP_VIT = Composite(
    "attnlrp-vit",
    (*_VISION, Rule("softmax", "z_plus"), *_PAPER),
    source=f"{ACHTIBAT}, captions of figures 12 to 16",
    summary="AttnLRP for vision transformers: gamma 0.25 on patches and 0.05 on linear layers "
    "outside attention, z+ on the softmax",
)

ATTNLRP_VIT_BOX = ATTNLRP_VIT.override(Rule("linear", "z_box", _PATCHES), name="attnlrp-vit-box")
ATTNLRP_VIT_BOX = replace(
    ATTNLRP_VIT_BOX,
    source=f"{ATTNLRP_VIT.source}; Montavon et al. 2017, Pattern Recognition 65, z^B rule",
    summary="attnlrp-vit with the z-box rule on pixels, whose bounds follow from "
    "preprocessor_config.json (or are low and high)",
)

CP_LRP_VIT = Composite(
    "cp-lrp-vit",
    (*_CONSTANT_ATTENTION, *_VISION, *_PAPER),
    source=f"Ali et al. 2022, ICML, arXiv 2202.07304, with gamma as {ACHTIBAT} tunes it for "
    "vision transformers",
    summary="attnlrp-vit with attention weights as constants: relevance flows through the values "
    "alone, and in full",
)

_DERIVATIVES = table(
    linear="gradient",
    add="gradient",
    multiply="gradient",
    matmul="gradient",
    softmax="gradient",
    rms_norm="gradient",
    layer_norm="gradient",
    activation="gradient",
    rotary="gradient",
    pooling="gradient",
    top_k="pass_through",
    renormalize="gradient",
    gather="pass_through",
    combine="gradient",
    scale="pass_through",
    movement="pass_through",
    embedding="leaf",
    learned="leaf",
    source="leaf",
)

GRADIENT = Composite(
    "gradient",
    _DERIVATIVES,
    formulation="gradient_x_input",
    source="Simonyan et al. 2014, Deep Inside Convolutional Networks, arXiv 1312.6034",
    summary="the plain gradient; a token's score is the length of its gradient, and the "
    "conservation ledger are those of x g",
    score="norm",
)

INPUT_X_GRADIENT = Composite(
    "input-x-gradient",
    _DERIVATIVES,
    formulation="gradient_x_input",
    source="Shrikumar et al. 2016, Not Just a Black Box, arXiv 1605.01713",
    summary="input times gradient: the first-order Taylor term; the rest is absorbed as offsets",
)

LXT_EXPLICIT = Composite(
    "lxt-explicit",
    (
        Rule(
            "matmul",
            "uniform",
            "*context",
            (("eps", 1e-6), ("stabilizer", "plain"), ("denominator", "2(z+eps)")),
        ),
        *table(
            linear=("epsilon", {"eps": 1e-8, "stabilizer": "plain"}),
            add=("epsilon", {"eps": 1e-8, "stabilizer": "plain"}),
            matmul=("uniform", {"eps": 1e-8, "stabilizer": "plain"}),
            layer_norm=("epsilon", {"eps": 1e-6, "stabilizer": "plain"}),
            rotary=("epsilon", {"eps": 1e-8, "stabilizer": "plain"}),
            pooling=("epsilon", {"eps": 1e-6, "stabilizer": "plain"}),
        ),
        *_PAPER,
    ),
    source="LXT 2.1, lxt.explicit (relevance form): eps without the sign of z, and two forms of "
    "the matmul denominator",
    summary="AttnLRP as LXT's relevance form codes it, to compare with; its stabilizer is unsigned",
)

METHODS: dict[str, Composite] = {
    c.name: c
    for c in (
        ATTNLRP,
        ATTNLRP_GRADIENT,
        CP_LRP,
        LRP_0,
        GRADIENT,
        INPUT_X_GRADIENT,
        LXT_EXPLICIT,
        ATTNLRP_VIT,
        ATTNLRP_VIT_BOX,
        CP_LRP_VIT,
    )
}


def method(name: str) -> Composite:
    """A published method by name. Raises ReflError for a name that is none."""
    if name not in METHODS:
        raise ReflError(
            f"unknown method {name!r}: expected one of {', '.join(METHODS)}, or a .toml "
            "file with a composite"
        )
    return METHODS[name]


def from_saved(content: dict[str, Any]) -> Composite:
    """The composite that `as_dict` wrote down. Options at their defaults are left to the rules."""
    bare = Composite(
        content["name"],
        (),
        content["formulation"],
        content["source"],
        content["summary"],
        content["score"],
    )
    lines = [Rule(line["operation"], line["rule"], line["site"]) for line in content["rules"]]
    set_apart = [
        tuple(
            (key, value)
            for key, value in said["options"].items()
            if _spelled_out(line, bare).get(key) != value
        )
        for line, said in zip(lines, content["rules"], strict=True)
    ]
    return replace(
        bare,
        rules=tuple(
            replace(line, options=options) for line, options in zip(lines, set_apart, strict=True)
        ),
    )


def from_toml(path: str | Path) -> Composite:
    """A composite of one's own:

        name = "mine"
        base = "attnlrp"            # the lines below stand on top of this method's table
        [[rule]]
        operation = "linear"
        site = "model.layers.*.mlp.*"
        rule = "gamma"
        gamma = 0.25

    Raises ReflError for a file that cannot be read, an unknown key, operation, rule or option.
    """
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as reason:
        raise ReflError(f"cannot read the composite {path}: {reason}") from reason
    return from_dict(content, str(path))


def from_dict(content: dict[str, Any], where: str) -> Composite:
    """The same from a table already read; `where` names it in errors."""
    unknown = set(content) - {"name", "base", "formulation", "rule", "source", "summary"}
    if unknown:
        raise ReflError(
            f"{where} has the unknown key {min(unknown)!r}; a composite has name, base, "
            "carries, source, summary, [[rule]]"
        )
    lines = content.get("rule", [])
    if not isinstance(lines, list) or not all(isinstance(line, dict) for line in lines):
        raise ReflError(f"{where}: expected [[rule]] tables, got {lines!r}")
    base = method(content["base"]) if "base" in content else Composite("none", ())
    return Composite(
        str(content.get("name", where)),
        tuple(_line(line, where) for line in lines) + base.rules,
        content.get("formulation", base.formulation),
        str(content.get("source", base.source)),
        str(content.get("summary", base.summary)),
        base.score,
    )


def _line(line: dict[str, Any], where: str) -> Rule:
    if not isinstance(line.get("operation"), str) or not isinstance(line.get("rule"), str):
        raise ReflError(f"{where}: every [[rule]] needs an operation and a rule, got {line}")
    options = {
        key: value for key, value in line.items() if key not in ("operation", "rule", "site")
    }
    return Rule(line["operation"], line["rule"], str(line.get("site", "*")), tuple(options.items()))
