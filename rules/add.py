"""Sum of two operands (residual, positions, bias tables)          z = a + b

    epsilon     R_a = a s,  R_b = b s,  s = R / (z + eps s(z))             (AttnLRP eq. 8 on a sum)
    gradient    g_a = g_b = g

Absorbs: stabilizer sum eps s(z) s. An operand that is no function of the input (positions, a table)
receives relevance like any other; the ledger has it where it ends. An operand that was broadcast
receives the sum over its copies.
"""

from __future__ import annotations

from refl.arrays import Array, namespace
from refl.rules.conservation import Forms, RuleOutput, stabilized_ratio


def forward(a: Array, b: Array) -> Array:  # (..., N), (..., N) -> (..., N)
    return a + b


def epsilon(
    a: Array, b: Array, z: Array, r: Array, *, eps: float = 1e-6, stabilizer: str = "sign"
) -> RuleOutput:
    s, absorbed = stabilized_ratio(z, r, eps, stabilizer)
    return RuleOutput((fold(a * s, a.shape), fold(b * s, b.shape)), {"stabilizer": absorbed})


def gradient(a: Array, b: Array, z: Array, g: Array) -> RuleOutput:
    return RuleOutput((fold(g, a.shape), fold(g, b.shape)), {})


def fold(r: Array, shape: tuple[int, ...]) -> Array:
    """The sum over the axes along which an array of `shape` was broadcast to r's shape."""
    xp = namespace(r)
    extra = r.ndim - len(shape)
    copied = tuple(
        i for i in range(r.ndim) if i < extra or (shape[i - extra] == 1 and r.shape[i] != 1)
    )
    return xp.reshape(xp.sum(r, axis=copied), shape) if copied else r


RULES = {"epsilon": Forms(epsilon, gradient), "gradient": Forms(None, gradient)}
