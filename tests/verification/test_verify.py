"""`refl verify`: the twelve identities on random models of every architecture and on real
checkpoints; and that faults make them fail.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import ChainMap
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, wraps
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from attentions import Given
from checkpoints import ROOT, checkpoint

import refl
from refl import attention
from refl.cli import main
from refl.errors import ReflError
from refl.model import Model
from refl.nets import NETS, masks
from refl.rules import activation, layer_norm, linear, matmul, multiply, rms_norm, softmax
from refl.rules.conservation import RuleOutput
from refl.rules.operations import OPERATIONS
from refl.show.lines import plain
from refl.show.text import cells
from refl.sweep import Sweep
from refl.trace import QUERIES, Trace
from refl.verification import random_models
from refl.verification.identities import invariance, report, runs
from refl.verification.identities.catalogue import IDENTITIES, verify
from refl.verification.identities.model_under_test import (
    LENGTH,
    input_scores,
    model_under_test,
)
from refl.verification.identities.rows import Row, WorstDeviation
from refl.verification.identities.small_nets import SMALL
from refl.verification.random_models import random_model, with_weights

CONFIGS: dict[str, dict[str, Any]] = {
    name: config
    for name, config in vars(random_models).items()
    if config in random_models.ARCHITECTURES.values()
}
VARIANTS = {
    "BERT, classes": random_models.BERT | {"architectures": ["BertForSequenceClassification"]},
    "BERT, no head": random_models.BERT | {"architectures": ["BertModel"]},
    "LLAMA, biases, relu": random_models.LLAMA
    | {"attention_bias": True, "mlp_bias": True, "hidden_act": "relu"},
    "GPT2, relu": random_models.GPT2 | {"activation_function": "relu"},
    "T5, gated": random_models.T5 | random_models.FLAN,
}

KEY_BIAS, QUERY_KEY, RELU, CAUSAL, GROUPED, LAYER_NORM, RMS_NORM, PADDING, BLOCKS = (
    "a constant in the key bias",
    "another basis inside Q K",
    "LRP-0 of a ReLU net",
    "no relevance after",
    "grouped K and V",
    "LayerNorm's Taylor",
    "RMSNorm's Jacobian",
    "padding has no relevance",
    "attention in blocks",
)
LLAMA_LIKE = {RELU, KEY_BIAS, LAYER_NORM}
"""What does not apply to a gated net with rotary positions, RMSNorm and grouped queries."""
BIDIRECTIONAL = {RELU, CAUSAL, GROUPED, RMS_NORM}
PICTURES = BIDIRECTIONAL | {PADDING, BLOCKS}
"""All of one size, and of few patches."""
NOT_APPLICABLE: dict[str, set[str]] = {
    "LLAMA": LLAMA_LIKE,
    "MISTRAL": LLAMA_LIKE,
    "QWEN2": LLAMA_LIKE,
    "GEMMA2": LLAMA_LIKE,
    "MIXTRAL": LLAMA_LIKE,
    "QWEN3": LLAMA_LIKE | {QUERY_KEY},
    "OLMO2": LLAMA_LIKE | {QUERY_KEY},
    "GEMMA3": LLAMA_LIKE | {QUERY_KEY},
    "QWEN3_MOE": LLAMA_LIKE | {QUERY_KEY},
    "GPT2": {RELU, GROUPED, RMS_NORM},
    "PHI": {RELU, GROUPED, RMS_NORM},
    "BERT": BIDIRECTIONAL,
    "ROBERTA": BIDIRECTIONAL,
    "ALBERT": BIDIRECTIONAL,
    "VIT": PICTURES,
    "DEIT": PICTURES,
    "T5": {KEY_BIAS, GROUPED, LAYER_NORM},
    "BERT, classes": BIDIRECTIONAL,
    "BERT, no head": BIDIRECTIONAL | {PADDING, "norm weights folded"},
    "GPT2, relu": {GROUPED, RMS_NORM},
    "LLAMA, biases, relu": LLAMA_LIKE,
    "T5, gated": {RELU, KEY_BIAS, GROUPED, LAYER_NORM},
}
"""Net -> the identities that do not apply to it, by the start of their names."""


@cache
def net(name: str, dtype: str = "float64") -> Model:
    return random_model((CONFIGS | VARIANTS)[name], 1, dtype)


def item(model: Model) -> Any:
    return None if model.takes_images else [3, 1, 5, 16, 2]


def rows(model: Model, only: Sequence[int] = tuple(IDENTITIES), **how: Any) -> list[Row]:
    return list(verify(model_under_test(model, item(model)), only, **how))


def failing(model: Model, only: Sequence[int] = tuple(IDENTITIES)) -> set[int]:
    return {row.number for row in rows(model, only) if not row.holds}


def told(found: Sequence[Row]) -> str:
    return "; ".join(
        f"{r.number} {r.identity}: {r.measured} > {r.bound} ({r.found})"
        for r in found
        if not r.holds
    )


# -- on nets that are right ------------------------------------------------------------------------


def test_no_architecture_is_left_out() -> None:
    others = {"xlm-roberta", "camembert", "mt5", "dinov2_with_registers"}  # by other names
    assert {config["model_type"] for config in CONFIGS.values()} == NETS.keys() - others - (
        random_models.NEWER.keys()  # by tests/nets/test_newer.py
    )
    assert NOT_APPLICABLE.keys() == CONFIGS.keys() | VARIANTS.keys()


@pytest.mark.parametrize("name", NOT_APPLICABLE)
def test_everything_holds(name: str) -> None:
    """And what does not apply is what cannot: the rest was measured, on something."""
    found = rows(net(name))
    assert all(r.holds for r in found), told(found)
    assert {r.number for r in found} == set(IDENTITIES)
    assert {r.identity for r in found if r.measured is None} == {
        r.identity for r in found if r.identity.startswith(tuple(NOT_APPLICABLE[name]))
    }
    assert all(r.found if r.measured is not None else r.reason for r in found)
    assert [r.number for r in found if r.small] == [n for n in sorted(SMALL) for _ in SMALL[n]]


@pytest.mark.parametrize("name", ["LLAMA", "GPT2", "BERT", "T5"])
def test_everything_holds_in_float32(name: str) -> None:
    found = rows(net(name, "float32"), small=False)
    assert all(r.holds for r in found), told(found)


def test_where_rounding_is_allowed_something_was_measured() -> None:
    """A deviation of exactly 0 would say that nothing was compared. Bounds of 0 are left out, and
    prefixes, whose sums agree bit for bit.
    """
    zero = {r.identity for r in rows(net("LLAMA"), small=False) if r.measured == 0 and r.bound}
    assert zero <= {"a prefix is explained as if it stood alone"}


REAL = (
    "stories260K",
    "capp_gpt2",
    "nano_sort_gpt2",
    "chronos_dummy_t5_UNTRAINED",
    "vit_455_hf",
    "vit_mnist_012_hf",
)


@pytest.mark.parametrize("name", ["shipped", *REAL])
def test_everything_holds_on_checkpoints(name: str) -> None:
    found = list(
        verify(
            model_under_test(
                refl.load(None if name == "shipped" else checkpoint(name), dtype="float64")
            )
        )
    )
    assert all(r.holds for r in found), told(found)


def test_everything_holds_on_an_encoder() -> None:
    """One layer, run twelve times, and a text with a mask token: all identities but 1 and 2."""
    model = refl.load(checkpoint("rxnmapper_albert"), dtype="float64")
    found = list(
        verify(
            model_under_test(model, "CC(=O)O[MASK]C>>CCO"),
            [n for n in IDENTITIES if n not in (1, 2)],
        )
    )
    assert all(r.holds for r in found), told(found)


def test_some_identities_on_an_encoder() -> None:
    model = refl.load(checkpoint("rxnmapper_albert"), dtype="float64")
    found = list(verify(model_under_test(model, "CC(=O)O[MASK]C>>CCO"), [7, 10, 12]))
    assert all(r.holds for r in found), told(found)


# -- on nets that are wrong ------------------------------------------------------------------------


def all_to_one(*arrays: Any, constant: tuple[bool, ...]) -> RuleOutput:
    return RuleOutput((arrays[-1], *(None for _ in arrays[3:])), {})


def without_offset(x: Any, p: Any, r: Any, *, mask: Any = None) -> RuleOutput:
    """The constant part of the expansion forgotten: passed on as it should be, and not recorded."""
    return softmax.taylor(x, p, r, mask=mask)._replace(absorbed={})


def without_row_sum(x: Any, p: Any, r: Any, *, mask: Any = None) -> RuleOutput:
    """Off the diagonal of its Jacobian nothing; what is absorbed made to fit."""
    return RuleOutput(
        (x * r,),
        {"softmax_offset": (r - x * r).reshape(len(x), -1).sum(axis=1)},
    )


def shifted_softmax(x: Any, p: Any, r: Any, *, mask: Any = None) -> RuleOutput:
    """On the logits less their maximum."""
    return softmax.taylor(x - x.max(axis=-1, keepdims=True), p, r, mask=mask)


@wraps(matmul.uniform)
def doubled(a: Any, v: Any, z: Any, r: Any, **how: Any) -> RuleOutput:
    """Each operand of a matrix product in full."""
    output = matmul.uniform(a, v, z, r, **how)
    return RuleOutput(tuple(2 * p for p in output.inputs), output.absorbed)


@wraps(matmul.uniform)
def lopsided(a: Any, v: Any, z: Any, r: Any, **how: Any) -> RuleOutput:
    """Conserving, but 3 : 1."""
    output = matmul.uniform(a, v, z, r, **how)
    r_a, r_v = output.inputs
    return RuleOutput((1.5 * r_a, 0.5 * r_v), output.absorbed)


@wraps(linear.epsilon)
def bias_on_inputs(x: Any, w: Any, b: Any, z: Any, r: Any, **how: Any) -> RuleOutput:
    """What the bias gets spread evenly over the inputs, as classic code has it."""
    output = linear.epsilon(x, w, b, z, r, **how)
    s = 0 if b is None else (r / z * b).sum(axis=-1, keepdims=True) / x.shape[-1]
    return RuleOutput(
        (output.inputs[0] + s, None, None),
        output.absorbed | {"bias": np.zeros(len(x))},
    )


def forgetful(x: Any, w: Any, z: Any, g: Any, **how: Any) -> RuleOutput:
    """A Jacobian without the part that normalizes."""
    return rms_norm.identity_gxi(x, w, z, g, **how)._replace(
        absorbed={"norm_offset": np.zeros(len(x))},
    )


FAULTS: list[tuple[str, str, str, str, Callable[..., Any], set[int], set[int]]] = [
    (
        "a product all to one",
        "LLAMA",
        "multiply",
        "uniform",
        all_to_one,
        {2, 5},
        {1, 3, 4, 6, 8, 10, 11, 12},
    ),
    (
        "softmax without its offset",
        "GPT2",
        "softmax",
        "taylor",
        without_offset,
        {1, 3},
        {4, 5, 6, 8, 10, 11, 12},
    ),
    (
        "softmax without the row sum",
        "GPT2",
        "softmax",
        "taylor",
        without_row_sum,
        {2, 7},
        {4, 5, 6, 8, 10, 11, 12},
    ),
    (
        "softmax on shifted logits",
        "GPT2",
        "softmax",
        "taylor",
        shifted_softmax,
        {2, 7},
        {1, 3, 4, 5, 6, 8, 10, 11, 12},
    ),
    (
        "a matrix product doubled",
        "LLAMA",
        "matmul",
        "uniform",
        doubled,
        {1, 2, 3, 5, 10},
        {4, 6, 8, 11, 12},
    ),
    (
        "a matrix product split 3 : 1",
        "LLAMA",
        "matmul",
        "uniform",
        lopsided,
        {2, 5, 10},
        {1, 3, 4, 6, 8, 11, 12},
    ),
    (
        "the bias spread over the inputs",
        "GPT2",
        "linear",
        "epsilon",
        bias_on_inputs,
        {2, 4},
        {5, 6, 10, 11, 12},
    ),
    (
        "CP-LRP with the gate live",
        "LLAMA",
        "multiply",
        "second",
        multiply.uniform_gxi,
        {2, 11},
        {3, 5, 6, 8, 10, 12},
    ),
    (
        "a Jacobian that does not normalize",
        "LLAMA",
        "rms_norm",
        "gradient",
        forgetful,
        {2, 12},
        {4, 5, 6, 8, 10, 11},
    ),
]
"""Fault, net, operation, rule, what stands in its place,
the identities that have to fail, those that must not.
"""
IN_GRADIENT_FORM = ("CP-LRP with the gate live", "a Jacobian that does not normalize")
"""Faults of the gradient x input form; the others are of the relevance form."""


@pytest.mark.parametrize(
    ("fault", "name", "operation", "rule", "wrong", "caught", "unmoved"),
    FAULTS,
    ids=[f[0] for f in FAULTS],
)
def test_a_wrong_rule_fails_its_identities(
    fault: str,
    name: str,
    operation: str,
    rule: str,
    wrong: Any,
    caught: set[int],
    unmoved: set[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    form = "gradient_x_input" if fault in IN_GRADIENT_FORM else "relevance"
    rules = OPERATIONS[operation].rules
    with monkeypatch.context() as m:
        m.setitem(rules, rule, rules[rule]._replace(**{form: wrong}))
        found = failing(net(name), sorted(caught | unmoved))
    assert caught <= found and not found & unmoved, f"{fault}: {sorted(found)} fail"


def ninth(model: Model) -> set[str]:
    """The first words of the rows of identity 9 that fail."""
    return {r.identity.split(" ")[0] for r in rows(model, [9]) if not r.holds}


def test_a_leak_of_causality_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    right = masks.causal
    monkeypatch.setattr(
        masks,
        "causal",
        lambda ids, attention_mask=None, window=None, past=0: Given(
            right(ids, attention_mask, window, past).array | (np.eye(ids.shape[-1], k=1) > 0)
        ),
    )
    assert {"no", "a"} <= ninth(net("GPT2"))


def test_a_leak_of_padding_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    right = masks.causal
    monkeypatch.setattr(
        masks,
        "causal",
        lambda ids, attention_mask=None, window=None, past=0: Given(
            right(ids, None, window, past).array | (attention_mask is not None)
        ),
    )
    assert {"together", "padding"} <= ninth(net("GPT2"))


def test_a_wrong_group_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean over the group in place of its sum."""
    from refl.rules import movement

    right = movement.MOVES["repeat_heads"]
    monkeypatch.setitem(
        movement.MOVES,
        "repeat_heads",
        (right[0], lambda r, x, *, times: right[1](r, x, times=times) / times),
    )
    assert "grouped" in ninth(net("LLAMA"))


