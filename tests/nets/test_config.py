"""What config.json says and how it is read: tables that hold for every net. (The options of one net
are in its own file.)
"""

from __future__ import annotations

import math
import re
from dataclasses import fields
from typing import Any, get_type_hints

import pytest

from refl.errors import ReflError
from refl.nets import (
    NETS,
    bert,
    config,
    gemma2,
    gemma3,
    gpt2,
    llama,
    mistral,
    mixtral,
    phi,
    qwen2,
    qwen3_moe,
    vit,
)
from refl.rules import activation
from refl.verification.random_models import (
    ARCHITECTURES,
    BERT,
    GEMMA2,
    GEMMA3,
    GPT2,
    LLAMA,
    MISTRAL,
    MIXTRAL,
    PHI,
    QWEN2,
    QWEN3_MOE,
    VIT,
    random_model,
)


def test_the_names_of_activations() -> None:
    """What config.json files say, and the function that stands for it."""
    assert config.ACTIVATIONS == {
        "gelu": "gelu",
        "gelu_python": "gelu",
        "gelu_new": "gelu_tanh",
        "gelu_pytorch_tanh": "gelu_tanh",
        "gelu_accurate": "gelu_tanh",
        "gelu_python_tanh": "gelu_tanh",
        "gelu_fast": "gelu_fast",
        "silu": "silu",
        "swish": "silu",
        "quick_gelu": "quick_gelu",
        "relu": "relu",
        "relu2": "relu2",
        "tanh": "tanh",
    }
    assert set(config.ACTIVATIONS.values()) == set(activation.AT_ZERO)


def test_an_activation_that_there_is_none_of_is_refused_by_name() -> None:
    assert config.activation_kind("hidden_act", "swish") == "silu"
    with pytest.raises(ReflError, match="asks for hidden_act 'mish'.*gelu_pytorch_tanh"):
        config.activation_kind("hidden_act", "mish")
    for name, what in config.OTHER_ACTIVATIONS.items():
        with pytest.raises(ReflError, match=f"{name}' \\({re.escape(what)}\\), which is not"):
            config.activation_kind("hidden_act", name)


def test_a_malformed_option_is_told_what_was_expected() -> None:
    with pytest.raises(
        ReflError, match="layer_types = 'full_attention': expected a list of strings$"
    ):
        config.parse(qwen2.Config, QWEN2 | {"layer_types": "full_attention"})
    with pytest.raises(ReflError, match="image_size = '9': expected a whole number or a list of"):
        config.parse(vit.Config, VIT | {"image_size": "9"})


def test_null_is_no_value_where_one_is_due() -> None:
    """Silence leaves the default; a null that says otherwise is no silence (transformers takes it
    for false, or stumbles).
    """
    for net, options, name in (
        (gpt2, GPT2, "tie_word_embeddings"),
        (bert, BERT, "tie_word_embeddings"),
        (mistral, MISTRAL, "use_sliding_window"),
        (phi, PHI, "layer_norm_eps"),
        (gemma2, GEMMA2, "hidden_activation"),
        (mixtral, MIXTRAL, "rope_theta"),
    ):
        with pytest.raises(ReflError, match=f"has {name} = null: expected"):
            config.parse(net.Config, options | {name: None})


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 5.0,
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
        ({"rope_theta": 10**400}, "rope_theta = 1000"),
        ({"rope_theta": True}, "rope_theta = True"),
        ({"rope_type": "linear", "type": "dynamic", "factor": 2.0}, "and type 'dynamic'"),
        ({"rope_type": None, "type": "su"}, "rope_type 'su', which is not implemented"),
        ({"rope_type": "yarn", "factor": 2.0, "rope_theta": 1.0}, "give no finite angles"),
        ({"rope_type": "dynamic", "factor": 1e308}, "give no finite angles"),
        ({"rope_type": "yarn", "factor": 2.0, "beta_fast": 1e308}, "give no finite angles"),
        (LLAMA3, "high_freq_factor below low_freq_factor"),
    ],
)
def test_what_rotary_positions_may_not_be(parameters: dict[str, Any], named: str) -> None:
    with pytest.raises(ReflError, match=named):
        config.parse(llama.Config, LLAMA | {"rope_theta": None, "rope_parameters": parameters})


def test_a_ramp_of_no_width_is_a_step() -> None:
    """llama3 with equal factors, by its definition: waves shorter than context / factor are kept,
    longer ones divided. transformers 4.52.4 warns and computes this.
    """
    options = LLAMA3 | {"low_freq_factor": 2.0, "high_freq_factor": 2.0}
    rope = config.parse(llama.Config, LLAMA | {"head_dim": 6, "rope_scaling": options}).rope
    plain = [10000.0 ** (-i / 3) for i in range(3)]
    waves = [2 * math.pi / f for f in plain]
    assert waves[0] < 16 / 2 < waves[1]
    assert rope.frequencies(1) == [plain[0], plain[1] / 8, plain[2] / 8]


