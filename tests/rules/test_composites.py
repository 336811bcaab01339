"""Composites: the published methods, how a table is read and changed, and tables from files."""

from __future__ import annotations

import math
import os
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from refl.errors import ReflError
from refl.io.composites import chosen, from_table, from_toml
from refl.rules import layer_norm, linear, rms_norm
from refl.rules.composites import Composite, Rule
from refl.rules.operations import OPERATIONS, rules_in
from refl.rules.published import CP_LRP, METHODS, identified, method
from refl.verification.random_models import LLAMA, random_model

# -- the published methods -------------------------------------------------------------------------


PAPER_RULES = {
    "linear": "epsilon",
    "add": "epsilon",
    "multiply": "uniform",
    "matmul": "uniform",
    "softmax": "taylor",
    "rms_norm": "identity",
    "layer_norm": "epsilon",
    "activation": "identity",
    "rotary": "epsilon",
    "pooling": "epsilon",
    "causal_convolution": "epsilon",
    "scan": "epsilon",
    "top_k": "pass_through",
    "renormalize": "identity",
    "gather": "pass_through",
    "combine": "epsilon",
    "scale": "pass_through",
    "movement": "pass_through",
    "embedding": "leaf",
    "learned": "leaf",
    "source": "leaf",
}
CONSTANTS = {"softmax": "constant", "multiply": "second"}
DERIVATIVES = {
    op: rule if rule in ("pass_through", "leaf") else "gradient" for op, rule in PAPER_RULES.items()
}
STABILIZED = (
    *("linear", "add", "matmul", "layer_norm", "rotary", "pooling", "combine"),
    *("causal_convolution", "scan"),
)
VISION = {"linear": "gamma", "softmax": "z_plus"}
EXPECTED = {
    "attnlrp": (PAPER_RULES, "relevance", "sum"),
    "attnlrp-gradient": (PAPER_RULES, "gradient_x_input", "sum"),
    "cp-lrp": (PAPER_RULES | CONSTANTS, "gradient_x_input", "sum"),
    "attnlrp-flattened": (PAPER_RULES, "relevance", "sum"),
    "lrp-0": (PAPER_RULES, "relevance", "sum"),
    "ding-2017": (PAPER_RULES | {"softmax": "identity"}, "relevance", "sum"),
    "gradient": (DERIVATIVES, "gradient_x_input", "norm"),
    "input-x-gradient": (DERIVATIVES, "gradient_x_input", "sum"),
    "relp": (PAPER_RULES | {"matmul": "gradient"}, "gradient_x_input", "sum"),
    "lxt-explicit": (PAPER_RULES, "relevance", "sum"),
    "attnlrp-vit": (PAPER_RULES | VISION, "relevance", "sum"),
    "attnlrp-vit-box": (PAPER_RULES | VISION, "relevance", "sum"),
    "cp-lrp-vit": (PAPER_RULES | VISION | CONSTANTS, "relevance", "sum"),
}


def test_the_published_methods() -> None:
    """Each gives every operation a rule, at an ordinary site the one of its paper."""
    assert list(METHODS) == list(EXPECTED)
    for name, (table, formulation, score) in EXPECTED.items():
        composite = method(name)
        assert (composite.name, composite.formulation, composite.score) == (
            name,
            formulation,
            score,
        )
        chosen = {op: composite.rule(op, ["h.3.some"]) for op in table}
        assert {op: rule.name for op, rule in chosen.items()} == table
        known = rules_in(formulation)
        assert all(rule.function is known[op][rule.name] for op, rule in chosen.items())
        assert set(table) == set(known)


