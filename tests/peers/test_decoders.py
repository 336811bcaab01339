"""Mistral, Qwen 2, Qwen 3, OLMo 2, Phi, Gemma 2, Gemma 3: the forward pass against transformers'
own, in float64, with every option they read.

As in test_forward.py: transformers' float32 islands are lifted, norm weights and biases are drawn,
lengths go beyond every window.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers_forward import BOUND, ROPE, agree, draw, reference, same_forward
from transformers_models import SMALL, Make, _drawn, _scaled, random_model

import refl
from refl.errors import ReflError
from refl.verification.peers.lxt import wide, widened

pytestmark = pytest.mark.peers
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed (the extra 'peers')"
)
torch = pytest.importorskip("torch", reason="torch is not installed (the extra 'peers')")

LENGTHS = (1, 2, 3, 4, 13)
"""Windows are of three tokens."""

LLAMA3 = ROPE["llama3"]

OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "mistral": {
        "plain": {"sliding_window": None},
        "window": {"sliding_window": 3, "num_key_value_heads": 2},
        "window-off": {"sliding_window": 3, "use_sliding_window": False},
        "window-1": {"sliding_window": 1, "num_hidden_layers": 1},
        "wide-heads": {"head_dim": 10, "num_key_value_heads": 1, "sliding_window": 100},
        "tied-gelu": {
            "tie_word_embeddings": True,
            "hidden_act": "gelu",
            "rms_norm_eps": 1e-2,
            "rope_theta": 500.0,
        },
        "rope-scaling": {"head_dim": 8, "rope_scaling": LLAMA3, "sliding_window": 3},
        "yarn": {"head_dim": 8, "rope_scaling": ROPE["yarn"], "rope_theta": 1e6},
    },
    "qwen2": {
        "plain": {},
        "groups": {"num_key_value_heads": 2, "tie_word_embeddings": True},
        "window": {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 0},
        "window-unused": {"use_sliding_window": False, "sliding_window": 3, "max_window_layers": 0},
        "window-null": {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0},
        "wide-heads": {"head_dim": 10, "num_key_value_heads": 1, "hidden_act": "gelu_pytorch_tanh"},
        "rope-scaling": {
            "rope_scaling": ROPE["dynamic"],
            "rms_norm_eps": 1e-2,
            "rope_theta": 500.0,
        },
        "yarn": {"rope_scaling": ROPE["yarn-original"], "num_hidden_layers": 1},
    },
    "qwen3": {
        "plain": {},
        "groups": {"num_key_value_heads": 2, "tie_word_embeddings": True},
        "biases": {"attention_bias": True, "num_key_value_heads": 1, "head_dim": 10},
        "window": {
            "use_sliding_window": True,
            "sliding_window": 3,
            "max_window_layers": 0,
            "attention_bias": True,
        },
        "window-unused": {"use_sliding_window": False, "sliding_window": 3, "max_window_layers": 0},
        "norm-eps": {"rms_norm_eps": 1e-1, "rope_theta": 500.0, "hidden_act": "gelu"},
        "rope-scaling": {"rope_scaling": LLAMA3, "num_hidden_layers": 1},
        "yarn": {"rope_scaling": ROPE["yarn-mscale"]},
    },
    "olmo2": {
        "plain": {},
        "groups": {"num_key_value_heads": 2, "tie_word_embeddings": True},
        "biases": {"attention_bias": True, "num_key_value_heads": 1, "num_hidden_layers": 3},
        "wide-heads": {"head_dim": 10, "num_key_value_heads": 2, "hidden_act": "gelu"},
        "norm-eps": {"rms_norm_eps": 1e-1, "rope_theta": 500.0, "hidden_act": "relu"},
        "linear-rope": {"rope_scaling": {"type": "linear", "factor": 2.5}, "num_hidden_layers": 1},
        "dynamic-rope": {
            "rope_scaling": {"type": "dynamic", "factor": 2.0},
            "max_position_embeddings": 8,
            "attention_bias": True,
        },
        "one-head": {"num_attention_heads": 1, "num_key_value_heads": 1, "intermediate_size": 5},
    },
    "phi": {
        "plain": {},
        "tied": {"tie_word_embeddings": True, "num_hidden_layers": 1},
        "qk-layernorm": {"qk_layernorm": True, "layer_norm_eps": 1e-2},
        "groups": {"num_key_value_heads": 2, "partial_rotary_factor": 0.34, "qk_layernorm": True},
        "whole-heads-rotated": {"partial_rotary_factor": 1.0, "hidden_act": "gelu"},
        "wide-heads": {"head_dim": 10, "partial_rotary_factor": 0.4, "num_key_value_heads": 1},
        "rope-scaling": {"rope_scaling": LLAMA3, "partial_rotary_factor": 0.7, "rope_theta": 500.0},
        "yarn": {"rope_scaling": ROPE["yarn"], "partial_rotary_factor": 0.7, "hidden_act": "relu"},
    },
    "gemma2": {
        "plain": {},
        "capped": {"attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.0},
        "no-caps": {
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "num_key_value_heads": 1,
        },
        "one-cap": {
            "attn_logit_softcapping": None,
            "final_logit_softcapping": 5.0,
            "sliding_window": 100,
        },
        "biases": {"attention_bias": True, "query_pre_attn_scalar": 31, "num_key_value_heads": 4},
        "untied-act": {
            "tie_word_embeddings": False,
            "hidden_activation": "silu",
            "rms_norm_eps": 1e-2,
        },
        "hidden-act-ignored": {"hidden_act": "relu", "head_dim": 10, "sliding_window": 1},
        "rope-scaling": {"rope_theta": 500.0, "rope_scaling": LLAMA3, "num_hidden_layers": 1},
    },
    "gemma3_text": {
        "plain": {},
        "pattern-6": {"sliding_window_pattern": 6, "num_key_value_heads": 1},
        "all-full": {"sliding_window_pattern": 1, "rope_theta": 500.0},
        "capped": {"final_logit_softcapping": 2.0, "rope_local_base_freq": 30.0},
        "biases": {"attention_bias": True, "query_pre_attn_scalar": 31, "num_key_value_heads": 4},
        "untied-act": {
            "tie_word_embeddings": False,
            "hidden_activation": "silu",
            "rms_norm_eps": 1e-2,
        },
        "linear-rope": {"rope_scaling": ROPE["linear"], "head_dim": 10, "sliding_window": 1},
        "llama3-rope": {"rope_scaling": LLAMA3, "sliding_window_pattern": 3},
    },
}


@pytest.mark.parametrize(
    ("kind", "options"),
    [pytest.param(k, o, id=f"{k}-{n}") for k, each in OPTIONS.items() for n, o in each.items()],
)
def test_options(make: Make, kind: str, options: dict[str, Any]) -> None:
    same_forward(make(kind, **options), LENGTHS)


@pytest.mark.parametrize("kind", OPTIONS)
def test_padded_batch(make: Make, kind: str) -> None:
    """Right padding, as refl pads: the logits after each text's last token, beside transformers'
    with its attention_mask.
    """
    folder = make(kind, **WINDOWED[kind])
    texts = [draw(5), draw(13), draw(1), draw(2)]
    padded = [text + [0] * (13 - len(text)) for text in texts]
    theirs = reference(folder, padded, [[i < len(text) for i in range(13)] for text in texts])
    model = refl.load(folder, dtype="float64")
    _, logits = model.trace(texts)
    agree(logits.array[:, 0], np.stack([theirs[b, len(text) - 1] for b, text in enumerate(texts)]))
    for item, one in zip(texts, model.explain(texts, keep=()), strict=True):
        assert one.logit == pytest.approx(model.logits(item)[-1].max(), rel=BOUND)


WINDOW = {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 0}
WINDOWED: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 3},
    "qwen2": WINDOW,
    "qwen3": WINDOW,
    "olmo2": {"num_key_value_heads": 2},
    "phi": {},
    "gemma2": {},
    "gemma3_text": {},
}


# -- where transformers 4.52.4 does something else than its other kernels and its later versions ---


@pytest.mark.parametrize("how", ["max_window_layers", "layer_types"])
@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_some_blocks_with_a_window(make: Make, kind: str, how: str) -> None:
    """Eager attention of 4.52.4 gives the window to every block (and warns that it is not
    implemented), where flash attention, and every kernel since 4.53, gives it to those from
    max_window_layers on: transformers is run without, and its masks are exchanged block by block.
    """
    folder = make(kind, use_sliding_window=False, num_hidden_layers=3)
    expected = with_windows(
        folder, draw(13), [None, 3, 3] if how == "max_window_layers" else [3, None, 3]
    )
    changed = {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}
    if how == "layer_types":
        changed |= {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
    edit(folder, changed)
    agree(refl.load(folder, dtype="float64").logits(draw(13)), expected)


def with_windows(folder: Path, ids: list[int], windows: list[int | None]) -> Any:
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with wide(), torch.no_grad():
        model = widened(loaded)
        for layer, window in zip(model.model.layers, windows, strict=True):
            layer.register_forward_pre_hook(masked(window), with_kwargs=True)
        tokens = torch.tensor([ids])
        return (
            model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False)
            .logits[0]
            .numpy()
        )


def masked(window: int | None) -> Callable[..., Any]:
    def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        mask = kwargs["attention_mask"]
        hidden = torch.ones_like(mask, dtype=torch.bool).tril(-(window or mask.shape[-1]))
        return args, kwargs | {
            "attention_mask": mask.masked_fill(hidden, torch.finfo(mask.dtype).min)
        }

    return hook


def drop(folder: Path, *options: str) -> None:
    """As if they had never been written."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in config.items() if k not in options}))


