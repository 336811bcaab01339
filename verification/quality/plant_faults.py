"""Faults planted in the engine one at a time, and the test that must fail for each.

    python -m refl.verification.quality.plant_faults [ID ...]

A test that passes proves something only if it would fail. Each line of `FAULTS` replaces a piece of
the source in a temporary copy of the project, runs one named test there and looks for its failure;
the copy is restored for the next. Most are faults that were found in published implementations. The
run breaks off where a piece of source is no longer there (the table must be kept up), where a named
test does not exist, and where it fails without any fault.
"""

from __future__ import annotations

import argparse
import compileall
import os
import py_compile
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

from refl.verification.quality.import_graph import PROJECT
from refl.verification.quality.warm_pytest import WarmPytest

WORKERS = 2

BROKEN = (
    "NameError",
    "AttributeError",
    "SyntaxError",
    "ImportError",
    "UnboundLocalError",
    "TypeError",
)
"""A test that fails with one of these has met a slip in the planted source, not the fault."""


@dataclass(frozen=True)
class Fault:
    """One planted fault: `old` stands exactly once in `file` and becomes `new`;
    `test` must fail then.
    """

    id: str
    file: str
    old: str
    new: str
    test: str
    what: str


@dataclass(frozen=True)
class Outcome:
    fault: Fault
    caught: bool
    said: str


PARTS = "tests/rules/test_attention.py::test_each_form_against_the_rules"
COMPOSITES = "tests/rules/test_composites.py::"
TILES = "tests/rules/test_tiles.py::test_tiles_are_the_recorded_operations[attnlrp-gradient-causal]"
SWEEP = "tests/refl/test_sweep.py::"
SEED = "tests/refl/test_seeds.py::test_the_seed_of_a_logit"
METHOD = "tests/refl/methods/test_"
FORWARDS = "tests/nets/test_forwards.py::"
METHODS = "tests/refl/methods/"
DECODERS = "tests/nets/test_decoders.py::"
EDITS = "tests/refl/test_edits.py::"
INTERVENTION = "tests/refl/test_intervention.py::"


def exact(file: str, name: str, *parameters: str) -> str:
    """A test against the exact definitions, with NumPy in double precision."""
    return f"tests/rules/test_{file}.py::{name}[{'-'.join(('numpy', *parameters, 'float64'))}]"


EPSILON = exact("linear", "test_rule", "epsilon")
GAMMA = exact("linear", "test_rule", "gamma")
GAMMA_AT_ZERO = "tests/rules/test_linear.py::test_gamma_at_zero_takes_the_branch_below[numpy]"
ALPHA_BETA = exact("linear", "test_alpha_beta", "2.0", "1.0")
TAYLOR = exact("softmax", "test_rule", "taylor")
NORMS = exact("norms", "test_forward_of_layer_norm")

CONSERVATION = "rules/conservation.py"
LINEAR = "rules/linear.py"
SOFTMAX = "rules/softmax.py"
MATMUL = "rules/matmul.py"
MULTIPLY = "rules/multiply.py"
ACTIVATION = "rules/activation.py"
LAYER = "rules/layer_norm.py"
RMS = "rules/rms_norm.py"
MOVEMENT = "rules/movement.py"
TRACE = "refl/trace.py"
MAPS = "tests/refl/methods/test_attention_maps.py"
RULES_JS = "refl/walk/page/rules.js"
RULES_IN_PAGE = "tests/refl/walk/test_rules_js.py::"