ACHTIBAT = (
    "Achtibat et al. 2024, AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for "
    "Transformers, arXiv 2402.05602"
)
SOURCES = {
    "attnlrp": f"{ACHTIBAT}, eqs. 8, 9, 15, props. 3.1 to 3.4",
    "attnlrp-gradient": f"{ACHTIBAT}; the gradient x input form is that of its library LXT",
    "cp-lrp": "Ali et al. 2022, XAI for Transformers: Better Explanations through Conservative "
    "Propagation, ICML, arXiv 2202.07304",
    "attnlrp-flattened": f"{ACHTIBAT}, prop. 3.2 on products of three; that rules for two depend "
    "on the order of multiplication: You et al. 2025, When LRP Diverges from Leave-One-Out in "
    "Transformers, arXiv 2510.18810",
    "lrp-0": "Bach et al. 2015, PLoS ONE 10(7), eq. 56, with AttnLRP's rules for what is not "
    "linear; no stabilizer anywhere",
    "ding-2017": "Ding et al. 2017, Visualizing and Understanding Neural Machine Translation, ACL, "
    "weight ratios; norms, which its recurrent network has none of, as in LRP-0",
    "gradient": "Simonyan et al. 2014, Deep Inside Convolutional Networks, arXiv 1312.6034",
    "input-x-gradient": "Shrikumar et al. 2016, Not Just a Black Box, arXiv 1605.01713",
    "relp": "Rezaei Jafari et al. 2025, RelP: Faithful and Efficient Circuit Discovery via "
    "Relevance Patching, arXiv 2508.21258; LN-rule, Identity-rule and Half-rule, as the README of "
    "its code sets them",
    "lxt-explicit": "LXT 2.1, lxt.explicit (relevance form): eps without the sign of z, and two "
    "forms of the matmul denominator",
    "attnlrp-vit": f"{ACHTIBAT}, captions of figures 12 to 16",
    "attnlrp-vit-box": f"{ACHTIBAT}, captions of figures 12 to 16; Montavon et al. 2017, Pattern "
    "Recognition 65, z^B rule",
    "cp-lrp-vit": f"Ali et al. 2022, ICML, arXiv 2202.07304, with gamma as {ACHTIBAT} tunes it "
    "for vision transformers",
}
SUMMARIES = {
    "attnlrp": "AttnLRP to the letter: epsilon, uniform products, softmax by its Taylor expansion",
    "attnlrp-gradient": "AttnLRP in gradient x input form, R = x g: no stabilizer, the limit eps "
    "-> 0",
    "cp-lrp": "attention weights and gates are constants: relevance flows through the values "
    "alone, and in full",
    "attnlrp-flattened": "attnlrp with (q k^T) v and expert weight (gate up) as products of three: "
    "a third of the relevance to each factor, in whatever order they are multiplied",
    "lrp-0": "AttnLRP without any stabilizer; what lands on an exact zero is absorbed",
    "ding-2017": "ratios without any stabilizer, and a softmax that hands on what it gets; "
    "unstable by design",
    "gradient": "the plain gradient; a token's score is the length of its gradient, and the "
    "conservation ledger is that of x g",
    "input-x-gradient": "input times gradient: the first-order Taylor term; the rest is absorbed "
    "as offsets",
    "relp": "the coefficients of relevance patching: scales of norms and slopes f(x)/x constant, "
    "half to either factor of a gate; the products of attention by their derivative, in full",
    "lxt-explicit": "AttnLRP as LXT's relevance form codes it, to compare with; its stabilizer "
    "is unsigned",
    "attnlrp-vit": "AttnLRP for vision transformers: gamma 0.25 on patches and 0.05 on linear "
    "layers outside attention, z+ on the softmax",
    "attnlrp-vit-box": "attnlrp-vit with the z-box rule on pixels, whose bounds follow from "
    "preprocessor_config.json (or are low and high)",
    "cp-lrp-vit": "attnlrp-vit with attention weights as constants: relevance flows through the "
    "values alone, and in full",
}


def test_a_method_says_where_it_is_published_and_what_it_is() -> None:
    """Word for word: a wrong number of an equation or of a paper is a fault like any other."""
    assert {name: m.source for name, m in METHODS.items()} == SOURCES
    assert {name: m.summary for name, m in METHODS.items()} == SUMMARIES


def options(name: str, operation: str, role: str = "") -> tuple[str, dict[str, Any]]:
    rule = method(name).rule(operation, ["h.3.some"], role)
    return rule.name, rule.options


def test_the_published_options() -> None:
    """LRP-0 has no stabilizer anywhere; LXT's is unsigned, 1e-8 or 1e-6; elsewhere the rules' own
    defaults stand.
    """
    for op in PAPER_RULES:
        assert (
            options("attnlrp", op)[1]
            == options("attnlrp-gradient", op)[1]
            == options("input-x-gradient", op)[1]
            == {}
        )
        for name in ("lrp-0", "ding-2017"):
            assert options(name, op)[1] == ({"stabilizer": "none"} if op in STABILIZED else {})
    eps = {
        "linear": 1e-8,
        "add": 1e-8,
        "matmul": 1e-8,
        "layer_norm": 1e-6,
        "rotary": 1e-8,
        "pooling": 1e-6,
        "combine": 1e-8,  # a sum, as LXT's add2
        "causal_convolution": 1e-8,  # linear, as the next, in which LXT has no part
        "scan": 1e-8,
    }
    for op in PAPER_RULES:
        assert options("lxt-explicit", op)[1] == (
            {"eps": eps[op], "stabilizer": "plain"} if op in eps else {}
        )
    of_context = {"eps": 1e-6, "stabilizer": "plain", "denominator": "2(z+eps)"}
    assert options("lxt-explicit", "matmul", "attention.context") == ("uniform", of_context)