@pytest.mark.parametrize("kind", ["gemma2", "gemma3_text"])
def test_layer_types_name_the_blocks_with_a_window(make: Make, kind: str) -> None:
    """As later versions write them; here they say what the pattern says."""
    folder = make(kind, num_hidden_layers=3)
    expected = reference(folder, [draw(13)])[0]
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    later = {"_sliding_window_pattern": 2} if kind == "gemma3_text" else {}
    drop(folder, "sliding_window_pattern")
    edit(folder, {"layer_types": kinds} | later)
    agree(refl.load(folder, dtype="float64").logits(draw(13)), expected)
    edit(folder, {"layer_types": ["full_attention"] * 3})
    assert np.abs(refl.load(folder, dtype="float64").logits(draw(13)) - expected).max() > 1e-3


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        ("mistral", LLAMA3 | {"rope_theta": 700.0}),
        ("phi", LLAMA3 | {"rope_theta": 700.0, "partial_rotary_factor": 0.7}),
        (
            "gemma3_text",
            {
                "full_attention": LLAMA3 | {"rope_theta": 700.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 30.0},
            },
        ),
    ],
)
def test_rope_parameters_as_transformers_5_writes_them(
    make: Make, kind: str, parameters: dict[str, Any]
) -> None:
    old = {"rope_scaling": LLAMA3, "rope_theta": 700.0, "partial_rotary_factor": 0.7} | SMALL[kind]
    old |= {"rope_local_base_freq": 30.0} if kind == "gemma3_text" else {}
    folder = make(
        kind, **{k: v for k, v in old.items() if k != "partial_rotary_factor" or kind == "phi"}
    )
    expected = reference(folder, [draw(13)])[0]
    drop(folder, "rope_scaling", "rope_theta", "rope_local_base_freq", "partial_rotary_factor")
    edit(folder, {"rope_parameters": parameters})
    agree(refl.load(folder, dtype="float64").logits(draw(13)), expected)