FAULTS: tuple[Fault, ...] = (
    # -- the stabilizer ----------------------------------------------------------------------------
    Fault(
        "eps-unsigned",
        CONSERVATION,
        "e = sign_up(eps, twice, z)",
        "e = namespace(z).zeros_like(z) + eps",
        EPSILON,
        "eps is added without the sign of z",
    ),
    Fault(
        "eps-zero-sign",
        "refl/arrays.py",
        "s -= magnitude\n    return s",
        "s -= magnitude\n    return s * flags(z != 0, z)",
        EPSILON,
        "s(0) is 0: nothing keeps a dead denominator from zero",
    ),
    Fault(
        "eps-two-forms",
        MATMUL,
        'eps = eps if denominator == "2z+eps" else 2 * eps',
        "eps = 2 * eps",
        exact("matmul", "test_uniform", "2z+eps"),
        "2 (O + eps) where 2 O + eps is asked for",
    ),
    Fault(
        "stabilizer-forgotten",
        CONSERVATION,
        "return s, total_product(s, e)",
        "return s, 0 * total_product(s, e)",
        EPSILON,
        "what the stabilizer absorbs is not recorded",
    ),
    Fault(
        "dead-forgotten",
        CONSERVATION,
        "absorbed = total(lost)",
        "absorbed = total(0 * lost)",
        "tests/rules/test_operations.py::test_without_a_stabilizer_a_zero_absorbs_what_arrived",
        "relevance above a denominator of zero vanishes from the conservation ledger",
    ),
    Fault(
        "other-form-halved",
        MATMUL,
        'eps = eps if denominator == "2z+eps" else 2 * eps',
        "eps = eps",
        exact("matmul", "test_uniform", "2(z+eps)"),
        "2 O + eps where 2 (O + eps) is asked for",
    ),
    # -- linear ------------------------------------------------------------------------------------
    Fault(
        "bias-forgotten",
        LINEAR,
        '{"bias": total(s @ b)}',
        '{"bias": 0 * total(s @ b)}',
        EPSILON,
        "what the bias absorbs is not recorded",
    ),
    Fault(
        "halved-linear",
        LINEAR,
        "RuleOutput(((s @ w) * x, None",
        "RuleOutput(((s @ w) * x / 2, None",
        EPSILON,
        "every linear layer passes on half",
    ),
    Fault(
        "weight-rows",
        LINEAR,
        "RuleOutput(((s @ w) * x, None",
        "RuleOutput(((s @ w[::-1, :]) * x, None",
        EPSILON,
        "the weight's rows in another order on the way back",
    ),
    Fault(
        "linear-sign",
        LINEAR,
        "RuleOutput(((s @ w) * x, None",
        "RuleOutput(((s @ w) * abs(x), None",
        EPSILON,
        "the sign of the input is lost",
    ),
    Fault(
        "gamma-at-zero",
        LINEAR,
        "    s_up, s_down = up * s,",
        "    s = s * flags(z != 0, z)\n    s_up, s_down = up * s,",
        GAMMA_AT_ZERO,
        "relevance at z = 0 is dropped",
    ),
    Fault(
        "gamma-branch",
        LINEAR,
        "    up = flags(z > 0, z)\n    s, absorbed = quotient(gamma",
        "    up = flags(z >= 0, z)\n    s, absorbed = quotient(gamma",
        GAMMA_AT_ZERO,
        "z = 0 goes to the wrong branch",
    ),
    Fault(
        "gamma-bias",
        LINEAR,
        "total(s @ b + gamma * (s_up @ b_pos + s_down @ b_neg))",
        "total(s @ b)",
        GAMMA,
        "the bias is not amplified",
    ),
    Fault(
        "gamma-one-sign",
        LINEAR,
        "x_pos * (s_up @ w_pos + s_down @ w_neg)",
        "x_pos * (s_up @ w_pos + s_down @ w_pos)",
        GAMMA,
        "below zero W^+ is amplified, not W^-",
    ),
    Fault(
        "alpha-beta-bias",
        LINEAR,
        "    s, absorbed = quotient(positive_sum(parts), alpha * r, eps)",
        "    parts = (parts[0], parts[1], (b, b_neg))\n"
        "    s, absorbed = quotient(positive_sum(parts), alpha * r, eps)",
        ALPHA_BETA,
        "both parts of the bias enter the positive denominator",
    ),
    Fault(
        "alpha-index",
        LINEAR,
        "quotient(positive_sum(parts), alpha * r, eps)",
        "quotient(positive_sum(parts), r, eps)",
        ALPHA_BETA,
        "alpha is never used",
    ),
    Fault(
        "beta-sign",
        LINEAR,
        "-beta * r, eps)",
        "beta * r, eps)",
        ALPHA_BETA,
        "the negative part is added",
    ),
    Fault(
        "created-hidden",
        LINEAR,
        'causes["stabilizer"] = causes["stabilizer"] + absorbed',
        "pass",
        "tests/rules/test_linear.py::test_alpha_beta_creates_relevance_and_records_it[numpy]",
        "relevance created for want of a negative part is not recorded",
    ),
    Fault(
        "flat-by-outputs",
        LINEAR,
        "keepdims=True) / x.shape[-1]",
        "keepdims=True) / r.shape[-1]",
        exact("linear", "test_rule", "flat"),
        "shared by the number of outputs",
    ),
    Fault(
        "w-not-squared",
        LINEAR,
        "squares = shares * shares",
        "squares = abs(shares)",
        exact("linear", "test_rule", "w_square"),
        "|W| in place of W^2",
    ),
    Fault(
        "w-squared-as-it-is",
        LINEAR,
        "squares = shares * shares",
        "squares = w * w",
        "tests/rules/test_linear.py::test_w_square_of_weights_whose_squares_are_no_numbers"
        "[numpy--160-float64]",
        "the squares of weights below 1e-154 vanish",
    ),
    Fault(
        "ratio-overflows",
        CONSERVATION,
        "dead = xp.abs(d) <= xp.abs(r) / most",
        "dead = d == 0",
        "tests/rules/test_linear.py::test_a_denominator_too_small_to_divide_by_absorbs"
        "[numpy-z_plus-float32]",
        "relevance over a subnormal denominator is infinite",
    ),
    Fault(
        "gradient-times-input",
        LINEAR,
        "RuleOutput((g @ w, None, None)",
        "RuleOutput((x * (g @ w), None, None)",
        exact("linear", "test_rule", "gradient"),
        "relevance where a gradient is propagated",
    ),
    # -- add and multiply --------------------------------------------------------------------------
    Fault(
        "residual-absolute",
        "rules/add.py",
        'RuleOutput((fold(a * s, a.shape), fold(b * s, b.shape)), {"stabilizer": absorbed})',
        "RuleOutput(tuple(fold(abs(k) * r / (abs(a) + abs(b) + 1e-30), k.shape) for k in (a, b)), "
        '{"stabilizer": absorbed})',
        exact("add", "test_rule", "epsilon"),
        "a residual is split by |a| / (|a| + |b|)",
    ),
    Fault(
        "zero-input",
        "rules/add.py",
        'RuleOutput((fold(a * s, a.shape), fold(b * s, b.shape)), {"stabilizer": absorbed})',
        "RuleOutput((fold(a * s, a.shape), fold(b * s * (a != 0), b.shape)), "
        '{"stabilizer": absorbed})',
        exact("add", "test_rule", "epsilon"),
        "relevance beside an operand that is zero is lost",
    ),
    Fault(
        "copies-not-summed",
        "rules/add.py",
        "xp.sum(r, axis=copied)",
        "xp.mean(r, axis=copied)",
        exact("add", "test_rule", "gradient"),
        "copies of a broadcast operand are averaged",
    ),
    Fault(
        "factors-ignored",
        MULTIPLY,
        "fold(n * each, a.shape)",
        "fold(sum(factors) / len(factors) * each, a.shape)",
        exact("multiply", "test_rule", "flattened"),
        "factors of a nested product are not counted",
    ),
    Fault(
        "factors-swapped",
        MATMUL,
        "inputs = (n_a * ((s @ swap(v)) * a), n_v * ((swap(a) @ s) * v))",
        "inputs = (n_v * ((s @ swap(v)) * a), n_a * ((swap(a) @ s) * v))",
        exact("matmul", "test_rule", "flattened"),
        "each operand gets what the other one stands for",
    ),
    Fault(
        "constant-eats-share",
        MULTIPLY,
        "each = r / constant.count(False)",
        "each = r / len(constant)",
        exact("multiply", "test_rule", "uniform"),
        "a constant operand takes 1/N",
    ),
    Fault(
        "product-proportional",
        MULTIPLY,
        "fold(each, a.shape)",
        "fold(r * abs(a) / (sum(map(abs, operands)) + 1e-30), a.shape)",
        exact("multiply", "test_rule", "uniform"),
        "a product is split by magnitude",
    ),
    Fault(
        "product-offset",
        MULTIPLY,
        "-created * total_product(z, g)",
        "0 * total_product(z, g)",
        exact("multiply", "test_rule", "gradient"),
        "what the true derivative hands out twice is not recorded",
    ),
    Fault(
        "half-of-all",
        MULTIPLY,
        "g / constant.count(False)",
        "g / 2",
        exact("multiply", "test_rule", "uniform_gxi"),
        "1/2 whatever the number of operands",
    ),
    Fault(
        "gate-gets-all",
        MULTIPLY,
        "return RuleOutput((None, fold(r, b.shape)), {})",
        "return RuleOutput((fold(r, a.shape), None), {})",
        exact("multiply", "test_rule", "second"),
        "the gate gets the relevance of the gated",
    ),
    # -- matmul ------------------------------------------------------------------------------------
    Fault(
        "cp-half",
        MATMUL,
        "RuleOutput((None, (swap(a) @ s) * v)",
        "RuleOutput((None, (swap(a) @ s) * v / 2)",
        exact("matmul", "test_rule", "second"),
        "V gets half although A gets nothing",
    ),
    Fault(
        "matmul-twice",
        MATMUL,
        "RuleOutput(((s @ swap(v)) * a, (swap(a) @ s) * v)",
        "RuleOutput((2 * (s @ swap(v)) * a, 2 * (swap(a) @ s) * v)",
        exact("matmul", "test_uniform", "2z+eps"),
        "both operands get the whole: factor 2",
    ),
    Fault(
        "half-forgotten",
        MATMUL,
        "h = g / 2",
        "h = g",
        exact("matmul", "test_rule", "uniform_gxi"),
        "the 1/2 of the gradient x input form is missing",
    ),
    Fault(
        "matmul-offset-sign",
        MATMUL,
        '"product_offset": -total_product(z, g)',
        '"product_offset": total_product(z, g)',
        exact("matmul", "test_rule", "gradient"),
        "the offset of the true derivative with the wrong sign",
    ),
    # -- softmax -----------------------------------------------------------------------------------
    Fault(
        "softmax-dim",
        SOFTMAX,
        "    s = row_sum(r)\n    return s, total",
        "    s = namespace(r).sum(r, axis=-2, keepdims=True) + 0 * row_sum(r)\n    return s, total",
        TAYLOR,
        "the rule sums over the wrong axis",
    ),
    Fault(
        "softmax-shifted",
        SOFTMAX,
        "    s, offset = _offset(x, p, r)\n    return RuleOutput((_times",
        "    x = x - namespace(x).max(x, axis=-1, keepdims=True)\n    s, offset = "
        "_offset(x, p, r)\n    return RuleOutput((_times",
        TAYLOR,
        "max-subtracted logits stand for x",
    ),
    Fault(
        "mask-finfo",
        SOFTMAX,
        "return float(namespace(x).finfo(x.dtype).min) / 2",
        'return -float("inf")',
        TAYLOR,
        "only -inf counts as masked",
    ),
    Fault(
        "mask-forgotten",
        SOFTMAX,
        '{"mask": total_product(r, 1 - unmasked)}',
        '{"mask": 0 * total(r)}',
        TAYLOR,
        "relevance at masked entries vanishes from the conservation ledger",
    ),
    Fault(
        "offset-sign",
        SOFTMAX,
        "- total_product(r, x)",
        "+ total_product(r, x)",
        TAYLOR,
        "a sign in the softmax offset",
    ),
    Fault(
        "offset-forgotten",
        SOFTMAX,
        'return RuleOutput((r - p * s,), {"softmax_offset": offset}',
        'return RuleOutput((r - p * s,), {"softmax_offset": 0 * offset}',
        exact("softmax", "test_rule", "gradient"),
        "the softmax offset is not recorded",
    ),
    Fault(
        "softmax-diagonal",
        SOFTMAX,
        "RuleOutput((r - p * s,)",
        "RuleOutput((r,)",
        exact("softmax", "test_rule", "gradient"),
        "only the Jacobian's diagonal",
    ),
    Fault(
        "spread-to-masked",
        SOFTMAX,
        "(n + flags(n == 0, n))",
        "(0 * n + x.shape[-1])",
        exact("softmax", "test_rule", "spread"),
        "masked entries count among the N",
    ),
    Fault(
        "z-plus-own-twice",
        SOFTMAX,
        "own + others(cross)",
        "own + row_sum(cross)",
        exact("softmax", "test_rule", "z_plus"),
        "a term stands twice in its own sum",
    ),
    Fault(
        "z-plus-cancels",
        SOFTMAX,
        "(1 - large) * (1 - p) + large * row_sum(p - large * p)",
        "1 - p",
        "tests/rules/test_softmax.py::test_z_plus_where_one_probability_is_nearly_one"
        "[numpy-float32]",
        "1 - p has no digits left where p is near 1",
    ),
    Fault(
        "device-asked",
        SOFTMAX,
        "if can_ask(x) and not xp.any(x <= _least(x))",
        "if not xp.any(x <= _least(x))",
        "tests/refl/test_transfers.py::test_nothing_crosses_while_a_sweep_walks[gpt2]",
        "a sweep waits for a GPU at every softmax",
    ),
    # -- methods that are no tables ----------------------------------------------------------------
    Fault(
        "alti-without-itself",
        "refl/methods/alti_logit.py",
        "+ own[:, rows, None] * x[rows, :]",
        "+ 0 * x[rows, :]",
        f"{METHOD}alti_logit.py::test_weights_in_fractions",
        "a token's own content is no part of what comes to it",
    ),
    Fault(
        "alti-norm-forgotten",
        "refl/methods/forwards.py",
        'return xs[0] * inverse_rms(_at(x0, rows), how["norm_eps"])[0] * (how["offset"] + w)',
        'return xs[0] * (how["offset"] + w)',
        f"{METHOD}alti_logit.py::test_updates_in_fractions[0-None]",
        "a norm's scale is left out",
    ),
    Fault(
        "decompx-gate",
        "refl/methods/forwards.py",
        "return _at(record.arrays[0], rows) * xs[0]",
        "return _at(record.arrays[0], rows) * xs[0] / 2",
        f"{METHOD}decompx.py::test_what_tokens_bring_is_cp_lrp[llama]",
        "a gate keeps half, where it is a constant",
    ),
    Fault(
        "angles-unturned",
        "rules/rotary.py",
        "return x * cos * h, halves_exchanged(x, -1.0, 1.0) * sin * h",
        "return x * cos * h, x * sin * h",
        f"{METHOD}pa_lrp.py::test_the_halves_of_a_rotation_in_fractions",
        "the sine's product is with x as it was",
    ),
    # -- norms and activations ---------------------------------------------------------------------
    Fault(
        "ln-unbiased",
        LAYER,
        "variance = xp.mean(centered * centered, axis=-1, keepdims=True)",
        "variance = xp.sum(centered * centered, axis=-1, keepdims=True) / max(x.shape[-1] - 1, 1)",
        NORMS,
        "unbiased variance",
    ),
    Fault(
        "bn-variance",
        LAYER,
        "1 / xp.sqrt(variance + eps)",
        "1 / xp.sqrt(variance * variance + eps)",
        NORMS,
        "var^2 under the root",
    ),
    Fault(
        "ln-uncentered",
        LAYER,
        "return c - namespace(c).mean(c, axis=-1, keepdims=True)",
        "return c",
        exact("norms", "test_layer_norm", "epsilon"),
        "the mean is no function of the input on the way back",
    ),
    Fault(
        "norm-bias-forgotten",
        LAYER,
        '{"norm_bias": total(s @ b)}',
        '{"norm_bias": 0 * total(s @ b)}',
        exact("norms", "test_layer_norm", "epsilon"),
        "what beta absorbs is not recorded",
    ),
    Fault(
        "norm-weight-forgotten",
        RMS,
        "RuleOutput((g * (offset + w) * inverse_rms(x, norm_eps)[0], None), {})",
        "RuleOutput((g * inverse_rms(x, norm_eps)[0], None), {})",
        exact("norms", "test_rms_norm", "identity_gxi"),
        "the gradient x input form without the norm's weight",
    ),
    Fault(
        "norm-offset-forgotten",
        RMS,
        "total(along * share)})\n\n\nRULES",
        "0 * total(along * share)})\n\n\nRULES",
        exact("norms", "test_rms_norm", "gradient"),
        "what a norm's Jacobian loses is not recorded",
    ),
    Fault(
        "norm-overflows",
        "refl/arrays.py",
        "if largest <= most and least >= -most:",
        "if True:",
        "tests/rules/test_norms.py::test_norms_of_numbers_whose_squares_are_none"
        "[numpy-1-rms_norm-float32]",
        "the squares of inputs above 1e19 are infinite in float32",
    ),
    Fault(
        "norm-overflows-on-a-device",
        "refl/arrays.py",
        "return xp.where(top <= most, xp.ones_like(scale), scale)",
        "return xp.ones_like(scale)",
        "tests/rules/test_norms.py::test_norms_of_numbers_whose_squares_are_none"
        "[array-api-strict-1-rms_norm-float32]",
        "the squares of inputs above 1e19 are infinite where no branch is taken",
    ),
    Fault(
        "identity-in-wrong-form",
        ACTIVATION,
        "-> RuleOutput:\n    return RuleOutput((r,), {})",
        "-> RuleOutput:\n    return identity_gxi(x, z, r, kind=kind)",
        exact("activation", "test_rule", "identity", "gelu"),
        "f(x)/x where relevance is propagated",
    ),
    Fault(
        "relu-identity-lost",
        ACTIVATION,
        "-> RuleOutput:\n    return RuleOutput((r,), {})",
        "-> RuleOutput:\n    return RuleOutput((r * (z != 0),), {})",
        exact("activation", "test_rule", "identity", "relu"),
        "identity gives nothing where the activation is 0",
    ),
    Fault(
        "ratio-at-zero",
        ACTIVATION,
        " + at_zero * zero",
        "",
        exact("activation", "test_rule", "identity_gxi", "silu"),
        "f(x)/x at 0 is taken as 0, not as f'(0)",
    ),
    Fault(
        "tanh-slope",
        ACTIVATION,
        "return 4 * e / ((1 + e) * (1 + e))",
        "return 1 - x * x",
        exact("activation", "test_rule", "gradient", "tanh"),
        "1 - x^2 for 1 - tanh(x)^2",
    ),
    Fault(
        "tanh-slope-cancels",
        ACTIVATION,
        "return 4 * e / ((1 + e) * (1 + e))",
        "return 1 - xp.tanh(x) * xp.tanh(x)",
        "tests/rules/test_activation.py::test_no_digit_is_lost_far_out_or_near_zero"
        "[numpy-tanh-float32]",
        "1 - tanh(x)^2, none of whose digits are left where tanh is near 1",
    ),
    Fault(
        "activation-offset",
        ACTIVATION,
        "return g * f_prime, g * (z - x * f_prime)",
        "return g * f_prime, g * (z + x * f_prime)",
        exact("activation", "test_rule", "gradient", "gelu"),
        "a sign in the activation's offset",
    ),
    Fault(
        "gelu-constant",
        ACTIVATION,
        "* x * (1 + 0.044715 * x * x)",
        "* x * (1 + 0.0044715 * x * x)",
        exact("activation", "test_forward", "gelu_tanh"),
        "a slip in the constant of gelu's tanh form",
    ),
    # -- rotary, pooling, movement, embedding, scale -----------------------------------------------
    Fault(
        "rope-back",
        "rules/rotary.py",
        "halves_exchanged(s * sin, 1.0, -1.0)",
        "halves_exchanged(s * sin, -1.0, 1.0)",
        exact("rotary", "test_rule", "gradient"),
        "turned further on, not back",
    ),
    Fault(
        "rope-position",
        "rules/rotary.py",
        '{"position": total_product(z, h)}',
        '{"position": total_product(x, h)}',
        exact("rotary", "test_rule", "uniform"),
        "the angle's half is taken before the rotation",
    ),
    Fault(
        "rope-interleave",
        "rules/rotary.py",
        "namespace(x).concat((first * x[..., half:], second * x[..., :half]), axis=-1)",
        "namespace(x).reshape(namespace(x).stack((first * x[..., 1::2], second * x[..., "
        "::2]), axis=-1), x.shape) + 0 * half",
        exact("rotary", "test_forward"),
        "neighbors are turned in place of halves",
    ),
    Fault(
        "pooling-padding",
        "rules/pooling.py",
        "RuleOutput((x * counted * s,)",
        "RuleOutput((x * s,)",
        exact("pooling_and_scale", "test_pooling", "epsilon"),
        "padding gets relevance",
    ),
    Fault(
        "gqa-groups",
        MOVEMENT,
        "xp.sum(xp.reshape(r, (x.shape[0], x.shape[1], times, *x.shape[2:])), axis=2)",
        "xp.sum(xp.reshape(r, (x.shape[0], times, x.shape[1], *x.shape[2:])), axis=1)",
        exact("movement", "test_rule", "repeat_heads"),
        "copies are summed over the wrong groups",
    ),
    Fault(
        "gqa-not-summed",
        MOVEMENT,
        "xp.sum(xp.reshape(r, (x.shape[0], x.shape[1], times, *x.shape[2:])), axis=2)",
        "xp.reshape(r, (x.shape[0], x.shape[1], times, *x.shape[2:]))[:, :, 0]",
        exact("movement", "test_rule", "repeat_heads"),
        "one copy stands for all",
    ),
    Fault(
        "slice-back",
        MOVEMENT,
        "whole[..., start:stop] = r",
        "whole[..., : stop - start] = r",
        exact("movement", "test_rule", "slice"),
        "a slice's relevance goes back to the wrong place",
    ),
    Fault(
        "rows-back",
        MOVEMENT,
        "whole[b, t, ...] = r[b, 0, ...]",
        "whole[b, 0, ...] = r[b, 0, ...]",
        exact("movement", "test_rule", "rows"),
        "the explained row's relevance goes back to the first",
    ),
    Fault(
        "position-as-tokens",
        "rules/embedding.py",
        "{role: total(r)}",
        '{"tokens": total(r)}',
        exact("leaves", "test_embedding", "leaf", "position"),
        "the positions' share is counted as the tokens'",
    ),
    Fault(
        "scale-forgotten",
        "rules/scale.py",
        "RuleOutput((g * factor,), {})",
        "RuleOutput((g,), {})",
        exact("pooling_and_scale", "test_scale", "gradient"),
        "1/sqrt(d) is missing from the gradient",
    ),
    # -- the conservation ledger, the sweep, the seed ----------------------------------------------
    Fault(
        "batch-coupled",
        "refl/arrays.py",
        "return xp.add.reduce(x.reshape(len(x), math.prod(x.shape[1:])), axis=1, dtype=xp.float64)",
        "return xp.zeros(len(x)) + xp.add.reduce(x, axis=None, dtype=xp.float64)",
        EPSILON,
        "an example's ledger depends on its neighbors",
    ),
    Fault(
        "batch-coupled-by-rows",
        "refl/arrays.py",
        "return xp.sum(rows, axis=tuple(range(1, rows.ndim)), dtype=xp.float64)",
        "return 0 * xp.sum(rows, axis=tuple(range(1, rows.ndim)), dtype=xp.float64) + xp.sum(rows)",
        "tests/refl/test_sums.py::test_a_row_that_is_one_for_all[many]",
        "the same where examples are large",
    ),
    Fault(
        "leaf-twice",
        "refl/sweep.py",
        "(pieces.added(before[0], received[0]), before[1] + received[1])",
        "received",
        f"{SWEEP}test_a_value_read_twice_gets_both_shares",
        "shares that meet are not summed",
    ),
    Fault(
        "given-once",
        "refl/sweep.py",
        "received[1] if before is None else before + received[1]",
        "received[1]",
        f"{SWEEP}test_a_value_read_twice_gets_both_shares",
        "an operand that stands twice is recorded once",
    ),
    Fault(
        "vacuous-check",
        "refl/ledger.py",
        "return self.received - sum(self.passed.values()) - sum(self.absorbed.values())",
        "return 0 * self.received",
        f"{SWEEP}test_a_wrong_rule_leaves_a_conservation_error",
        "the conservation ledger balances whatever a rule returns",
    ),
    Fault(
        "logit-squared",
        "refl/seeds.py",
        "s[self.target] = 1\n",
        "s[self.target] = z[self.target]\n",
        SEED,
        "the gradient x input form starts from the logit: the sum is its square",
    ),
    Fault(
        "contrast-sign",
        "refl/seeds.py",
        "s[self.against] = -1",
        "s[self.against] = 1",
        SEED,
        "a contrast adds",
    ),
    Fault(
        "seed-cancels",
        "refl/seeds.py",
        "return p[:k].sum() + p[k + 1 :].sum()",
        "return p.sum() - p[k]",
        "tests/refl/test_seeds.py::test_no_digit_of_a_seed_cancels[log-probability-40-float64]",
        "1 - p is 0 where the target is certain",
    ),
    Fault(
        "answer-of-one-token",
        "refl/targets.py",
        "sorted([s, *ends], key",
        "sorted([*ends], key",
        "tests/refl/test_targets.py::test_the_best_answers_by_trying_all",
        "an answer of one token is never the best",
    ),
    Fault(
        "padding-answers",
        "refl/targets.py",
        "Part(slice(column, 2 * tokens, 2)",
        "Part(slice(column, None, 2)",
        "tests/refl/test_targets.py::test_padding_has_no_part_in_an_answer",
        "padding takes part in the softmax over starts, and over ends",
    ),
    Fault(
        "cosine-of-constant-length",
        "refl/seeds.py",
        "(self._unit - self.value(z) * unit) / norm",
        "self._unit / norm",
        "tests/refl/test_targets.py::test_the_seed_of_a_cosine[1]",
        "the derivative of a cosine forgets that of the length",
    ),
    Fault(
        "lost-at-zero",
        "refl/explainer.py",
        "if as_gradient and any(lost):",
        "if False:",
        "tests/refl/test_seeds.py::test_what_no_gradient_can_carry_is_absorbed[float64]",
        "relevance that no gradient can carry is in no ledger",
    ),
    Fault(
        "cp-uniform",
        "rules/published.py",
        'Rule("matmul", "second", ',
        'Rule("matmul", "uniform", ',
        f"{COMPOSITES}test_cp_lrp_conserves",
        "CP-LRP with the uniform rule on the values",
    ),
    # -- attention in blocks, masks, nets ----------------------------------------------------------
    Fault(
        "tril-always",
        TRACE,
        "slice(0, every) if mask is None else",
        "slice(0, rows.stop) if mask is None else",
        f"{PARTS}[parts-False]",
        "bidirectional attention is cut like causal attention",
    ),
    Fault(
        "block-overwrites",
        "refl/sweep.py",
        "whole[index] += passed[0]",
        "whole[index] = passed[0]",
        f"{PARTS}[parts-True]",
        "later queries overwrite what earlier ones gave to a key",
    ),
    Fault(
        "mask-strict",
        "refl/mask.py",
        "visible = i <= j if",
        "visible = i < j if",
        f"{FORWARDS}test_causal_mask",
        "a token does not see itself",
    ),
    Fault(
        "padding-seen",
        "refl/mask.py",
        "return visible & self.allowed",
        "return visible | self.allowed",
        f"{FORWARDS}test_causal_mask",
        "padding is attended to",
    ),
    Fault(
        "window-of-two-sides",
        "nets/masks.py",
        "reach=window // 2",
        "reach=(window + 1) // 2 + 1",
        "tests/nets/test_newer_encoders.py::test_the_first_block_and_every_nth_after_it_see_all",
        "a window reaches one token too far to either side",
    ),
    Fault(
        "keys-behind-seen",
        "refl/mask.py",
        "(i >= j - self.reach) & (i <= j + self.reach)",
        "(i <= j + self.reach)",
        "tests/nets/test_newer_encoders.py::test_a_mask_of_two_sides[1]",
        "a window of two sides is one of one side",
    ),
    Fault(
        "mask-of-pairs-by-keys-alone",
        "refl/mask.py",
        "where = rows if self.allowed.ndim == 3 else None",
        "where = slice(0, 1) if self.allowed.ndim == 3 else None",
        "tests/refl/test_attention_mask.py::test_every_pair_in_a_plain_loop",
        "every query may look where the first may",
    ),
    Fault(
        "mask-of-pairs-forgotten",
        "refl/attention_mask.py",
        "row[:length, :length] = allowed",
        "row[:length, :length] |= allowed",
        "tests/refl/test_attention_mask.py::test_every_pair_in_a_plain_loop",
        "which query may look where is not heeded",
    ),
    Fault(
        "mean-over-hidden-tokens",
        "nets/encoder.py",
        "counted, xp = batch.attention_mask, namespace(h.array)",
        "counted, xp = batch.unpadded, namespace(h.array)",
        "tests/refl/test_attention_mask.py::test_the_mean_is_over_what_may_be_looked_at",
        "hidden tokens are counted in the mean that a classifier reads",
    ),
    Fault(
        "llama-scale",
        "nets/llama.py",
        "c.width**-0.5",
        "1.0",
        f"{FORWARDS}test_llama_in_plain_numpy",
        "scores are not scaled",
    ),
    Fault(
        "gate-and-up",
        "nets/llama.py",
        't.linear("gate_proj", x, ',
        't.linear("up_proj", x, ',
        f"{FORWARDS}test_llama_in_plain_numpy",
        "the activation stands on the wrong branch",
    ),
    Fault(
        "strangers-pass",
        "refl/io/unused.py",
        "    if strange:\n",
        "    if len(strange) > 99:\n",
        "tests/refl/test_loading.py::test_a_tensor_that_nothing_reads_is_named[llama]",
        "a tensor that no operation reads is overlooked",
    ),
    Fault(
        "padding-classified",
        "nets/heads.py",
        "if i != pad and (mask",
        "if (mask",
        "tests/refl/test_loading.py::test_a_classifier_is_score_on_the_last_token"
        "[LlamaForSequenceClassification]",
        "a decoder classifies at the last token, be it padding",
    ),
    Fault(
        "ties-believed",
        "refl/io/unused.py",
        'return "" if same else',
        'return "" if True else',
        "tests/refl/test_loading.py::test_a_second_name_is_looked_at",
        "a tied head that is stored too, and differs, is passed over",
    ),
    Fault(
        "rope-frequencies",
        "nets/rope.py",
        "** (-2.0 * i / rope.width)",
        "** (-1.0 * i / rope.width)",
        f"{FORWARDS}test_llama_in_plain_numpy",
        "theta^(-i/d) for theta^(-2i/d)",
    ),
    Fault(
        "gpt2-positions",
        "nets/batch.py",
        "(past - 1)",
        "past",
        f"{FORWARDS}test_gpt2_in_plain_numpy",
        "positions count from 1",
    ),
    # -- what makes it fast ------------------------------------------------------------------------
    Fault(
        "tile-not-rescaled",
        "refl/attention.py",
        "z *= shrunk[..., None]",
        "z *= 1",
        TILES,
        "what earlier tiles gave stands under another largest score",
    ),
    Fault(
        "tile-row-sum-dropped",
        "refl/attention.py",
        "e *= rows.along[..., None]",
        "e *= 0",
        TILES,
        "softmax passes p g on whole",
    ),
    Fault(
        "tile-values-unshared",
        "refl/attention.py",
        "h = to_v * self._divided(",
        "h = self._divided(",
        TILES,
        "values get all of what they share with the probabilities",
    ),
    Fault(
        "piece-counted-twice",
        "refl/pieces.py",
        "absorbed.get(cause, 0.0) + amount",
        "absorbed.get(cause, 0.0) + 2 * amount",
        "tests/refl/test_pieces.py::test_every_rule[layer_norm-epsilon-relevance-float64]",
        "what a piece absorbs is entered twice",
    ),
    Fault(
        "buffer-lent-twice",
        "refl/buffers.py",
        "memory = self._waiting[size].pop()",
        "memory = self._waiting[size][-1]",
        "tests/refl/test_buffers.py::test_threads_share_no_memory",
        "two arrays share memory",
    ),
    Fault(
        "light-outputs-stay",
        TRACE,
        "self._array, self._again = None, again",
        "self._again = again",
        "tests/refl/test_light.py::test_they_are_gone_after_the_forward[llama-True]",
        "what could be formed again is held",
    ),
    Fault(
        "cache-starts-anew",
        "nets/rope.py",
        "xp.arange(past, past + length,",
        "xp.arange(0, length,",
        "tests/refl/test_cache.py::test_a_continued_run_has_the_bits_of_the_whole[llama]",
        "rotary positions of a continued text begin at 0",
    ),
    # -- what other decoders add -------------------------------------------------------------------
    Fault(
        "window-one-more",
        "refl/mask.py",
        "(i > j - self.window)",
        "(i >= j - self.window)",
        f"{DECODERS}test_a_window_hides_what_is_further_back",
        "a window of w tokens shows w + 1",
    ),
    Fault(
        "norm-offset-one-way",
        RMS,
        "RuleOutput((g * (offset + w) *",
        "RuleOutput((g * w *",
        f"{DECODERS}test_an_offset_is_added_to_the_weight[identity_gxi]",
        "1 + weight on the way up, the weight on the way back",
    ),
    Fault(
        "other-half-turned",
        "nets/phi.py",
        "start=rotated, stop=width",
        "start=0, stop=width - rotated",
        f"{DECODERS}test_what_is_not_turned_keeps_its_features",
        "features that are not turned come from the wrong place",
    ),
    Fault(
        "cap-forgotten",
        TRACE,
        'z = self.scale(f"{name}.divided", x, 1 / cap)',
        'z = self.scale(f"{name}.divided", x, 1.0)',
        f"{DECODERS}test_a_cap_bounds_scores_and_logits",
        "logits are not divided by their cap",
    ),
    # -- edits, leaves -----------------------------------------------------------------------------
    Fault(
        "edit-made-twice",
        TRACE,
        "return y if path in self.edits else self.name(y, path)",
        "return self.name(y, path)",
        EDITS + "test_every_site_in_every_run[llama]",
        "the edit of a block's output is made inside the block and once more outside",
    ),
    Fault(
        "edit-of-parts",
        TRACE,
        "if self.plain or pairs <= FEW or inside_attention(self.edits, self.path):",
        "if self.plain or pairs <= FEW:",
        EDITS + "test_twice_an_activation_is_twice_the_weights[scores-many]",
        "attention in tiles has no scores to edit, and says nothing",
    ),
    Fault(
        "edit-everywhere",
        "refl/intervention.py",
        "_of_parts(site, several, where)\n",
        "_of_parts(site, several, None)\n",
        INTERVENTION + "test_a_part_is_an_entry_of_its_site[L1.N3-off--1]",
        "a neuron is switched at every token where one was asked for",
    ),
    Fault(
        "one-edit-asked-for-twice",
        "refl/edits.py",
        "        a, b = first[site], further[site]\n",
        "        a, b = first[site], further[site]\n        if a is b:\n            continue\n",
        EDITS + "test_one_change_asked_for_twice_is_made_twice[an edit]",
        "a change of a model and the same one of a question are taken for one",
    ),
    Fault(
        "held-before-its-edit",
        "refl/question.py",
        "values.get(edited_site(site), values[site])",
        "values[site]",
        "tests/refl/test_leave_one_out.py::test_attention_is_held_as_an_edit_has_left_it",
        "of an edited site what was computed is put in place, not what is read",
    ),
    Fault(
        "edit-not-explained",
        "refl/question.py",
        "edits=whole(self.network.edits, self.edits, recorded=True),",
        "edits=whole({}, self.edits, recorded=True),",
        INTERVENTION + "test_it_explains_generates_and_is_pickled",
        "an edited model explains the model as it is",
    ),
    Fault(
        "edit-takes-relevance",
        TRACE,
        "f.constant = True",
        "f.constant = False",
        EDITS + "test_a_factor_takes_nothing_and_an_amount_its_part",
        "half of the relevance of what is scaled goes to the factor",
    ),
    Fault(
        "edit-under-padding",
        "refl/question.py",
        "alone = alone or bool(self.edits)",
        "alone = alone",
        EDITS + "test_a_list_of_texts_is_each_alone",
        "an index from the end counts padding",
    ),
    Fault(
        "leaf-forgotten",
        TRACE,
        "            array = self._leaf(site, array)",
        "            self._leaf(site, array)",
        "tests/refl/test_leaves.py::test_pixels",
        "a run starts from the input whatever leaf it is told to start from",
    ),
    # -- what is left of a sweep, and of an input --------------------------------------------------
    Fault(
        "condition-goes-around",
        "refl/sweep.py",
        "around = self._around(swept) if self.conditions.through else []",
        "around: list[Array] = []",
        "tests/refl/test_conditions.py::test_one_neuron_of_two_layers[True-True]",
        "relevance that went around the chosen neurons stays in their map",
    ),
    Fault(
        "condition-leaves-the-decoder",
        "refl/sweep.py",
        "            swept.call_back()",
        "            pass",
        "tests/refl/test_conditions.py::"
        "test_the_decoders_tokens_are_around_every_site_of_the_encoder[attnlrp]",
        "a decoder's tokens keep relevance that no chosen neuron of the encoder has seen",
    ),
    # -- neurons, heads, blocks --------------------------------------------------------------------
    Fault(
        "expert-rows-by-token",
        "refl/kept.py",
        "for j, t in product(range(k), range(len(rows))):",
        "for t, j in product(range(len(rows)), range(k)):",
        "tests/refl/test_ranking.py::test_each_is_what_a_loop_finds[mixtral]",
        "rows of an expert are taken for its tokens in order, not by first and second choice",
    ),
    Fault(
        "padding-ranked",
        "refl/kept.py",
        "return list(range(length)) if rows in (length, *self._padded(site)) else None",
        "return list(range(rows)) if rows in (length, *self._padded(site)) else None",
        "tests/refl/test_ranking.py::test_padding_is_left_out[llama]",
        "rows of padding are ranked as tokens",
    ),
    Fault(
        "shared-bias-is-one-blocks",
        "refl/paths.py",
        "strange = [site for site in list(inside)[1:] if site in reached]",
        "strange: list[str] = []",
        "tests/refl/test_paths.py::test_a_bias_that_all_blocks_share",
        "what all blocks pass to T5's table of distances is that of the first block",
    ),
    Fault(
        "returned-is-residual",
        "refl/paths.py",
        "self._passed(rest, lambda site: site in stream),",
        "self._passed(stream, lambda site: site in stream),",
        "tests/refl/test_paths.py::test_they_add_up_and_are_what_sites_have[attnlrp-llama]",
        "what stays on the stream is taken for what the MLP hands back to it",
    ),
    Fault(
        "one-neuron-of-two-names",
        "refl/components.py",
        "([NH])(0|[1-9][0-9]{0,8})",
        "([NH])([0-9]{1,9})",
        "tests/refl/test_components.py::test_a_name_of_another_spelling_is_another_name",
        "L1.N03 is neuron 3 as well",
    ),
    Fault(
        "banzhaf",
        "refl/methods/shapley.py",
        "1 / (players * comb(players - 1, size))",
        "0.5 ** (players - 1)",
        "tests/refl/test_metagame.py::test_pairs_are_their_definition",
        "every coalition weighs the same: Banzhaf's value, which does not add up",
    ),
    Fault(
        "patch-without-difference",
        "refl/evaluation/patching.py",
        "(clean[site] - corrupted[site]) * c[site][0]",
        "clean[site] * c[site][0]",
        "tests/refl/test_patching.py::test_of_a_linear_net_all_are_exact",
        "a component's score is its activation times c, not the difference of two",
    ),
    Fault(
        "renormalized-by-column",
        "refl/evaluation/leave_one_out.py",
        "total = p.sum(axis=-1, keepdims=True)",
        "total = p.sum(axis=-2, keepdims=True)",
        "tests/refl/test_leave_one_out.py::test_a_row_that_had_nothing_else_is_left_at_zero",
        "probabilities are divided along the wrong axis",
    ),
    Fault(
        "ties-take-the-last-rank",
        "refl/evaluation/correlation.py",
        "return (last - (counts - 1) / 2)[group]",
        "return last[group].astype(float)",
        "tests/refl/test_correlation.py::test_ranks_of_equal_scores",
        "equal scores have the largest of their ranks",
    ),
    Fault(
        "randomized-one-by-one",
        "refl/evaluation/sanity.py",
        "gone |= {part, *names}",
        "gone = {part, *names}",
        "tests/refl/test_sanity.py::test_one_more_part_each_time_and_each_by_its_name",
        "parts are randomized one at a time, not from the top down",
    ),
    Fault(
        "sanity-by-one-method",
        "refl/evaluation/judging.py",
        "return [(of(method), [label]) for label, method in methods.items()]",
        "return [(of(next(iter(methods.values()))), list(methods))]",
        "tests/refl/test_sanity.py::test_each_method_is_held_against_its_own_explanations",
        "every method is held against the first one's explanations of the randomized net",
    ),
    Fault(
        "pairs-transposed",
        "refl/show/pairs.py",
        "return [Pair(i, j, float(pairs[i, j])) for i, j in where]",
        "return [Pair(j, i, float(pairs[i, j])) for i, j in where]",
        "tests/refl/test_show.py::test_pairs_of_many_tokens_are_the_strongest[80]",
        "a list of pairs has rows and columns swapped",
    ),
    # -- methods that read attention ---------------------------------------------------------------
    Fault(
        "rollout-no-residual",
        "refl/methods/rollout.py",
        "(a @ reader + reader) * scale",
        "(a @ reader) * scale",
        f"{MAPS}::test_rollout_of_two_tokens",
        "attention is rolled out without the residual connection",
    ),
    Fault(
        "discard-the-first-token",
        "refl/methods/rollout.py",
        "order[(row[order] > 0) & (order != 0)]",
        "order[row[order] > 0]",
        f"{MAPS}::test_the_lowest_of_each_row_go",
        "the first token's weight is discarded where it is low",
    ),
    Fault(
        "heads-before-positive-part",
        "refl/methods/attention_maps.py",
        "np.maximum(x, 0).mean(axis=0)",
        "np.maximum(x.mean(axis=0), 0)",
        f"{MAPS}::test_gradient_rollout_of_two_tokens",
        "heads are averaged before negative products are dropped",
    ),
    Fault(
        "cross-attention-not-transposed",
        "refl/methods/gradient_rollout.py",
        "normalized(ss).T @ c",
        "normalized(ss) @ c",
        f"{MAPS}::test_gradient_rollout_from_two_tokens_of_a_decoder",
        "what a decoder's token took in from another is not transposed",
    ),
    Fault(
        "chefer-counts-the-bias",
        "refl/methods/chefer.py",
        "linear.z_plus(arrays[0], arrays[1], None, z, r)",
        "linear.z_plus(*arrays, z, r)",
        "tests/refl/methods/test_chefer.py::test_a_linear_layer_divides_nothing_among_its_bias",
        "the bias takes a part of z+",
    ),
    Fault(
        "chefer-no-rescaling",
        "refl/methods/chefer.py",
        "return sign * whole / (both + flags(both == 0, both))",
        "return sign * sign",
        "tests/refl/methods/test_chefer.py::test_operands_of_either_sign_get_by_their_size",
        "the two sides of a residual sum are not rescaled",
    ),
    Fault(
        "voita-per-layer",
        "refl/methods/voita.py",
        "rescaled(inputs, r, (-2, -1), lost)",
        "rescaled(inputs, r, (-3, -2, -1), lost)",
        "tests/refl/methods/test_voita.py::test_each_head_keeps_its_own_sum[taylor]",
        "attention's relevance is rescaled over all heads at once",
    ),
    Fault(
        "voita-fan-out",
        "refl/methods/voita.py",
        "return whole * factor",
        "return whole + 0 * factor",
        "tests/refl/methods/test_voita.py::test_what_cancels_at_a_fan_out_is_scaled_up",
        "what cancels where branches meet is lost",
    ),
    Fault(
        "voita-ledger-of-signs",
        "refl/methods/voita.py",
        'lost.add("one_sign", r / 2 * none)',
        'lost.add("one_sign", r * none)',
        "tests/refl/methods/test_voita.py::test_what_a_layer_absorbs_by_hand",
        "the ledger of voita-2021 counts twice what has no contribution of a sign",
    ),
    Fault(
        "linearized-by-another-name",
        "refl/show/account.py",
        'and unit(e) != "linearized"',
        "and e.recorded is not None",
        "tests/refl/test_methods.py::test_what_is_linearized_is_called_so[decompx-probability]",
        "sum z dy/dz is called the probability",
    ),
    # -- methods of gradients and of perturbed copies ----------------------------------------------
    Fault(
        "midpoints-at-the-end",
        "refl/methods/integrated_gradients.py",
        "(np.arange(n) + 0.5) / n",
        "(np.arange(n) + 1) / n",
        f"{METHODS}test_integrated_gradients.py::test_of_a_cube[midpoint-integral2]",
        "integrated gradients takes the gradient at the end of each step",
    ),
    Fault(
        "quadrature-of-one-side",
        "refl/methods/integrated_gradients.py",
        "f[b] - f[a] - path.sum(g)",
        "f[b] - path.sum(g)",
        f"{METHODS}test_integrated_gradients.py::test_no_more_than_it_takes",
        "a segment is judged by what is explained at its end alone",
    ),
    Fault(
        "least-of-hidden-scores",
        "refl/methods/atman.py",
        "seen = s if self.visible is None else xp.where(self.visible, s, like(np.inf, s))",
        "seen = s",
        f"{METHODS}test_atman.py::test_beside_edits_one_token_at_a_time[llama-code]",
        "AtMan's code form takes the least of keys that no query sees",
    ),
    Fault(
        "read-behind-what-is-deleted",
        "refl/methods/copies.py",
        "return before - 1",
        "return before",
        f"{METHODS}test_occlusion.py::test_deletion_before_at_and_behind_a_position[1]",
        "where the last token is deleted, the output is read at the one after it",
    ),
    Fault(
        "windows-not-averaged",
        "refl/methods/occlusion.py",
        "self.counts[window] += 1",
        "self.counts[window] = 1",
        f"{METHODS}test_occlusion.py::test_windows_of_a_cube[2-1-windows1]",
        "windows that overlap are added up",
    ),
    Fault(
        "noise-of-the-first-sample",
        "refl/methods/smooth_grad.py",
        "np.random.default_rng((self.draw, k))",
        "np.random.default_rng((self.draw, 0))",
        f"{METHODS}test_smooth_grad.py::test_of_a_cube[norm-False]",
        "every sample of SmoothGrad has the same noise",
    ),
    Fault(
        "perturbation-ties-from-the-end",
        "refl/evaluation/perturbation.py",
        'order = np.argsort(-scores, kind="stable")',
        'order = np.argsort(scores, kind="stable")[::-1]',
        "tests/refl/test_perturbation.py::test_the_order_is_by_score_then_by_position",
        "of equal scores the last in the text is replaced first",
    ),
    Fault(
        "perturbation-n-states",
        "refl/evaluation/perturbation.py",
        "return np.arange(groups + 1) * count // max(groups, 1)",
        "return np.arange(groups) * count // max(groups, 1)",
        "tests/refl/test_perturbation.py::test_a_linear_model_in_closed_form",
        "the state in which all is replaced is left out, as the paper counts",
    ),
    Fault(
        "perturbation-of-special-tokens",
        "refl/evaluation/units.py",
        "kept = np.zeros(len(ids), dtype=bool) if special else _special(network, parts)",
        "kept = np.zeros(len(ids), dtype=bool)",
        "tests/refl/test_perturbation.py::test_special_tokens_stay",
        "<s> is replaced like a word of the text",
    ),
    Fault(
        "blanks-as-evidence",
        "refl/evaluation/datasets.py",
        "(0, 0) if span is None or piece.isspace() else span",
        "(0, 0) if span is None else span",
        "tests/refl/test_data.py::test_a_token_of_blanks_is_no_evidence[evidence0]",
        "a token of blanks before a word is evidence like the word",
    ),
    Fault(
        "oracle-file-of-another-token",
        "refl/evaluation/scores.py",
        "if e.position not in (None, position):",
        "if e.position is False:",
        "tests/refl/test_scores.py::test_the_explained_token_of_an_oracle_file",
        "an explanation of another token's output is judged as one of this",
    ),
    Fault(
        "metric-options-without-quotes",
        "refl/evaluation/naming.py",
        "if isinstance(value, str) and not _stands(value):",
        'if isinstance(value, str) and ":" in value:',
        "tests/refl/test_perturbation.py::test_a_metric_by_its_name",
        "the token '5' is judged as the token of id 5",
    ),
    Fault(
        "evidence-ties-to-the-first",
        "refl/evaluation/evidence.py",
        "places, tied, known = k - int(above.sum()), int(ties.sum()), int(ties[evidence].sum())",
        "places, tied, known = 1, 1, int(ties[evidence].any())",
        "tests/refl/test_evidence.py::test_ties_are_drawn_by_lot",
        "evidence wins every tie",
    ),
    Fault(
        "bootstrap-without-correction",
        "refl/evaluation/statistics.py",
        "a = float(np.sum(deviation**3) / (6 * np.sum(deviation**2) ** 1.5))",
        "a = 0.0",
        "tests/refl/test_statistics.py::test_skewed_data_shift_it_towards_the_long_tail",
        "the interval of a skewed mean is not accelerated",
    ),
    Fault(
        "tuned-on-what-is-judged",
        "refl/evaluation/tuning.py",
        "rest = [item for item, p in zip(items, prints, strict=True) if p not in held]",
        "rest = list(items)",
        "tests/refl/test_tuning.py::test_held_out_items_are_never_judged",
        "held-out inputs are judged, too",
    ),
    # -- reference inputs --------------------------------------------------------------------------
    Fault(
        "references-in-padding",
        "refl/latent/references/runs.py",
        "return at, at < sizes[:, None]",
        "return at, at >= 0",
        "tests/refl/test_references.py::test_the_plain_loop[llama]",
        "padding behind a text can be the position that activates a neuron most",
    ),
    Fault(
        "references-ties-by-batch",
        "refl/latent/references/best.py",
        "np.lexsort((positions, lines, -values), axis=-1)",
        "np.lexsort((-values,), axis=-1)",
        "tests/refl/test_references.py::test_the_best_are_those_of_a_sorted_list",
        "of equal values that comes first whose batch ran first",
    ),
    Fault(
        "references-rows-of-an-expert",
        "refl/latent/references/runs.py",
        "np.take_along_axis(a, order, axis=1) for a in (x, r)",
        "a for a in (x, r)",
        "tests/refl/test_references.py::test_the_plain_loop[mixtral]",
        "rows of an expert are taken for those of the tokens in their order",
    ),
    Fault(
        "histogram-bins-from-the-first",
        "refl/latent/references/histograms.py",
        "places = ((self.first[:, None] + np.arange(BINS)) >> shift) - first[:, None]",
        "places = np.arange(BINS) >> shift",
        "tests/refl/test_references.py::"
        "test_a_histogram_is_that_of_its_values_however_they_are_cut",
        "bins are merged two and two from the first, not from 0",
    ),
    # -- a corpus in shards ------------------------------------------------------------------------
    Fault(
        "shard-not-checked",
        "refl/evaluation/shards.py",
        'return path.stem.endswith(f"-{hashed(path.read_bytes())}")',
        "return bool(path.read_bytes()) or True",
        "tests/refl/test_corpus.py::test_a_shard_that_was_cut_is_made_again[cut]",
        "a shard that was cut counts as finished",
    ),
    Fault(
        "death-not-survived",
        "refl/evaluation/workers.py",
        "self.pool.again()\n            self.making += 1",
        "self.making += 1",
        "tests/refl/test_corpus.py::test_a_worker_killed_in_the_middle_loses_nothing",
        "a pool that lost a worker is not made again",
    ),
    Fault(
        "bold-by-mean-alone",
        "refl/evaluation/results.py",
        "return best if all(one.says_better(better) for one in others) else None",
        "return best",
        "tests/refl/test_evaluate.py::test_bold_only_where_the_interval_to_every_other_excludes_0",
        "the best mean is bold, whatever its interval says",
    ),
    Fault(
        "changed-lines-explained",
        "refl/evaluation/corpus.py",
        "            if not _are(part, known):\n                raise _changed(self.file)",
        "            known = [parsed(line).digest() for line in part]",
        "tests/refl/test_corpus.py::test_a_file_that_changes_while_it_is_read[other lines-None]",
        "lines that changed after they were read are explained under the hash of the old ones",
    ),
    Fault(
        "bold-on-either-side",
        "refl/evaluation/statistics.py",
        "apart = self.low > 0 if larger_is_better else self.high < 0",
        "apart = self.excludes_0",
        "tests/refl/test_evaluate.py::"
        "test_the_best_mean_of_other_inputs_is_not_bold_where_it_is_worse",
        "the best mean is bold where its paired differences say that it is worse",
    ),
    Fault(
        "held-out-lines-kept",
        "refl/evaluation/corpus.py",
        "if line.number not in self.skip)",
        ")",
        "tests/refl/test_evaluate.py::test_tuned_inputs_are_not_judged",
        "inputs that options were tuned on are judged, too",
    ),
    # -- graphs ------------------------------------------------------------------------------------
    Fault(
        "stop-goes-on",
        "refl/sweep.py",
        "        return (rest, self.relevance_sum(x, rest)), (self",
        "        return relevance, (self",
        "tests/refl/test_graph.py::test_edges_by_masks_alone[attnlrp]",
        "what arrives at a chosen node is kept and passed on all the same",
    ),
    Fault(
        "node-starts-whole-site",
        "refl/latent/graph/sweeps.py",
        "        seed[place.index] = whole[place.index]",
        "        seed[...] = whole",
        "tests/refl/test_graph.py::test_edges_are_derivatives_of_the_surrogate[llama]",
        "a sweep from a node starts with what all of its site received",
    ),
    Fault(
        "any-of-one-site",
        "refl/conditions.py",
        "return np.logical_or.reduce([_mask(name, index, shape)",
        "return np.logical_and.reduce([_mask(name, index, shape)",
        "tests/refl/test_conditions.py::test_names_are_sites_and_indices",
        "of several neurons of one site all are meant in place of any",
    ),
    # -- vocabulary projection ---------------------------------------------------------------------
    Fault(
        "projection-norm-behind",
        "refl/latent/direct.py",
        "return [*self.own, *(r for",
        "return [*(r for r in self.own if norm or r.operation not in NORMS), *(r for",
        "tests/refl/test_projection.py::"
        "test_the_norm_behind_a_half_block_counts_with_the_final_norm_and_without",
        "without the final norm the norm behind an MLP is left out as well",
    ),
    Fault(
        "projection-expert",
        "refl/latent/projection.py",
        "return Parameter(w.weights, name, w.transposed).array",
        "return w.array",
        "tests/refl/test_projection.py::test_an_expert_that_no_token_of_the_plainest_input_chose",
        "an expert that did not run has the weights of one that did",
    ),
    # -- cards -------------------------------------------------------------------------------------
    Fault(
        "card-head",
        "refl/latent/card.py",
        "r = e[scores][self.part.number]",
        "r = e[scores][0]",
        "tests/refl/test_card.py::test_products_of_all_heads_add_up_to_what_the_ledger_has[gpt2]",
        "the card of every head shows the queries and keys of the first",
    ),
    Fault(
        "card-spread",
        "refl/latent/card.py",
        "return [numbers[len(numbers) * n // count] for n in range(count)]",
        "return list(numbers[:count])",
        "tests/refl/test_card.py::test_effects_are_of_lines_spread_over_the_file",
        "a card switches its neuron off in the first lines, not in lines spread over the file",
    ),
    # -- switching ---------------------------------------------------------------------------------
    Fault(
        "random-among-the-chosen",
        "refl/latent/switching/pool.py",
        "lots[:, members] = np.inf",
        "lots[:, members] += 0",
        "tests/refl/test_effects.py::test_random_parts_are_matched_and_never_the_chosen",
        "the neurons that stand beside those switched are among them",
    ),
    Fault(
        "predicted-with-the-other-sign",
        "refl/latent/effects.py",
        "change += float(((factor[0] - 1.0) * r).sum())",
        "change += float(((1.0 - factor[0]) * r).sum())",
        "tests/refl/test_effects.py::test_small_changes_are_what_the_gradient_predicts[llama]",
        "what is switched off is predicted to gain what it loses",
    ),
    Fault(
        "flips-of-wrong-answers",
        "refl/latent/switching/inputs.py",
        "found = [one for one in some if one.correct]",
        "found = list(some)",
        "tests/refl/test_switching.py::test_only_inputs_answered_so_at_first_are_counted",
        "inputs that are answered otherwise at first count as flips",
    ),
    Fault(
        "switched-in-the-half-that-was-ranked-on",
        "refl/latent/switching/__init__.py",
        "return ranked_on, [n for n in every if n not in set(ranked_on)]",
        "return ranked_on, ranked_on",
        "tests/refl/test_switching.py::"
        "test_a_ranking_of_the_corpus_is_of_the_half_that_is_not_switched",
        "a ranking is judged on the inputs that it was made of",
    ),
    Fault(
        "other-at-every-position",
        "refl/latent/switching/turned.py",
        "None if (mean := means.get(_foil(one))) is None else Change(0.0, mean, where)",
        "None if (mean := means.get(_foil(one))) is None else Change(0.0, mean)",
        "tests/refl/test_switching.py::test_other_is_a_mean_over_inputs_of_the_other_answer[llama]",
        "what a neuron is for the other answer at the last position is put at all of them",
    ),
    # -- the walk ----------------------------------------------------------------------------------
    Fault(
        "walk-eps-sign",
        RULES_JS,
        'stabilizer === "sign" && z_j < 0 ? -eps : eps',
        'stabilizer === "sign" && z_j <= 0 ? -eps : eps',
        f"{RULES_IN_PAGE}test_an_output_of_exactly_zero",
        "the page reads s(0) as -1",
    ),
    Fault(
        "walk-rotary-back",
        RULES_JS,
        "return s[i] * o.cos[i] - sign * s[other] * o.sin[other];",
        "return s[i] * o.cos[i] + sign * s[other] * o.sin[other];",
        f"{RULES_IN_PAGE}test_inputs_receive_what_the_rule_says[llama]",
        "the page turns relevance on where it should turn it back",
    ),
    Fault(
        "walk-mistake-absorbs",
        RULES_JS,
        "absorbed: right.absorbed,",
        "absorbed: found.absorbed,",
        f"{RULES_IN_PAGE}test_planted_mistakes_are_told_where_they_change_anything"
        "[llama-norm_differentiated]",
        "a planted mistake absorbs what it lost, and nothing is told",
    ),
    Fault(
        "walk-methods-exchanged",
        "refl/walk/stops.py",
        '"rules": [self._rule(record, e) for e in self.explanations],',
        '"rules": [self._rule(record, e) for e in self.explanations[::-1]],',
        "tests/refl/walk/test_data.py::test_every_entry_of_the_ledger_is_the_engines[llama]",
        "a page shows the ledger of one method under the name of another",
    ),
    Fault(
        "walk-numbers-cut",
        "refl/walk/packed.py",
        "near = bits + half  # to nearest",
        "near = bits  # to nearest",
        "tests/refl/walk/test_data.py::test_a_number_is_the_nearest_there_is[f6-16]",
        "numbers of a page are cut off where they should be rounded",
    ),
    Fault(
        "walk-any-script",
        "refl/walk/document.py",
        "script-src '{_hash(script)}'",
        "script-src 'unsafe-inline'",
        "tests/refl/walk/test_data.py::test_the_page_itself",
        "the policy of a page lets any script of it run",
    ),
    # -- the command line --------------------------------------------------------------------------
    Fault(
        "number-of-any-length",
        "refl/cli/asked.py",
        "text.isdecimal() and len(text) <= LONGEST_NUMBER",
        "text.isdecimal()",
        "tests/refl/test_cli.py::test_where_there_is_no_tokenizer_a_token_is_its_id",
        "thousands of digits are read as a number",
    ),
    Fault(
        "loaded-module-overwritten",
        "refl/cli/files.py",
        "    for path in made:\n        _refuse_loaded(path)\n",
        "",
        "tests/refl/test_cli_files.py::test_where_one_file_is_a_module_none_is_written",
        "of several files one may be a module of the program that runs",
    ),
    Fault(
        "every-prediction-is-right",
        "refl/lessons/live.py",
        "if self.predicted == right else",
        "if right else",
        "tests/refl/test_lessons.py::test_step_by_step[wrong]",
        "a wrong prediction is called right",
    ),
    Fault(
        "asked-for-ever",
        "refl/lessons/live.py",
        "range(TRIES)",
        "iter(int, 1)",
        "tests/refl/test_lessons.py::test_a_pipe_that_never_ends_is_not_asked_for_ever",
        "a pipe that never says a, b or c is asked without end",
    ),
    Fault(
        "a-lesson-s-difference-unheard",
        "refl/cli/learn.py",
        "return FAILED if terminal.differed else 0",
        "return 0",
        "tests/refl/test_lessons.py::test_an_example_that_gives_something_else",
        "an example gives something else, and the exit code says that all is well",
    ),
    Fault(
        "answer-beside-its-question",
        "refl/lessons/reading.py",
        'return FOLDED if piece.kind == "answer" else markdown(piece)',
        "return markdown(piece)",
        "tests/refl/test_lessons.py::test_answers_come_at_the_end[01_a_share_of_z]",
        "what is folded away is read beside the question",
    ),
    Fault(
        "a-reader-s-notebook-overwritten",
        "refl/lessons/notebooks.py",
        'return "" if said == now else',
        'return "" if said else',
        "tests/refl/test_lessons.py::test_nothing_else_is_overwritten[has been changed since]",
        "a notebook in which somebody has worked is replaced",
    ),
    Fault(
        "lesson-picture-bands-on-one-place",
        "refl/verification/quality/lesson_pictures/attention_and_blocks.py",
        "        leaving[upper] += wide\n",
        "",
        "tests/verification/test_pictures_attention_and_blocks.py::"
        "test_bands_fill_their_bar_side_by_side",
        "the halves of a product leave its bar on top of each other",
    ),
    Fault(
        "lesson-picture-offset-added",
        "refl/verification/quality/lesson_pictures/attention_and_blocks.py",
        "left -= absorbed",
        "left += absorbed",
        "tests/verification/test_pictures_attention_and_blocks.py::"
        "test_each_step_is_the_one_before_less_what_was_absorbed",
        "what softmax keeps is drawn as handed on",
    ),
    Fault(
        "lesson-brackets",
        "verification/quality/lesson_pictures/graphs_and_questions.py",
        'Tree("x1 (x2 x3) by halves", (1, 2), nested((1, 2), None))',
        'Tree("x1 (x2 x3) by halves", (1, 2), nested((0, 1), None))',
        "tests/verification/test_pictures_graphs_and_questions.py::"
        "test_the_trees_say_what_their_nodes_get",
        "a picture of one order of multiplication has the numbers of the other",
    ),
    Fault(
        "lesson-contrast",
        "verification/quality/lesson_pictures/graphs_and_questions.py",
        'model.explain(TEXT, contrast=("are", "is"))',
        'model.explain(TEXT, contrast=("are", "were"))',
        "tests/verification/test_pictures_graphs_and_questions.py::"
        "test_four_questions_are_four_numbers",
        "a picture shows another contrast than it names",
    ),
    # -- the documentation -------------------------------------------------------------------------
    Fault(
        "a-place-in-a-page-forgotten",
        "verification/quality/documentation.py",
        "if not to.is_file() or (fragment and fragment not in _places(to)):",
        "if not to.is_file():",
        "tests/verification/test_documentation.py::test_dead_links_are_found",
        "a link to a heading that is gone is not called dead",
    ),
    Fault(
        "a-link-from-the-root",
        "verification/quality/documentation.py",
        "posixpath.join(posixpath.dirname(source), unquote(path))",
        "unquote(path)",
        "tests/verification/test_documentation.py::test_where_links_lead",
        "links are read from the root of the repository, not from where a page stands",
    ),
)