@pytest.mark.parametrize("stabilizer", ["sign", "plain", "none"])
def test_each_stabilizer_may_be_asked_for(stabilizer: str) -> None:
    asked = method("attnlrp").with_options(stabilizer=stabilizer)
    assert asked.rule("linear", ["h.3.some"]).options == {"stabilizer": stabilizer}


def test_the_published_roles() -> None:
    """CP-LRP passes on through p v alone; vision transformers: gamma 0.25 on patches, 0.05 outside
    attention, epsilon inside.
    """
    for name in ("cp-lrp", "cp-lrp-vit"):
        assert options(name, "matmul", "attention.context") == ("second", {})
        assert options(name, "matmul", "attention.scores") == ("uniform", {})
    for operation, role, factors in (
        ("matmul", "attention.context", (2, 1)),
        ("multiply", "expert.weighted", (1, 2)),
    ):
        assert options("attnlrp-flattened", operation, role) == (
            "flattened",
            {"factors": factors},
        )
        other = options("attnlrp-flattened", operation, "attention.scores")
        assert other == options("attnlrp", operation, "attention.scores")
    for name in ("attnlrp-vit", "attnlrp-vit-box", "cp-lrp-vit"):
        for part in ("query", "key", "value", "output"):
            assert options(name, "linear", f"attention.{part}") == ("epsilon", {})
        for role in ("mlp.up", "mlp.down", "head", "pooler", ""):
            assert options(name, "linear", role) == ("gamma", {"gamma": 0.05})
        assert options(name, "linear", "patch_embedding") == (
            ("z_box", {}) if name == "attnlrp-vit-box" else ("gamma", {"gamma": 0.25})
        )


def test_a_site_called_like_attention_is_not_taken_for_it() -> None:
    """What a net calls its modules decides nothing in the published methods."""
    for site in ("blocks.0.query", "encoder.q_proj", "patch_embeddings.projection", "h.0.context"):
        for operation in ("linear", "matmul", "softmax"):
            for composite in METHODS.values():
                named, bare = (composite.rule(operation, [s]) for s in (site, "h.3.some"))
                assert (named.name, named.options) == (bare.name, bare.options)
    assert not any(line.site != "*" for c in METHODS.values() for line in c.rules)


def test_every_rule_goes_by_its_name() -> None:
    assert {op: set(rules) for op, rules in rules_in("relevance").items()} == {
        op: {rule} for op, rule in PAPER_RULES.items()
    } | {
        "linear": {"epsilon", "gamma", "z_plus", "alpha_beta", "flat", "w_square", "z_box"},
        "layer_norm": {"epsilon", "identity"},
        "matmul": {"uniform", "flattened", "second"},
        "multiply": {"uniform", "flattened", "second"},
        "renormalize": {"identity", "epsilon"},
        "rotary": {"epsilon", "uniform"},
        "softmax": {"taylor", "spread", "z_plus", "identity", "constant"},
    }  # fmt: skip
    assert all(
        function.__name__ == name
        for rules in rules_in("relevance").values()
        for name, function in rules.items()
    )
    in_gradient_form = {op: {PAPER_RULES[op], DERIVATIVES[op]} for op in PAPER_RULES} | {
        "scale": {"pass_through"}
    }
    more = {
        "matmul": {"flattened", "second"},
        "multiply": {"flattened", "second"},
        "softmax": {"constant"},
        "renormalize": {"epsilon"},
        "rotary": {"uniform"},
    }
    assert {op: set(rules) for op, rules in rules_in("gradient_x_input").items()} == {
        op: names | more.get(op, set()) for op, names in in_gradient_form.items()
    }


def test_cp_lrp_conserves() -> None:
    """Without biases all of the logit arrives at the tokens."""
    e = random_model(LLAMA, seed=2).explain([3, 1, 4, 1, 5], CP_LRP)
    assert abs(e.relevance.sum() - e.logit) <= 1e-12


# -- tables ----------------------------------------------------------------------------------------


MINE = Composite(
    "mine",
    (
        Rule("linear", "gamma", "*.mlp", (("gamma", 0.5),)),
        Rule("*_norm", "identity"),
        Rule("linear", "epsilon"),
        Rule("softmax", "constant"),
    ),
    source="a book",
    summary="a try",
    score="norm",
)


def test_a_line_for_any_role_is_not_for_none() -> None:
    """`?*` asks for a role with a name; an operation whose role nobody says has the role ""."""
    line = Rule("linear", "gamma", role="?*")
    assert line.fits("linear", ["h"], "mlp.up")
    assert not line.fits("linear", ["h"])
    composite = method("attnlrp").override(line)
    assert composite.rule("linear", ["h"], "mlp.up").name == "gamma"
    assert composite.rule("linear", ["h"]).name == "epsilon"


