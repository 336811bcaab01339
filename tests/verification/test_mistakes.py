"""The known mistakes: their right parts against the exact definitions, and each of them against an
answer that is right.

Right answers come from `exact.py`, by way of the vectors' generator. A few wrong ones are held
against numbers that were measured in the libraries that have the mistake.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest

from refl.rules.published import METHODS
from refl.verification.compare.alternatives import alternatives
from refl.verification.conformance.mistakes import (
    MISTAKES,
    NOT_SHOWN,
    STRUCTURAL,
    Mistake,
    NoDifference,
)
from refl.verification.conformance.reference_rules import ReferenceRules, rounded
from refl.verification.quality.plant_peer_faults import PLANTS
from refl.verification.vectors import make_vectors, rule_vectors
from refl.verification.vectors.case import SIGNATURES, UNITS, Case, decode, encode
from refl.verification.vectors.catalogue import CATALOGUE, KnownMistake

RULES = (*SIGNATURES, "network")

FOUND_IN_LIBRARIES = (
    "eps-unsigned",
    "eps-zero-sign",
    "eps-two-forms",
    "softmax-dim",
    "softmax-shifted",
    "mask-finfo",
    "tril-always",
    "cp-half",
    "halved-linear",
    "moe-degree-0",
    "identity-in-wrong-form",
    "product-proportional",
    "residual-absolute",
    "constant-eats-share",
    "relu-identity-lost",
    "rule-forgotten",
    "conv-doubled",
    "safe-divide",
    "batch-coupled",
    "bn-variance",
    "alpha-beta-bias",
    "alpha-index",
    "gamma-forward",
    "ln-unbiased",
    "gamma-at-zero",
    "zero-input",
    "leaf-twice",
    "logit-squared",
    "vacuous-check",
    "fp16-nan",
    "one-target",
    "gqa-repeat",
    "rope-interleave",
)


def mistake(id: str) -> Mistake:
    return next(m for m in (*MISTAKES, *STRUCTURAL) if m.id == id)


def case(
    rule: str, dtype: str = "float64", options: dict[str, Any] | None = None, **inputs: Any
) -> Case:
    """A case with its right answer."""
    held = {name: _array(value, dtype) for name, value in inputs.items()}
    return make_vectors.answered(rule, dtype, held, options or {}, (), "")


def _array(value: Any, dtype: str) -> Any:
    if isinstance(value, dict):
        return {
            key: _array(each, dtype) if key in ("w", "b") else each for key, each in value.items()
        }
    if isinstance(value, tuple):
        return [_array(each, dtype) for each in value]
    return (
        None
        if value is None
        else np.array(value, dtype="float32" if dtype == "bfloat16" else dtype)
    )


def wrong(id: str, on: Case, form: int = 0) -> tuple[Any, ...]:
    with np.errstate(all="ignore"):
        return mistake(id).forms[form](on)


# -- the right parts -------------------------------------------------------------------------------


def deviation(reference: ReferenceRules, on: Case) -> float:
    """From the exact answer, in units of float64's roundoff times the condition: infinite where
    something else is wrong.
    """
    worst = 0.0
    for name, got in zip(on.returns, reference.answer(on), strict=True):
        expected = on.expected[name]
        if (got is None) != (expected is None) or (got is not None and got.shape != expected.shape):
            return np.inf
        if got is not None:
            allowed = UNITS["float64"] * on.condition[name] + 2.0**-1020
            with np.errstate(invalid="ignore"):
                worst = max(worst, float(np.max(np.abs(got - expected) / allowed, initial=0.0)))
            worst = np.inf if np.any(np.isnan(got)) else worst
    return worst


@cache
def cases(rule: str) -> tuple[Case, ...]:
    """What the vectors' generator draws and what is written for a mistake;
    last, what neither holds.
    """
    return (
        *make_vectors.drawn(rule, 1001),
        *make_vectors.drawn(rule, 1002),
        *rule_vectors.load(rule),
        *_more(rule),
    )


@pytest.mark.parametrize("rule", RULES)
def test_without_a_mistake_the_answer_is_the_exact_one(rule: str) -> None:
    for on in cases(rule):
        assert deviation(ReferenceRules(on.dtype), on) <= 4, f"{rule} {on.dtype}: {on.note}"


def test_a_wrong_part_is_far_from_the_exact_answer() -> None:
    """The comparison above would notice."""
    on = case(
        "softmax_taylor",
        options={"mask": None, "axis": 1},
        x=[[[1, 2, 0], [0, 1, 3]]],
        r=[[[1, 0, 2], [1, 1, 0]]],
    )
    last_axis = {"sum_along": lambda self, r, axis: r.sum(-1, keepdims=True)}
    assert deviation(ReferenceRules(), on) <= 4
    assert deviation(type("Wrong", (ReferenceRules,), last_axis)(), on) > 1e12


# -- every mistake makes a difference --------------------------------------------------------------


def _more(rule: str) -> Iterator[Case]:
    if rule.startswith("attention"):
        propagated = SIGNATURES[rule].propagated
        eps = {"eps": 1e-6} if "eps" in SIGNATURES[rule].options else {}
        qkv: dict[str, Any] = {
            "q": [[[[1, 0.5], [-1, 2]]]],
            "k": [[[[0.5, 1], [1, -1], [2, 0.25]]]],
            "v": [[[[1, 2], [-3, 1], [0.5, -1]]]],
        }
        seed = {propagated: [[[[1, 2], [0.5, 1]]]]}
        masked = np.array([[[[True, False, True], [False, False, False]]]])
        yield case(rule, options={"scale": 0.5, "causal": True, "mask": None} | eps, **qkv, **seed)
        yield case(
            rule, options={"scale": 0.5, "causal": False, "mask": masked} | eps, **qkv, **seed
        )
    elif rule == "top_k_pass_through":
        yield case(rule, options={"k": 2}, x=[[[0, 0.5, -1]]], r=[[[1, 2]]])
    elif rule == "renormalize_identity":
        yield case(rule, x=[[0, 2]], r=[[1, 1]])
    elif rule == "renormalize_epsilon":
        yield case(rule, options={"eps": 1e-6, "stabilizer": "sign"}, x=[[0, 2]], r=[[1, 1]])
        yield case(
            rule, "float16", options={"eps": 1e-8, "stabilizer": "sign"}, x=[[0, 2]], r=[[0, 1]]
        )
    elif rule == "sum_epsilon":
        yield case(
            rule,
            "float16",
            options={"eps": 1e-8, "stabilizer": "sign"},
            operands=([[0, 1]], [[0, 2]]),
            r=[[1, 1]],
        )
    elif rule == "convolution_epsilon":
        yield case(
            rule,
            "float16",
            options={"eps": 1e-8, "stabilizer": "sign"},
            x=[[[[0.0]]]],
            w=[[[[1.0]]]],
            b=None,
            r=[[[[1.0]]]],
        )


def shown(form: Any, on: Case) -> bool:
    try:
        form(on)
    except NoDifference:
        return False
    return True


@pytest.mark.parametrize("m", [m for m in MISTAKES if m.forms], ids=lambda m: m.id)
def test_each_mistake_shows_in_each_of_its_rules_and_in_each_of_its_forms(m: Mistake) -> None:
    hidden = [
        rule
        for rule in m.rules
        if not any(shown(form, on) for on in cases(rule) for form in m.forms)
    ]
    assert not hidden, f"{m.id} makes no difference in {hidden}"
    idle = [
        k
        for k, form in enumerate(m.forms)
        if not any(shown(form, on) for rule in m.rules for on in cases(rule))
    ]
    assert not idle, f"{m.id}: the forms {idle} make no difference anywhere"


@pytest.mark.parametrize("m", [m for m in MISTAKES if m.forms], ids=lambda m: m.id)
def test_answers_have_the_shape_of_right_ones(m: Mistake) -> None:
    """Of each form, on the first case of each rule on which it makes a difference."""
    for rule, form in product(m.rules, m.forms):
        if (on := next((on for on in cases(rule) if shown(form, on)), None)) is not None:
            got = dict(zip(on.returns, form(on), strict=True))
            shapes = {
                name: np.shape(on.expected[name])
                for name, a in got.items()
                if a is not None and on.expected[name] is not None
            }
            assert {name: got[name].shape for name in shapes} == shapes


def test_where_a_mistake_changes_nothing_it_has_no_answer() -> None:
    positive = case(
        "linear_epsilon",
        options={"eps": 1e-6, "stabilizer": "sign"},
        x=[[1, 2]],
        w=[[1, 1]],
        b=None,
        r=[[1]],
    )
    for id in (
        "eps-unsigned",
        "eps-zero-sign",
        "bias-ignored",
        "stabilizer-ignored",
        "fp16-nan",
        "zero-input",
    ):
        with pytest.raises(NoDifference):
            wrong(id, positive)
    with pytest.raises(NoDifference, match="not a mistake of linear_epsilon"):
        wrong("softmax-dim", positive)


def test_differences_within_the_tolerance_do_not_count() -> None:
    """eps of 1e-12 beside z = -1 is nothing in float32."""
    far = case(
        "linear_epsilon",
        "float32",
        options={"eps": 1e-12, "stabilizer": "sign"},
        x=[[-1]],
        w=[[1]],
        b=None,
        r=[[1]],
    )
    with pytest.raises(NoDifference):
        wrong("eps-unsigned", far)


# -- the table -------------------------------------------------------------------------------------


def test_every_fault_found_in_libraries_is_there() -> None:
    ids = [m.id for m in (*MISTAKES, *STRUCTURAL)]
    assert len(FOUND_IN_LIBRARIES) == 33
    assert len(ids) == len(set(ids))
    assert [id for id in FOUND_IN_LIBRARIES if id not in ids and id not in NOT_SHOWN] == []
    assert not set(NOT_SHOWN) & set(ids)


@pytest.mark.parametrize("m", (*MISTAKES, *STRUCTURAL), ids=lambda m: m.id)
def test_each_entry_is_complete(m: Mistake) -> None:
    assert m.rules and set(m.rules) <= set(RULES)
    assert m.behavior in ("", "again", "targets", "forward", "narrowed")
    assert m.forms or m.behavior, "nothing shows it"


def test_the_catalogue_is_what_rules_models_and_plants_speak_of() -> None:
    """Nothing is met that is not in it, and nothing is in it that is met nowhere."""
    rules = {m.id for m in (*MISTAKES, *STRUCTURAL)}
    models = {id for a in alternatives(METHODS["attnlrp"]) for id in a.mistakes}
    assert rules | models == set(CATALOGUE)
    assert {plant.fault for plant in PLANTS} <= rules


@pytest.mark.parametrize("m", CATALOGUE.values(), ids=lambda m: m.id)
def test_each_mistake_is_said_in_two_sentences(m: KnownMistake) -> None:
    for sentence in (m.does, m.effect):
        assert sentence.endswith(".") and "\n" not in sentence and "  " not in sentence
    assert m.kind in ("fault", "convention") and m.met_in


def test_every_rule_has_mistakes_of_its_own() -> None:
    assert [rule for rule in RULES if sum(rule in m.rules for m in MISTAKES) < 2] == []


def test_flags_of_the_vectors_name_mistakes_that_show_there() -> None:
    """A case that says what it is written for shows it, by its numbers or, for what only behavior
    shows, by the rule it is of.
    """
    for rule in RULES:
        for on in rule_vectors.load(rule):
            for flag in on.flags:
                m = mistake(flag)
                assert any(shown(form, on) for form in m.forms) or (
                    m.behavior and rule in m.rules
                ), f"{on.id} is written for {flag} and misses"


# -- numbers that are known ------------------------------------------------------------------------

EPS9 = {"eps": 1e-9, "stabilizer": "sign"}
EPS6 = {"eps": 1e-6, "stabilizer": "sign"}


@pytest.mark.parametrize(("b", "kept"), [(2e-9, 2 / 3), (-2e-9, 2.0), (-0.5e-9, -1.0), (0.0, 0.0)])
def test_safe_divide_near_its_guard(b: float, kept: float) -> None:
    """1/b times b, as measured: 0.67, 2 and -1; nothing of a zero."""
    on = case("add_epsilon", options={"eps": 1e-2, "stabilizer": "sign"}, a=[[b]], b=[[0]], r=[[1]])
    assert (
        sum(wrong("safe-divide", on))[0, 0] == pytest.approx(kept)
        if b
        else shown(mistake("safe-divide").forms[0], on) is False
    )


def test_finite_masks_multiply_the_least_relevance() -> None:
    """-3.4e8 from R = 1e-30, and a row that is masked whole is shared as if it were visible."""
    low = float(np.finfo("float32").min)
    on = case(
        "softmax_taylor",
        "float32",
        options={"mask": None, "axis": -1},
        x=[[1, low, 2]],
        r=[[1, 1e-30, 1]],
    )
    assert wrong("mask-finfo", on)[0][0, 1] == pytest.approx(-3.4e8, rel=0.01)
    whole = case(
        "softmax_taylor",
        "float32",
        options={"mask": None, "axis": -1},
        x=[[low, low]],
        r=[[1, 0.9]],
    )
    assert np.max(np.abs(wrong("mask-finfo", whole)[0])) > 1e36


def test_a_constant_takes_half() -> None:
    """3 of 6 lost."""
    on = case(
        "multiply_uniform", options={"constant": [True, False]}, operands=([[2]], [[3]]), r=[[6]]
    )
    first, second = wrong("constant-eats-share", on)
    assert first is None and second[0, 0] == 3


def test_the_uniform_mean_does_not_look_at_the_rule() -> None:
    """Of R = 6 each of the three inputs gets 2, whatever x and w are."""
    on = case("linear_epsilon", options=EPS6, x=[[1, -2, 3]], w=[[1, 1, 2]], b=[0.5], r=[[6]])
    assert np.all(wrong("vacuous-check", on)[0] == 2)


def test_a_gradient_seeded_with_the_logit_sums_to_its_square() -> None:
    layer = {"operation": "linear", "w": [[1.0, 2.0]], "b": None, "rule": "epsilon", "eps": 1e-12}
    on = case("network", layers=(layer,), x=[[3, 0.5]], seeds=([[4]],))
    z, relevance = wrong("logit-squared", on)
    assert z[0, 0] == 4 and relevance.sum() == pytest.approx(16)


def test_eps_underflows_in_half_precision() -> None:
    on = case(
        "linear_epsilon",
        "float16",
        options={"eps": 1e-8, "stabilizer": "sign"},
        x=[[0, 0]],
        w=[[1, 1]],
        b=None,
        r=[[1]],
    )
    assert np.all(np.isnan(wrong("fp16-nan", on)[0]))


def test_the_epsilon_rule_through_a_sum_of_weights_passes_nothing() -> None:
    on = case("renormalize_identity", x=[[0.5, 0.25, 1]], r=[[2, 1, 3]])
    assert abs(wrong("moe-degree-0", on)[0].sum()) < 1e-14


def test_answers_beyond_the_format_are_infinite() -> None:
    """z = -0.0010004 in float16 and eps = 0.001: what is divided by is 4e-7."""
    on = case(
        "add_epsilon",
        "float16",
        options={"eps": 1e-3, "stabilizer": "sign"},
        a=[[-0.001]],
        b=[[0]],
        r=[[100]],
    )
    assert ReferenceRules("float16").answer(on)[0][0, 0] == pytest.approx(50, rel=1e-3)
    assert wrong("eps-unsigned", on)[0][0, 0] == np.inf
    wide = case(
        "add_epsilon",
        "float32",
        options={"eps": 1e-3, "stabilizer": "sign"},
        a=[[np.float16(-0.001)]],
        b=[[0]],
        r=[[100]],
    )
    assert np.isfinite(wrong("eps-unsigned", wide)[0][0, 0])


# -- cases as data ---------------------------------------------------------------------------------

SPECIAL = {
    "float64": [
        0.0,
        -0.0,
        np.inf,
        -np.inf,
        np.nan,
        5e-324,
        -5e-324,
        2.2250738585072014e-308,
        0.1,
        1 / 3,
        1.7976931348623157e308,
    ],
    "float32": [
        0.0,
        -0.0,
        np.inf,
        -np.inf,
        np.nan,
        1e-45,
        -1e-45,
        1.1754944e-38,
        0.1,
        1 / 3,
        3.4028235e38,
    ],
    "float16": [0.0, -0.0, np.inf, -np.inf, np.nan, 6e-8, -6e-8, 6.104e-5, 0.1, 1 / 3, 65504],
    "bfloat16": [
        0.0,
        -0.0,
        np.inf,
        -np.inf,
        np.nan,
        9.184e-41,
        -9.184e-41,
        1.1754944e-38,
        0.1,
        1 / 3,
        3.3895314e38,
    ],
}


def there_and_back(value: Any, dtype: str = "") -> Any:
    return decode(json.loads(json.dumps(encode(value, dtype), allow_nan=False)))


def same_bits(a: Any, b: Any) -> bool:
    nan = np.isnan(a) & np.isnan(b)
    whole = f"u{a.dtype.itemsize}"
    return bool(
        a.dtype == b.dtype and a.shape == b.shape and np.all(nan | (a.view(whole) == b.view(whole)))
    )


def held(values: Any, dtype: str) -> Any:
    return (
        np.asarray(rounded(np.array(values), dtype), dtype=np.float32)
        if dtype == "bfloat16"
        else np.array(values, dtype=dtype)
    )


@pytest.mark.parametrize("dtype", SPECIAL)
def test_numbers_return_as_they_were(dtype: str) -> None:
    a = held(SPECIAL[dtype], dtype).reshape(1, -1)
    text = encode(a, dtype)
    assert text["dtype"] == dtype and text["data"][0][2:5] == ["inf", "-inf", "nan"]
    assert same_bits(a, there_and_back(a, dtype))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_number_of_a_16_bit_format_returns(dtype: str) -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    a = (
        bits.view(np.float16)
        if dtype == "float16"
        else (bits.astype(np.uint32) << 16).view(np.float32)
    )
    assert same_bits(a, there_and_back(a, dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_random_bits_return(dtype: str) -> None:
    bits = np.random.default_rng(0).integers(0, 2**64, 20_000, dtype=np.uint64)
    a = bits.view(np.float64) if dtype == "float64" else bits.view(np.uint32).view(np.float32)
    assert same_bits(a, there_and_back(a, dtype))


def test_numbers_are_written_as_short_as_their_format_allows() -> None:
    for dtype in ("float64", "float32", "float16"):
        assert json.dumps(encode(np.array([0.1, 1e-3], dtype=dtype))["data"]) == "[0.1, 0.001]"
    assert encode(np.array([True, False]))["data"] == [True, False]
    assert encode(np.array([], dtype="float32").reshape(1, 0)) == {
        "shape": [1, 0],
        "dtype": "float32",
        "data": [[]],
    }
    assert there_and_back(np.zeros((2, 0, 3))).shape == (2, 0, 3)


@pytest.mark.parametrize("rule", RULES)
def test_a_case_is_the_same_after_json(rule: str) -> None:
    for on in make_vectors.drawn(rule, 7):
        text = json.dumps(on.to_json(), allow_nan=False)
        back = Case.from_json(json.loads(text), rule)
        assert json.dumps(back.to_json(), allow_nan=False) == text
        assert back.identified().id == on.id == on.identified().id
        assert (back.rule, back.formulation, back.dtype, back.batch, back.returns) == (
            rule,
            on.formulation,
            on.dtype,
            on.batch,
            on.returns,
        )


def test_the_id_depends_on_every_part() -> None:
    first = case("add_epsilon", options=EPS6, a=[[1]], b=[[2]], r=[[1]])
    others = [
        case("add_epsilon", options=EPS9, a=[[1]], b=[[2]], r=[[1]]),
        case("add_epsilon", options=EPS6, a=[[1]], b=[[2]], r=[[-1]]),
        case("add_epsilon", "float32", options=EPS6, a=[[1]], b=[[2]], r=[[1]]),
    ]
    assert len({first.id, *(each.id for each in others)}) == 4
    assert first.id.startswith("add_epsilon-") and len(first.id.rpartition("-")[2]) == 8


def test_arguments_and_names() -> None:
    on = case(
        "multiply_uniform_gxi",
        options={"constant": [False, True]},
        operands=([[2]], [[3]]),
        g=[[1]],
    )
    assert on.returns == ("operands.0", "operands.1") and on.expected["operands.1"] is None
    assert [len(on.arguments), on.arguments[1][0, 0], on.batch] == [2, 1, 1]
    linear = case(
        "linear_epsilon", options=EPS6, x=[[1, 2], [3, 4]], w=[[1, 1]], b=None, r=[[1], [2]]
    )
    assert (
        linear.arguments[2] is None
        and linear.batch == 2
        and linear.returns == ("x",)
        and linear.u == 2.0**-53
    )


@pytest.mark.parametrize(
    ("rule", "option", "value", "default"),
    [
        ("softmax_taylor", "mask", None, True),
        ("softmax_taylor", "mask", np.array([True, True]), True),
        ("softmax_taylor", "mask", np.array([True, False]), False),
        ("softmax_taylor", "axis", -1, True),
        ("softmax_taylor", "axis", 1, False),
        ("multiply_uniform", "constant", [False, False], True),
        ("multiply_uniform", "constant", [False, True], False),
        ("pooling_epsilon", "counted", np.ones((1, 2, 1)), True),
        ("linear_epsilon", "stabilizer", "sign", True),
        ("linear_epsilon", "stabilizer", "none", False),
        ("linear_epsilon", "eps", 1e-6, False),
        ("attention_attnlrp_gxi", "causal", False, True),
    ],
)
def test_options_at_their_defaults(rule: str, option: str, value: Any, default: bool) -> None:
    on = Case("", rule, "relevance", "float64", (), "", {}, {option: value}, {})
    assert on.at_default(option) is default