@pytest.mark.parametrize(
    "both",
    [
        {"rope_theta": 5000.0, "rope_parameters": {"rope_theta": 10000.0}},
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_theta": 7.0}},
    ],
)
def test_two_answers_to_one_question_are_refused(both: dict[str, Any]) -> None:
    patterns = {"sliding_window_pattern": 2, "_sliding_window_pattern": 3}
    with pytest.raises(ReflError, match="_sliding_window_pattern = 3: expected one$"):
        config.parse(gemma3.Config, GEMMA3 | patterns)
    with pytest.raises(ReflError, match="expected one$"):
        config.parse(llama.Config, LLAMA | {"rope_theta": None} | both)


@pytest.mark.parametrize("part", [1.5, 0, -0.5, "0.5", True, [0.5], 10**400])
@pytest.mark.parametrize("inside", [False, True])
def test_the_rotated_part_of_a_head(part: Any, inside: bool) -> None:
    said = {"partial_rotary_factor": part}
    plain = {key: value for key, value in PHI.items() if key != "partial_rotary_factor"}
    with pytest.raises(ReflError, match="partial_rotary_factor"):
        config.parse(phi.Config, plain | ({"rope_parameters": said} if inside else said))


def test_dynamic_positions_need_more_than_two_features() -> None:
    dynamic = {"head_dim": 2, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}
    with pytest.raises(ReflError, match="on 2 features of each head: rope_type 'dynamic' needs 4"):
        config.parse(llama.Config, LLAMA | dynamic)


def test_a_batch_matters_only_beyond_the_positions_of_dynamic_scaling() -> None:
    dynamic = {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}
    assert not config.parse(llama.Config, LLAMA).batch_dependent(1000)
    parsed = config.parse(llama.Config, LLAMA | dynamic)
    assert not parsed.batch_dependent(512) and parsed.batch_dependent(513)
    gemma = config.parse(gemma3.Config, GEMMA3 | dynamic | {"max_position_embeddings": 7})
    assert not gemma.batch_dependent(7) and gemma.batch_dependent(8)
    assert random_model(LLAMA | dynamic, seed=1).batch_dependent(513)
    assert not random_model(GPT2, seed=1).batch_dependent(513)


def test_a_window_of_null_where_blocks_slide() -> None:
    """transformers 4.52.4 raises a TypeError, later ones a ValueError. Mistral runs without."""
    for net, options in ((gemma2, GEMMA2), (gemma3, GEMMA3)):
        with pytest.raises(ReflError, match="sliding_window null"):
            config.parse(net.Config, options | {"sliding_window": None})
        full = {"sliding_window": None, "layer_types": ["full_attention"] * 2}
        assert config.parse(net.Config, options | full).windows == (None, None)
    assert config.parse(mistral.Config, MISTRAL | {"sliding_window": None}).windows == (None, None)


@pytest.mark.parametrize("blocks", [["1"], [True], [1.0], [3], [-1], "1", [[1]], {"1": 1}])
def test_blocks_without_experts_are_named_by_number(blocks: Any) -> None:
    with pytest.raises(ReflError, match="mlp_only_layers"):
        config.parse(qwen3_moe.Config, QWEN3_MOE | {"mlp_only_layers": blocks})


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_every_option_is_of_its_kind_and_size(kind: str) -> None:
    """Of every net: what is no number where one is due, and no number of any use, is refused."""
    base = ARCHITECTURES[kind]
    cls = NETS[kind].Config
    hints = get_type_hints(cls)
    for name, hint in hints.items():
        if name not in {field.name for field in fields(cls)}:
            continue
        for value in strange(str(hint)):
            with pytest.raises(ReflError) as caught:
                config.parse(cls, base | {name: value})
            assert str(caught.value).isprintable() and len(str(caught.value)) < 500, name


def strange(hint: str) -> list[Any]:
    """Values that an option of this type cannot have."""
    found: list[Any] = [float("nan"), float("inf"), 10**400, -(10**400), [[]], {"a": [1]}]
    found += [True] if "bool" not in hint else []
    found += ["1" * 5000] if "str" not in hint or "dict" in hint else []
    found += [2**63, 2**31] if "int" in hint else []
    found += [-1.5, 0.0] if "float" in hint else []
    return [value for value in found if not (isinstance(value, dict) and "dict" in hint)]


def test_every_key_without_effect_stands_in_one_group_in_order() -> None:
    groups = (
        config.STORAGE,
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
