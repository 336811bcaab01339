"""What holds for rules of any operation: conservation to the rounding that a rule states, both
formulations the same, examples of a batch apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from backends import Backend
from exact_rules import arrays_of, dtypes
from rounding import scale_of

from refl.rules import (
    add,
    combine,
    layer_norm,
    linear,
    matmul,
    multiply,
    renormalize,
    softmax,
)
from refl.rules.conservation import RuleOutput
from refl.verification.quality.cases import EPS, ETA, STABILIZERS, U

# -- conservation: the engine's error against the scale it states itself ---------------------------


def conserves(
    backend: Backend,
    dtype: str,
    rule: Callable[..., RuleOutput],
    arguments: Sequence[Any],
    operands: Any = None,
    **how: Any,
) -> None:
    """sum R - sum of what operands receive - absorbed stays within 8 u times the rounding scale.
    With `operands`, gradients are propagated: R = z g.
    """
    output, (z, r) = rule(*arguments, **how), arguments[-2:]
    incoming = worth(backend, r, None if operands is None else z)
    passed = [
        worth(backend, got, operands and operands[k])
        for k, got in enumerate(output.inputs)
        if got is not None
    ]
    absorbed = [backend.back(amount) for amount in output.absorbed.values()]
    error = incoming - sum(passed) - sum(absorbed)
    scale = backend.back(scale_of(rule, *arguments, **how))
    assert np.all(np.abs(error) <= 8 * float(U[dtype]) * scale + float(ETA[dtype]))


def worth(backend: Backend, r: Any, x: Any) -> Any:  # -> (B,)
    values = backend.back(r).astype("float64")
    if x is not None:
        values = values * backend.back(x).astype("float64")
    return values.reshape(len(values), -1).sum(axis=1)


@dtypes
@pytest.mark.parametrize("eps", EPS)
@pytest.mark.parametrize("stabilizer", STABILIZERS)
@pytest.mark.parametrize("bias", [True, False])
def test_linear_conserves(
    backend: Backend, dtype: str, eps: float, stabilizer: str, bias: bool
) -> None:
    random = np.random.default_rng(17)
    x, w, r = (random.uniform(-4, 4, shape) for shape in ((2, 2, 4), (3, 4), (2, 2, 3)))
    b = random.uniform(-4, 4, (3,)) if bias else None
    x, w, b, r = (None if a is None else backend.place(a.astype(dtype)) for a in (x, w, b, r))
    z = linear.forward(x, w, b)
    for rule, how in (
        (linear.epsilon, {"eps": eps, "stabilizer": stabilizer}),
        (linear.gamma, {}),
        (linear.alpha_beta, {}),
        (linear.z_box, {"low": -1.0, "high": 1.0}),  # x may lie outside the box
    ):
        conserves(backend, dtype, rule, (x, w, b, z, r), **how)


@dtypes
def test_routing_conserves(backend: Backend, dtype: str) -> None:
    random = np.random.default_rng(7)
    x = random.uniform(0.02, 1, (3, 5, 4)).astype(dtype)
    r = random.standard_normal(x.shape).astype(dtype)
    x, z, r = (backend.place(a) for a in (x, renormalize.forward(x), r))
    conserves(backend, dtype, renormalize.epsilon, (x, z, r))
    conserves(backend, dtype, renormalize.gradient, (x, z, r), [x])
    conserves(backend, dtype, renormalize.identity_gxi, (x, z, r), [x])
    index = (((0, 1, 2), (3, 0, None), (4, None, None)), ((4, 3), (1, 2), (2, 4)))
    lengths = [len(where[0]) for where in index]
    ys = [backend.place(random.standard_normal((3, n, 2)).astype(dtype)) for n in lengths]
    z = combine.forward(*ys, index=index, length=5)
    s = random.standard_normal((3, 5, 2)) * (backend.back(z) != 0)
    s = backend.place(s.astype(dtype))
    places = {"index": index, "length": 5}
    conserves(backend, dtype, combine.epsilon, (*ys, z, s), **places)
    conserves(backend, dtype, combine.gradient, (*ys, z, s), ys, **places)


# -- both formulations -----------------------------------------------------------------------------


def test_both_formulations_of_every_bilinear_and_norm_rule_agree(backend: Backend) -> None:
    random = np.random.default_rng(11)
    a, v, r = (random.normal(size=(1, 3, 3)) for _ in range(3))
    z, free = a @ v, {"stabilizer": "none"}
    sizes = 1e-12 * (1 + np.abs(a)) * (np.abs(r / z) @ np.abs(v.swapaxes(-1, -2)))
    relevance = matmul.uniform(*arrays_of(backend, a, v, z, r), **free).inputs
    gradient = matmul.uniform_gxi(*arrays_of(backend, a, v, z, r / z)).inputs
    apart = np.abs(backend.back(relevance[0]) - a * backend.back(gradient[0]))
    assert np.all(apart <= sizes)

    p = softmax.forward(a)
    taylor = backend.back(softmax.taylor(*arrays_of(backend, a, p, r)).inputs[0])
    true = a * backend.back(softmax.gradient(*arrays_of(backend, a, p, r / p)).inputs[0])
    sizes = 1e-13 * (1 + np.abs(a)) * np.sum(np.abs(r), axis=-1, keepdims=True)
    assert np.all(np.abs(taylor - true) <= sizes)

    w, b, norm = random.normal(size=(3,)), random.normal(size=(3,)), {"norm_eps": 1e-5}
    z = layer_norm.forward(a, w, b, **norm)
    by_relevance = layer_norm.epsilon(*arrays_of(backend, a, w, b, z, r), **norm, **free)
    by_gradient = layer_norm.epsilon_gxi(*arrays_of(backend, a, w, b, z, r / z), **norm)
    apart = backend.back(by_relevance.inputs[0]) - a * backend.back(by_gradient.inputs[0])
    sizes = 1e-12 * (1 + np.abs(a)) * np.sum(np.abs(w * r / z), axis=-1, keepdims=True)
    assert np.all(np.abs(apart) <= sizes)


# -- a batch ---------------------------------------------------------------------------------------


def test_examples_of_a_batch_do_not_meet(backend: Backend) -> None:
    """Each example's relevance and absorbed amounts are those it has alone,
    to the rounding of a sum.
    """
    random = np.random.default_rng(13)
    x, w, b, r = (random.normal(size=s) for s in ((3, 2, 4), (4, 4), (4,), (3, 2, 4)))
    z, p = linear.forward(x, w, b), softmax.forward(x)
    rules: list[tuple[Callable[..., RuleOutput], list[Any], dict[str, Any]]] = [
        (linear.epsilon, [x, w, b, z, r], {}),
        (linear.gamma, [x, w, b, z, r], {}),
        (linear.alpha_beta, [x, w, b, z, r], {}),
        (add.epsilon, [x, z, x + z, r], {}),
        (multiply.uniform, [x, z, x * z, r], {"constant": (False, False)}),
        (softmax.taylor, [x, p, r], {}),
        (layer_norm.epsilon, [x, w[0], b, z, r], {"norm_eps": 1e-5}),
    ]
    for rule, arguments, options in rules:
        together = rule(*arrays_of(backend, *arguments), **options)
        for e in range(3):
            own = (a[e : e + 1] if a.ndim == 3 else a for a in arguments)
            alone = rule(*arrays_of(backend, *own), **options)
            for one, every in zip(alone.inputs, together.inputs, strict=True):
                if one is not None:
                    np.testing.assert_allclose(
                        backend.back(one)[0], backend.back(every)[e], rtol=1e-13, atol=1e-13
                    )
            for cause, amounts in together.absorbed.items():
                amount = backend.back(alone.absorbed[cause])[0]
                assert abs(amount - backend.back(amounts)[e]) <= 1e-12
