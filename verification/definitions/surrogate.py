"""The frozen surrogate whose gradient checks the sweep (identity 2): no rule of the engine takes
part.

At eps -> 0 AttnLRP at any site is activation * gradient of a function that agrees with the net at
the input and in which

    norms             have their scale 1/rms or 1/std frozen; the subtraction of the mean is live
    gate weights      are divided by the frozen sum of the chosen ones; which experts are chosen is
                      frozen
    activations       are  x * (f(x0)/x0),  the ratio frozen
    products          of N operands are the mean over k of  a_k * (the others frozen); matmul alike:
                      (a b0 + a0 b)/2
    softmax           is itself
    everything else   is linear already

(Achtibat et al. 2024, arXiv 2402.05602, props. 3.1 to 3.4.) The same net runs on `FrozenTrace`, a
Trace that computes this function; its gradient is taken by complex step, df = Im f(x + i h d)/h
(Squire and Trapp, SIAM Review 40, 1998), which subtracts nothing and so is exact to rounding.
CP-LRP freezes more (attention probabilities and gates), the plain gradient nothing at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np

from refl.arrays import Array
from refl.model import Model
from refl.rules.operations import OPERATIONS
from refl.trace import Choice, Index, Record, Trace

VARIANTS = ("attnlrp", "cp-lrp", "gradient")

STEP = 1e-30
"""Squared it vanishes beside any activation, so the real parts
of a perturbed run are those of the real run.
"""

Edit = Callable[[Any], Any]


class FrozenTrace(Trace):
    """A trace that computes the surrogate around a recorded run, in complex numbers where an edit
    brings them in.

    around     output site -> record of the real run (one example; an edit may make a batch of it)
    variant    attnlrp, cp-lrp, or gradient: the true net, nothing frozen
    """

    def __init__(
        self,
        weights: Mapping[str, Any],
        around: Mapping[str, Record],
        *,
        variant: str = "attnlrp",
        edits: Mapping[str, Edit] | None = None,
    ) -> None:
        if variant not in VARIANTS:
            raise ValueError(
                f"unknown surrogate {variant!r}: expected one of {', '.join(VARIANTS)}"
            )
        super().__init__(weights, record=False, plain=True, edits=edits)
        self.around = around
        self.forms = (
            TRUE
            if variant == "gradient"
            else FROZEN | (CONSTANT_ATTENTION if variant == "cp-lrp" else {})
        )

    def compute(
        self,
        operation: str,
        site: str,
        arrays: tuple[Array | None, ...],
        attributes: dict[str, Any],
    ) -> Array:
        if operation in self.forms:
            return self.forms[operation](self.around[site], *arrays, **attributes)
        if operation == "linear":
            return _linear(*arrays)
        # the net knows of one example, an edit may have made a batch of it
        if attributes.get("kind") == "rows":
            attributes = attributes | {"index": attributes["index"] * _batch(*arrays)}
        if attributes.get("kind") == "concat":  # what the edit did not reach is one example still
            arrays = tuple(
                np.repeat(np.asarray(a), max(map(_batch, arrays)) // _batch(a), axis=0)
                for a in arrays
            )
        if operation in ROUTING:
            return ROUTING[operation](arrays, **attributes)
        return OPERATIONS[operation].forward(*arrays, **attributes)

    def choose(self, site: str, p: Array, k: int) -> Choice:
        """What the real run chose: which experts a token goes to is no function of the input."""
        chosen: Choice = self.around[site].attributes["chosen"]
        return chosen


def _top_k(arrays: tuple[Array, ...], *, chosen: Choice) -> Array:
    (p,) = arrays
    return np.stack([p[:, t, list(row)] for t, row in enumerate(chosen[0])], axis=1)


def _gather(arrays: tuple[Array, ...], *, index: Index) -> Array:
    (x,) = arrays
    return x[:, _places(index)]


def _combine(arrays: tuple[Array, ...], *, index: tuple[Index, ...], length: int) -> Array:
    """What the edit did not reach is one example still, beside a batch."""
    z = np.zeros(
        (max(map(_batch, arrays)), length, arrays[0].shape[-1]), dtype=np.result_type(*arrays)
    )
    for y, where in zip(arrays, index, strict=True):
        z[:, _places(where)] += y
    return z


def _places(index: Index) -> list[int]:
    """Of one example no place is empty."""
    return [i for i in index[0] if i is not None]


ROUTING: dict[str, Callable[..., Array]] = {"combine": _combine, "gather": _gather, "top_k": _top_k}
"""Movement by numbers that were made for the one example of the real run,
applied to a batch of it.
"""


def _batch(x: Array) -> int:
    return int(x.shape[0])


def _linear(x: Array, w: Array, b: Array | None) -> Array:
    """The weights are real: two real products, of all rows at once, take a quarter of the time of a
    complex one per example.
    """
    rows = x.reshape(-1, x.shape[-1])
    z = np.ascontiguousarray(rows.real) @ w.T
    if np.iscomplexobj(x):
        z = z + 1j * (np.ascontiguousarray(rows.imag) @ w.T)
    z = z.reshape(*x.shape[:-1], -1)
    return z if b is None else z + b


# -- what is not linear: (the record of the real run, operands) -> the surrogate's output ----------


def _first(run: Record) -> Array:
    """The first operand of the real run."""
    return run.arrays[0]


def _rms_norm(run: Record, x: Array, w: Array, *, norm_eps: float, offset: float = 0.0) -> Array:
    x0 = _first(run)
    return x / np.sqrt(np.mean(x0 * x0, axis=-1, keepdims=True) + norm_eps) * (offset + w)


def _layer_norm(run: Record, x: Array, w: Array, b: Array | None, *, norm_eps: float) -> Array:
    std = np.sqrt(np.var(_first(run), axis=-1, keepdims=True) + norm_eps)
    z = (x - np.mean(x, axis=-1, keepdims=True)) / std * w
    return z if b is None else z + b


def _activation(run: Record, x: Array, *, kind: str) -> Array:
    x0, z0 = _first(run), run.output.array
    zero = x0 == 0
    return x * np.where(zero, AT_ZERO.get(kind, 0.5), z0 / np.where(zero, 1.0, x0))


AT_ZERO = {"relu": 0.0, "tanh": 1.0}
"""f'(0), where f(x)/x has no value; 1/2 for every x times a symmetric gate."""


