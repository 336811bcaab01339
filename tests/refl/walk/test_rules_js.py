"""The arithmetic of the walk's page, refl/walk/page/rules.js, against the rules in Python on the
numbers that the page has, and against the engine's own sweep.

Against the rules: within 16 roundings of the sum of |terms| of each element. Against the engine:
within what packing rounds off, 2^-37 of an activation and 2^-29 of a relevance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rule_sizes import ULP, conditioned, differentiated_sizes, of_output, shifted_size, sizes
from rules_page import Both, Site, run, why_no_javascript

import refl
from refl.model import load
from refl.rules import layer_norm as layer_norms
from refl.rules import matmul, rms_norm, softmax
from refl.rules.conservation import RuleOutput
from refl.verification.random_models import ARCHITECTURES, NEWER, random_model

pytestmark = pytest.mark.skipif(bool(why_no_javascript()), reason=why_no_javascript())

ALLOWED = 16 * ULP
"""Of the sum of |terms|: sums of some hundred terms in different orders."""

ACTIVATION, RELEVANCE = 2.0**-36, 2.0**-28
"""Twice what packing rounds off."""

SHIPPED = Path(refl.__file__).parent / "shipped"
IDS = [3, 1, 4, 1, 5]
ASKED: dict[str, dict[str, Any]] = {"bert": {"position": 2}, "t5": {"decoder": [0, 2]}}
ODD: dict[str, tuple[dict[str, Any], list[int]]] = {
    "one-token-gpt2": (
        {"model_type": "gpt2", "activation_function": "relu", "n_head": 1},
        [3],
    ),
    "one-token-llama": ({"model_type": "llama", "num_attention_heads": 2}, [7]),
    "two-alike-bert": ({"model_type": "bert", "hidden_act": "relu"}, [5, 5]),
}
"""Options of a config over those of its architecture, and the input."""
NAMES = (
    "shipped",
    "llama",
    "gpt2",
    "gemma2",
    "bert",
    "vit",
    "phi",
    "qwen3",
    "t5",
    "mixtral",
    "cohere",
    *ODD,
)


@cache
def both(name: str) -> Both:
    if name == "shipped":
        return Both(load(SHIPPED, dtype="float64"), "the keys to the cabinet")
    item: Any = IDS
    if name in ODD:
        options, item = ODD[name]
        config = ARCHITECTURES[options["model_type"]] | options
        position = {"position": 0} if config["model_type"] == "bert" else {}
        return Both(random_model(config, 4), item, **position)
    if name == "vit":
        item = np.random.default_rng(0).standard_normal((3, 8, 12))
    config = (ARCHITECTURES | NEWER)[name]
    return Both(random_model(config, 3), item, **ASKED.get(name, {}))


@cache
def sites(name: str) -> list[Site]:
    return both(name).sites()


def each_input(site: Site, mine: list[Any], by_rule: list[Any]) -> Iterator[tuple[Any, Any, Any]]:
    """What an operand receives by the page and by the rule, and the size of its terms."""
    for got, expected, size in zip(mine, by_rule, sizes(site), strict=True):
        assert (got is None) == (expected is None), site
        if expected is not None:
            yield np.reshape(got, expected.shape), expected, size


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_the_forwards(name: str) -> None:
    told = both(name)
    for site in sites(name):
        z = np.reshape(told.page["stops"][site.stop["index"]]["z"], site.z.shape)
        size = of_output(site)
        assert np.all(np.abs(z - site.z) <= ALLOWED * size), site
        assert np.all(np.abs(z - told.values[site.stop["output"]]) <= 4 * ACTIVATION * size), site


@pytest.mark.parametrize("name", NAMES)
def test_inputs_receive_what_the_rule_says(name: str) -> None:
    for site in sites(name):
        right = site.inputs(site.apply())
        for got, expected, size in each_input(site, site.page["inputs"], right):
            assert np.all(np.abs(got - expected) <= ALLOWED * size), site


@pytest.mark.parametrize("name", NAMES)
def test_another_eps(name: str) -> None:
    for site in sites(name):
        right = site.inputs(site.apply(eps=0.25))
        for got, expected, size in each_input(site, site.page["eps"], right):
            assert np.all(np.abs(got - expected) <= ALLOWED * size), site


@pytest.mark.parametrize("name", NAMES)
def test_amounts_are_the_ledgers(name: str) -> None:
    """Received, passed on and absorbed, by the rule in Python and by the engine."""
    for site in sites(name):
        audit, output = site.page["audit"], site.apply()
        scale = amount_size(site)
        assert abs(audit["received"] - site.said["received"]) <= RELEVANCE * scale, site
        assert audit["absorbed"].keys() >= {c for c, v in site.said["absorbed"].items() if v}
        for cause, amount in audit["absorbed"].items():
            expected = float(np.sum(output.absorbed.get(cause, 0.0)))
            assert abs(amount - expected) <= ALLOWED * scale, (site, cause)
            engine = site.said["absorbed"].get(cause, 0.0)
            assert abs(amount - engine) <= RELEVANCE * scale, (site, cause)
        for k, passed in enumerate(audit["passed"]):
            if passed is not None:
                right = site.amount(k, site.inputs(output)[k])
                assert abs(passed - right) <= ALLOWED * scale, site


def amount_size(site: Site) -> float:
    """The sum of |terms| of all that a rule passes on, absorbs and receives."""
    r = np.abs(site.r * site.z if site.gxi else site.r)
    found = np.sum(r)
    for x, size in zip(site.operands, sizes(site), strict=True):
        if size is not None:
            found += 2 * np.sum(size * np.abs(np.nan_to_num(x)) if site.gxi else size)
    if site.operation in ("linear", "layer_norm"):  # what a bias takes
        found += np.sum(np.abs(site.r) * of_output(site) * site_condition(site))
    if site.operation == "softmax":
        logits = np.where(np.abs(site.operands[0]) < 1e300, np.abs(site.operands[0]), 0)
        found += 4 * np.sum(r) * (1 + logits.max()) ** 2
    return float(found)


def site_condition(site: Site) -> Any:
    """1 in gradient x input form, else what R is divided by and how its error grows."""
    return 1.0 if site.gxi else conditioned(site)


@pytest.mark.parametrize("name", NAMES)
def test_every_site_closes_and_agrees(name: str) -> None:
    for site in sites(name):
        audit = site.page["audit"]
        sums = [audit["received"], *(-p for p in audit["passed"] if p is not None)]
        left = math.fsum([*sums, *(-a for a in audit["absorbed"].values())])
        assert abs(left) <= audit["bound"] and audit["ok"] and audit["agrees"], site
        assert abs(left - audit["error"]) <= 8 * ULP * sum(map(abs, sums)), site
        assert audit["bound"] <= 64 * ULP * amount_size(site), site


@pytest.mark.parametrize("name", NAMES)
def test_what_readers_pass_on_sums_to_what_arrived(name: str) -> None:
    told = both(name)
    size_of = {(s.stop["index"], s.m): sizes(s) for s in sites(name)}
    checked = 0
    for value, per_method in zip(told.data["values"], told.page["fan_in"], strict=True):
        for m, parts in enumerate(per_method):
            if parts:
                summed = sum(np.array(part["amounts"]) for part in parts)
                size = sum(size_of[part["stop"], m][part["operand"]] for part in parts)
                arrived = told.propagated(value["id"], m).reshape(-1)
                assert np.all(np.abs(summed - arrived) <= RELEVANCE * size.reshape(-1)), value
                order = [part["stop"] for part in parts]
                assert order == sorted(order, reverse=True)
                checked += 1
    assert checked > len(told.data["values"]) // 2


@pytest.mark.parametrize("name", NAMES)
def test_sums_are_the_engines(name: str) -> None:
    told = both(name)
    for value, per_method in zip(told.data["values"], told.page["sums"], strict=True):
        for m, amount in enumerate(per_method):
            r, x = told.propagated(value["id"], m), told.values[value["id"]]
            gxi = told.data["methods"][m]["formulation"] == "gradient_x_input"
            terms = (np.where(np.isfinite(x), x, 0) * r if gxi else r).reshape(-1)
            assert abs(amount - math.fsum(terms)) <= ULP * np.sum(np.abs(terms)), value["site"]


# -- worked elements -------------------------------------------------------------------------------


def check_worked(one: dict[str, Any], expected: float, size: float) -> None:
    """It adds up as it is shown, and to the element."""
    for term in one["terms"]:
        value = 1.0
        for piece in term["pieces"]:
            value = value / piece["value"] if piece.get("divides") else value * piece["value"]
        assert value == term["value"], one
    summed = sum(term["value"] for term in one["terms"])
    factor = 1.0 if one["factor"] is None else one["factor"]["value"]
    assert one["total"] == factor * summed
    assert abs(one["total"] - expected) <= ALLOWED * size, one


@pytest.mark.parametrize("name", NAMES)
def test_worked_elements_add_up(name: str) -> None:
    told = both(name)
    for site in sites(name):
        forward = told.page["stops"][site.stop["index"]]
        size = np.broadcast_to(of_output(site), site.z.shape).reshape(-1)
        for j, one in forward["worked"]:
            check_worked(one, forward["z"][j], size[j])
            assert tuple(one["index"]) == np.unravel_index(j, site.z.shape[1:]), site
        for k, some in enumerate(site.page["worked"]):
            for i, one in some or ():
                size_k = sizes(site)[k].reshape(-1)
                check_worked(one, site.page["inputs"][k][i], size_k[i])
                shape = site.operands[k].shape[1:]
                assert tuple(one["index"]) == np.unravel_index(i, shape), site


def test_every_term_of_a_sum_is_there() -> None:
    for site in sites("gpt2"):
        if site.name == "linear.epsilon":
            some = site.page["worked"][0]
            assert all(len(one["terms"]) == site.operands[1].shape[0] for _, one in some)


# -- mistakes --------------------------------------------------------------------------------------

PRODUCTS = ("matmul.uniform", "matmul.uniform_gxi", "multiply.uniform", "multiply.uniform_gxi")
LAYER_NORMS = ("layer_norm.epsilon", "layer_norm.epsilon_gxi")
NORMS = (*LAYER_NORMS, "rms_norm.identity", "rms_norm.identity_gxi")


def without_sign(site: Site) -> RuleOutput:
    return site.apply(stabilizer="plain")


def no_halving(site: Site) -> RuleOutput:
    if site.name != "matmul.uniform":
        return RuleOutput(tuple(r if r is None else 2 * r for r in site.apply().inputs), {})
    s = site.r / signed(site, site.options["eps"])
    pairs = zip(site.operands, matmul.gradient(*site.operands, site.z, s).inputs, strict=True)
    return RuleOutput(tuple(x * back for x, back in pairs), {})


def signed(site: Site, eps: float) -> Any:
    """z + eps s(z)"""
    return site.z + np.where(site.z >= 0, eps, -eps)


def shifted(site: Site) -> RuleOutput:
    (x,), mask = site.operands, site.attributes.get("mask")
    visible = np.where(True if mask is None else np.asarray(mask), x, -np.inf)
    visible = np.where(visible > -1e300, visible, -np.inf)
    top = visible.max(axis=-1, keepdims=True)
    return softmax.taylor(np.where(np.isfinite(visible), x - top, x), site.z, site.r, mask=mask)


def not_centered(site: Site) -> RuleOutput:
    x, w, _ = site.operands
    inverse = layer_norms.standardized(x, site.attributes["norm_eps"])[1]
    if site.gxi:
        return RuleOutput((w * site.r * inverse, None, None), {})
    s = site.r / signed(site, site.options["eps"])
    return RuleOutput((x * w * s * inverse, None, None), {})


def differentiated(site: Site) -> RuleOutput:
    """The Jacobian of the norm on g; in relevance form x J^T (R / z)."""
    module: Any = rms_norm if site.operation == "rms_norm" else layer_norms
    if site.gxi:
        return site.apply(module.gradient)
    s = site.r / signed(site, site.options.get("eps", 0.0))
    found = site.apply(module.gradient, r=s).inputs
    return RuleOutput((site.operands[0] * found[0], *found[1:]), {})


PLANTED = {
    "eps_without_sign": (lambda site: "stabilizer" in site.options, without_sign),
    "no_halving": (lambda site: site.name in PRODUCTS and _factors(site) == 2, no_halving),
    "shifted_logits": (lambda site: site.name == "softmax.taylor", shifted),
    "layer_norm_constant": (lambda site: site.name in LAYER_NORMS, not_centered),
    "norm_differentiated": (lambda site: site.name in NORMS, differentiated),
}


def _factors(site: Site) -> int:
    constant: tuple[bool, ...] = site.attributes.get("constant", (False, False))
    return constant.count(False)


@pytest.mark.parametrize("mistake", PLANTED)
@pytest.mark.parametrize("name", NAMES)
def test_planted_mistakes_are_told_where_they_change_anything(name: str, mistake: str) -> None:
    for site in sites(name):
        told = next(one for one in site.page["mistakes"] if one["id"] == mistake)
        applies, plant = PLANTED[mistake]
        assert told["applies"] == applies(site), site
        if not told["applies"]:
            assert told["audit"]["ok"] and told["audit"]["worst"] is None, site
            continue
        right, wrong = site.inputs(site.apply()), site.inputs(plant(site))
        changed = max(_changed(a, b) for a, b in zip(right, wrong, strict=True))
        if changed > 4096 * ULP:
            assert not told["audit"]["ok"], site
        elif changed == 0:
            assert told["audit"]["ok"], site
        audited(site, told, wrong)


def _changed(before: Any, after: Any) -> float:
    """The largest change of an element, over the largest element."""
    if before is None or not np.any(before):
        return 0.0
    return float(np.max(np.abs(after - before)) / np.max(np.abs(before)))


def audited(site: Site, told: dict[str, Any], wrong: list[Any]) -> None:
    """What is passed on is the wrong rule's, what is absorbed is the right one's."""
    audit = told["audit"]
    for k, (got, expected) in enumerate(zip(told["inputs"], wrong, strict=True)):
        assert (got is None) == (expected is None), site
        if got is None:
            continue
        size = wrong_sizes(site, told["id"])[k]
        got = np.reshape(got, expected.shape)
        assert np.all(np.abs(got - expected) <= ALLOWED * size), (site, told["id"])
        for i, one in told["worked"][k]:
            check_worked(one, got.reshape(-1)[i], np.max(size))
    assert audit["absorbed"] == site.page["audit"]["absorbed"], site
    error = audit["received"] - math.fsum(p for p in audit["passed"] if p is not None)
    error -= math.fsum(audit["absorbed"].values())
    parts = [audit["received"], *audit["passed"], *audit["absorbed"].values()]
    scale = sum(abs(part or 0.0) for part in parts)
    assert abs(error - audit["error"]) <= 8 * ULP * scale, site
    assert audit["closed"] == (abs(audit["error"]) <= audit["bound"])


def wrong_sizes(site: Site, mistake: str) -> list[Any]:
    """As `sizes`, of what the wrong rule adds up."""
    if mistake == "eps_without_sign":
        return sizes(site, stabilizer="plain")
    if mistake == "norm_differentiated":
        return differentiated_sizes(site)
    found = sizes(site)
    if mistake == "shifted_logits":
        return [shifted_size(site)]
    return [None if size is None else 2 * size for size in found]


@pytest.mark.parametrize("name", ["shipped", "gpt2", "bert"])
def test_without_halving_as_much_is_created_as_was_received(name: str) -> None:
    met = 0
    for site in sites(name):
        told = next(one for one in site.page["mistakes"] if one["id"] == "no_halving")
        if told["applies"]:
            audit, met = told["audit"], met + 1
            slack = 8 * abs(sum(audit["absorbed"].values())) + audit["bound"]
            assert abs(audit["error"] + audit["received"]) <= slack, site
    assert met


@pytest.mark.parametrize("name", NAMES)
def test_shifted_logits_move_elements_and_keep_the_sum(name: str) -> None:
    for site in sites(name):
        told = next(one for one in site.page["mistakes"] if one["id"] == "shifted_logits")
        if told["applies"]:
            audit = told["audit"]
            assert audit["closed"], site
            assert audit["agrees"] == (audit["worst"] is None), site
            assert abs(audit["passed"][0] - site.page["audit"]["passed"][0]) <= audit["bound"], site


# -- the rest --------------------------------------------------------------------------------------


def test_where_methods_part() -> None:
    """By hand, for a Llama: cp-lrp reads a factor of attention's second product and of the gate as
    constant, so that nothing reaches the softmax; the derivative differs at what is not linear.
    """
    told = both("llama")
    operations = [[told.data["stops"][i]["operation"] for i in part] for part in told.page["parts"]]
    assert operations[0] == []
    assert sorted(set(operations[1])) == ["matmul", "multiply"]
    assert sorted(set(operations[2])) == ["activation", "matmul", "multiply", "rms_norm"]
    assert all(part == sorted(part, reverse=True) for part in told.page["parts"])


def test_erfc_to_the_last_digits() -> None:
    import mpmath as mp

    xs = [*np.linspace(-6, 26, 400), 0.0, 1e-300, -1e-9]
    got = run("return asked.map(Rules.erfc);", xs)
    with mp.workdps(40):
        errors = [abs(mp.mpf(y) / mp.erfc(mp.mpf(x)) - 1) for x, y in zip(xs, got, strict=True)]
    assert max(errors) < 1e-15


KINDS = ("gelu", "gelu_tanh", "gelu_fast", "silu", "quick_gelu", "relu", "relu2", "tanh")


def test_every_function_of_an_activation() -> None:
    """Those that no model here has, and x far out, at zero and next to it."""
    from refl.rules import activation

    x = np.array([-200.0, -40.0, -9.0, -1.0, -1e-8, -0.0, 0.0, 1e-300, 0.5, 3.0, 12.0, 99.0, 1e3])
    for kind in KINDS:
        z, g = activation.forward(x[None], kind=kind), np.ones_like(x)[None]
        slope = activation.gradient(x[None], z, g, kind=kind).inputs[0][0]
        ratio = activation.identity_gxi(x[None], z, g, kind=kind).inputs[0][0]
        got = run(_ONE, one_activation(x, kind))
        for mine, right in zip(got, (z[0], slope, ratio), strict=True):
            assert np.all(np.abs(np.array(mine) - right) <= 32 * ULP * (np.abs(right) + 1e-300)
                          + 16 * ULP * np.abs(slope_terms(x)))  # fmt: skip


def slope_terms(x: Any) -> Any:
    """What cancels in f' = gate + x gate', where it does: both vanish far out."""
    return (1 + np.abs(x)) * np.exp(-np.abs(x) / 2)


_ONE = """
const c = Rules.load(asked, Uint8Array.from(asked.bytes).buffer);
const [stop] = asked.stops;
return [Rules.forward(c, stop), ...[0, 1].map((m) => Rules.relevance(c, stop, m).inputs[0])]
  .map((a) => Array.from(a));
