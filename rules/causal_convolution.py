"""Causal convolution along a text, each channel by itself
                                            z_tc = sum_k w_ck x_(t-K+1+k),c + b_c

    epsilon     R_sc = x_sc sum_k w_ck s_(s+K-1-k),c,  s = R / (z + eps s(z))      (AttnLRP eq. 8)
    gradient    g_sc = sum_k w_ck g_(s+K-1-k),c: the true derivative, and epsilon in gradient x
                input form

A place t reads itself and the K - 1 before it (of which those in front of the text are 0, and
count for nothing): a linear map, of which the rules are those of rules/linear.py. With K = 1 it is
a product with one number for each channel. The bias is a contribution like any other; what it
receives is absorbed as `bias`.
"""

from __future__ import annotations

from refl.arrays import Array, device_of, namespace, total
from refl.rules.conservation import Forms, RuleOutput, stabilized_ratio


def forward(x: Array, w: Array, b: Array | None) -> Array:  # (B, T, C), (C, K), (C,) -> (B, T, C)
    last = w.shape[-1] - 1
    z = _summed(_padded(x, last, 0), w, range(last + 1))
    return z if b is None else z + b


def epsilon(
    x: Array,
    w: Array,
    b: Array | None,
    z: Array,
    r: Array,
    *,
    eps: float = 1e-6,
    stabilizer: str = "sign",
) -> RuleOutput:  # r: (B, T, C) -> (B, T, C)
    s, absorbed = stabilized_ratio(z, r, eps, stabilizer)
    return RuleOutput((_back(s, w) * x, None, None), _bias(b, s) | {"stabilizer": absorbed})


def gradient(
    x: Array, w: Array, b: Array | None, z: Array, g: Array
) -> RuleOutput:  # g: (B, T, C) -> (B, T, C)
    return RuleOutput((_back(g, w), None, None), _bias(b, g))


def _back(s: Array, w: Array) -> Array:  # (B, T, C), (C, K) -> (B, T, C)
    """sum_k w_k s_(t+K-1-k)"""
    last = w.shape[-1] - 1
    return _summed(_padded(s, 0, last), w, range(last, -1, -1))


def _padded(x: Array, before: int, behind: int) -> Array:  # (B, T, C) -> (B, before+T+behind, C)
    xp = namespace(x)
    sides = (
        xp.zeros((x.shape[0], n, x.shape[2]), dtype=x.dtype, **device_of(x))
        for n in (before, behind)
    )
    front, back = sides
    return xp.concat([front, x, back], axis=1)


def _summed(padded: Array, w: Array, starts: range) -> Array:  # (B, T+K-1, C) -> (B, T, C)
    """sum_k w_k padded_(t + starts_k)"""
    length = padded.shape[1] - w.shape[-1] + 1
    terms = [padded[:, start : start + length, :] * w[:, k] for k, start in enumerate(starts)]
    return sum(terms[1:], start=terms[0])


def _bias(b: Array | None, s: Array) -> dict[str, Array]:
    return {} if b is None else {"bias": total(s @ b)}


RULES = {"epsilon": Forms(epsilon, gradient), "gradient": Forms(None, gradient)}
