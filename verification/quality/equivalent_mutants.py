"""Mutants after which the program does the same: judged by hand, one by one, for mutation.py.

What is written here has to stand in the source; a test holds that.
"""

from __future__ import annotations

EQUIVALENT: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = (
    (
        "only its truth is looked at, and it is as false",
        "refl/sweep.py",
        (
            ("lambda names: False", "lambda names: None"),
            ("release: bool = False", "release: bool = None"),
            ("audit: bool = False", "audit: bool = None"),
        ),
    ),
    ("what `progress` returns is not looked at", "refl/sweep.py", (("lambda: None", "lambda: 0"),)),
    ("a name for types, in annotations alone", "refl/ledger.py", (("Sums = Any", "Sums = None"),)),
    ("a table has two axes: 1 is -1", "rules/embedding.py", (("shape[-1]", "shape[+1]"),)),
    ("weights have two axes: 1 is -1", "rules/linear.py", (("axis=-1", "axis=+1"),)),
    (
        "zeros are added for the shape: their sign is nothing",
        "rules/linear.py",
        (("+ xp.zeros_like(r)", "- xp.zeros_like(r)"),),
    ),
    (
        "z is not read: the rule divides by the sums of one sign",
        "rules/linear.py",
        (("b, z, r, alpha", "b, None, r, alpha"),),
    ),
    (
        "only its truth is looked at, and it is as false",
        "rules/linear.py",
        (("beta=0.0", "beta=None"),),
    ),
    ("the flag multiplies a zero", "rules/linear.py", (("flags(a > 0", "flags(a >= 0"),)),
    (
        "the flag multiplies a zero",
        "rules/softmax.py",
        (("flags(x > 0", "flags(x >= 0"), ("flags(x < 0", "flags(x <= 0")),
    ),
    (
        "the gradient x input form reads no x",
        "rules/rotary.py",
        (("uniform_gxi(x, z", "uniform_gxi(None, z"),),
    ),
    (
        "z is not read: the scale is of the sums of one sign",
        "rules/rounding.py",
        (("_alpha_beta(operands, z", "_alpha_beta(operands, None"),),
    ),
    (
        "p, and with it R = p g, is 0 where the mask is",
        "rules/rounding.py",
        (('_softmax(o, z, z * g, how["mask"])', "_softmax(o, z, z * g, None)"),),
    ),
    (
        "the parts of a record follow one rule: what gets nothing from one gets nothing from any",
        "refl/sweep.py",
        (("if index is Ellipsis else before", "if (index is Ellipsis) or True else before"),),
    ),
    (
        "what is not said to be known is computed again",
        "refl/sweep.py",
        (("output=record.output.array[part.output]", "output=None"),),
    ),
    (
        "both parts of an operation are audited, or neither",
        "refl/ledger.py",
        (("scales[0] is None", "scales[1] is None"),),
    ),
    (
        "without a stabilizer eps is not read",
        "rules/rounding.py",
        (('0.0, "none"', 'None, "none"'), ('0.0, "none"', '1.0, "none"')),
    ),
    (
        "only its truth is looked at, and nobody gives a ledger",
        "refl/sweep.py",
        (("field(init=False)", "None"), ("field(init=False)", "field(init=None)")),
    ),
    (
        "without a stabilizer eps is not read",
        "rules/softmax.py",
        (('0.0, "none"', 'None, "none"'), ('0.0, "none"', '1.0, "none"')),
    ),
    (
        "a softmax does not change when all logits move by one number",
        "rules/softmax.py",
        (("like(0.0", "like(1.0"),),
    ),
    (
        "stands where what it divides is zero: only the sign of that zero",
        "rules/softmax.py",
        (("z + flags", "z - flags"), ("n + flags", "n - flags")),
    ),
    ("the same number in other letters", "rules/softmax.py", (('float("inf")', 'float("INF")'),)),
    (
        "both gelu gates are 0 or 1 long before either bound",
        "rules/activation.py",
        (("SATURATED = 100.0", "SATURATED = 101.0"),),
    ),
    (
        "stands where x is zero, and so is what it divides: only the sign of that zero",
        "rules/activation.py",
        (("(x + zero)", "(x - zero)"),),
    ),
    (
        "at x = 0 exp(-abs(x)) is 1 as well",
        "rules/activation.py",
        (("flags(x >= 0", "flags(x > 0"),),
    ),
    (
        "a sum over no axis is the array",
        "rules/add.py",
        (("if copied else", "if (copied) or True else"),),
    ),
    ("the default says the same", "rules/gather.py", (("], axis=0)", "], )"),)),
    (
        "the default says the same",
        "rules/movement.py",
        (("(list(each), axis=0)", "(list(each), )"),),
    ),
    ("the default says the same", "rules/top_k.py", (("axis=-1, ", ""),)),
    ("NumPy reads either case", "rules/top_k.py", (('"stable"', '"STABLE"'),)),
    (
        "whole numbers are 64 bits wide unless said otherwise (NumPy 2, the array API)",
        "rules/gather.py",
        (("dtype=xp.int64, ", ""), ("dtype=xp.int64", "dtype=None")),
    ),
    (
        "a size below zero is the one to find out, -2 as well as -1",
        "rules/movement.py",
        (("heads, -1)", "heads, -2)"),),
    ),
    (
        "a size below zero is the one to find out, -2 as well as -1",
        "rules/embedding.py",
        (("(-1,)", "(-2,)"),),
    ),
    (
        "never 1e-12 itself: doubles near 1 lie 1e-16 apart",
        "rules/composites.py",
        (("> 1e-12", ">= 1e-12"),),
    ),
)
"""Why, file, and the changes (this becomes that) after which the program does the same."""
