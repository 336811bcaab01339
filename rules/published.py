"""The published methods that are tables of rules, each with its citation."""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from typing import Any

from refl.errors import ReflError, shown
from refl.rules import changes
from refl.rules.composites import Composite, Rule

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
    causal_convolution="epsilon",
    scan="epsilon",  # Rezaei Jafari et al. 2024, MambaLRP: all but what is scanned is constant
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
    "attnlrp",
    _PAPER,
    source=f"{ACHTIBAT}, eqs. 8, 9, 15, props. 3.1 to 3.4",
    summary="AttnLRP to the letter: epsilon, uniform products, softmax by its Taylor expansion",
)

ATTNLRP_GRADIENT = Composite(
    "attnlrp-gradient",
    _PAPER,
    formulation="gradient_x_input",
    source=f"{ACHTIBAT}; the gradient x input form is that of its library LXT",
    summary="AttnLRP in gradient x input form, R = x g: no stabilizer, the limit eps -> 0",
)

_CONSTANT_ATTENTION = (
    Rule("matmul", "second", role="attention.context"),
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
)
LRP_0 = replace(LRP_0, rules=LRP_0.with_options(stabilizer="none").rules)

DING = replace(
    LRP_0,
    name="ding-2017",
    rules=(Rule("softmax", "identity"), *LRP_0.rules),
    base="",
    changes=(),
    source="Ding et al. 2017, Visualizing and Understanding Neural Machine Translation, ACL, "
    "weight ratios; norms, which its recurrent network has none of, as in LRP-0",
    summary="ratios without any stabilizer, and a softmax that hands on what it gets; unstable by "
    "design",
)

_VISION = (
    Rule("linear", "epsilon", role="attention.*"),
    Rule("linear", "gamma", options=(("gamma", 0.25),), role="patch_embedding"),
    Rule("linear", "gamma", options=(("gamma", 0.05),)),
)

ATTNLRP_VIT = Composite(
    "attnlrp-vit",
    (*_VISION, Rule("softmax", "z_plus"), *_PAPER),
    source=f"{ACHTIBAT}, captions of figures 12 to 16",
    summary="AttnLRP for vision transformers: gamma 0.25 on patches and 0.05 on linear layers "
    "outside attention, z+ on the softmax",
)

ATTNLRP_VIT_BOX = Composite(
    "attnlrp-vit-box",
    (Rule("linear", "z_box", role="patch_embedding"), *ATTNLRP_VIT.rules),
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
    causal_convolution="gradient",
    scan="gradient",
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
    "conservation ledger is that of x g",
    score="norm",
)

INPUT_X_GRADIENT = Composite(
    "input-x-gradient",
    _DERIVATIVES,
    formulation="gradient_x_input",
    source="Shrikumar et al. 2016, Not Just a Black Box, arXiv 1605.01713",
    summary="input times gradient: the first-order Taylor term; the rest is absorbed as offsets",
)

_THREEFOLD = (
    Rule("matmul", "flattened", role="attention.context", options=(("factors", (2, 1)),)),
    Rule("multiply", "flattened", role="expert.weighted", options=(("factors", (1, 2)),)),
)
"""Products of three, whatever their brackets: a probability comes from q k^T (for whose scores the
uniform rule then gives a half of two thirds each), and an expert's output from gate times up.
"""

ATTNLRP_FLATTENED = Composite(
    "attnlrp-flattened",
    (*_THREEFOLD, *_PAPER),
    source=f"{ACHTIBAT}, prop. 3.2 on products of three; that rules for two depend on the order "
    "of multiplication: You et al. 2025, When LRP Diverges from Leave-One-Out in Transformers, "
    "arXiv 2510.18810",
    summary="attnlrp with (q k^T) v and expert weight (gate up) as products of three: a third of "
    "the relevance to each factor, in whatever order they are multiplied",
)

RELP = Composite(
    "relp",
    (Rule("matmul", "gradient"), *_PAPER),
    formulation="gradient_x_input",
    source="Rezaei Jafari et al. 2025, RelP: Faithful and Efficient Circuit Discovery via "
    "Relevance Patching, arXiv 2508.21258; LN-rule, Identity-rule and Half-rule, as the README of "
    "its code sets them",
    summary="the coefficients of relevance patching: scales of norms and slopes f(x)/x constant, "
    "half to either factor of a gate; the products of attention by their derivative, in full",
)