def test_attention_that_forgets_later_keys_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Trace._attention_part

    def first_keys_alone(
        alike: Any, operands: Any, indices: Any, visible: Any, *rest: Any, **how: Any
    ) -> Any:
        """Of the keys that a part may see, the first ones alone."""

        def first() -> Any:
            mask = visible()
            return mask & (np.arange(mask.shape[-1]) < QUERIES)

        return right(alike, operands, indices, first, *rest, **how)

    assert "attention" not in ninth(net("LLAMA"))
    monkeypatch.setattr(Trace, "_attention_part", staticmethod(first_keys_alone))
    assert ninth(net("LLAMA")) == {"attention"}


def without_the_last(self: Any, rows: slice) -> Any:
    return list(TILES(self, rows))[:-1]


def scaled_twice(a: Any, at: Any, tiles: Any) -> Any:
    z, top, total = ATTENDED(a, at, tiles)
    return z, top, total * (1 + (len(tiles) > 1))


def without_its_offset(self: Any, rows: Any, s: Any, e: Any, r: Any) -> None:
    THROUGH_SOFTMAX(self, rows._replace(along=0 * rows.along), s, e, r)


TILES, ATTENDED = attention.Attention._tiles, attention._attended
THROUGH_SOFTMAX = attention._Sweep._through_softmax