def test_a_table_is_read_from_the_top() -> None:
    assert (
        MINE.rule("linear", ["x", "h.mlp"]).options == {"gamma": 0.5}
        and MINE.rule("linear", ["h.mlp"]).function is linear.gamma
    )
    assert (
        MINE.rule("linear", ["h.mlp.x"]).name == "epsilon"
        and MINE.rule("linear", ["h.mlp.x"]).options == {}
    )
    assert (
        MINE.rule("rms_norm", ["n"]).function is rms_norm.identity
        and MINE.rule("layer_norm", ["n"]).function is layer_norm.identity
    )
    sentence = "composite mine has no rule for add at h.0: add a line for it to its table"
    with pytest.raises(ReflError, match=exactly(sentence)):
        MINE.rule("add", ["h.0", "other"])


def exactly(sentence: str) -> str:
    return f"^{re.escape(sentence)}$"


def test_a_composite_by_itself_has_defaults() -> None:
    bare = Composite("bare", ())
    assert (bare.formulation, bare.source, bare.summary, bare.score) == ("relevance", "", "", "sum")
    assert Rule("linear", "epsilon") == Rule("linear", "epsilon", "*", ())


def test_lines_on_top_win() -> None:
    line = Rule("linear", "z_plus", "h.*")
    changed = MINE.override(line, Rule("add", "epsilon"))
    assert changed.name == "mine (changed)" and changed.rules == (
        line,
        Rule("add", "epsilon"),
        *MINE.rules,
    )
    said = ("linear site h.*: z_plus (eps=0.0)", "add: epsilon (eps=1e-06, stabilizer=sign)")
    assert (changed.base, set(changed.changes)) == ("mine", set(said))
    assert (changed.source, changed.score) == ("base: a book", "norm")
    assert changed.summary == f"mine changed: {'; '.join(changed.changes)}"
    assert MINE.override(line, name="yours").name == "yours"


def test_givenreach_the_lines_that_take_them() -> None:
    changed = MINE.with_options(eps=0.5)
    assert [dict(line.options) for line in changed.rules] == [
        {"gamma": 0.5, "eps": 0.5},
        {},
        {"eps": 0.5},
        {},
    ]
    assert [dict(line.options) for line in MINE.with_options(gamma=2.0).rules] == [
        {"gamma": 2.0},
        {},
        {},
        {},
    ]
    assert (changed.name, changed.summary) == ("mine (eps=0.5)", "mine changed: eps=0.5")
    with pytest.raises(
        ReflError,
        match=exactly(
            "no rule of composite mine takes the option 'alpha'; it knows eps, gamma, stabilizer"
        ),
    ):
        MINE.with_options(eps=1.0, alpha=2.0)
    with pytest.raises(
        ReflError, match=exactly("no rule of composite bare takes the option 'eps'; it knows none")
    ):
        Composite("bare", (Rule("softmax", "taylor"),)).with_options(eps=1.0)
    sentence = (
        "composite cp-lrp is in gradient x input form, in which every eps cancels: leave eps "
        "out, or take another method"
    )
    with pytest.raises(ReflError, match=exactly(sentence)):
        CP_LRP.with_options(eps=1.0)


def test_a_table_spelled_out() -> None:
    assert MINE.as_dict() == {
        "name": "mine",
        "formulation": "relevance",
        "source": "a book",
        "summary": "a try",
        "score": "norm",
        "base": "",
        "changes": [],
        "hash": MINE.hash,
        "rules": [
            {
                "operation": "linear",
                "role": "*",
                "site": "*.mlp",
                "rule": "gamma",
                "options": {"gamma": 0.5, "eps": 0.0},
            },
            {"operation": "*_norm", "role": "*", "site": "*", "rule": "identity", "options": {}},
            {
                "operation": "linear",
                "role": "*",
                "site": "*",
                "rule": "epsilon",
                "options": {"eps": 1e-6, "stabilizer": "sign"},
            },
            {"operation": "softmax", "role": "*", "site": "*", "rule": "constant", "options": {}},
        ],
    }


def test_a_line_for_several_operations_has_the_givenof_each() -> None:
    several = Composite("several", (Rule("m*", "uniform"),))  # matmul and multiply
    assert several.as_dict()["rules"][0]["options"] == {
        "eps": 1e-6,
        "stabilizer": "sign",
        "denominator": "2z+eps",
    }
    assert several.with_options(eps=0.5).rules == (Rule("m*", "uniform", "*", (("eps", 0.5),)),)