@pytest.mark.parametrize("kind", OPTIONS)
def test_stored_in_half_precision(tmp_path: Path, kind: str) -> None:
    """bfloat16 is widened exactly; Gemma's scale sqrt(hidden_size) is then that of the computation,
    not the rounded one.
    """
    random_model(kind).to(torch.bfloat16).save_pretrained(tmp_path)
    same_forward(tmp_path, (13,))


# -- what is refused -------------------------------------------------------------------------------

SLIDES = ["sliding_attention", "sliding_attention"]
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("mistral", {"attention_bias": True}, "attention_bias"),
    ("mistral", {"layer_types": SLIDES}, "layer_types"),
    ("mistral", {"sliding_window": 0}, "sliding_window = 0"),
    ("mistral", {"rope_scaling": {"rope_type": "mrope", "mrope_section": [1, 1, 1]}}, "mrope"),
    ("mistral", {"num_key_value_heads": 3}, "num_key_value_heads = 3"),
    ("mistral", {"hidden_act": "mish"}, "mish"),
    ("qwen2", {"layer_types": SLIDES}, "no sliding_window"),
    ("qwen2", {"layer_types": SLIDES[:1], "use_sliding_window": True}, "1 layer_types"),
    ("qwen2", {"layer_types": ["chunked_attention", "full_attention"]}, "chunked_attention"),
    ("qwen2", {"max_window_layers": -1}, "max_window_layers = -1"),
    ("qwen2", {"attention_bias": True}, "attention_bias"),
    ("qwen3", {"num_experts": 8}, "num_experts"),
    ("qwen3", {"mlp_bias": True}, "mlp_bias"),
    ("qwen3", {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "longrope"),
    ("olmo2", {"mlp_bias": True}, "mlp_bias"),
    ("olmo2", {"sliding_window": 8}, "sliding_window"),
    ("olmo2", {"layer_types": SLIDES}, "layer_types"),
    ("olmo2", {"num_key_value_heads": 2}, "num_key_value_heads"),
    ("olmo2", {"hidden_act": "mish"}, "hidden_act 'mish'"),
    ("phi", {"partial_rotary_factor": 0.5}, "even head_dim"),
    ("phi", {"sliding_window": 8}, "sliding_window"),
    ("phi", {"hidden_act": "gelu_10"}, "gelu_10"),
    ("phi", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
    ("gemma2", {"hidden_activation": "mish"}, "hidden_activation 'mish'"),
    ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ("gemma2", {"sliding_window_pattern": 3}, "sliding_window_pattern"),
    ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
    ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    (
        "gemma3_text",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        "rope_parameters",
    ),
    ("gemma3_text", {"model_type": "gemma3"}, "'gemma3'"),
]


@pytest.mark.parametrize(
    ("kind", "options", "named"),
    REFUSED,
    ids=[f"{kind}-{named.strip(chr(39))}" for kind, _, named in REFUSED],
)
def test_refused_by_name(make: Make, kind: str, options: dict[str, Any], named: str) -> None:
    """transformers keeps gemma3's attn_logit_softcapping and never applies it: what the file means
    by it is not known here.
    """
    folder = make(kind)
    refl.load(folder)
    edit(folder, options)
    with pytest.raises(ReflError, match=named):
        refl.load(folder)


CLASSIFIERS = {
    "llama": "Llama",
    "gpt2": "GPT2",
    "mistral": "Mistral",
    "mixtral": "Mixtral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "qwen3_moe": "Qwen3Moe",
    "phi": "Phi",
    "gemma2": "Gemma2",
}


@pytest.mark.parametrize("kind", CLASSIFIERS)
@pytest.mark.parametrize("pad", [None, 3])
def test_a_classifier(tmp_path: Path, kind: str, pad: int | None) -> None:
    """`score` on the last token that is no padding; the id alone says which that is."""
    cls = getattr(transformers, f"{CLASSIFIERS[kind]}ForSequenceClassification")
    options = SMALL[kind] | {"num_labels": 4, "pad_token_id": pad}
    _drawn(cls(transformers.AutoConfig.for_model(kind, **options)), _scaled).save_pretrained(
        tmp_path
    )
    model = refl.load(tmp_path, dtype="float64")
    loaded = cls.from_pretrained(tmp_path)
    assert model.task == "class" and model.config.labels == 4
    for ids in ([5], [1, 2, 4, 9], [1, 2, 3, 3], [3, 7, 3, 8, 3], [3, 3]):
        tokens = torch.tensor([ids])
        with wide(), torch.no_grad():
            loaded.config._attn_implementation = "eager"
            twin = cls(loaded.config).double().eval()
            twin.load_state_dict(loaded.state_dict())
            theirs = twin(
                input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False
            ).logits.numpy()
        agree(model.logits(ids), theirs)


@pytest.mark.parametrize("kind", ["gemma2", "gemma3_text"])
def test_a_window_of_null_raises_there_too(make: Make, kind: str) -> None:
    folder = make(kind)
    edit(folder, {"sliding_window": None})
    with pytest.raises(ReflError, match="sliding_window null"):
        refl.load(folder)
    with pytest.raises((TypeError, ValueError)):
        reference(folder, [draw(4)])


def test_llama3_with_equal_factors(make: Make) -> None:
    """transformers warns, and steps where the ramp has no width."""
    equal = LLAMA3 | {"low_freq_factor": 2.0, "high_freq_factor": 2.0}
    same_forward(make("llama", head_dim=8, rope_scaling=equal))


def edit(folder: Path, options: dict[str, Any]) -> None:
    config = json.loads((folder / "config.json").read_text()) | options
    (folder / "config.json").write_text(json.dumps(config))