@pytest.mark.parametrize(
    ("owner", "name", "wrong"),
    [
        (attention.Attention, "_tiles", without_the_last),
        (attention, "_attended", scaled_twice),
        (attention._Sweep, "_through_softmax", without_its_offset),
    ],
    ids=["a tile is left out", "rows are scaled twice", "the rows' sums are left out"],
)
def test_attention_by_wrong_tiles_fails(
    owner: Any, name: str, wrong: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, wrong)
    assert ninth(net("LLAMA")) == {"attention"}


def test_a_change_that_changes_the_function_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Identity 7 compares the outputs as well."""

    def broken(model: Model, graph: Any) -> Model:
        return replace(
            model, weights=ChainMap({name: 1.01 * model.weights[name] for name in model.weights})
        )

    monkeypatch.setitem(invariance.CHANGES, "heads", broken)
    assert [r.identity for r in rows(net("LLAMA"), [7]) if not r.holds] == [
        "the order of heads changes nothing"
    ]


# -- a row each ------------------------------------------------------------------------------------


@wraps(linear.epsilon)
def least_eps(x: Any, w: Any, b: Any, z: Any, r: Any, **how: Any) -> RuleOutput:
    """An eps below 1e-6 is taken as 1e-6."""
    floor = {"eps": max(how["eps"], 1e-6)} if "eps" in how else {}
    return linear.epsilon(x, w, b, z, r, **how | floor)


def inputs_changed(plain_rule: Callable[..., RuleOutput], change: Callable[..., Any]) -> Any:
    """A rule whose first input gets something else."""

    @wraps(plain_rule)
    def wrong(*arrays: Any, **how: Any) -> RuleOutput:
        output = plain_rule(*arrays, **how)
        first, *rest = output.inputs
        return output._replace(inputs=(change(first, *arrays), *rest))

    return wrong


def by_number(r: Any, *arrays: Any) -> Any:
    """A little more to each further feature."""
    return r * (1 + 0.01 * np.arange(r.shape[-1]))


def by_absolute_weight(r: Any, x: Any, w: Any, b: Any, z: Any, g: Any) -> Any:
    return (g @ np.abs(w)) * (x if r is None else 1)


def positive_alone(r: Any, *arrays: Any) -> Any:
    return r * (r > 0)


def in_place(r: Any, x: Any, z: Any, *rest: Any) -> Any:
    """The forward's own array is written to."""
    z *= 1.000001
    return r