def _multiply(run: Record, *operands: Array, constant: tuple[bool, ...]) -> Array:
    """The mean over the operands that are no constants of (this one live, the rest as recorded)."""
    live = [k for k, c in enumerate(constant) if not c]
    frozen: tuple[Array, ...] = run.arrays

    def alive(k: int) -> Array:
        return reduce(
            lambda z, i: z * frozen[i], (i for i in range(len(operands)) if i != k), operands[k]
        )

    return sum(map(alive, live)) / len(live)


def _matmul(run: Record, a: Array, b: Array) -> Array:
    a0, b0 = run.arrays
    return (a @ b0 + a0 @ b) / 2


def _renormalize(run: Record, r: Array) -> Array:
    return r / np.sum(_first(run), axis=-1, keepdims=True)


def _softmax(run: Record, x: Array, *, mask: Array | None = None) -> Array:
    """The true one, for complex x: shifted by the greatest real part,
    which is a constant of the row.
    """
    hidden = np.zeros(x.shape, dtype=bool) if mask is None else ~np.broadcast_to(mask, x.shape)
    top = np.max(np.where(hidden, -np.inf, x.real), axis=-1, keepdims=True)
    e = np.where(
        hidden, 0.0, np.exp(np.where(hidden, 0.0, x - np.where(np.isfinite(top), top, 0.0)))
    )
    total = np.sum(e, axis=-1, keepdims=True)
    return e / np.where(total == 0, 1.0, total)


def _second_matmul(run: Record, a: Array, b: Array) -> Array:
    """Attention with constant probabilities: the values alone are live. (What makes the scores
    feeds nothing and may be anything.)
    """
    return _first(run) @ b


def _second_product(run: Record, gate: Array, x: Array, *, constant: tuple[bool, ...]) -> Array:
    return x * _first(run)


def _recorded(run: Record, x: Array, *, mask: Array | None = None) -> Array:
    return run.output.array


FROZEN: dict[str, Callable[..., Array]] = {
    "activation": _activation,
    "layer_norm": _layer_norm,
    "matmul": _matmul,
    "multiply": _multiply,
    "renormalize": _renormalize,
    "rms_norm": _rms_norm,
    "softmax": _softmax,
}
CONSTANT_ATTENTION: dict[str, Callable[..., Array]] = {
    "matmul": _second_matmul,
    "multiply": _second_product,
    "softmax": _recorded,
}


# -- the true operations for complex numbers: nothing may take an absolute value or compare --------


def _true_rms_norm(
    run: Record, x: Array, w: Array, *, norm_eps: float, offset: float = 0.0
) -> Array:
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + norm_eps) * (offset + w)


def _true_layer_norm(run: Record, x: Array, w: Array, b: Array | None, *, norm_eps: float) -> Array:
    c = x - np.mean(x, axis=-1, keepdims=True)
    z = c / np.sqrt(np.mean(c * c, axis=-1, keepdims=True) + norm_eps) * w
    return z if b is None else z + b


def _true_renormalize(run: Record, r: Array) -> Array:
    return r / np.sum(r, axis=-1, keepdims=True)


def _true_activation(run: Record, x: Array, *, kind: str) -> Array:
    return np.tanh(x) if kind == "tanh" else x * GATES[kind](x)


