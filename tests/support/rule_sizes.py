"""How large the terms are that a rule adds up for each element of its inputs: what rounding is
measured by. Where a rule divides by z + eps s(z), an error of z counts as often as the terms of z
are larger than the denominator.

The sums are those of the rules with every number replaced by its absolute value and every minus by
a plus, written as einsum and not as the rules are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

ULP = 2.0**-53


def sizes(site: Any, **options: Any) -> list[Any]:
    """For each operand an array in its shape; None where it is not one that receives."""
    name, r = site.name, np.abs(site.r)
    if site.operation in ("embedding", "learned", "source"):
        return [None for _ in site.operands]
    if site.operation in DIVIDED and not site.gxi:
        s = r * conditioned(site, **options)
        back = BACK[site.operation](site, s)
        return [
            b if b is None else b * np.abs(x) for b, x in zip(back, site.operands, strict=False)
        ]
    if name in SPECIAL:
        return SPECIAL[name](site, r)
    return BACK[site.operation](site, r)


def conditioned(site: Any, **options: Any) -> Any:
    """(1 + A / |d|) / |d| for the denominators d of an epsilon rule and the terms A of z."""
    told = site.options | options
    times = 2.0 if site.operation == "matmul" else 1.0
    z = times * site.z
    plain = told["stabilizer"] == "plain"
    d = np.abs(z + told["eps"]) if plain else np.abs(z) + told["eps"]
    return (1 + times * of_output(site) / d) / d


def of_output(site: Any) -> Any:
    """The sum of |terms| of each output element, and of what its own rounding goes through."""
    x = [None if a is None else np.abs(a) for a in site.operands]
    return OUTPUT[site.operation](site, x)


def _linear(site: Any, x: Any) -> Any:
    return np.einsum("...i,ji->...j", x[0], x[1]) + (0 if x[2] is None else x[2])


def _rotary(site: Any, x: Any) -> Any:
    return x[0] * np.abs(site.attributes["cos"]) + _exchanged(x[0]) * np.abs(site.attributes["sin"])


def _exchanged(x: Any) -> Any:
    return np.roll(x, x.shape[-1] // 2, axis=-1)


def _softmax(site: Any, x: Any) -> Any:
    return np.abs(site.z) * (1 + 2 * _largest_logit(site))


def _layer_norm(site: Any, x: Any) -> Any:
    """x less its mean cancels, and every error of std is one of all of the row."""
    size = _spread(x[0]) / _std(site) * x[1] * _amplified(site)
    return size if x[2] is None else size + x[2]


def _spread(x: Any) -> Any:
    return x + x.mean(axis=-1, keepdims=True)


def _std(site: Any) -> Any:
    variance = site.operands[0].var(axis=-1, keepdims=True)
    return np.sqrt(variance + site.attributes["norm_eps"])


def _amplified(site: Any) -> Any:
    x = np.abs(site.operands[0])
    return 1 + np.square(_spread(x) / _std(site)).mean(axis=-1, keepdims=True)


def _rms(site: Any) -> Any:
    mean = np.square(site.operands[0]).mean(axis=-1, keepdims=True)
    return np.sqrt(mean + site.attributes["norm_eps"])


def _rms_weight(site: Any) -> Any:
    return np.abs(site.attributes.get("offset", 0.0) + site.operands[1])


OUTPUT: dict[str, Callable[..., Any]] = {
    "linear": _linear,
    "add": lambda site, x: x[0] + x[1],
    "multiply": lambda site, x: np.abs(site.z),
    "matmul": lambda site, x: np.einsum("...ji,...ip->...jp", x[0], x[1]),
    "softmax": _softmax,
    "rms_norm": lambda site, x: x[0] / _rms(site) * _rms_weight(site),
    "layer_norm": _layer_norm,
    # an error of what a gate exponentiates is at most 1 + |x|^3 times as large in its logarithm
    "activation": lambda site, x: np.abs(site.z) + x[0] * 2,
    "scale": lambda site, x: np.abs(site.z),
    "rotary": _rotary,
    "movement": lambda site, x: np.abs(site.z),
    "embedding": lambda site, x: np.abs(site.z),
    "learned": lambda site, x: np.abs(site.z),
    "source": lambda site, x: np.abs(site.z),
}

DIVIDED = ("linear", "add", "matmul", "rotary", "layer_norm")


def _back_matmul(site: Any, s: Any) -> Any:
    a, v = map(np.abs, site.operands)
    return [np.einsum("...jp,...ip->...ji", s, v), np.einsum("...ji,...jp->...ip", a, s)]


def _back_rotary(site: Any, s: Any) -> Any:
    cos, sin = (np.abs(site.attributes[name]) for name in ("cos", "sin"))
    return [s * cos + _exchanged(s * sin)]


def _back_layer_norm(site: Any, s: Any) -> Any:
    c = np.abs(site.operands[1]) * s / _std(site) * _amplified(site)
    return [_spread(c), None, None]


def _back_multiply(site: Any, s: Any) -> Any:
    """Of two operands; a broadcast one has the sum over its copies."""
    if not site.gxi:
        return [_folded(s, x.shape) for x in site.operands]
    a, b = map(np.abs, site.operands)
    return [_folded(b * s, a.shape), _folded(a * s, b.shape)]


def _folded(s: Any, shape: Any) -> Any:
    copied = tuple(i for i, n in enumerate(shape) if n == 1 and s.shape[i] != 1)
    return s.sum(axis=copied, keepdims=True)


def _back_softmax(site: Any, r: Any, weighted: bool = True) -> Any:
    mask = site.attributes.get("mask")
    x = np.where(np.broadcast_to(True if mask is None else np.asarray(mask), r.shape), r, 0)
    amounts = x * site.z if site.gxi else x
    spread = amounts + site.z * amounts.sum(axis=-1, keepdims=True)
    spread = spread * (1 + 2 * _largest_logit(site))
    return [spread if site.gxi or not weighted else spread * _logits(site)]


def _logits(site: Any) -> Any:
    """|x| of those that are none of a mask."""
    x = np.abs(site.operands[0])
    return np.where(x < 1e300, x, 0)


def _largest_logit(site: Any) -> Any:
    return _logits(site).max(axis=-1, keepdims=True)


def _back_movement(site: Any, r: Any) -> Any:
    return [np.abs(one) for one in site.apply(r=r).inputs]


def _gradient_layer_norm(site: Any, g: Any) -> Any:
    x, w, _ = site.operands
    c = np.abs(w) * g / _std(site) * _amplified(site)
    hat = _spread(np.abs(x)) / _std(site)
    return [_spread(c) + hat * (c * hat).mean(axis=-1, keepdims=True), None, None]


def _gradient_rms_norm(site: Any, g: Any) -> Any:
    x, c, rms = np.abs(site.operands[0]), _rms_weight(site) * g, _rms(site)
    return [(c + x * (c * x).mean(axis=-1, keepdims=True) / rms**2) / rms, None]


BACK: dict[str, Callable[[Any, Any], Any]] = {
    "linear": lambda site, s: [np.einsum("...j,ji->...i", s, np.abs(site.operands[1])), None, None],
    "add": lambda site, s: [_folded(s, x.shape) for x in site.operands],
    "multiply": _back_multiply,
    "matmul": _back_matmul,
    "softmax": _back_softmax,
    "rms_norm": lambda site, r: [r, None],
    "layer_norm": _back_layer_norm,
    "activation": lambda site, r: [r],
    "scale": lambda site, r: [r * abs(site.attributes["factor"]) if site.gxi else r],
    "rotary": _back_rotary,
    "movement": _back_movement,
}

SPECIAL: dict[str, Callable[[Any, Any], Any]] = {
    "rms_norm.identity_gxi": lambda site, g: [g * _rms_weight(site) / _rms(site), None],
    "rms_norm.gradient": _gradient_rms_norm,
    "layer_norm.gradient": _gradient_layer_norm,
    "activation.identity_gxi": lambda site, g: [g * 2],
    "activation.gradient": lambda site, g: [g * (2 + np.abs(site.operands[0]))],
}


def differentiated_sizes(site: Any) -> list[Any]:
    """Of a norm's whole Jacobian in place of its rule: on g, or x J^T (R / z)."""
    back = SPECIAL[f"{site.operation}.gradient"]
    if site.gxi:
        return back(site, np.abs(site.r))
    d = np.abs(site.z) + site.options.get("eps", 0.0)
    found, *others = back(site, np.abs(site.r) * (1 + of_output(site) / d) / d)
    return [np.abs(site.operands[0]) * found, *others]


def shifted_size(site: Any) -> Any:
    """Of the softmax's rule with logits less their maximum."""
    spread = _back_softmax(site, np.abs(site.r), weighted=False)[0]
    return 2 * _largest_logit(site) * spread