def copy_to(folder: Path) -> Path:
    """The project's sources in a folder of their own, links followed."""
    target = folder / "project"
    target.mkdir()
    unwanted = shutil.ignore_patterns("__pycache__", "peers")
    for name in ("refl", "tests"):
        shutil.copytree(PROJECT / name, target / name, ignore=unwanted)
    shutil.copy(PROJECT / "pyproject.toml", target)
    by_hash = py_compile.PycInvalidationMode.CHECKED_HASH  # what is planted is compiled anew
    compileall.compile_dir(target / "refl", quiet=1, invalidation_mode=by_hash)
    return target


def source(project: Path, file: str) -> Path:
    """The copy of rules/x.py is refl/rules/x.py: the package's links became folders."""
    return project / file if file.startswith("refl/") else project / "refl" / file


def plant(text: str, fault: Fault) -> str:
    """Raises ValueError where the piece of source is not there exactly once."""
    if text.count(fault.old) != 1:
        raise ValueError(
            f"{fault.id}: {fault.file} holds {text.count(fault.old)} times, not once: {fault.old!r}"
        )
    return text.replace(fault.old, fault.new)


OPTIONS = ("-x", "-q", "-n", "0", "-p", "no:cacheprovider", "--tb=line")


def run_tests(
    warm: WarmPytest, project: Path, tests: Sequence[str]
) -> subprocess.CompletedProcess[str]:
    """pytest in the copy: few examples, no shrinking,
    nothing cached, and the copy's own package.
    """
    environment = {
        "PYTHONPATH": str(project),
        "REFL_PROFILE": "planted-faults",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return warm.run(project, environment, [*OPTIONS, *tests])


@dataclass(frozen=True)
class Copy:
    """A copy of the project, and what runs its tests."""

    project: Path
    warm: WarmPytest


def check_copy(copy: Copy, faults: Sequence[Fault]) -> None:
    """Without a fault the copy is what is tested, and every named test passes."""
    project = copy.project
    where = "import refl.rules.conservation as c, refl.sweep as s; print(c.__file__, s.__file__)"
    environment = os.environ | {"PYTHONPATH": str(project)}
    found = subprocess.run(
        [sys.executable, "-c", where],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    if not all(Path(each).is_relative_to(project) for each in found.split()):
        raise RuntimeError(f"the tests would run on {found.strip()}, not on the copy in {project}")
    tests = sorted({fault.test for fault in faults})
    result = run_tests(copy.warm, project, tests)
    passed = f"{len(tests)} passed"
    if result.returncode != 0 or passed not in result.stdout:
        raise RuntimeError(
            f"without a fault, expected {passed}, "
            f"got:\n{result.stdout[-3000:]}{result.stderr[-3000:]}"
        )


def try_fault(copy: Copy, fault: Fault) -> Outcome:
    file = source(copy.project, fault.file)
    original = file.read_text(encoding="utf-8")
    try:
        file.write_text(plant(original, fault), encoding="utf-8")
        result = run_tests(copy.warm, copy.project, [fault.test])
    finally:
        file.write_text(original, encoding="utf-8")
    broken = [error for error in BROKEN if error in result.stdout]
    if broken:
        return Outcome(fault, False, f"the planted code does not run: {broken[0]}")
    failed = [line for line in result.stdout.splitlines() if line.startswith("FAILED")]
    if result.returncode == 1 and len(failed) == 1:
        return Outcome(fault, True, failed[0].partition("::")[2].partition(" - ")[0])
    if result.returncode == 0:
        return Outcome(fault, False, "nothing failed")
    return Outcome(
        fault,
        False,
        f"pytest ended with {result.returncode}: {result.stdout.strip().splitlines()[-1:]}",
    )


def run_all(faults: Sequence[Fault] = FAULTS) -> list[Outcome]:
    """Every fault on a copy of the project, `WORKERS` at a time. Raises before the first where the
    table does not fit the source.
    """
    with tempfile.TemporaryDirectory() as folder, ExitStack() as processes:
        copies: Queue[Copy] = Queue()
        for number in range(WORKERS):
            (Path(folder) / str(number)).mkdir()
            warm = processes.enter_context(WarmPytest())
            copies.put(Copy(copy_to(Path(folder).resolve() / str(number)), warm))
        first = copies.get()
        for fault in faults:
            plant(source(first.project, fault.file).read_text(encoding="utf-8"), fault)
        check_copy(first, faults)
        copies.put(first)

        def one(fault: Fault) -> Outcome:
            copy = copies.get()
            try:
                return try_fault(copy, fault)
            finally:
                copies.put(copy)

        with ThreadPoolExecutor(WORKERS) as pool:
            return list(pool.map(one, faults))


def show(outcomes: Sequence[Outcome]) -> str:
    """The table: id, where, fault, test that caught it; and the score."""
    lines = []
    for o in outcomes:
        result = o.said if o.caught else f"MISSED: {o.said}"
        lines.append(f"{o.fault.id:24} {o.fault.file:22} {o.fault.what:76} {result}")
    caught = sum(o.caught for o in outcomes)
    return "\n".join([*lines, "", f"{caught} of {len(outcomes)} planted faults caught"])


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Faults planted in the engine one at a time, and the test that must fail."
    )
    parser.add_argument("ids", nargs="*", metavar="ID", help="of a fault; all where none is named")
    ids, start = parser.parse_args().ids, time.monotonic()
    if unknown := set(ids) - {fault.id for fault in FAULTS}:
        parser.error(f"no fault is called {', '.join(sorted(unknown))}")
    outcomes = run_all([fault for fault in FAULTS if not ids or fault.id in ids])
    print(show(outcomes))
    print(f"{time.monotonic() - start:.0f} s")
    return 0 if all(o.caught for o in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