@pytest.mark.parametrize("composite", [*METHODS.values(), MINE], ids=lambda c: str(c.name))
def test_a_table_comes_back(composite: Composite) -> None:
    again = Composite.from_dict(composite.as_dict())
    assert again.as_dict() == composite.as_dict()
    if not composite.name.endswith(
        ("explicit", "vit", "box")
    ):  # which state some defaults, and these are left out
        assert again == composite


def refused(sentence: str, *lines: Rule, formulation: str = "relevance") -> None:
    with pytest.raises(ReflError, match=exactly(sentence)):
        Composite("mine", lines, formulation)


def test_what_a_table_may_not_say() -> None:
    operations = ", ".join(rules_in("relevance"))
    refused(
        "composite mine has the formulation 'both': expected 'relevance' or 'gradient_x_input'",
        formulation="both",
    )
    refused(
        f"composite mine names the operation 'conv'; there are {operations}",
        Rule("conv", "epsilon"),
    )
    linear_rules = "alpha_beta, epsilon, flat, gamma, w_square, z_box, z_plus"
    refused(
        "composite mine names the rule 'gama' for linear; in relevance form there "
        f"are: {linear_rules}",
        Rule("linear", "gama"),
    )
    refused(
        "composite mine names the rule 'gamma' for linear; in gradient x input form "
        "there are: epsilon, gradient",
        Rule("linear", "gamma"),
        formulation="gradient_x_input",
    )
    refused(
        "composite mine names the rule 'gamma' for *_norm; in relevance form there are: epsilon, "
        "identity",
        Rule("*_norm", "gamma"),
    )


def test_what_an_option_may_not_be() -> None:
    def line(rule: str, operation: str = "linear", **options: Any) -> Rule:
        return Rule(operation, rule, options=tuple(options.items()))

    refused(
        "rule gamma for linear has no option 'gama'; it takes gamma, eps", line("gamma", gama=1.0)
    )
    refused(
        "rule taylor for softmax has no option 'mask'; it takes none",
        line("taylor", "softmax", mask=None),
    )
    refused(
        "stabilizer is 'signed': expected one of sign, plain, none",
        line("epsilon", stabilizer="signed"),
    )
    refused(
        "denominator is '2z': expected one of 2z+eps, 2(z+eps)",
        line("uniform", "matmul", denominator="2z"),
    )
    for value in (True, "1", math.inf, math.nan):
        refused(f"gamma is {value!r}: expected a finite number", line("gamma", gamma=value))
    for value in (0, -1.0, 0.0):
        refused(
            f"eps is {value!r}: expected a number above 0; for no stabilizer at all set "
            "stabilizer='none'",
            line("epsilon", eps=value),
        )
    for key in ("alpha", "beta"):
        refused(
            f"{key} is -0.5: expected a number of at least 0", line("alpha_beta", **{key: -0.5})
        )
    refused("gamma is -0.5: expected a number of at least 0", line("gamma", gamma=-0.5))
    for key in ("low", "high"):
        for value in ([], "0", True, [0.0, False], math.inf, [math.nan], [0.0, "1"], None):
            refused(
                f"{key} is {value!r}: expected a finite number, or a list of them",
                line("z_box", **{key: value}),
            )
    refused(
        "alpha_beta needs alpha - beta = 1, got alpha=2.0, beta=0.5", line("alpha_beta", beta=0.5)
    )
    refused(
        "alpha_beta needs alpha - beta = 1, got alpha=1.0, beta=1.0", line("alpha_beta", alpha=1.0)
    )
    for factors in ((2,), (2, 0), (1.0, 2), 3, "21", (True, 1)):
        refused(
            f"factors is {factors!r}: expected a list of whole numbers above 0, one for each "
            "operand",
            line("flattened", "matmul", factors=factors),
        )
    refused(
        "alpha_beta needs alpha - beta = 1, got alpha=1.5, beta=0.50000000001",
        line("alpha_beta", alpha=1.5, beta=0.50000000001),
    )


def test_what_an_option_may_be() -> None:
    for rule, operation, given in (
        ("epsilon", "linear", {"eps": 1, "stabilizer": "plain"}),
        ("uniform", "matmul", {"denominator": "2(z+eps)", "eps": 1e-30}),
        ("gamma", "linear", {"gamma": 0}),
        ("alpha_beta", "linear", {"alpha": 1, "beta": 0}),
        ("alpha_beta", "linear", {"alpha": 1.1, "beta": 1.1 - 1}),  # 1e-16 off
        ("z_box", "linear", {"low": [-1, -2.5], "high": (0.0, 1)}),
        ("z_box", "linear", {"low": -3, "high": 0}),
        ("flattened", "matmul", {"factors": [2, 1]}),
        ("flattened", "multiply", {"factors": (1, 1, 4)}),
    ):
        composite = Composite("mine", (Rule(operation, rule, options=tuple(given.items())),))
        assert composite.rule(operation, ["x"]).options == given


