"""Linear layers: z and every rule against their definitions on drawn cases; cases written out; what
rules have in common at the ends of their parameters.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from backends import Backend
from exact_rules import arrays_of, dtypes, forward_agrees, magnitudes, rule_agrees

from refl.errors import ReflError
from refl.rules import linear
from refl.rules.composites import Composite, Rule
from refl.rules.published import METHODS
from refl.verification.quality.cases import ALPHA_BETA, ETA, U, linear_case, z_box_case

RULES = ("epsilon", "gamma", "z_plus", "flat", "w_square", "gradient")


@dtypes
@pytest.mark.parametrize("rule", RULES)
def test_rule(backend: Backend, dtype: str, rule: str) -> None:
    rule_agrees(backend, dtype, f"linear_{rule}", linear_case)


@dtypes
@pytest.mark.parametrize(("alpha", "beta"), ALPHA_BETA)
def test_alpha_beta(backend: Backend, dtype: str, alpha: float, beta: float) -> None:
    draw_case = partial(linear_case, alpha_beta=(alpha, beta))
    rule_agrees(backend, dtype, "linear_alpha_beta", draw_case)


@dtypes
def test_z_box(backend: Backend, dtype: str) -> None:
    rule_agrees(backend, dtype, "linear_z_box", z_box_case)


@dtypes
def test_forward(backend: Backend, dtype: str) -> None:
    """z_j sums I products and a bias."""
    forward_agrees(
        backend,
        dtype,
        linear_case,
        lambda case, call, z: (
            (call.x.shape[-1] + 2) * (U[dtype] * magnitudes(case, call) + ETA[dtype])
        ),
    )


# -- written out -----------------------------------------------------------------------------------


def test_gamma_at_zero_takes_the_branch_below(backend: Backend) -> None:
    """z = 1 - 1 = 0: c + g c^- = (1, -1.25) over -0.25  (eq. 24's second case is z <= 0)."""
    x, w, z, r = arrays_of(backend, [[1.0, -1.0]], [[1.0, 1.0]], [[0.0]], [[1.0]])
    output = linear.gamma(x, w, None, z, r, gamma=0.25)
    assert backend.back(output.inputs[0]).tolist() == [[-4.0, 5.0]]
    assert backend.back(output.absorbed["stabilizer"]).tolist() == [0.0]


def test_alpha_beta_creates_relevance_and_records_it(backend: Backend) -> None:
    """Without a negative contribution alpha 2, beta 1 hands on 2 R;
    the -R that has no receiver is recorded.
    """
    x, w, z, r = arrays_of(backend, [[1, 2]], [[3, 1], [1, 1]], [[5, 3]], [[4, 6]])
    output = linear.alpha_beta(x, w, None, z, r, alpha=2.0, beta=1.0)
    assert abs(float(np.sum(backend.back(output.inputs[0]))) - 20) <= 1e-14
    assert float(backend.back(output.absorbed["stabilizer"])[0]) == -10


def test_z_box_records_what_has_no_receiver() -> None:
    """A black pixel at the lower bound under a positive weight: every term is zero, and the
    relevance is absorbed.
    """
    x, w, r = np.zeros((1, 2)), np.asarray([[1.0, 2.0], [1.0, -1.0]]), np.asarray([[3.0, 5.0]])
    output = linear.z_box(x, w, None, x @ w.T, r, low=0.0, high=1.0)
    assert output.absorbed["stabilizer"] == 3.0
    # at the second output the negative weight has all of it: 0 - (-1) 1
    assert np.array_equal(output.inputs[0], [[0.0, 5.0]])


# -- at the ends of the parameters -----------------------------------------------------------------


@pytest.fixture
def layer(backend: Backend) -> tuple[list[Any], list[Any]]:
    """x, w, b, z, r of a linear layer with positive and negative outputs: placed, and as NumPy."""
    random = np.random.default_rng(3)
    x, w, b, r = (random.normal(size=shape) for shape in ((2, 5), (4, 5), (4,), (2, 4)))
    plain = [x, w, b, linear.forward(x, w, b), r]
    return [backend.place(a) for a in plain], plain


def test_gamma_0_is_lrp_0_and_a_large_gamma_the_signed_z_plus(backend: Backend, layer: Any) -> None:
    placed, (x, w, b, z, r) = layer
    at_0 = backend.back(linear.gamma(*placed, gamma=0.0).inputs[0])
    lrp_0 = backend.back(linear.epsilon(*placed, stabilizer="none").inputs[0])
    sizes = np.abs(x) * (np.abs(r / z) @ np.abs(w))
    assert np.all(np.abs(at_0 - lrp_0) <= 32 * 2.0**-53 * sizes)
    c = w[None] * x[:, None, :]
    signed = np.where(z[..., None] > 0, np.maximum(c, 0), np.minimum(c, 0))
    bias = np.where(z > 0, np.maximum(b, 0), np.minimum(b, 0))
    limit = np.sum(signed * (r / (np.sum(signed, axis=-1) + bias))[..., None], axis=1)
    far = backend.back(linear.gamma(*placed, gamma=1e9).inputs[0])
    part = np.sum(np.abs(c) * np.abs(r / (np.sum(signed, axis=-1) + bias))[..., None], axis=1)
    assert np.all(np.abs(far - limit) <= 10e-9 * (np.abs(limit) + part))


@pytest.mark.parametrize("eps", [1e-4, 1e-8, 1e-12])
def test_both_formulations_agree_as_eps_vanishes(backend: Backend, layer: Any, eps: float) -> None:
    """R = x g / (1 + eps/|z|) message by message: they differ by at most eps/|z| of each."""
    placed, (x, w, _, z, r) = layer
    propagated = placed[:4] + [backend.place(r / z)]
    relevance = backend.back(linear.epsilon(*placed, eps=eps).inputs[0])
    gradient = x * backend.back(linear.gradient(*propagated).inputs[0])
    messages = np.abs(w[None] * x[:, None, :] * (r / z)[..., None])
    bound = np.sum(messages * (eps / np.abs(z) + 64 * 2.0**-53)[..., None], axis=1)
    assert np.all(np.abs(relevance - gradient) <= bound)


@pytest.fixture
def pixels(backend: Backend) -> tuple[list[Any], list[Any]]:
    """x in [0, 1], w, b, z, r: placed, and as NumPy."""
    random = np.random.default_rng(0)
    x = random.uniform(0, 1, (2, 3, 6))
    w, b, r = (random.standard_normal(shape) for shape in ((4, 6), (4,), (2, 3, 4)))
    plain = [x, w, b, linear.forward(x, w, b), r]
    return [backend.place(a) for a in plain], plain


def test_z_box_bounds_for_stretches_of_inputs(backend: Backend, pixels: Any) -> None:
    """Three channels of two numbers each, one bound a channel: the same as a bound for each number;
    one number is all of them.
    """
    placed, _ = pixels

    def relevance(**bounds: Any) -> Any:
        return backend.back(linear.z_box(*placed, **bounds).inputs[0])

    low, high = (-1.0, -2.0, -0.5), (2.0, 1.0, 3.0)
    each = {"low": tuple(np.repeat(low, 2)), "high": tuple(np.repeat(high, 2))}
    assert np.array_equal(relevance(low=low, high=high), relevance(**each))
    assert np.array_equal(relevance(low=-1.0), relevance(low=(-1.0,)))
    with pytest.raises(ValueError, match="4 bounds for 6 inputs: .*, or one for equal stretches$"):
        linear.z_box(*placed, low=(0.0, 0.0, 0.0, 0.0))


def test_z_box_of_positive_relevance_is_positive(backend: Backend, pixels: Any) -> None:
    """Deep Taylor decomposition's promise: in the box no message has another sign than its
    relevance, whatever the bias.
    """
    placed, plain = pixels
    placed[4] = backend.place(np.abs(plain[4]))
    assert backend.back(linear.z_box(*placed, low=0.0, high=1.0).inputs[0]).min() >= 0


def test_z_box_at_zero_bounds_is_lrp_0(backend: Backend, pixels: Any) -> None:
    """l = h = 0 leaves the contributions themselves, less the bias."""
    (x, w, _, _, r), (plain_x, plain_w, *_) = pixels
    z = backend.place(plain_x @ plain_w.T)
    ours = backend.back(linear.z_box(x, w, None, z, r, low=0.0, high=0.0).inputs[0])
    theirs = backend.back(linear.epsilon(x, w, None, z, r, stabilizer="none").inputs[0])
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


@pytest.mark.parametrize("bound", ["dark", float("nan"), float("inf"), [], [0.0, "1"], True])
def test_z_box_bounds_are_checked(bound: Any) -> None:
    with pytest.raises(ReflError, match="low is"):
        Composite("mine", (Rule("linear", "z_box", options=(("low", bound),)),))


def test_z_box_is_no_gradient() -> None:
    with pytest.raises(ReflError, match="z_box"):
        METHODS["attnlrp-gradient"].override(Rule("linear", "z_box"))


@dtypes
@pytest.mark.parametrize("exponent", [-300, -160, 160, 300])
def test_w_square_of_weights_whose_squares_are_no_numbers(
    backend: Backend, dtype: str, exponent: int
) -> None:
    """9 : 16 and 1 : 4, whatever size the weights have: their squares vanish below 1e-154 and are
    infinite above 1e154 (float32: 1e-19 and 1e19). A row of zeros passes nothing on.
    """
    size = 10.0 ** (exponent / (1 if dtype == "float64" else 8))
    w = (np.asarray([[3.0, 4.0], [0.0, 0.0], [-1.0, 2.0]]) * size).astype(dtype)
    w[2] = [-1, 2]  # rows of other sizes stand beside it
    x, r = (np.ones((1, n), dtype=dtype) for n in (2, 3))
    arrays = [backend.place(a) for a in (x, w, r, r)]
    output = linear.w_square(arrays[0], arrays[1], None, *arrays[2:])
    got = backend.back(output.inputs[0])[0]
    np.testing.assert_allclose(got, [9 / 25 + 1 / 5, 16 / 25 + 4 / 5], rtol=8 * float(U[dtype]))
    assert backend.back(output.absorbed["stabilizer"]).tolist() == [1.0]


@dtypes
@pytest.mark.parametrize("rule", [linear.epsilon, linear.gamma, linear.z_plus, linear.z_box])
def test_a_denominator_too_small_to_divide_by_absorbs(
    backend: Backend, dtype: str, rule: Any
) -> None:
    """r / z beyond the dtype is passed on by no finite ratio: it is absorbed, as above 0."""
    least = np.finfo(dtype).smallest_subnormal
    x, w = np.asarray([[least, 0.0]], dtype=dtype), np.eye(2, dtype=dtype)
    r = np.asarray([[2.0, 3.0]], dtype=dtype)
    how: dict[str, Any] = {"stabilizer": "none"} if rule is linear.epsilon else {}
    x, w, z, r = (backend.place(a) for a in (x, w, x @ w.T, r))
    output = rule(x, w, None, z, r, **how | ({"high": 0.0} if rule is linear.z_box else {}))
    assert not backend.back(output.inputs[0]).any()
    assert backend.back(output.absorbed["stabilizer"]).tolist() == [5.0]