Wrong = Callable[..., RuleOutput]
ROWS: list[tuple[str, str, str, str, str, Wrong]] = [
    ("what eps adds is linear", "LLAMA", "linear", "epsilon", "relevance", least_eps),
    (RELU, "GPT2, relu", "linear", "epsilon", "relevance", bias_on_inputs),
    (
        "linear: LRP-0 = leave-one-out",
        "LLAMA",
        "linear",
        "epsilon",
        "relevance",
        inputs_changed(linear.epsilon, by_number),
    ),
    (
        "one attention layer: CP-LRP",
        "LLAMA",
        "matmul",
        "second",
        "gradient_x_input",
        lambda a, v, z, g: matmul.uniform_gxi(a, v, z, g),
    ),
    *(
        (row, "GPT2", "linear", "epsilon", "gradient_x_input", inputs_changed(linear.gradient, how))
        for row, how in (
            ("another basis inside Q K", by_absolute_weight),
            ("another basis inside V O", by_absolute_weight),
            ("norm weights folded", by_absolute_weight),
            ("the order of heads", by_number),
            ("the order of neurons", by_number),
        )
    ),
    (KEY_BIAS, "GPT2", "linear", "epsilon", "relevance", bias_on_inputs),
    ("a shift of softmax logits", "GPT2", "softmax", "taylor", "relevance", without_row_sum),
    (
        "R(z_a - z_b)",
        "LLAMA",
        "activation",
        "identity",
        "relevance",
        inputs_changed(activation.identity, positive_alone),
    ),
    (
        "the forward pass is the same",
        "LLAMA",
        "activation",
        "identity",
        "relevance",
        inputs_changed(activation.identity, in_place),
    ),
    (
        LAYER_NORM,
        "GPT2",
        "layer_norm",
        "gradient",
        "gradient_x_input",
        lambda x, w, b, z, g, **how: layer_norm.epsilon_gxi(x, w, b, z, g, **how)._replace(
            absorbed={"norm_bias": 0.0, "norm_offset": np.zeros(len(x))}
        ),
    ),
]
"""Start of a row's name, net, operation, rule, form, what stands in its place. Other rows have a
test of their own here, or stand in FAULTS.
"""


