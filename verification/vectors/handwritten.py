"""Conformance cases written by hand, each at a mistake that somebody made or could make.
make_vectors.py works out their answers.

A line is what a case is called with: the mistakes it is aimed at, what they do here, and the
numbers. Numbers are small and round where they can be, so that a failure can be followed with a
pencil.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

Aimed: TypeAlias = tuple[tuple[str, ...], str, str, dict[str, Any], dict[str, Any]]
"""Mistakes, note, format, inputs, options."""

Numbers: TypeAlias = dict[str, Any]

AIMED: dict[str, list[Aimed]] = {}


def aim(
    rule: str,
    mistakes: str,
    note: str,
    options: dict[str, Any] | None = None,
    dtype: str = "float64",
    **inputs: Any,
) -> None:
    AIMED.setdefault(rule, []).append(
        (
            tuple(mistakes.split()),
            note,
            dtype,
            {k: _array(v, dtype) for k, v in inputs.items()},
            options or {},
        )
    )


def _array(value: Any, dtype: str) -> Any:
    """Nested numbers are an array; a dict or None stays; `each` marks a list of arrays."""
    if isinstance(value, Each):
        return [_array(v, dtype) for v in value.arrays]
    if isinstance(value, dict):
        return {k: _array(v, dtype) if k in ("w", "b") else v for k, v in value.items()}
    return (
        None
        if value is None
        else np.array(value, dtype="float32" if dtype == "bfloat16" else dtype)
    )


class Each:
    """A list of arrays (or of layers)."""

    def __init__(self, *arrays: Any) -> None:
        self.arrays = arrays


SIGN: Numbers = {"stabilizer": "sign"}
E6, E2, E8 = (Numbers() | {"eps": eps} | SIGN for eps in (1e-6, 1e-2, 1e-8))
NONE: Numbers = {"eps": 1e-6, "stabilizer": "none"}
HALVES = ("float16", "bfloat16")

# -- linear ----------------------------------------------------------------------------------------

aim(
    "linear_epsilon",
    "halved-linear gradient-for-relevance",
    "one output: 1/4 and 3/4 of the relevance; half of it is missing if the layer counts "
    "as a product",
    E6,
    x=[[1, 3]],
    w=[[1, 1]],
    b=None,
    r=[[4]],
)
aim(
    "linear_epsilon",
    "vacuous-check",
    "shares 1 and 3: a mean gives 2 and 2, and sums up just as well",
    E6,
    x=[[1, 3]],
    w=[[1, 1]],
    b=None,
    r=[[4]],
)
aim(
    "linear_epsilon",
    "eps-unsigned",
    "z = -1.5e-6: the shares add up to 0.6; with eps on the wrong side to 3",
    E6,
    x=[[1.5e-6]],
    w=[[-1]],
    b=None,
    r=[[1]],
)
aim(
    "linear_epsilon",
    "eps-unsigned",
    "z is -1e-6 but for its last digits: without the sign of z the denominator almost "
    "vanishes, and R explodes",
    E6,
    x=[[1.000000953674316e-06]],
    w=[[-1]],
    b=None,
    r=[[0.5]],
)
aim(
    "linear_epsilon",
    "eps-unsigned other-eps eps-doubled abs-stabilizer",
    "a large eps on a negative z: 1/1.01 and not 1/0.99",
    E2,
    x=[[1, 2]],
    w=[[-1, 0], [0, 0.5]],
    b=None,
    r=[[1, 1]],
)
aim(
    "linear_epsilon",
    "eps-zero-sign",
    "z = 1 - 1 = 0: sign(0) = +1, so x R / eps; with sign(0) = 0 a division by zero",
    E6,
    x=[[1, -1]],
    w=[[1, 1]],
    b=None,
    r=[[1]],
)
aim(
    "linear_epsilon",
    "eps-zero-sign",
    "z = -0.0: its sign counts as + too",
    E6,
    x=[[-0.0, 2]],
    w=[[1, 0], [0.5, 0.5]],
    b=None,
    r=[[1, 1]],
)
aim(
    "linear_epsilon",
    "eps-zero-sign",
    "a dead unit, x = 0: nothing to hand on, all of R is the stabilizer's",
    E6,
    x=[[0, 0]],
    w=[[1, 1]],
    b=None,
    r=[[1]],
)
aim(
    "linear_epsilon",
    "bias-ignored bias-redistributed",
    "the bias is part of z and takes its share, 1 of 3",
    E6,
    x=[[1]],
    w=[[2]],
    b=[1],
    r=[[3]],
)
aim(
    "linear_epsilon",
    "bias-ignored abs-stabilizer",
    "the bias turns the sign of z",
    E2,
    x=[[1, 1]],
    w=[[1, 1]],
    b=[-3],
    r=[[1]],
)
aim(
    "linear_epsilon",
    "batch-coupled",
    "two examples of very different size: neither may see the other",
    E6,
    x=[[1, 3], [100, -300]],
    w=[[1, 1]],
    b=None,
    r=[[4], [-8]],
)
aim(
    "linear_epsilon",
    "",
    "contributions of 1e30 and of 1e-30",
    E6,
    x=[[1e30, 1e-30]],
    w=[[1, 0], [0, 1]],
    b=None,
    r=[[1, 1]],
)
aim(
    "linear_epsilon",
    "",
    "without a stabilizer, an output of exactly 0 can hand nothing on",
    NONE,
    x=[[1, -1]],
    w=[[1, 1], [1, 2]],
    b=None,
    r=[[1, 1]],
)
for dtype in HALVES:
    aim(
        "linear_epsilon",
        "fp16-nan" if dtype == "float16" else "",
        "eps = 1e-8 is 0 in float16: 0/0 at a dead unit, where the answer is 0",
        E8,
        dtype,
        x=[[0, 0], [1, 2]],
        w=[[1, 1]],
        b=None,
        r=[[1], [3]],
    )
aim(
    "linear_epsilon",
    "",
    "an axis of positions between examples and features",
    E6,
    x=[[[1, 2], [3, 4]], [[0, 1], [-1, 0]]],
    w=[[1, 1], [1, -2]],
    b=[0.5, 0],
    r=[[[1, 0], [0, 1]], [[2, 2], [1, 1]]],
)
aim(
    "linear_gradient",
    "halved-linear relevance-for-gradient",
    "g_i = sum_j W_ji g_j, nothing halved",
    x=[[1, 3]],
    w=[[1, 2], [0, -1]],
    b=[5, 0],
    g=[[4, 1]],
)
aim(
    "linear_gradient",
    "",
    "no eps: nothing can go wrong at z = 0",
    dtype="float16",
    x=[[0, 0]],
    w=[[1, 1]],
    b=None,
    g=[[1]],
)

aim(
    "linear_gamma",
    "gamma-at-zero",
    "z = 0: the branch for z <= 0 holds, so relevance flows",
    {"gamma": 0.25},
    x=[[1, -1]],
    w=[[1, 1]],
    b=None,
    r=[[1]],
)
aim(
    "linear_gamma",
    "gamma-at-zero",
    "z = 0 beside an ordinary output",
    {"gamma": 1.0},
    x=[[2, -1]],
    w=[[1, 2], [1, 1]],
    b=None,
    r=[[1, 3]],
)
aim(
    "linear_gamma",
    "gamma-one-branch",
    "z < 0: the negative contributions are amplified",
    {"gamma": 0.25},
    x=[[1, -3]],
    w=[[1, 1]],
    b=None,
    r=[[1]],
)
aim(
    "linear_gamma",
    "gamma-bias bias-ignored",
    "the bias is amplified like a contribution",
    {"gamma": 0.5},
    x=[[1, -1]],
    w=[[2, 1], [1, 2]],
    b=[1, -1],
    r=[[1, 1]],
)
aim(
    "linear_gamma",
    "",
    "gamma = 0 is LRP-0",
    {"gamma": 0.0},
    x=[[1, -3]],
    w=[[2, 1]],
    b=[0.5],
    r=[[1]],
)
aim(
    "linear_gamma",
    "",
    "a large gamma is the z+ rule",
    {"gamma": 1e9},
    x=[[1, -3, 2]],
    w=[[2, 0.5, 1]],
    b=None,
    r=[[1]],
)

aim(
    "linear_z_plus",
    "safe-divide",
    "the denominator is 5e-10: a guard that is added to it, or clamps it, changes the share",
    x=[[5e-10, -1]],
    w=[[1, 1]],
    b=None,
    r=[[1]],
)
aim(
    "linear_z_plus",
    "safe-divide",
    "denominators of 1e-9 and of 2e-9",
    x=[[1e-9]],
    w=[[1], [2]],
    b=None,
    r=[[1, 1]],
)
aim(
    "linear_z_plus",
    "",
    "an output with negative contributions alone has no receiver",
    x=[[1, 2]],
    w=[[-1, -1], [1, 0]],
    b=None,
    r=[[1, 1]],
)
aim(
    "linear_z_plus",
    "plus-weights bias-ignored",
    "negative inputs with negative weights contribute",
    x=[[-1, -2, 3]],
    w=[[-1, 1, 1]],
    b=[1],
    r=[[6]],
)
aim(
    "linear_z_plus",
    "",
    "two examples of very different size",
    x=[[1, 3], [100, -300]],
    w=[[1, 1]],
    b=None,
    r=[[4], [-8]],
)
AB: Numbers = {"alpha": 2.0, "beta": 1.0}
aim(
    "linear_alpha_beta",
    "alpha-beta-bias",
    "a positive bias belongs to the positive sum alone",
    AB,
    x=[[1, 1]],
    w=[[3, -2]],
    b=[1],
    r=[[1]],
)
aim(
    "linear_alpha_beta",
    "alpha-beta-bias",
    "a negative bias belongs to the negative sum alone",
    AB,
    x=[[1, 1]],
    w=[[3, -2]],
    b=[-2],
    r=[[1]],
)
aim(
    "linear_alpha_beta",
    "alpha-index alpha-beta-sign",
    "both alpha and beta count: 2 (3/3) and -1 (-2/-2)",
    AB,
    x=[[1, 1]],
    w=[[3, -2]],
    b=None,
    r=[[1]],
)
aim(
    "linear_alpha_beta",
    "alpha-index",
    "negative inputs, negative weights: each of the four products counts",
    AB,
    x=[[1, -1, 2, -2]],
    w=[[1, -2, -1, 1]],
    b=None,
    r=[[1]],
)
aim(
    "linear_alpha_beta",
    "forced-conservation",
    "no negative contribution: alpha alone acts, and twice the relevance comes out; beta's "
    "part is absorbed",
    AB,
    x=[[1, 1]],
    w=[[1, 3]],
    b=None,
    r=[[1]],
)
aim(
    "linear_alpha_beta",
    "",
    "alpha 1, beta 0 is the z+ rule",
    {"alpha": 1.0, "beta": 0.0},
    x=[[1, -1]],
    w=[[3, -2]],
    b=[1],
    r=[[1]],
)
aim(
    "linear_alpha_beta",
    "weight-transposed",
    "a square weight that is not symmetric",
    AB,
    x=[[1, 2]],
    w=[[1, -3], [2, 1]],
    b=None,
    r=[[1, 2]],
)
aim(
    "linear_flat",
    "zero-input flat-weighted",
    "an input of 0 gets its share all the same",
    x=[[0, 1, 0, 3]],
    w=[[1, 1, 1, 1]],
    b=None,
    r=[[4]],
)
aim(
    "linear_flat",
    "zero-input",
    "the bias gets none",
    x=[[0, 2]],
    w=[[1, 0], [0, 1]],
    b=[1, 1],
    r=[[1, 2]],
)
aim(
    "linear_w_square",
    "zero-input w-square-not-squared",
    "an input of 0 gets its share all the same: 1 and 9 of 10",
    x=[[0, 1]],
    w=[[1, 3]],
    b=None,
    r=[[10]],
)
aim(
    "linear_w_square",
    "",
    "a row of zero weights has no receiver",
    x=[[1, 1]],
    w=[[0, 0], [1, 1]],
    b=[1, 1],
    r=[[1, 2]],
)
aim(
    "linear_z_box",
    "zero-input z-box-bounds",
    "a black pixel, 0 in a box from 0 to 1: the negative weight gives it its share",
    {"low": 0.0, "high": 1.0},
    x=[[0, 0.5]],
    w=[[-1, 1], [2, -3]],
    b=None,
    r=[[1, 1]],
)
aim(
    "linear_z_box",
    "zero-input z-box-bias",
    "0 in the middle of a box",
    {"low": -1.0, "high": 1.0},
    x=[[0, 0.5]],
    w=[[1, 1]],
    b=[3],
    r=[[1]],
)

aim(
    "convolution_z_plus",
    "bias-ignored",
    "the positive part of the bias is part of the sum",
    x=[[[[1, 2], [0, 1]]]],
    w=[[[[1, -1], [1, 1]]]],
    b=[2],
    r=[[[[4]]]],
)
aim(
    "convolution_epsilon",
    "fp16-nan",
    "a dead patch with eps = 1e-8 in float16",
    E8,
    "float16",
    x=[[[[0.0]]]],
    w=[[[[1.0]]]],
    b=None,
    r=[[[[1.0]]]],
)
for channels in (1, 2, 3):
    numbers = np.arange(channels * 8).reshape(1, channels, 2, 4) / 4 - 1
    kernel = (np.arange(channels * 4).reshape(1, channels, 2, 2) % 3 - 1.0).tolist()
    for rule, options in (("epsilon", E6), ("z_plus", {})):
        note = (
            f"{channels} channels: what comes out adds up to what went in, however many there are"
        )
        aim(
            f"convolution_{rule}",
            "conv-doubled" if channels != 3 else "",
            note,
            options,
            x=numbers.tolist(),
            w=kernel,
            b=None,
            r=[[[[1, 2]]]],
        )
    aim(
        "convolution_gradient",
        "conv-doubled" if channels != 3 else "",
        f"{channels} channels",
        x=numbers.tolist(),
        w=kernel,
        b=[1],
        g=[[[[1, 2]]]],
    )

# -- sums and products -----------------------------------------------------------------------------

aim(
    "add_epsilon",
    "residual-absolute relevance-clamped",
    "3 - 1 = 2: shares of 3/2 and -1/2; by magnitude they would be 3/4 and 1/4",
    E6,
    a=[[3]],
    b=[[-1]],
    r=[[1]],
)
aim(
    "add_epsilon",
    "eps-unsigned",
    "a negative sum",
    E2,
    a=[[-1, 0.005]],
    b=[[0.5, -0.02]],
    r=[[1, 1]],
)
aim(
    "add_epsilon",
    "eps-zero-sign",
    "a sum of exactly 0",
    E6,
    a=[[1, 0, -0.0]],
    b=[[-1, 0, -0.0]],
    r=[[1, 1, 1]],
)
aim(
    "add_epsilon",
    "batch-coupled",
    "two examples: what one's branches add up to says nothing about the other's",
    E6,
    a=[[1, 2], [10, -20]],
    b=[[3, 1], [-5, 4]],
    r=[[1, 1], [2, 3]],
)
for dtype in HALVES:
    aim(
        "add_epsilon",
        "fp16-nan" if dtype == "float16" else "",
        "a dead residual, 0 + 0, with eps = 1e-8",
        E8,
        dtype,
        a=[[0, 1]],
        b=[[0, 0.5]],
        r=[[1, 1]],
    )
aim(
    "add_epsilon",
    "",
    "1e30 and 1e-30 on either side",
    E6,
    a=[[1e30, 1e-30]],
    b=[[1e-30, 1e-30]],
    r=[[1, 1]],
)
aim(
    "add_epsilon",
    "",
    "an operand that is nearly the other's negative",
    E6,
    a=[[1, 1]],
    b=[[-0.9990234375, -1.0009765625]],
    r=[[1, 1]],
)
aim("add_gradient", "residual-absolute", "both operands get all of g", a=[[3]], b=[[-1]], g=[[1]])
aim(
    "sum_epsilon",
    "sum-chained",
    "1 - 1 + 2: a chain of two additions would divide by the partial sum 0",
    E6,
    operands=Each([[1]], [[-1]], [[2]]),
    r=[[1]],
)
aim(
    "sum_epsilon",
    "residual-absolute",
    "one of three is negative",
    E6,
    operands=Each([[2]], [[-1]], [[3]]),
    r=[[4]],
)
aim(
    "sum_epsilon",
    "eps-unsigned",
    "a negative sum of three",
    E2,
    operands=Each([[-2]], [[0.5]], [[0.25]]),
    r=[[1]],
)

aim(
    "sum_epsilon",
    "eps-zero-sign",
    "1 + 2 - 3 = 0: shares of x R / eps",
    E6,
    operands=Each([[1]], [[2]], [[-3]]),
    r=[[1]],
)
aim(
    "sum_epsilon",
    "fp16-nan",
    "a dead sum with eps = 1e-8 in float16",
    E8,
    "float16",
    operands=Each([[0, 1]], [[0, 2]]),
    r=[[1, 1]],
)
aim(
    "sum_epsilon",
    "shared-gradient",
    "three operands, each with a share of its own: none may be worked out in another's memory",
    E6,
    operands=Each([[1]], [[2]], [[3]]),
    r=[[6]],
)
aim(
    "multiply_uniform",
    "product-proportional",
    "1 times 3: half to each, whatever their size",
    {"constant": [False, False]},
    operands=Each([[1]], [[3]]),
    r=[[1]],
)
aim(
    "multiply_uniform",
    "product-proportional",
    "a factor of 0 gets its half, too",
    {"constant": [False, False]},
    operands=Each([[0, 2]], [[3, -1]]),
    r=[[1, 1]],
)
aim(
    "multiply_uniform",
    "constant-eats-share",
    "a constant takes no share: 3 and 3, not 2 and 2",
    {"constant": [True, False, False]},
    operands=Each([[5]], [[2]], [[3]]),
    r=[[6]],
)
aim(
    "multiply_uniform",
    "constant-eats-share",
    "the one operand that is no constant gets all",
    {"constant": [False, True]},
    operands=Each([[2]], [[0.125]]),
    r=[[6]],
)
aim(
    "multiply_uniform",
    "product-quartered",
    "2 times 3 times 4 as one product: 8 each, in whatever order",
    {"constant": [False] * 3},
    operands=Each([[2]], [[3]], [[4]]),
    r=[[24]],
)
aim(
    "multiply_uniform_gxi",
    "product-proportional",
    "x g is half of R for each",
    {"constant": [False, False]},
    operands=Each([[1]], [[3]]),
    g=[[1]],
)
aim(
    "multiply_uniform_gxi",
    "",
    "a factor of 0: no division by it",
    {"constant": [False] * 3},
    operands=Each([[0]], [[3]], [[2]]),
    g=[[1]],
)
aim(
    "multiply_uniform_gxi",
    "constant-eats-share",
    "a constant takes no share",
    {"constant": [True, False]},
    operands=Each([[5]], [[2]]),
    g=[[6]],
)
aim(
    "multiply_gradient",
    "",
    "the true derivative, a factor 0 among three",
    {"constant": [False] * 3},
    operands=Each([[0]], [[3]], [[2]]),
    g=[[1]],
)
aim(
    "multiply_second",
    "gate-swapped",
    "the gate gets nothing, the other all",
    a=[[2, 0]],
    b=[[3, 1]],
    r=[[6, 1]],
)
aim("multiply_second_gxi", "", "the gate is a constant factor", a=[[2, 0]], b=[[3, 1]], g=[[6, 1]])

M: Numbers = {"a": [[[0.25, 0.75], [1, 0]]], "v": [[[1, -2], [2, 4]]], "r": [[[1, 1], [1, 1]]]}
aim(
    "matmul_uniform",
    "eps-two-forms",
    "a large eps: 2 O + eps, not 2 (O + eps)",
    E2 | {"denominator": "2z+eps"},
    **M,
)
aim(
    "matmul_uniform",
    "eps-two-forms",
    "the other form, asked for by name",
    E2 | {"denominator": "2(z+eps)"},
    **M,
)
aim("matmul_uniform", "eps-unsigned", "O = -1", E2, a=[[[1, 1]]], v=[[[1], [-2]]], r=[[[1]]])
aim("matmul_uniform", "eps-zero-sign", "O = 0", E6, a=[[[1, 1]]], v=[[[1], [-1]]], r=[[[1]]])
aim(
    "matmul_uniform",
    "fp16-nan",
    "O = 0 with eps = 1e-8 in half precision",
    E8,
    "float16",
    a=[[[0, 0], [0.5, 0.5]]],
    v=[[[1], [2]]],
    r=[[[1], [3]]],
)
aim("matmul_uniform", "vacuous-check", "every message has a size of its own", E6, **M)
aim("matmul_uniform_gxi", "", "half of the derivative to each", a=M["a"], v=M["v"], g=M["r"])
aim("matmul_second", "cp-half", "the values get all: the shares of V add up to R", E6, **M)
aim("matmul_second", "eps-unsigned", "O = -1", E2, a=[[[1, 1]]], v=[[[1], [-2]]], r=[[[1]]])
aim("matmul_second", "eps-zero-sign", "O = 0", E6, a=[[[1, 1]]], v=[[[1], [-1]]], r=[[[1]]])
aim(
    "matmul_second_gxi",
    "cp-half",
    "the values get the whole derivative",
    a=M["a"],
    v=M["v"],
    g=M["r"],
)

# -- softmax ---------------------------------------------------------------------------------------

ROW: Numbers = {"mask": None, "axis": -1}
INF, LEAST, LEAST32 = -np.inf, float(np.finfo("float64").min), float(np.finfo("float32").min)
aim(
    "softmax_taylor",
    "softmax-shifted",
    "logits 1, 2, 3 as they are; less their maximum they give other relevances with the same sum",
    ROW,
    x=[[1, 2, 3]],
    r=[[1, 0, 2]],
)
aim(
    "softmax_taylor", "softmax-shifted", "logits far from 0", ROW, x=[[30, 31, 29.5]], r=[[1, 1, 1]]
)
aim(
    "softmax_taylor",
    "softmax-dim axis-ignored",
    "over the middle axis: sums run along it",
    {"mask": None, "axis": 1},
    x=[[[1, 2, 0], [0, 1, 3]]],
    r=[[[1, 0, 2], [1, 1, 0]]],
)
aim(
    "softmax_taylor",
    "softmax-dim",
    "a square over its first of two axes",
    {"mask": None, "axis": -2},
    x=[[[1, 2], [0, 1]]],
    r=[[[1, 0], [1, 1]]],
)
for low, dtype in ((INF, "float64"), (LEAST, "float64"), (LEAST32, "float32")):
    aim(
        "softmax_taylor",
        "mask-finfo" if np.isfinite(low) else "",
        f"the second entry is masked by {low:.3g}: it gets exactly 0, with R = 1e-30 on it, too",
        ROW,
        dtype,
        x=[[1, low, 2]],
        r=[[1, 1e-30, 1]],
    )
    aim(
        "softmax_taylor",
        "mask-finfo",
        f"a row masked whole by {low:.3g}: nothing is passed on, and nothing is NaN",
        ROW,
        dtype,
        x=[[low, low]],
        r=[[1, 1e-30]],
    )
MASK: Numbers = {"mask": np.array([[[True, False, True], [False, False, False]]]), "axis": -1}
aim(
    "softmax_taylor",
    "mask-ignored mask-inverted mask-counted",
    "masked by an array of booleans, the second row whole",
    MASK,
    x=[[[1, 5, 2], [1, 2, 3]]],
    r=[[[1, 1, 1], [1, 1, 1]]],
)
aim("softmax_taylor", "", "one entry: p = 1, and everything is offset", ROW, x=[[3]], r=[[2]])
aim("softmax_taylor", "", "all logits 0: nothing is passed on", ROW, x=[[0, 0]], r=[[1, 3]])
aim(
    "softmax_taylor",
    "vacuous-check softmax-no-offset forced-conservation",
    "relevances of three sizes",
    ROW,
    x=[[0.5, -1, 2]],
    r=[[1, 2, 3]],
)
for rule in ("spread", "z_plus", "identity"):
    aim(
        f"softmax_{rule}",
        "softmax-dim" if rule == "spread" else "",
        "over the middle axis",
        {"mask": None, "axis": 1},
        x=[[[1, 2, 0], [0, 1, 3]]],
        r=[[[1, 0, 2], [1, 1, 0]]],
    )
    aim(
        f"softmax_{rule}",
        "" if rule == "z_plus" else "mask-finfo",
        "an entry masked by the least number of the format",
        ROW,
        x=[[1, LEAST, 2]],
        r=[[1, 1e-30, 1]],
    )
    aim(
        f"softmax_{rule}",
        "",
        "masked by booleans, the second row whole",
        MASK,
        x=[[[1, 5, 2], [1, 2, 3]]],
        r=[[[1, 1, 1], [1, 1, 1]]],
    )
aim("softmax_spread", "softmax-shifted", "logits as they are", ROW, x=[[1, 2, 3]], r=[[1, 0, 2]])
aim("softmax_z_plus", "softmax-shifted", "logits of both signs", ROW, x=[[1, -2, 3]], r=[[1, 1, 2]])
aim(
    "softmax_gradient",
    "softmax-dim",
    "over the middle axis",
    {"mask": None, "axis": 1},
    x=[[[1, 2, 0], [0, 1, 3]]],
    g=[[[1, 0, 2], [1, 1, 0]]],
)
aim("softmax_gradient", "", "an entry masked by -inf", ROW, x=[[1, INF, 2]], g=[[1, 1, 1]])
aim(
    "softmax_gradient",
    "",
    "a row masked whole",
    MASK,
    x=[[[1, 5, 2], [1, 2, 3]]],
    g=[[[1, 1, 1], [1, 1, 1]]],
)

# -- norms, activations ----------------------------------------------------------------------------

LN: Numbers = {"norm_eps": 1e-5}
aim(
    "rms_norm_identity",
    "vacuous-check",
    "what arrives is passed on as it is",
    {"norm_eps": 1e-6},
    x=[[1, 2, 3]],
    w=[1, 2, -1],
    r=[[1, 2, 4]],
)
aim(
    "rms_norm_identity",
    "zero-input",
    "an input of 0 keeps what arrived",
    {"norm_eps": 1e-6},
    x=[[0, 2]],
    w=[1, 1],
    r=[[1, 1]],
)
aim(
    "rms_norm_identity_gxi",
    "norm-jacobian norm-weight-ignored norm-weight-offset",
    "1/rms is a constant; the weight's signs stay",
    {"norm_eps": 1e-6},
    x=[[1, 2, 3]],
    w=[1, 2, -1],
    g=[[1, 2, 4]],
)
aim(
    "rms_norm_identity_gxi",
    "norm-eps-missing",
    "a row of zeros: rms is the root of norm_eps",
    {"norm_eps": 0.25},
    x=[[0, 0]],
    w=[1, 2],
    g=[[1, 1]],
)
aim(
    "layer_norm_epsilon",
    "ln-unbiased bn-variance ln-beta-in-numerator mean-not-centered layer-norm-reading",
    "0 and 4: the variance is 4, over N and not N - 1; the deviation 2",
    LN | E6,
    x=[[0, 4]],
    w=[1, 2],
    b=[0.5, -1],
    r=[[1, 2]],
)
aim(
    "layer_norm_epsilon",
    "ln-unbiased bn-variance",
    "three numbers of small spread",
    LN | E2,
    x=[[0.25, 0.5, 0.125]],
    w=[1, 1, 1],
    b=[1, 2, 3],
    r=[[1, 1, 1]],
)
aim(
    "layer_norm_epsilon",
    "eps-unsigned",
    "negative outputs",
    LN | E2,
    x=[[1, 2, 6]],
    w=[1, 1, -1],
    b=None,
    r=[[1, 1, 1]],
)
aim(
    "layer_norm_epsilon",
    "eps-zero-sign",
    "the middle one is the mean: z = 0 there",
    LN | E6,
    x=[[1, 2, 3, 2]],
    w=[1, 1, 1, 1],
    b=None,
    r=[[1, 1, 1, 1]],
)
aim(
    "layer_norm_epsilon",
    "",
    "all alike: z is beta",
    LN | E6,
    x=[[2, 2]],
    w=[1, 1],
    b=[1, -1],
    r=[[1, 1]],
)
aim(
    "layer_norm_epsilon",
    "vacuous-check",
    "shares of all sizes",
    LN | E6,
    x=[[3, 1, -5, 2]],
    w=[1, 2, 0.5, 1],
    b=[0.25, 0, -0.5, 1],
    r=[[1, 2, 3, 4]],
)
aim(
    "layer_norm_epsilon_gxi",
    "ln-unbiased bn-variance mean-not-centered",
    "0 and 4: the deviation is 2",
    LN,
    x=[[0, 4]],
    w=[1, 2],
    b=[0.5, -1],
    g=[[1, 2]],
)
aim(
    "layer_norm_identity",
    "zero-input layer-norm-reading",
    "the whole layer is one normalization: what arrives is passed on",
    LN,
    x=[[0, 4]],
    w=[1, 2],
    b=[0.5, -1],
    r=[[1, 2]],
)

for kind in ("gelu", "silu", "relu", "tanh"):
    mistakes = (
        "relu-identity-lost identity-in-wrong-form" if kind == "relu" else "identity-in-wrong-form"
    )
    aim(
        "activation_identity",
        mistakes,
        "what arrives is passed on, on the negative side too",
        {"kind": kind},
        x=[[-1, 2, 0.5]],
        r=[[1, 2, 3]],
    )
aim(
    "activation_identity",
    "zero-input",
    "f(0) = 0 and x = 0, and R is passed on",
    {"kind": "gelu"},
    x=[[0, -0.0, 1]],
    r=[[1, 1, 1]],
)
aim(
    "activation_identity",
    "relu-identity-lost zero-input",
    "a dead ReLU: if relevance arrives there it is passed on",
    {"kind": "relu"},
    x=[[0, -1]],
    r=[[1, 1]],
)
for kind, at_zero in (
    ("gelu", "1/2"),
    ("gelu_tanh", "1/2"),
    ("silu", "1/2"),
    ("quick_gelu", "1/2"),
    ("tanh", "1"),
    ("relu", "0"),
):
    aim(
        "activation_identity_gxi",
        "ratio-eps" if kind == "relu" else "ratio-eps slope-for-ratio",
        f"at x = 0 the factor f(x)/x is its limit, {at_zero}",
        {"kind": kind},
        x=[[0, -0.0, 1e-10, -1e-10, 2]],
        g=[[1, 1, 1, 1, 1]],
    )
    aim(
        "activation_gradient",
        "" if kind == "relu" else "ratio-for-slope",
        "the slope on both sides and at 0",
        {"kind": kind},
        x=[[0, 1, -1, 3]],
        g=[[1, 2, 1, 1]],
    )

# -- rotary, pooling, movement, experts ------------------------------------------------------------

TURN: Numbers = {
    "cos": [[1, 1, 1, 1], [0.5, 0.25, 0.5, 0.25]],
    "sin": [[0, 0, 0, 0], [0.75, -1, 0.75, -1]],
}
aim(
    "rotary_epsilon",
    "rope-interleave rotary-transposed rotary-skipped",
    "halves are turned against each other, x1 with x3 and x2 with x4",
    E6,
    x=[[[[1, 2, 3, 4], [1, -2, 3, 5]]]],
    r=[[[[1, 1, 1, 1], [1, 2, 3, 4]]]],
    **TURN,
)
aim(
    "rotary_epsilon",
    "eps-unsigned",
    "negative outputs, a large eps",
    E2,
    x=[[[[1, 2, 3, 4], [-1, -2, -3, 5]]]],
    r=[[[[1, 1, 1, 1], [1, 2, 3, 4]]]],
    **TURN,
)
aim(
    "rotary_epsilon",
    "eps-zero-sign",
    "x1 cos - x2 sin = 0",
    E6,
    x=[[[[1, 1]]]],
    cos=[[1, 1]],
    sin=[[1, 1]],
    r=[[[[1, 1]]]],
)
aim(
    "rotary_gradient",
    "rope-interleave rotary-transposed",
    "turned back, by the transposed rotation",
    x=[[[[1, 2, 3, 4], [1, -2, 3, 5]]]],
    g=[[[[1, 1, 1, 1], [1, 2, 3, 4]]]],
    **TURN,
)
PADDED: Numbers = {"counted": np.array([[[1.0], [1.0], [0.0]]])}
aim(
    "pooling_epsilon",
    "counted-ignored pooling-uniform",
    "the third position is padding: it has no part in the mean and gets nothing",
    E6 | PADDED,
    x=[[[1, -1], [2, 3], [100, 100]]],
    r=[[[3, 4]]],
)
aim(
    "pooling_epsilon",
    "eps-zero-sign",
    "a sum of 0",
    E6 | {"counted": None},
    x=[[[1], [-1]]],
    r=[[[1]]],
)
aim(
    "pooling_gradient",
    "counted-ignored",
    "the third position is padding",
    PADDED,
    x=[[[1, -1], [2, 3], [100, 100]]],
    g=[[[3, 4]]],
)
aim(
    "scale_pass_through",
    "",
    "a number times x: all relevance stays with x",
    {"factor": 0.125},
    x=[[1, 0, -2]],
    r=[[1, 2, 3]],
)
aim(
    "scale_gradient",
    "",
    "the factor belongs to g",
    {"factor": 0.125},
    x=[[1, 0, -2]],
    g=[[1, 2, 3]],
)
HEADS: Numbers = {"x": [[[[1.0]], [[2.0]]]], "r": [[[[1.0]], [[2.0]], [[4.0]], [[8.0]]]]}
aim(
    "repeat_heads_pass_through",
    "gqa-repeat",
    "two heads, two copies each, side by side: 1 + 2 and 4 + 8",
    {"times": 2},
    **HEADS,
)
aim(
    "repeat_heads_pass_through",
    "gqa-repeat",
    "three copies of one head",
    {"times": 3},
    x=[[[[1.0, 2.0]]]],
    r=[[[[1.0, 2.0]], [[4.0, 8.0]], [[16.0, 32.0]]]],
)
aim(
    "gather_pass_through",
    "leaf-twice",
    "row 1 is taken twice: both arrive",
    {"index": [[1, 0, 1]]},
    x=[[[1], [2], [3]]],
    r=[[[1], [2], [4]]],
)
aim(
    "gather_pass_through",
    "index-shared",
    "two examples, each with rows of its own",
    {"index": [[1, 0], [0, 0]]},
    x=[[[1], [2]], [[3], [4]]],
    r=[[[1], [2]], [[4], [8]]],
)
aim(
    "top_k_pass_through",
    "top-k-order",
    "only what was chosen gets anything",
    {"k": 2},
    x=[[[0.25, 0.5, 0.125, 1]]],
    r=[[[1, 2]]],
)
aim(
    "top_k_pass_through",
    "zero-input",
    "a chosen entry that is 0",
    {"k": 2},
    x=[[[0, 0.5, -1]]],
    r=[[[1, 2]]],
)
aim(
    "renormalize_identity", "zero-input", "a weight of 0 keeps what arrives", x=[[0, 2]], r=[[1, 1]]
)
aim("renormalize_epsilon", "eps-zero-sign", "a weight of 0", E6, x=[[0, 2]], r=[[1, 1]])
aim(
    "renormalize_epsilon",
    "eps-unsigned",
    "a negative weight, a large eps",
    E2,
    x=[[-1, 3]],
    r=[[1, 1]],
)
aim(
    "renormalize_epsilon",
    "fp16-nan",
    "a weight of 0 with eps = 1e-8 in float16",
    E8,
    "float16",
    x=[[0, 2]],
    r=[[0, 1]],
)
aim(
    "renormalize_identity",
    "moe-degree-0",
    "the weights of two experts: what arrives stays; the eps-rule on z = x / sum(x) passes "
    "on 0 in sum",
    x=[[0.5, 0.25]],
    r=[[2, 1]],
)
aim(
    "renormalize_identity",
    "moe-degree-0",
    "one expert: its weight is 1 whatever x is",
    x=[[0.5]],
    r=[[2]],
)
aim(
    "renormalize_epsilon",
    "",
    "the eps-rule itself, for comparison: in sum nothing is passed on",
    E6,
    x=[[0.5, 0.25]],
    r=[[2, 1]],
)
aim("renormalize_identity_gxi", "", "the sum is a constant", x=[[0.5, 0.25]], g=[[2, 1]])

# -- several rules one after the other -------------------------------------------------------------

TWICE: Numbers = {"x": [[1, 2]], "w1": [[1, 0], [0, 1]], "w2": [[2, 1], [1, 0.5]]}
aim(
    "fan_out_epsilon",
    "leaf-twice fan-in-mean",
    "x is read twice: what comes back from both is summed",
    E6,
    **TWICE,
    r=[[1, 1]],
)
aim(
    "fan_out_epsilon",
    "residual-absolute",
    "the second layer answers with the other sign",
    E6,
    x=[[1]],
    w1=[[3]],
    w2=[[-1]],
    r=[[1]],
)
aim(
    "fan_out_epsilon",
    "eps-zero-sign",
    "both layers answer 1 and -1: their sum is 0",
    E6,
    x=[[1]],
    w1=[[1]],
    w2=[[-1]],
    r=[[1]],
)
QKV: Numbers = {
    "q": [[[[1, 0.5], [-1, 2], [0.5, 1]]]],
    "k": [[[[0.5, 1], [1, -1], [2, 0.25]]]],
    "v": [[[[1, 2], [-3, 1], [0.5, -1]]]],
}
R = [[[[1, 2], [0.5, 1], [1, -1]]]]
HALF_SCALE: Numbers = {"scale": 0.5, "causal": False, "mask": None}
GROUPED: Numbers = {
    "q": [[[[1, 0.5]], [[-1, 2]], [[0.5, 1]], [[2, -1]]]],
    "k": [[[[0.5, 1]], [[1, -1]]]],
    "v": [[[[1, 2]], [[-3, 1]]]],
}
GROUPED_R = [[[[1, 2]], [[0.5, 1]], [[4, -1]], [[2, 3]]]]
TWO_KEYS: Numbers = {
    "q": [[[[1, 0.5], [2, 1]], [[-1, 2], [0, 1]]]],
    "k": [[[[0.5, 1], [1, -1]]]],
    "v": [[[[1, 2], [-3, 1]]]],
}
TWO_R = [[[[1, 2], [1, 1]], [[0.5, 1], [3, 1]]]]
FEW: Numbers = {
    "q": [[[[1, 0.5], [-1, 2]]]],
    "k": [[[[0.5, 1], [1, -1], [2, 0.25]]]],
    "v": [[[[1, 2], [-3, 1], [0.5, -1]]]],
}
FEW_R = [[[[1, 2], [0.5, 1]]]]
BLIND = np.array([[[[True, False, True], [False, False, False]]]])
SEEN = np.array([[[[True, False, True], [True, True, False], [True, False, False]]]])


def _as(name: str, array: Any) -> Numbers:
    return {name: array}


eps: Numbers
for rule, seed, eps in (
    ("attnlrp", "r", E6),
    ("cp", "r", E6),
    ("attnlrp_gxi", "g", {}),
    ("cp_gxi", "g", {}),
):
    name, plain = f"attention_{rule}", rule == "cp" or rule == "attnlrp"
    aim(
        name,
        "tril-always",
        "bidirectional: the last key is seen by the first query",
        HALF_SCALE | eps,
        **QKV,
        **_as(seed, R),
    )
    aim(
        name,
        "causal-ignored",
        "causal: no key gets anything from a query before it",
        HALF_SCALE | {"causal": True} | eps,
        **QKV,
        **_as(seed, R),
    )
    aim(
        name,
        "mask-ignored mask-inverted",
        "padding: the mask differs from query to query",
        HALF_SCALE | {"mask": SEEN} | eps,
        **QKV,
        **_as(seed, R),
    )
    if plain:
        aim(
            name,
            "eps-zero-sign",
            "two equal weights on values of 1 and -1: the context is 0",
            HALF_SCALE | eps,
            q=[[[[0]]]],
            k=[[[[1], [2]]]],
            v=[[[[1], [-1]]]],
            **_as(seed, [[[[1]]]]),
        )
    aim(
        name,
        "mask-finfo",
        "the second query sees nothing: nothing is passed on, and nothing is NaN",
        HALF_SCALE | {"mask": BLIND} | eps,
        **FEW,
        **_as(seed, FEW_R),
    )
    aim(
        name,
        "causal-last",
        "two queries, three keys: the first query sees the first key",
        HALF_SCALE | {"causal": True} | eps,
        **FEW,
        **_as(seed, FEW_R),
    )
    aim(
        name,
        "gqa-repeat",
        "four queries' heads share two keys' heads: neighbors belong together",
        HALF_SCALE | eps,
        **GROUPED,
        **_as(seed, GROUPED_R),
    )
    aim(
        name,
        "gqa-repeat",
        "two heads share one: both give back to it",
        HALF_SCALE | eps,
        **TWO_KEYS,
        **_as(seed, TWO_R),
    )
    aim(
        name,
        "",
        "one token: nothing depends on q and k",
        HALF_SCALE | eps,
        q=[[[[1, 2]]]],
        k=[[[[3, 1]]]],
        v=[[[[1, -1]]]],
        **_as(seed, [[[[1, 2]]]]),
    )
    if rule.startswith("cp"):
        aim(
            name,
            "cp-half",
            "attention weights are constants: v gets all, in full",
            HALF_SCALE | eps,
            **QKV,
            **_as(seed, R),
        )
    if rule == "attnlrp":
        aim(
            name,
            "eps-two-forms",
            "one form of the denominator in both products",
            HALF_SCALE | E2 | {"denominator": "2z+eps"},
            **QKV,
            r=R,
        )
        aim(
            name,
            "eps-two-forms",
            "the other form in both",
            HALF_SCALE | E2 | {"denominator": "2(z+eps)"},
            **QKV,
            r=R,
        )
        aim(
            name,
            "softmax-shifted",
            "scores far from 0",
            {"scale": 4.0, "causal": False, "mask": None} | E6,
            **QKV,
            r=R,
        )
        aim(
            name,
            "eps-unsigned",
            "scores and contexts of both signs, a large eps",
            HALF_SCALE | E2,
            **QKV,
            r=R,
        )


def _linear(w: Any, b: Any = None, **rule: Any) -> dict[str, Any]:
    return {"operation": "linear", "w": w, "b": b} | rule


EPS: Numbers = {"rule": "epsilon", "eps": 1e-6}
RELU, GELU = (
    {"operation": "activation", "kind": kind, "rule": "identity"} for kind in ("relu", "gelu")
)
W1, W2 = [[1, 2], [-1, 1], [0.5, -1]], [[1, -1, 2], [0.5, 1, 1]]
aim(
    "network",
    "relu-identity-lost rule-forgotten one-target",
    "a ReLU between two linear layers",
    layers=Each(_linear(W1, [0.5, 0, 1], **EPS), RELU, _linear(W2, **EPS)),
    x=[[1, 2]],
    seeds=Each([[1, 0]], [[0, 1]]),
)
aim(
    "network",
    "identity-in-wrong-form",
    "a GELU without biases: all relevance arrives",
    layers=Each(_linear(W1, **EPS), GELU, _linear(W2, **EPS)),
    x=[[1, 2]],
    seeds=Each([[1, 0]], [[1, 1]]),
)
aim(
    "network",
    "relu-identity-lost",
    "an identity rule right behind a ReLU: both pass on all they get",
    layers=Each(_linear(W1, [0.5, 0, 1], **EPS), RELU, GELU, _linear(W2, **EPS)),
    x=[[1, 2]],
    seeds=Each([[1, 0]], [[0, 1]]),
)
aim(
    "network",
    "gamma-forward rule-forgotten",
    "gamma changes what is handed down, never what is explained",
    layers=Each(
        _linear(W1, [0.5, 0, 1], rule="gamma", gamma=0.25),
        RELU,
        _linear(W2, [1, -1], rule="gamma", gamma=0.25),
    ),
    x=[[1, -2]],
    seeds=Each([[1, 0]], [[0, 1]]),
)
aim(
    "network",
    "batch-coupled",
    "three examples of different size: none may see another",
    layers=Each(_linear(W1, **EPS), RELU, _linear(W2, **EPS)),
    x=[[1, 2], [10, -3], [0.125, 0.5]],
    seeds=Each([[1, 0], [1, 1], [0, 4]], [[0, 1], [2, 1], [1, 0]]),
)
aim(
    "network",
    "rule-forgotten",
    "z+ below, alpha-beta above",
    layers=Each(
        _linear(W1, rule="z_plus"), RELU, _linear(W2, rule="alpha_beta", alpha=2.0, beta=1.0)
    ),
    x=[[1, 2]],
    seeds=Each([[1, 0]], [[0, 1]]),
)