def _sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), the exponential never of a positive real part."""
    up = x.real >= 0
    e = np.exp(np.where(up, -x, x))
    return np.where(up, 1.0, e) / (1.0 + e)


def _normal_cdf(x: Array) -> Array:
    """Phi(x) + i y phi(x) at x + i y: the expansion in y, whose next term is y^2 and so nothing at
    a complex step.
    """
    cdf = np.vectorize(lambda v: math.erfc(-v / math.sqrt(2)) / 2, otypes=[float])(x.real)
    return cdf + 1j * x.imag * np.exp(-(x.real**2) / 2) / math.sqrt(2 * math.pi)


GATES: dict[str, Callable[[Array], Array]] = {
    "gelu": _normal_cdf,
    "gelu_tanh": lambda x: _sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)),
    "silu": _sigmoid,
    "quick_gelu": lambda x: _sigmoid(1.702 * x),
    "relu": lambda x: x.real > 0,
}

TRUE: dict[str, Callable[..., Array]] = {
    "activation": _true_activation,
    "layer_norm": _true_layer_norm,
    "renormalize": _true_renormalize,
    "rms_norm": _true_rms_norm,
    "softmax": _softmax,
}


# -- running it ------------------------------------------------------------------------------------


def _input(model: Model, ids: Any) -> Any:
    """Ids as a list; a picture as the net reads it."""
    return model.read(ids) if model.takes_images else list(ids)


def record(
    model: Model, ids: Sequence[int], decoder: Sequence[int] | None = None, **where: Any
) -> tuple[dict[str, Record], Array]:
    """The real run of one text: output site -> record, and the logits that are explained, (V,):
    after its last token, at its mask token, or of the classes; those of several tokens behind each
    other. `decoder`: the ids a decoder has written. `where`: position, or every token, as
    Network.trace takes them.
    """
    trace, logits = model.trace([_input(model, ids)], decoder=decoder, **where)
    return {r.output.site: r for r in trace.records}, logits.array.reshape(-1)


def logits(
    model: Model,
    ids: Sequence[int],
    around: Mapping[str, Record],
    *,
    variant: str = "attnlrp",
    edits: Mapping[str, Edit] | None = None,
    decoder: Sequence[int] | None = None,
    **where: Any,
) -> Array:  # -> (B, V), B as the edits make it
    """The surrogate's logits, at the same place."""
    trace = FrozenTrace(model.weights, around, variant=variant, edits=edits)
    prefixes = model.decoder_prefixes(1, decoder)
    batch = model.batch([_input(model, ids)], decoder_prefix=prefixes, **where)
    z = model.net.forward(trace, model.config, batch).array
    return z.reshape(z.shape[0], -1)


def gradient(
    model: Model,
    ids: Sequence[int],
    site: str,
    target: int | Array,
    *,
    against: int | None = None,
    variant: str = "attnlrp",
    around: Mapping[str, Record] | None = None,
    chunk: int = 256,
    decoder: Sequence[int] | None = None,
    **where: Any,
) -> Array:
    """d(logit of target, less that of `against`) / d(activation at `site`), in the shape of the
    activation without the batch axis. A target (V,) is explained as the sum of all logits, each
    times its entry.

    Every component of the activation is one direction; `chunk` of them are run at a time, as a
    batch. `site` is the name of an operation's output. For float64 models.
    """
    around = record(model, ids, decoder, **where)[0] if around is None else around
    shape = around[site].output.array.shape[1:]
    count = math.prod(shape)
    edits = [_perturb(start, min(start + chunk, count), shape) for start in range(0, count, chunk)]
    slopes = [
        _slopes(
            logits(
                model, ids, around, variant=variant, edits={site: edit}, decoder=decoder, **where
            ),
            target,
            against,
        )
        for edit in edits
    ]
    # Where the site cannot reach the logits (scores, with probabilities held constant) no batch
    # comes back, only the real run.
    return np.concatenate(
        [np.broadcast_to(s, (min(chunk, count - i * chunk),)) for i, s in enumerate(slopes)]
    ).reshape(shape)


def _perturb(start: int, stop: int, shape: tuple[int, ...]) -> Edit:
    """The edit that adds i STEP to component number start, ...,
    stop - 1, each in an example of its own.
    """
    directions = np.zeros((stop - start, math.prod(shape)), dtype=np.complex128)
    directions[np.arange(stop - start), np.arange(start, stop)] = 1j * STEP
    return lambda x: x + directions.reshape(-1, *shape)


def _slopes(z: Array, target: int | Array, against: int | None) -> Array:  # (B, V) -> (B,)
    if not isinstance(target, int):
        return (z @ target).imag / STEP
    explained = z[:, target] if against is None else z[:, target] - z[:, against]
    return explained.imag / STEP
