"""Sum over experts          z_bt = sum_e y_e[b, n],  n with index[e][b][n] = t

    epsilon     R_e[b, n] = y_e[b, n] s_bt,  s = R / (z + eps s(z))        (AttnLRP eq. 8 on a sum)
    gradient    g_e[b, n] = g_bt

Rows go back to their places and are added. Absorbs: stabilizer sum eps s(z) s.

One sum of all experts' terms with one stabilizer, not a chain of additions: what an expert receives
does not depend on the order in which they are added, and no partial sum, which may come near zero,
is ever divided by. At eps -> 0 a chain gives the same. A row of z that no expert writes to is zero:
what relevance stands there ends in the stabilizer.
"""

from __future__ import annotations

from refl.arrays import Array
from refl.rules.conservation import Forms, RuleOutput, stabilized_ratio
from refl.rules.gather import Index, back, rows


def forward(
    *ys: Array, index: tuple[Index, ...], length: int
) -> Array:  # each (B, N_e, D) -> (B, length, D)
    first, *others = (back(y, where, length) for y, where in zip(ys, index, strict=True))
    return sum(others, start=first)


def epsilon(
    *arrays: Array,
    index: tuple[Index, ...],
    length: int,
    eps: float = 1e-6,
    stabilizer: str = "sign",
) -> RuleOutput:  # r: (B, length, D) -> each (B, N_e, D)
    *ys, z, r = arrays
    s, absorbed = stabilized_ratio(z, r, eps, stabilizer)
    inputs = tuple(y * rows(s, where) for y, where in zip(ys, index, strict=True))
    return RuleOutput(inputs, {"stabilizer": absorbed})


def gradient(*arrays: Array, index: tuple[Index, ...], length: int) -> RuleOutput:
    *_, g = arrays
    return RuleOutput(tuple(rows(g, where) for where in index), {})


RULES = {"epsilon": Forms(epsilon, gradient), "gradient": Forms(None, gradient)}
