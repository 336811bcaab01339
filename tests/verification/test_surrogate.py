"""Identity 2: AttnLRP at eps -> 0 is activation times the gradient of the frozen surrogate; the
same for CP-LRP and the plain gradient.

The other side of every comparison comes from `verification/definitions/surrogate.py`, where no
rule of the engine takes part. Deviations are relative to the largest relevance at the site.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from checkpoints import checkpoint
from surrogate_truth import EXACT, VARIANT, Truth, apart

import refl
from refl.model import Model
from refl.trace import Record
from refl.verification.definitions import surrogate
from refl.verification.random_models import GPT2, LLAMA, random_model

IDS = {
    "shipped": [2, 40, 17, 99, 5, 63],
    "stories260K": [1, 403, 407, 261, 378, 33],
    "babyllama105": [1, 40, 33, 7, 60],
    "capp_gpt2": [49, 3, 17, 30, 8, 22, 41],
    "nano_sort_gpt2": [2, 0, 1, 1, 0, 2, 0, 0],
}
CHECKPOINTS = tuple(IDS)


BIASED = {"attention_bias": True, "mlp_bias": True}
RANDOM = {
    "llama": LLAMA,
    "llama with biases": LLAMA | BIASED | {"hidden_act": "gelu"},
    "llama, one key head, tied": LLAMA
    | BIASED
    | {"num_key_value_heads": 1, "tie_word_embeddings": True, "hidden_act": "quick_gelu"},
    "llama, no groups, relu": LLAMA
    | {"num_key_value_heads": 4, "hidden_act": "relu", "num_hidden_layers": 3},
    "llama, tanh": LLAMA | {"hidden_act": "tanh", "head_dim": 6},
    "gpt2": GPT2,
    "gpt2, untied, erf": GPT2 | {"tie_word_embeddings": False, "activation_function": "gelu"},
    "gpt2, relu, scaled by layer": GPT2
    | {"activation_function": "relu", "scale_attn_by_inverse_layer_idx": True, "n_layer": 3},
    "gpt2, unscaled, silu": GPT2 | {"activation_function": "silu", "scale_attn_weights": False},
}


@cache
def loaded(name: str) -> Model:
    return refl.load(None if name == "shipped" else checkpoint(name), dtype="float64")


@cache
def truth_of(name: str) -> Truth:
    return Truth(loaded(name), IDS[name])


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("variant", surrogate.VARIANTS)
def test_surrogate_is_the_net_at_the_input(name: str, variant: str) -> None:
    """Unperturbed it must give the logits of the real run, or its gradient would be that of
    something else.
    """
    truth = truth_of(name)
    z = surrogate.logits(truth.model, truth.ids, truth.around, variant=variant)[0]
    assert np.abs(z - truth.logits).max() < 1e-13 * np.abs(truth.logits).max() * 10


@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_relevance_is_activation_times_surrogate_gradient(name: str, method: str) -> None:
    """At every block output and at the embeddings. Measured 4e-16 to 5e-15."""
    assert truth_of(name).deviation(method) < 1e-13


@pytest.mark.parametrize("name", (*CHECKPOINTS, *RANDOM))
def test_attnlrp_tends_to_the_surrogate_linearly_in_eps(name: str) -> None:
    """At eps = 1e-14 within 1e-9; what is left is the stabilizer and nothing else: a hundred times
    the eps, a hundred times as much.

    How much depends on the smallest denominator of the run, 7.7e-9 of the largest relevance at eps
    = 1e-12 where it is worst.
    """
    truth = (
        truth_of(name)
        if name in CHECKPOINTS
        else Truth(random_model(RANDOM[name], seed=4), [0, 5, 9, 2, 11, 7])
    )
    small, large = (truth.deviation("attnlrp", eps=eps) for eps in (1e-14, 1e-12))
    assert small < 1e-9
    assert large == pytest.approx(100 * small, rel=0.1)


@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("name", RANDOM)
def test_random_nets_at_every_site(name: str, method: str) -> None:
    """Biases, groups of queries, tied and untied heads, every activation: at each operation's
    output, scores and probabilities included.
    """
    truth = Truth(random_model(RANDOM[name], seed=3), [3, 1, 16, 1, 8])
    assert truth.deviation(method, lambda site: True) < 1e-12


@pytest.mark.parametrize("method", EXACT)
def test_contrast(method: str) -> None:
    """The gradient of a difference of logits, for a seed with two entries."""
    model, ids = loaded("shipped"), IDS["shipped"]
    around = surrogate.record(model, ids)[0]
    g = surrogate.gradient(
        model, ids, "model.layers.2", 7, against=30, variant=VARIANT[method], around=around
    )
    e = model.explain(ids, method, contrast=(7, 30))
    assert apart(e["model.layers.2"], around["model.layers.2"].output.array[0] * g) < 1e-13


@cache
def long_truth() -> Truth:
    return Truth(
        loaded("shipped"), [2] + [int(i) for i in np.random.default_rng(0).integers(4, 169, 23)]
    )


@pytest.mark.parametrize("method", EXACT)
def test_longer_text(method: str) -> None:
    """Twenty-four tokens of the shipped model, after the third of four blocks."""
    assert long_truth().deviation(method, lambda site: site == "model.layers.2") < 1e-13


def test_another_variant_is_far_off() -> None:
    """The comparisons above are sharp: the plain gradient's surrogate is not AttnLRP's, and the
    difference is no rounding.
    """
    truth = truth_of("shipped")
    plain = truth.relevance("model.embed_tokens", "gradient")
    assert apart(plain, truth.relevance("model.embed_tokens", "attnlrp")) > 1e-2


def test_unknown_variant_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown surrogate 'lrp'"):
        surrogate.FrozenTrace({}, dict[str, Record](), variant="lrp")
