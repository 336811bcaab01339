"""The engine runs unchanged wherever arrays live.

Whole explanations under array-api-strict on a second fake device (where a call outside the
standard, or a host array that slips in, raises) and under CuPy where there is a GPU; and every call
of a namespace function held against CuPy's own signatures, which needs no GPU.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from backends import BESIDE_NUMPY, Backend, Recorder, refusal

from refl.arrays import asnumpy
from refl.explanation import Explanation
from refl.model import Model
from refl.rules.composites import Composite, Rule
from refl.rules.published import ATTNLRP, METHODS
from refl.verification.random_models import GPT2, LLAMA, moved, random_model

NETS = {
    "llama": LLAMA | {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"},
    "gpt2": GPT2 | {"n_layer": 1},
    "gpt2, relu": GPT2
    | {"n_layer": 1, "activation_function": "relu", "tie_word_embeddings": False},
    "llama, tanh, llama3 rope": LLAMA
    | {
        "hidden_act": "tanh",
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
}

VARIED = (
    ATTNLRP.override(Rule("linear", "gamma"), Rule("softmax", "z_plus"), name="gamma"),
    ATTNLRP.override(Rule("linear", "alpha_beta"), Rule("softmax", "spread"), name="alpha-beta"),
    ATTNLRP.override(Rule("linear", "flat"), Rule("softmax", "identity"), name="flat"),
    ATTNLRP.override(Rule("linear", "w_square"), Rule("layer_norm", "identity"), name="w-square"),
)
"""Rules that no published method uses, or only those for pictures."""
COMPOSITES = (*METHODS.values(), *VARIED)

TEXTS = [[3, 1, 16, 1, 8], [2, 0], [7, 7, 4]]


def ways(model: Model, composite: Composite) -> Iterator[Explanation]:
    """Single and padded, plain and fast attention, all at once and block by block,
    several targets, other seeds.
    """
    yield model.explain(TEXTS[0], composite, audit=True)
    yield model.explain(TEXTS[0], composite, keep=(), audit=True, contrast=(2, 5))
    for how in ({"keep": "*"}, {"keep": ()}, {"recompute": True, "keep": ()}, {"recompute": True}):
        yield from model.explain(TEXTS, composite, audit=True, **how)
    yield from model.explain_each(TEXTS[2], [1, 2], composite, seed="log-probability", audit=True)


def rounding(e: Explanation) -> float:
    """8 u sum|terms| over the whole account."""
    return 8 * e.ledger.roundoff * sum(float(entry.rounding_scale) for entry in e.ledger)


@pytest.mark.parametrize("backend", BESIDE_NUMPY, indirect=True)
@pytest.mark.parametrize("composite", COMPOSITES, ids=lambda c: c.name)
@pytest.mark.parametrize("name", NETS)
def test_explanations_are_the_same_in_every_backend(
    name: str, composite: Composite, backend: Backend
) -> None:
    home = random_model(NETS[name], 1)
    for here, there in zip(
        ways(home, composite), ways(moved(home, backend.place), composite), strict=True
    ):
        assert isinstance(there.relevance, np.ndarray) and there.relevance.dtype == np.float64
        assert (
            there.tokens == here.tokens
            and there.target_id == here.target_id
            and list(there) == list(here)
        )
        assert np.abs(there.relevance - here.relevance).max() <= rounding(here)
        for site in here:
            assert np.abs(there[site] - here[site]).max() <= rounding(here), site
        for a, b in zip(here.ledger, there.ledger, strict=True):
            assert (a.site, a.rule, a.absorbed.keys()) == (b.site, b.rule, b.absorbed.keys())
            assert abs(a.received - b.received) <= rounding(here)


@pytest.mark.parametrize("backend", BESIDE_NUMPY, indirect=True)
@pytest.mark.parametrize("name", NETS)
def test_logits_and_generation_in_every_backend(name: str, backend: Backend) -> None:
    home = random_model(NETS[name], 1)
    away = moved(home, backend.place)
    assert np.abs(away.logits(TEXTS[0]) - home.logits(TEXTS[0])).max() <= 1e-12
    assert away.generate(TEXTS[0], 4) == home.generate(TEXTS[0], 4)


@pytest.mark.parametrize("backend", BESIDE_NUMPY, indirect=True)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NETS)
def test_dtype_is_kept_everywhere(name: str, dtype: str, backend: Backend) -> None:
    """No operation and no rule widens or narrows what it was given; only the conservation ledger
    is float64 throughout.
    """
    model = moved(random_model(NETS[name], 1, dtype), backend.place)
    for composite in COMPOSITES:
        e = model.explain(TEXTS[0], composite)
        for site in e:
            assert (
                e.activation(site).dtype
                == asnumpy(e.sites.propagated[site]).dtype
                == np.dtype(dtype)
            ), (composite.name, site)


def test_read_only_weights_stay_as_they_are() -> None:
    """Nothing is computed in place on what belongs to the caller: the weights of a random model
    cannot be written to.
    """
    model = random_model(NETS["llama"], 1)
    before = {name: np.array(model.weights[name]) for name in model.weights}
    for composite in COMPOSITES:
        model.explain(TEXTS, composite)
    assert all(np.array_equal(before[name], model.weights[name]) for name in before)


# -- CuPy's signatures, without a GPU --------------------------------------------------------------


@pytest.mark.needs("cupy")
def test_cupy_would_take_every_call(recorder: Recorder) -> None:
    """Each function of the namespace that typical runs call exists in CuPy and has the parameters
    it is called with.
    """
    import cupy

    for config in NETS.values():
        model = random_model(config, 1)
        model.generate(TEXTS[0], 1)
        for composite in COMPOSITES:
            list(ways(model, composite))
    assert {"exp", "reshape", "where"} <= {name for name, _, _ in recorder.calls}
    refused = {refusal(cupy, *call) for call in recorder.calls} - {None}
    assert not refused


@pytest.mark.needs("cupy")
def test_the_signature_check_refuses() -> None:
    """It is sharp: calls that NumPy takes and CuPy does not."""
    import cupy

    assert refusal(cupy, "asarray", 1, ("device", "dtype"))
    assert refusal(cupy, "sum", 1, ("axis", "where"))
    assert refusal(cupy, "exp", 1, ("where",))
    assert refusal(cupy, "no_such_function", 1, ())
    assert (
        refusal(cupy, "exp", 1, ("dtype",)) is None
        and refusal(cupy, "sum", 1, ("axis", "keepdims")) is None
    )