@pytest.mark.parametrize(("row", "name", "operation", "rule", "form", "wrong"), ROWS)
def test_every_row_is_seen_to_fail(
    row: str,
    name: str,
    operation: str,
    rule: str,
    form: str,
    wrong: Wrong,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rules, (number,) = OPERATIONS[operation].rules, numbers(row)
    with monkeypatch.context() as m:
        m.setitem(rules, rule, rules[rule]._replace(**{form: wrong}))
        found = [r for r in rows(net(name), [number], small=False) if r.identity.startswith(row)]
    assert [r.result for r in found] == ["FAILS"], f"{row}: {found}"


@cache
def numbers(row: str) -> set[int]:
    """Of the identity that a row belongs to."""
    return {n for n, starts in BY_NUMBER.items() if row.startswith(starts)}


BY_NUMBER = {
    2: ("what eps",),
    4: (RELU,),
    6: ("linear:", "one attention"),
    7: ("another", "norm weights", "the order", KEY_BIAS, "a shift"),
    8: ("R(z",),
    9: ("the forward",),
    12: (LAYER_NORM,),
}


def test_a_recomputation_that_loses_a_bit_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Sweep._recompute

    def inexact(self: Any, record: Any, relevance: Any, *rest: Any) -> Any:
        return right(self, record, relevance * (1 + 2.0**-52), *rest)

    monkeypatch.setattr(Sweep, "_recompute", inexact)
    assert "recomputed" in ninth(net("LLAMA"))


def test_runs_with_other_sites_are_not_the_same() -> None:
    """Also where the first has fewer."""
    m = model_under_test(net("GPT2"), [3, 1, 5])
    few, all_of_them = (m.explain("attnlrp", keep=keep, audit=False) for keep in ((), "*"))
    for one, other in ((few, all_of_them), (all_of_them, few)):
        worst = WorstDeviation()
        runs._compare_bits(one, other, "attnlrp", worst)
        assert not worst.row(9, "", "").holds


# -- nothing to compare ----------------------------------------------------------------------------


def test_what_compares_nothing_does_not_hold() -> None:
    """Nothing, empty arrays, zero with zero, and numbers below what is allowed."""
    assert nothing_compared(WorstDeviation())
    for array, bound in ((np.zeros((0, 3)), 1.0), (np.zeros(3), 0.0), (np.full(3, 1e-14), 1e-12)):
        worst = WorstDeviation()
        worst.compare(array, array, bound)
        assert nothing_compared(worst)


def nothing_compared(worst: WorstDeviation) -> bool:
    row = worst.row(1, "", "")
    return row.result == "does not apply" and row.reason.startswith("nothing to compare")


def test_one_comparison_that_decides_is_enough() -> None:
    worst = WorstDeviation()
    worst.compare(np.zeros(3), np.zeros(3), 1e-12)
    worst.compare(np.ones(3), np.ones(3), 1e-12)
    row = worst.row(1, "", "", "two")
    assert row.result == "holds" and row.found == "two; 1 of 2 are too small to decide"


@pytest.mark.parametrize("bound", [np.inf, np.nan])
def test_a_bound_that_is_no_number_allows_nothing(bound: float) -> None:
    worst = WorstDeviation()
    worst.compare(np.ones(3), np.ones(3), bound)
    assert worst.row(1, "", "").result == "FAILS"


def test_a_net_without_relevance_holds_nothing() -> None:
    """A head of zeros: every logit is 0, and so is all relevance. Activations there are."""
    model = net("LLAMA")
    zeros = np.zeros(model.weights["lm_head.weight"].shape)
    silent = with_weights(model, **{"lm_head.weight": zeros})
    m = model_under_test(silent, [3, 1, 5])
    found = [*verify(m, [11], small=False), *runs.causality(m), *runs.batches(m)]
    assert [r.result for r in found] == ["does not apply"] * 5, found
    assert all(r.reason.startswith("nothing to compare") for r in found)


def test_folding_weights_of_one_changes_nothing() -> None:
    """Norms as they are before training: the same numbers are written."""
    model = net("LLAMA")
    ones = {n: np.ones(model.weights[n].shape) for n in model.weights if "norm" in n}
    found = rows(with_weights(model, **ones), [7], small=False)
    (folded,) = (r for r in found if r.identity.startswith("norm weights folded"))
    assert folded.result == "does not apply" and "what they were" in folded.reason


def test_one_block_of_queries_is_no_comparison() -> None:
    model = random_model(random_models.GPT2 | {"n_positions": QUERIES}, 1)
    (found,) = runs.attention_in_blocks(model_under_test(model, [3, 1, 5]))
    assert found.result == "does not apply" and f"{QUERIES} positions at most" in found.reason
    model = random_model(random_models.GPT2 | {"n_positions": QUERIES + 1}, 1)
    (found,) = runs.attention_in_blocks(model_under_test(model, [3, 1, 5]))
    assert found.result == "holds"


def test_one_token_stands_beside_two() -> None:
    """A batch of one input would be compared with itself."""
    together, padding = runs.batches(model_under_test(net("GPT2"), [3]))
    assert together.result == "holds" and "of 1, 2 tokens" in together.found
    assert padding.result == "holds"


def test_dynamic_positions_beyond_what_was_trained_do_not_apply() -> None:
    scaling = {"rope_type": "dynamic", "factor": 4.0}
    config = random_models.LLAMA | {"rope_scaling": scaling, "max_position_embeddings": 4}
    model = random_model(config, 1)
    for length, result in ((4, "holds"), (5, "does not apply")):
        m = model_under_test(model, [3, 1, 5, 16, 2][:length])
        _, prefix = runs.causality(m)
        for row in (prefix, *runs.batches(m)):
            assert row.result == result, row
            assert result == "holds" or "max_position_embeddings, 4" in row.reason


def test_what_is_no_number_fails() -> None:
    worst = WorstDeviation()
    worst.compare(np.zeros(2), np.asarray([0.0, 1e-20]), 1e-12)
    assert worst.row(1, "", "").holds
    worst.compare(np.asarray([np.nan, 0.0]), np.zeros(2), 1e-12, "a site")
    worst.compare(np.zeros(2), np.asarray([0.0, 1e-20]), 1e-12)
    row = worst.row(1, "", "")
    assert not row.holds and row.result == "FAILS" and row.found.endswith("worst at a site")


def test_another_shape_fails() -> None:
    worst = WorstDeviation()
    worst.compare(np.zeros(2), np.zeros((2, 1)), 1.0)
    assert not worst.row(1, "", "").holds


# -- inputs ----------------------------------------------------------------------------------------


def test_a_masked_token_is_put_in() -> None:
    s = model_under_test(net("BERT"))
    assert s.item.count(s.model.mask_id) == 1 and len(s.item) == LENGTH


def test_a_decoder_writes() -> None:
    s = model_under_test(net("T5"), [3, 4], [0, 5])
    assert s.decoder == [0, 5] and len(input_scores(s.explain("attnlrp"))) == 4


def test_a_net_without_head_explains_a_feature() -> None:
    s = model_under_test(net("BERT, no head"), [3, 4])
    assert s.at is not None and s.explain("attnlrp").logit == pytest.approx(
        float(s.model.logits([3, 4])[0].max())
    )


def test_one_token_is_enough() -> None:
    found = list(verify(model_under_test(net("LLAMA"), [3]), small=False))
    assert all(r.holds for r in found), told(found)
    assert (
        next(r for r in found if r.identity.startswith(CAUSAL)).reason == "the text has one token"
    )


def test_unknown_identities_are_refused() -> None:
    with pytest.raises(ReflError, match="there is no identity 13: they are numbered 1 to 12"):
        rows(net("LLAMA"), [13])


def test_progress_rises_to_the_end() -> None:
    said: list[tuple[str, int, int]] = []
    rows(net("LLAMA"), [2, 3], progress=lambda *state: said.append(state))
    assert (
        said[0][1] == 0
        and all(a[1] <= b[1] for a, b in pairwise(said))
        and said[-1][1] <= said[-1][2]
    )
    assert {label for label, _, _ in said} == {"2 the frozen surrogate", "3 the whole account"}


# -- the command -----------------------------------------------------------------------------------

Capture = pytest.CaptureFixture[str]


def command(capsys: Capture, *args: str) -> tuple[int, str, str]:
    status = main(["verify", *args])
    return status, *capsys.readouterr()


def test_the_table(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    status, out, _ = command(capsys, "--only", "7", "12", "--text", "the keys to the cabinet")
    assert status == 0
    assert all(cells(line) <= 80 for line in out.splitlines())
    assert (
        "does not apply: the net has no LayerNorm" in out
        and "another basis inside Q K changes nothing" in out
    )
    assert out.splitlines()[0].startswith("shipped · llama · float64 · next-token")
    assert out.splitlines()[-1] == "all 8 hold; 2 do not apply"


def test_json(capsys: Capture) -> None:
    status, out, _ = command(
        capsys, "--only", "10", "4", "--ids", "2", "150", "87", "--json", "--dtype", "float32"
    )
    content = json.loads(out)
    assert (
        status == 0
        and content["holds"]
        and content["dtype"] == "float32"
        and content["input_ids"] == [2, 150, 87]
    )
    assert [(r["number"], r["result"], r["on"]) for r in content["identities"]] == [
        (4, "does not apply", "the model"), (10, "holds", "the model"), (10, "holds", "the model"),
        (4, "holds", "a small net"), (10, "holds", "a small net"),
    ]  # fmt: skip
    assert all(
        r["measured"] <= r["bound"] for r in content["identities"] if r["measured"] is not None
    )


def test_a_failure_is_said(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = OPERATIONS["matmul"].rules
    monkeypatch.setitem(rules, "uniform", rules["uniform"]._replace(relevance=lopsided))
    status, out, _ = command(capsys, "--only", "5", "12")
    assert status == 1
    assert "FAILS" in out and "1 of 4 FAIL (identity 5); 1 do not apply" in out


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["--text", "the keys", "--ids", "3"], "give --text or --ids, not both"),
        (["--ids", "9999"], "token id 9999 is outside the vocabulary"),
        (["--model", "nowhere"], "nowhere"),
        (["--only", "13"], "invalid choice: 13"),
        (["--text", ""], "empty"),
    ],
)
def test_bad_input(capsys: Capture, args: list[str], named: str) -> None:
    status, out, err = command(capsys, *args)
    assert status == 2 and not out and named in err and len(err.splitlines()) == 1


