"""RMSNorm and LayerNorm: outputs and every rule against their definitions, where x hardly differs
from its mean too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from backends import Backend
from exact_rules import arrays_of, dtypes, forward_agrees, rule_agrees

from refl.rules import layer_norm, rms_norm
from refl.rules.operations import OPERATIONS
from refl.verification.definitions.exact import MP, to_mpf
from refl.verification.definitions.lift import FORWARD, Call, array
from refl.verification.quality.cases import ETA, NormCase, U, layer_norm_case, rms_norm_case
from refl.verification.random_models import LLAMA, random_model, with_weights


@dtypes
@pytest.mark.parametrize("rule", ["identity", "identity_gxi", "gradient"])
def test_rms_norm(backend: Backend, dtype: str, rule: str) -> None:
    rule_agrees(backend, dtype, f"rms_norm_{rule}", rms_norm_case)


@dtypes
@pytest.mark.parametrize("rule", ["identity", "epsilon", "epsilon_gxi", "gradient"])
def test_layer_norm(backend: Backend, dtype: str, rule: str) -> None:
    rule_agrees(backend, dtype, f"layer_norm_{rule}", layer_norm_case)


@dtypes
def test_forward_of_rms_norm(backend: Backend, dtype: str) -> None:
    def bound(case: NormCase, call: Call, z: Any) -> Any:
        low = 8 * to_mpf(ETA[dtype]) * to_mpf(case.amplified)
        return (8 + case.n) * to_mpf(U[dtype]) * abs(z) + low

    forward_agrees(backend, dtype, rms_norm_case, bound)  # type: ignore[arg-type]


@dtypes
def test_forward_of_layer_norm(backend: Backend, dtype: str) -> None:
    """(x - mean) / std is off by u ((N + 2) A + k |c|) / std, with A the terms of c = x - mean and
    k = (N + 2) kappa + N + 8; then it is multiplied by w, and b is added.
    """

    def bound(case: NormCase, call: Call, z: Any) -> Any:
        low = 8 * to_mpf(ETA[dtype]) * to_mpf(case.amplified)
        without_bias = FORWARD["layer_norm"](Call([*call.operands[:2], None], options=call.options))
        off = array(z.shape, (v for at in np.ndindex(*z.shape[:-1]) for v in _off(case, at)))
        weight = np.asarray([abs(to_mpf(w)) for w in call.norm_weight()])
        return to_mpf(U[dtype]) * (weight * off + 4 * abs(without_bias) + 2 * abs(z)) + low

    forward_agrees(backend, dtype, layer_norm_case, bound)  # type: ignore[arg-type]


def _off(case: NormCase, at: tuple[int, ...]) -> list[Any]:
    c, terms, std, kappa = case.parts(at)
    k = (case.n + 2) * kappa + case.n + 8
    return [((case.n + 2) * a + k * abs(c_i)) / std for a, c_i in zip(terms, c, strict=True)]


def test_taylor_at_x_passes_what_the_norms_eps_leaves(backend: Backend) -> None:
    """RMSNorm passes 1 - |x|^2 / (|x|^2 + N e);
    LayerNorm absorbs Var / (Var + e), without a bias (identity 12).
    """
    random = np.random.default_rng(5)
    x, w, g = random.normal(size=(2, 6)), random.normal(size=(6,)), random.normal(size=(2, 6))
    e = 0.25
    z = rms_norm.forward(x, w, norm_eps=e)
    output = rms_norm.gradient(*arrays_of(backend, x, w, z, g), norm_eps=e)
    incoming, square = np.sum(z * g, axis=-1), np.sum(x * x, axis=-1)
    kept = np.sum(x * backend.back(output.inputs[0]), axis=-1)
    bound = 1e-14 * np.sum(np.abs(z * g), axis=-1)
    assert np.all(np.abs(kept - incoming * (1 - square / (square + 6 * e))) <= bound)
    z = layer_norm.forward(x, w, None, norm_eps=e)
    x_, w_, z_, g_ = arrays_of(backend, x, w, z, g)
    output = layer_norm.gradient(x_, w_, None, z_, g_, norm_eps=e)
    incoming, variance = np.sum(z * g, axis=-1), np.var(x, axis=-1)
    absorbed = backend.back(output.absorbed["norm_offset"])
    bound = 1e-14 * np.sum(np.abs(z * g), axis=-1)
    assert np.all(np.abs(absorbed - incoming * variance / (variance + e)) <= bound)


@dtypes
@pytest.mark.parametrize("norm", ["rms_norm", "layer_norm"])
@pytest.mark.parametrize("sign", [1, -1])
def test_norms_of_numbers_whose_squares_are_none(
    backend: Backend, dtype: str, norm: str, sign: int
) -> None:
    """Beyond the root of the largest number of the dtype, rows of ordinary size beside them; and,
    with no eps, below the root of the least. Forward, the scale 1/std and what a true derivative
    absorbs, against 60 digits.
    """
    rows = np.asarray([[1.0, 2.0, -4.0, 3.0], [2.5, -1.0, 0.5, 0.0]])
    huge, tiny = (1e160, 1e-170) if dtype == "float64" else (1e25, 1e-25)
    w = np.asarray([1.0, -2.0, 0.5, 3.0], dtype=dtype)
    for size, norm_eps in ((huge, 1e-5), (huge, 1e-12), (tiny, 0.0)):
        x = (sign * rows * [[size], [1.0]]).astype(dtype)
        _judge_norm(backend, norm, x, w, norm_eps)


def _judge_norm(backend: Backend, norm: str, x: Any, w: Any, norm_eps: float) -> None:
    operation, how = OPERATIONS[norm], {"norm_eps": norm_eps}
    operands = [backend.place(a) for a in ((x, w) if norm == "rms_norm" else (x, w, 0 * w))]
    z = operation.forward(*operands, **how)
    g = np.ones_like(x)
    true = operation.rules["gradient"].gradient_x_input(*operands, z, backend.place(g), **how)
    name = "identity" if norm == "rms_norm" else "epsilon"
    frozen = operation.rules[name].gradient_x_input(*operands, z, backend.place(g), **how)
    got, absorbed = backend.back(z), backend.back(true.absorbed["norm_offset"])
    back, rel = backend.back(frozen.inputs[0]), 64 * float(np.finfo(x.dtype).eps)
    for k, row in enumerate(x):
        exactly = [MP.mpf(float(v)) for v in row]
        mean = 0 if norm == "rms_norm" else sum(exactly) / len(row)
        c = [v - mean for v in exactly]
        square = sum(v * v for v in c) / len(row)
        std = MP.sqrt(square + MP.mpf(norm_eps))
        wanted = [float(v / std) * float(weight) for v, weight in zip(c, w, strict=True)]
        np.testing.assert_allclose(got[k], wanted, rtol=rel, atol=rel)
        offset = sum(wanted) * float(square / std**2)
        np.testing.assert_allclose(absorbed[k], offset, rtol=rel, atol=8 * rel)
        lost = 0 if norm == "rms_norm" else w.mean()
        scale = [float((float(v) - float(lost)) / std) for v in w]
        np.testing.assert_allclose(back[k], scale, rtol=rel, atol=rel * max(map(abs, scale)))


def test_a_net_of_large_embeddings_is_itself_in_float32() -> None:
    """Embeddings of 1e22: float32 gave logits of 0 where float64 has the right ones."""
    logits = []
    for dtype in ("float32", "float64"):
        model = random_model(LLAMA, 3, dtype)
        large = np.asarray(model.weights["model.embed_tokens.weight"]) * np.float32(1e22)
        logits.append(with_weights(model, **{"model.embed_tokens.weight": large}).logits([3, 1, 5]))
    np.testing.assert_allclose(*logits, rtol=1e-4, atol=1e-4 * np.abs(logits[1]).max())