# -- names and files -------------------------------------------------------------------------------


def test_an_unknown_method() -> None:
    sentence = (
        f"unknown method 'lrp': expected one of {', '.join(EXPECTED)}, or a .toml file with a "
        "composite"
    )
    with pytest.raises(ReflError, match=exactly(sentence)):
        method("lrp")


def test_a_composite_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        'name = "mine"\nbase = "gradient"\nsource = "a book"\n[[rule]]\noperation = '
        '"softmax"\nsite = "h.*"\nrule = "constant"\n',
        "utf-8",
    )
    mine, base = from_toml(file), METHODS["gradient"]
    assert mine.rules == (Rule("softmax", "constant", "h.*"), *base.rules)
    assert (mine.name, mine.formulation, mine.source, mine.summary, mine.score) == (
        "mine",
        "gradient_x_input",
        "a book",
        "gradient changed: softmax site h.*: constant",
        "norm",
    )
    file.write_text(
        'formulation = "gradient_x_input"\nsummary = "é"\n'
        '[[rule]]\noperation = "linear"\nrule = "epsilon"\n',
        "utf-8",
    )
    bare = from_toml(str(file))
    assert bare == Composite(str(file), (Rule("linear", "epsilon"),), "gradient_x_input", "", "é")
    file.write_text(
        '[[rule]]\noperation = "linear"\nrule = "gamma"\ngamma = 0.5\neps = 0.25\n', "utf-8"
    )
    assert from_toml(file).rules == (Rule("linear", "gamma", "*", (("gamma", 0.5), ("eps", 0.25))),)
    file.write_text(
        '[[rule]]\noperation = "linear"\nrole = "attention.*"\nrule = "flat"\n', "utf-8"
    )
    assert from_toml(file).rules == (Rule("linear", "flat", role="attention.*"),)


def test_a_composite_without_lines() -> None:
    assert from_table({}, "mine") == Composite("mine", ())
    assert from_table({"base": "cp-lrp", "summary": "3"}, "mine") == Composite(
        "mine", CP_LRP.rules, "gradient_x_input", CP_LRP.source, "3"
    )


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            {"nam": 1, "z": 2},
            (
                "mine has the unknown key 'nam'; a composite has name, base, formulation, source, "
                "summary, [[rule]]"
            ),
        ),
        ({"rule": 3}, "mine: expected [[rule]] tables, got 3"),
        ({"rule": [3]}, "mine: expected [[rule]] tables, got [3]"),
        (
            {"rule": [{"operation": "linear"}]},
            "mine: every [[rule]] needs an operation and a rule, got {'operation': 'linear'}",
        ),
        (
            {"rule": [{"rule": "flat"}]},
            "mine: every [[rule]] needs an operation and a rule, got {'rule': 'flat'}",
        ),
        (
            {"rule": [{"operation": "linear", "rule": 1}]},
            (
                "mine: every [[rule]] needs an operation and a rule, got {'operation': 'linear', "
                "'rule': 1}"
            ),
        ),
    ],
)
def test_what_a_file_may_not_say(content: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ReflError, match=exactly(sentence)):
        from_table(content, "mine")


@pytest.mark.parametrize("content", [b"name = ", b"\xff\xfe", None])
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "mine.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(
        ReflError, match=f"^cannot read the composite {re.escape(str(file))}: .+"
    ) as caught:
        from_toml(file)
    assert caught.value.__cause__ is not None and str(caught.value).endswith(
        str(caught.value.__cause__)
    )


def test_a_composite_is_read_as_utf_8_in_any_locale(tmp_path: Path, monkeypatch: Any) -> None:
    """What Python would take where nothing is said depends on the machine, so bytes are read."""
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: pytest.fail("in which encoding?"))
    file = tmp_path / "mine.toml"
    file.write_bytes('summary = "é"'.encode())
    assert from_toml(file).summary == "é"


# -- a changed table says so -----------------------------------------------------------------------

LETTER = "to the letter"
GAMMA: dict[str, Any] = {"operation": "linear", "role": "mlp.*", "rule": "gamma", "gamma": 0.25}
ON_TOP = {"base": "attnlrp", "rule": [GAMMA]}
RIGHT = {"rule": "epsilon", "eps": 1e-6}
EPSILON = Rule("linear", "epsilon", options=(("eps", 1e-6),), role="mlp.*")


