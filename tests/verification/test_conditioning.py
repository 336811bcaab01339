"""What two runs that round differently may be apart: the sweep's own rounding, and what it makes of
the forward pass's.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from refl.arrays import asnumpy
from refl.io.precision import unit_roundoff
from refl.model import Model
from refl.verification.identities.conditioning import (
    RunComparison,
    other_digits,
    rounding_bound,
)
from refl.verification.identities.model_under_test import input_scores, model_under_test
from refl.verification.identities.rows import WorstDeviation
from refl.verification.random_models import GPT2, LLAMA, random_model, with_weights

IDS = [3, 1, 5, 16, 2]
SITE, BIAS, FEATURE = "transformer.h.0", "transformer.h.0.mlp.c_proj.bias", 5


def canceling(z: float) -> Model:
    """GPT-2 with a residual sum that cancels down to z, in one feature of the last token."""
    model = random_model(GPT2, 1, "float64")
    trace, _ = model.trace([IDS])
    bias = np.array(model.weights[BIAS])
    bias[FEATURE] += z - asnumpy(trace.values[SITE].array)[0, -1, FEATURE]
    return with_weights(model, **{BIAS: bias})


def compared(model: Model, other: Model, **options: Any) -> RunComparison:
    """A model held against one whose forward pass rounds in another way."""
    m = model_under_test(model, IDS)
    explain = partial(m.explain, "attnlrp", **options)
    run, e = RunComparison(model, explain(model), explain, WorstDeviation()), explain(other)
    run.compare(input_scores(e), input_scores, "the input", e)
    return run


def last_digit(model: Model) -> Model:
    """The bias of that feature moved by one rounding:
    what another order of the sum's terms does to it.
    """
    bias = np.array(model.weights[BIAS])
    bias[FEATURE] = np.nextafter(bias[FEATURE], np.inf)
    return with_weights(model, **{BIAS: bias})


def test_a_sum_that_cancels_needs_the_second_part() -> None:
    """A residual sum as small as eps: the quotient feels the forward pass's rounding, of which the
    terms of the sweep say nothing.
    """
    model = canceling(1e-6)
    run = compared(model, last_digit(model), eps=1e-6)
    assert run.worst.measured > 10 * rounding_bound(run.e)
    assert run.worst.measured <= run.worst.bound <= 1e-6 * np.abs(run.e.relevance).max()


@pytest.mark.parametrize(("z", "options"), [(1e-2, {}), (1e-6, {"stabilizer": "none"})])
def test_elsewhere_the_first_part_is_enough(z: float, options: dict[str, Any]) -> None:
    """Where nothing cancels, or no stabilizer stands in the quotient;
    the second part is not even looked at.
    """
    model = canceling(z)
    run = compared(model, last_digit(model), **options)
    assert 0 < run.worst.measured <= run.worst.bound == rounding_bound(run.e)
    assert not run.others


@pytest.mark.parametrize("eps", [1e-8, 1e-7, 1e-5, 1e-4])
def test_sensitivity_follows_the_derivative(eps: float) -> None:
    """d/dz of z / (z + eps) is eps / (z + eps)^2:
    at z = 1e-6 it says how the sensitivity depends on eps.
    """
    z = 1e-6
    model = canceling(z)
    m = model_under_test(model, IDS)

    def sensitivity(eps: float) -> float:
        explain = partial(m.explain, "attnlrp", eps=eps)
        return RunComparison(model, explain(model), explain, WorstDeviation()).sensitivity(
            input_scores
        )

    law = eps / (z + eps) ** 2 * (4 * z)  # 1 at eps = z
    assert sensitivity(eps) / sensitivity(z) == pytest.approx(law, rel=0.1)


def test_a_wrong_net_is_far_outside() -> None:
    """The second part is no excuse: it is what last digits move,
    however ill the sum is conditioned.
    """
    model = canceling(1e-6)
    name = "transformer.h.0.attn.c_attn.weight"
    run = compared(model, with_weights(model, **{name: 1.0001 * model.weights[name]}))
    assert run.worst.measured > 100 * run.worst.bound


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_other_digits(dtype: str) -> None:
    """w (1 +- sqrt(n) u), with signs of their own for every tensor and draw."""
    model = random_model(LLAMA, 1, dtype)
    name, next_one = (f"model.layers.{i}.mlp.down_proj.weight" for i in range(2))
    w = model.weights[name]
    one, again, two = (other_digits(model, draw).weights[name] for draw in (0, 0, 1))
    assert one.dtype == w.dtype and np.array_equal(one, again) and not np.array_equal(one, two)
    steps = (one - w) / (w * unit_roundoff(w) * np.sqrt(w.shape[1]))
    assert np.allclose(np.abs(steps), 1, atol=0.4) and {-1.0, 1.0} == set(np.sign(steps).ravel())
    other = other_digits(model, 0).weights[next_one] - model.weights[next_one]
    assert not np.array_equal(np.sign(other / model.weights[next_one]), np.sign(steps))