"""


_TWO = """
const c = Rules.load(asked, Uint8Array.from(asked.bytes).buffer);
const [stop] = asked.stops;
const methods = [0, 1];
return [
  ...methods.map((m) => Rules.audit(c, stop, m)),
  ...methods.map((m) => Array.from(Rules.relevance(c, stop, m).inputs[0])),
];
"""


def one_operation(
    stop: dict[str, Any], arrays: list[Any], form: str, weights: list[int] | None = None
) -> dict[str, Any]:
    """A net of one operation, by the contract of refl/walk, at full precision: arrays[0] goes in,
    arrays[-1] arrived at its output by both methods.
    """
    said, offset = [], 0
    for a in arrays:
        said.append({"offset": offset, "count": a.size, "kind": "f8"})
        offset += 8 * a.size
    planes = [np.frombuffer(a.astype(">f8").tobytes(), "u1").reshape(-1, 8).T for a in arrays]
    last = len(arrays) - 1
    shapes = [list(a.shape) for a in arrays]
    tensors = [{"id": n, "array": i, "shape": shapes[i]} for n, i in enumerate(weights or [])]
    return {
        "arrays": said,
        "bytes": [int(b) for plane in planes for b in plane.reshape(-1)],
        "methods": [{"formulation": form}] * 2,
        "values": [
            {"id": 0, "array": 0, "shape": shapes[0], "read_by": [0], "propagated": [None, None]},
            {"id": 1, "array": last, "shape": shapes[last], "read_by": [],
             "propagated": [last, last]},
        ],
        "weights": tensors,
        "stops": [{"index": 0, "output": 1} | stop],
    }  # fmt: skip


def one_activation(x: Any, kind: str) -> dict[str, Any]:
    rules = [{"function": f, "options": {}} for f in ("gradient", "identity_gxi")]
    stop = {"operation": "activation", "operands": [{"value": 0}], "rules": rules}
    asked = {"attributes": {"kind": kind}} | stop
    return one_operation(asked, [x, np.ones_like(x)], "gradient_x_input")


def test_an_output_of_exactly_zero() -> None:
    """z = (0, -0, -2) of x = (1, 1): s(0) is +1 for a zero of either sign, and without a stabilizer
    what stands on a zero is absorbed. By hand.
    """
    x, r = np.array([[1.0, 1.0]]), np.array([[3.0, 5.0, 4.0]])
    w = np.array([[1.0, -1.0], [-2.0, 2.0], [-1.0, -1.0]])
    rules = [
        {"function": "epsilon", "options": {"eps": 0.5, "stabilizer": name}}
        for name in ("sign", "none")
    ]
    stop = {"operation": "linear", "operands": [{"value": 0}, {"weight": 0}, None],
            "attributes": {}, "rules": rules}  # fmt: skip
    asked = one_operation(stop, [x, w, r], "relevance", weights=[1])
    signed_audit, none_audit, (first, second), (one, two) = run(_TWO, asked)
    s = (3 / 0.5, 5 / 0.5, 4 / -2.5)
    assert (first, second) == (s[0] - 2 * s[1] - s[2], -s[0] + 2 * s[1] - s[2])
    assert signed_audit["absorbed"]["stabilizer"] == 0.5 * (s[0] + s[1] - s[2])
    assert (one, two) == (2.0, 2.0) and none_audit["absorbed"] == {"stabilizer": 8.0}
    assert signed_audit["ok"] and none_audit["ok"]


@pytest.mark.parametrize("form", ["relevance", "gradient_x_input"])
def test_a_mean_over_the_positions_that_count(form: str) -> None:
    """No net of today has one in a walk; a sum in a loop, in fractions of whole numbers."""
    x = np.array([[4.0, -2.0], [1.0, 8.0], [2.0, 1.0]])
    counted, r = np.array([1.0, 0.0, 1.0]), np.array([[12.0, -2.0]])
    rule = {"function": "epsilon", "options": {"eps": 0.0, "stabilizer": "none"}}
    if form == "gradient_x_input":
        rule = {"function": "gradient", "options": {}}
    stop = {"operation": "pooling", "operands": [{"value": 0}], "rules": [rule, rule]}
    asked = one_operation(stop | {"attributes": {"counted": 1}}, [x, counted, r], form)
    audit, _, got, _ = run(_TWO, asked)
    whole = [x[0, d] + x[2, d] for d in range(2)]
    each = [r[0, d] / whole[d] if form == "relevance" else r[0, d] / 2 for d in range(2)]
    factor = x if form == "relevance" else np.ones_like(x)
    expected = [counted[t] * factor[t, d] * each[d] for t in range(3) for d in range(2)]
    assert got == expected and audit["ok"]


def test_what_is_not_implemented_is_said() -> None:
    """Experts' own operations have no arithmetic in the page."""
    told = both("mixtral")
    unknown = {
        stop["operation"]
        for stop, page in zip(told.data["stops"], told.page["stops"], strict=True)
        if page is None
    }
    assert unknown == {"top_k", "renormalize", "gather", "combine"}