@pytest.mark.parametrize(
    ("composite", "title", "words"),
    [
        (chosen("attnlrp", 1e-3), "attnlrp (eps=0.001)", ("eps=0.001",)),
        (
            chosen("attnlrp", 1e-3, "plain"),
            "attnlrp (eps=0.001, stabilizer=plain)",
            ("eps=0.001", "stabilizer=plain"),
        ),
        (
            chosen(chosen("attnlrp", 1e-3), 1e-2),
            "attnlrp (eps=0.001) (eps=0.01)",
            ("eps=0.01",),
        ),
        (
            method("attnlrp").override(Rule("softmax", "identity")),
            "attnlrp (changed)",
            ("softmax: identity",),
        ),
        (
            from_table(ON_TOP | {"name": "mine"}, "f"),
            "mine (attnlrp changed)",
            ("linear role mlp.*: gamma (eps=0.0, gamma=0.25)",),
        ),
        (
            from_table(ON_TOP | {"name": "attnlrp"}, "f"),
            "attnlrp (changed)",
            ("linear role mlp.*: gamma (eps=0.0, gamma=0.25)",),
        ),
        (
            chosen(replace(METHODS["attnlrp"], rules=(Rule("softmax", "taylor"),))),
            "attnlrp (changed)",
            (f"no line for {', '.join(sorted(set(OPERATIONS) - {'softmax'}))}",),
        ),
        (
            Composite.from_dict(chosen("cp-lrp-vit", 0.5).as_dict()),
            "cp-lrp-vit (eps=0.5)",
            ("eps=0.5",),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_changed_composite_says_what_was_changed(
    composite: Composite, title: str, words: tuple[str, ...]
) -> None:
    told = composite.as_dict()
    assert (composite.title, tuple(told["changes"])) == (title, words)
    assert told["base"] in METHODS and told["hash"] != METHODS[told["base"]].hash
    assert LETTER not in f"{composite.summary}{told}{composite!r}" and title in repr(composite)
    assert told["source"] == f"base: {METHODS[told['base']].source}"
    assert composite.hash[:12] in repr(composite)


@pytest.mark.parametrize(
    "composite",
    [
        chosen("attnlrp", 1e-6, "sign"),
        chosen(chosen("attnlrp", 1e-3), 1e-6),
        chosen(method("attnlrp").override(Rule("linear", "epsilon"), EPSILON)),
        from_table({"name": "attnlrp", "base": "attnlrp"}, "f"),
        from_table(
            {
                "name": "attnlrp",
                "base": "attnlrp",
                "rule": [{"operation": "linear", "role": "mlp.*"} | RIGHT],
            },
            "f",
        ),
        chosen(Composite("attnlrp", METHODS["attnlrp"].rules[::-1])),
    ],
    ids=["options", "there and back", "lines", "base", "file", "order"],
)
def test_what_changes_nothing_is_no_change(composite: Composite) -> None:
    assert (composite.title, composite.changes) == ("attnlrp", ())
    assert composite.hash == METHODS["attnlrp"].hash


@pytest.mark.parametrize("name", ["attnlrp", "AttnLRP", " attnlrp", "attn\u200blrp", "ａttnlrp"])
@pytest.mark.parametrize("base", [{}, {"base": "lrp-0"}, {"base": "attnlrp"}])
def test_nothing_passes_for_a_published_method(name: str, base: dict[str, str]) -> None:
    """By its name, by its summary, whether in TOML or in an oracle file."""
    content = base | {"name": name, "summary": METHODS["attnlrp"].summary, "rule": [GAMMA]}
    file = from_table(content, "f")
    stored = METHODS["attnlrp"].as_dict() | {"name": name, "rules": file.as_dict()["rules"]}
    for passed in (file, identified(Composite.from_dict(stored)), chosen(replace(file, base=""))):
        assert "changed" in passed.title and passed.changes
        assert "changed" in passed.name or passed.title != passed.name
        assert LETTER not in passed.summary


def test_a_hash_is_of_what_the_table_does() -> None:
    hashes = {m.hash for m in METHODS.values()}
    assert len(hashes) == len(METHODS)
    assert replace(METHODS["attnlrp"], name="other", summary="", source="").hash in hashes
    assert replace(METHODS["attnlrp"], score="norm").hash not in hashes
    assert chosen("attnlrp", 2e-6).hash not in hashes


def test_published_methods_keep_their_names() -> None:
    for name, known in METHODS.items():
        assert identified(known) is known and chosen(name) is known
        again = identified(Composite.from_dict(known.as_dict()))
        assert (again.title, again.summary, again.changes) == (name, known.summary, ())


def test_bounds_of_pixels_are_the_checkpoint_s() -> None:
    """They follow from preprocessor_config.json; others of one's own are a change."""
    box = METHODS["attnlrp-vit-box"]
    bounded = Rule("linear", "z_box", options=(("low", -1), ("high", 1)), role="patch_embedding")
    ran = replace(box, rules=(bounded, *box.rules[1:]))
    assert identified(ran).title == "attnlrp-vit-box" and not identified(ran).changes
    assert box.override(bounded).changes == ("low=-1.0",)


def test_a_summary_of_one_s_own_stands() -> None:
    mine = from_table(ON_TOP | {"name": "mine", "summary": "gamma, as I like it"}, "f")
    assert mine.summary == "gamma, as I like it" and mine.title == "mine (attnlrp changed)"


# -- lines for several operations, and files that are none -----------------------------------------


def test_a_line_for_every_operation_is_for_those_that_have_its_rule() -> None:
    """By hand: gamma is linear's alone, so the base's lines hold for the others; uniform of a
    product has no eps, epsilon of a sum has one.
    """
    everywhere = METHODS["attnlrp"].override(Rule("*", "gamma", options=(("gamma", 0.5),)))
    assert everywhere.rule("linear", ["a"]).options == {"gamma": 0.5}
    assert everywhere.rule("softmax", ["a"]) == METHODS["attnlrp"].rule("softmax", ["a"])
    several = METHODS["attnlrp"].override(Rule("*", "uniform", options=(("eps", 0.25),)))
    assert several.rule("matmul", ["a"]).options == {"eps": 0.25}
    assert several.rule("multiply", ["a"]).name == "uniform"
    assert several.rule("multiply", ["a"]).options == {}


@pytest.mark.parametrize(
    "content",
    [
        "base = []", "base = 3", "name = 3", "formulation = []", "source = [1]", "rule = 3",
        "rule = [3]", '[[rule]]\noperation = ["linear"]\nrule = "flat"', "[[rule]]",
        '[[rule]]\noperation = "linear"\nrule = "gamma"\nsite = 3',
        '[[rule]]\noperation = "linear"\nrule = "gamma"\nrole = [""]',
        f'[[rule]]\noperation = "linear"\nrule = "gamma"\ngamma = {10**400}',
        f'[[rule]]\noperation = "linear"\nrule = "gamma"\ngamma = 1{"0" * 5000}',
        '[[rule]]\noperation = "linear"\nrule = "gamma"\ngamma = nan',
        '[[rule]]\noperation = "linear"\nrule = "gamma"\ngamma = {a = 1}',
        f'[[rule]]\noperation = "linear"\nrule = "z_box"\nlow = [{10**400}]',
        '[[rule]]\noperation = "linear"\nrule = "epsilon"\neps = inf',
        '[[rule]]\noperation = "linear"\nrule = "epsilon"\nstabilizer = []',
        '[[rule]]\noperation = "*"\nrule = "nonsense"', f"a = {'[' * 900}{']' * 900}",
        f"rule = {'[' * 90}{']' * 90}", 'base = "mine.toml"', "a.b.c = 1", "d = 1979-05-27",
    ],
)  # fmt: skip
def test_strange_files_are_refused_in_a_sentence(content: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(content)
    with pytest.raises(ReflError):
        from_toml(tmp_path / "mine.toml")


def test_what_is_no_file_is_refused_unread(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "long.toml").write_bytes(b"#" * (2 << 20))
    for name in ("pipe.toml", "folder.toml", "long.toml", "none.toml", "a\0b.toml"):
        with pytest.raises(ReflError):
            from_toml(tmp_path / name)
    with pytest.raises(ReflError, match="pipe or device"):
        from_toml("/dev/zero")


def test_an_explanation_s_repr_names_what_was_changed() -> None:
    mine = from_table(ON_TOP | {"name": "mine"}, "f")
    for how, title in ((mine, "mine (attnlrp changed)"), ("attnlrp", "attnlrp on")):
        e = random_model(LLAMA, 0).explain([1, 2], how, keep=())
        assert title in repr(e)


def test_a_composite_that_was_used_is_the_same() -> None:
    """What it keeps of its own table is in no pickle and no comparison."""
    fresh, used = replace(CP_LRP), replace(CP_LRP)
    used.rule("linear", ["h"], "mlp.up")
    assert pickle.dumps(used) == pickle.dumps(fresh)
    assert used == fresh and hash(used) == hash(fresh) and repr(used) == repr(fresh)
    assert pickle.loads(pickle.dumps(used)).rule("linear", ["h"]) == fresh.rule("linear", ["h"])