LXT_EXPLICIT = Composite(
    "lxt-explicit",
    (
        Rule(
            "matmul",
            "uniform",
            options=(("eps", 1e-6), ("stabilizer", "plain"), ("denominator", "2(z+eps)")),
            role="attention.context",
        ),
        *table(
            linear=("epsilon", {"eps": 1e-8, "stabilizer": "plain"}),
            add=("epsilon", {"eps": 1e-8, "stabilizer": "plain"}),
            combine=("epsilon", {"eps": 1e-8, "stabilizer": "plain"}),
            matmul=("uniform", {"eps": 1e-8, "stabilizer": "plain"}),
            layer_norm=("epsilon", {"eps": 1e-6, "stabilizer": "plain"}),
            rotary=("epsilon", {"eps": 1e-8, "stabilizer": "plain"}),
            pooling=("epsilon", {"eps": 1e-6, "stabilizer": "plain"}),
            causal_convolution=("epsilon", {"eps": 1e-8, "stabilizer": "plain"}),
            scan=("epsilon", {"eps": 1e-8, "stabilizer": "plain"}),
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
        ATTNLRP_FLATTENED,
        LRP_0,
        DING,
        GRADIENT,
        INPUT_X_GRADIENT,
        RELP,
        LXT_EXPLICIT,
        ATTNLRP_VIT,
        ATTNLRP_VIT_BOX,
        CP_LRP_VIT,
    )
}


def method(name: str) -> Composite:
    """A published method by name. Raises ReflError for a name that is none."""
    if not isinstance(name, str) or name not in METHODS:
        said = shown(repr(name)) if isinstance(name, str) else f"of type {type(name).__name__}"
        raise ReflError(
            f"unknown method {said}: expected one of {', '.join(METHODS)}, or a .toml file with a "
            "composite"
        )
    return METHODS[name]


def identified(composite: Composite) -> Composite:
    """The composite under a name that is true. Whoever made it: where it goes by the name, the
    summary or the base of a published method and its table is another one, it says so.
    """
    claimed = _claimed(composite)
    if claimed is None or composite is claimed:
        return composite
    composite = _completed(composite, claimed)
    bare, goes_by_it = "(" not in composite.name, _names(composite, claimed)
    if goes_by_it and not bare and composite.hash == claimed.hash:
        return claimed
    if changes.fingerprint(_unbounded(composite.as_dict())) == claimed.hash:
        return composite
    if composite.changes and composite.summary != claimed.summary and not (bare and goes_by_it):
        return composite
    name = f"{composite.name} (changed)" if bare and goes_by_it else composite.name
    return replace(composite, base="", changes=()).changed_from(claimed, name)


LATER = ("causal_convolution", "scan")
"""Operations that files of 0.4 and before have no line for."""


def _completed(composite: Composite, claimed: Composite) -> Composite:
    """With the lines for operations that came later, where it is the published table without
    them, or stands on top of it.
    """
    before = tuple(r for r in claimed.rules if r.operation not in LATER)
    on_top = len(composite.rules) - len(before)
    if on_top < 0 or composite.rules[on_top:] != before or len(before) == len(claimed.rules):
        return composite
    return replace(composite, rules=composite.rules[:on_top] + claimed.rules)


def _claimed(composite: Composite) -> Composite | None:
    """The published method that a composite says it is, or is a change of."""
    for known in METHODS.values():
        if known.name == composite.base or _names(composite, known):
            return known
    return next((m for m in METHODS.values() if m.summary == composite.summary), None)


def _names(composite: Composite, known: Composite) -> bool:
    """Whether it goes by the name of the published one, whatever stands behind in parentheses."""
    return _key(composite.name.partition("(")[0]) == known.name


def _key(name: str) -> str:
    """A name as it is read: without regard to case, blanks, signs that do not show."""
    plain = unicodedata.normalize("NFKC", name).casefold()
    return "".join(c for c in plain if c.isprintable() and not c.isspace()).replace("_", "-")


def _unbounded(table: changes.Table) -> changes.Table:
    """Without the bounds of pixels, which follow from the checkpoint."""
    bounds = {"low": 0.0, "high": 1.0}
    rules = [
        line | {"options": line["options"] | (bounds if line["rule"] == "z_box" else {})}
        for line in table["rules"]
    ]
    return table | {"rules": rules}