def test_nothing_measured_is_no_success(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refl.verification.identities.catalogue.on_small_nets", lambda only: ())
    status, out, _ = command(capsys, "--only", "4")
    assert status == 1 and out.splitlines()[-1] == "nothing could be measured: this decides nothing"
    status, out, _ = command(capsys, "--only", "4", "--json")
    assert status == 1 and json.loads(out)["holds"] is False


def test_decoder_ids_are_for_decoders(capsys: Capture) -> None:
    status, _, err = command(capsys, "--decoder-ids", "0", "5")
    assert status == 2 and "the model has no decoder" in err


def test_help_teaches(capsys: Capture) -> None:
    status, out, _ = command(capsys, "--help")
    assert status == 0
    assert all(f"\n  {number:2}  " in out for number in IDENTITIES)
    assert all(cells(line) <= 104 for line in out.splitlines())


def test_colors_are_words_too() -> None:
    """What a color says stands there in letters."""
    found = [Row(1, "a", "b", 1.0, 0.5), Row(2, "a", "b", 0.1, 0.5), Row(3, "a", "b", reason="c")]
    lines = report.lines(model_under_test(net("LLAMA"), [1]), found, 100)
    assert {
        style for line in lines for text, style in line if text.strip() in ("holds", "FAILS")
    } == {"green", "bold red"}
    assert plain(lines).splitlines()[-1] == "1 of 2 FAIL (identity 1); 1 do not apply"


def test_no_extra_is_needed() -> None:
    """Users run it: neither the libraries of the tests nor torch."""
    code = (
        "import sys\nfor name in ('mpmath', 'hypothesis', 'torch', 'pytest', 'PIL'): "
        "sys.modules[name] = None\n"
        "from refl.cli import main\nsys.exit(main(['verify', '--only', '4', '10']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
