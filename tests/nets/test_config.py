"""What config.json says and how it is read: tables that hold for every net. (The options of one net
are in its own file.)
"""

from __future__ import annotations

from typing import Any

import pytest

from refl.errors import ReflError
from refl.nets import config, llama, qwen2, vit
from refl.rules import activation
from refl.verification.random_models import LLAMA, QWEN2, VIT


def test_the_names_of_activations() -> None:
    """What config.json files say, and the function that stands for it."""
    assert config.ACTIVATIONS == {
        "gelu": "gelu",
        "gelu_new": "gelu_tanh",
        "gelu_pytorch_tanh": "gelu_tanh",
        "silu": "silu",
        "swish": "silu",
        "quick_gelu": "quick_gelu",
        "relu": "relu",
        "tanh": "tanh",
    }
    assert set(config.ACTIVATIONS.values()) == set(activation.AT_ZERO)


def test_an_activation_that_there_is_none_of_is_refused_by_name() -> None:
    assert config.activation_kind("hidden_act", "swish") == "silu"
    with pytest.raises(ReflError, match="asks for hidden_act 'mish'.*gelu_pytorch_tanh"):
        config.activation_kind("hidden_act", "mish")


def test_a_malformed_option_is_told_what_was_expected() -> None:
    with pytest.raises(ReflError, match="layer_types = 'full_attention': expected a list$"):
        config.parse(qwen2.Config, QWEN2 | {"layer_types": "full_attention"})
    with pytest.raises(ReflError, match="image_size = '9': expected a whole number or a list$"):
        config.parse(vit.Config, VIT | {"image_size": "9"})


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 4.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"rope_theta": "10000"}, "rope_theta = '10000'"),
        ({"rope_theta": -1.0}, "rope_theta = -1.0"),
        ({"rope_theta": 0}, "rope_theta = 0"),
        ({"rope_type": ["linear"]}, r"rope_type \['linear'\], which is not implemented"),
        ({"rope_type": "linear", "factor": float("inf")}, "factor = inf"),
        (LLAMA3, "high_freq_factor that is not above low_freq_factor"),
    ],
)
def test_what_rotary_positions_may_not_be(parameters: dict[str, Any], named: str) -> None:
    with pytest.raises(ReflError, match=named):
        config.parse(llama.Config, LLAMA | {"rope_parameters": parameters})


def test_every_key_without_effect_stands_in_one_group_in_order() -> None:
    groups = (
        config.GENERATION,
        config.SPECIAL_TOKENS,
        config.DROPOUT,
        config.LABELS,
        config.TRAINING,
        config.BOOKKEEPING,
    )
    for group in groups:
        assert list(group) == sorted(group)
    assert sum(map(len, groups)) == len(config.HARMLESS)
    assert not config.HARMLESS & set(config.REFUSED)
