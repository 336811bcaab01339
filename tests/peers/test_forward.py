"""The forward pass against transformers' own, in float64: every option of config.json that the nets
read, and every way to save.

transformers computes parts of a float64 model in float32 (RMSNorm, RoPE's angles, the softmax of
eager attention, reorder_and_upcast_attn). `wide` lifts those islands while the model is made and
run; without that nothing could agree beyond 1e-7.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers_forward import BOUND, LENGTHS, ROPE, agree, draw, reference, same_forward
from transformers_models import Make, random_model

import refl
from refl.errors import ReflError

pytestmark = pytest.mark.peers
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed (the extra 'peers')"
)
torch = pytest.importorskip("torch", reason="torch is not installed (the extra 'peers')")


# -- options of config.json ------------------------------------------------------------------------

LLAMA: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "groups-2": {"num_key_value_heads": 2},
    "one-key-value-head": {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "attention-bias": {"attention_bias": True, "num_key_value_heads": 2},
    "mlp-bias": {"mlp_bias": True},
    "every-bias": {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"},
    "wide-heads": {"head_dim": 10, "num_key_value_heads": 2},
    "narrow-heads": {"head_dim": 2, "attention_bias": True},
    "norm-eps": {"rms_norm_eps": 1e-2},
    "gelu": {"hidden_act": "gelu"},
    "gelu-tanh": {"hidden_act": "gelu_pytorch_tanh"},
    "relu": {"hidden_act": "relu", "mlp_bias": True},
    "theta": {"rope_theta": 500.0},
    "one-block": {"num_hidden_layers": 1, "rope_theta": 1e6},
}


@pytest.mark.parametrize("options", LLAMA.values(), ids=LLAMA)
def test_llama_options(make: Make, options: dict[str, Any]) -> None:
    same_forward(make("llama", **options))


@pytest.mark.parametrize("scaling", ROPE.values(), ids=ROPE)
def test_rope_scaling(make: Make, scaling: dict[str, Any]) -> None:
    """Three head widths: yarn's and llama3's ramps fall on different dimensions."""
    for width in (4, 8, 22):
        same_forward(
            make("llama", rope_scaling=scaling, head_dim=width, rope_theta=100.0), lengths=(2, 31)
        )


@pytest.mark.parametrize("length", [7, 31, 32, 33, 57, 64])
def test_dynamic_rope_below_and_above_its_range(make: Make, length: int) -> None:
    folder = make("llama", rope_scaling={"rope_type": "dynamic", "factor": 2.0})
    agree(
        refl.load(folder, dtype="float64").logits(draw(length)),
        reference(folder, [draw(length)])[0],
    )


@pytest.mark.parametrize(
    "scaling",
    [ROPE[k] for k in ("default", "linear", "llama3", "yarn", "yarn-betas")],
    ids=lambda s: s["rope_type"],
)
def test_rope_parameters_as_transformers_5_writes_them(make: Make, scaling: dict[str, Any]) -> None:
    """One object, `rope_parameters`, with theta inside, in place of rope_theta and rope_scaling."""
    folder = make("llama", rope_scaling=scaling, rope_theta=700.0)
    expected = reference(folder, [draw(13)])[0]
    config = json.loads((folder / "config.json").read_text())
    del config["rope_theta"], config["rope_scaling"]
    config["rope_parameters"] = scaling | {"rope_theta": 700.0}
    (folder / "config.json").write_text(json.dumps(config))
    agree(refl.load(folder, dtype="float64").logits(draw(13)), expected)


GPT2: dict[str, dict[str, Any]] = {
    "plain": {},
    "untied": {"tie_word_embeddings": False},
    "gelu": {"activation_function": "gelu"},
    "gelu-tanh": {"activation_function": "gelu_pytorch_tanh"},
    "relu": {"activation_function": "relu"},
    "silu": {"activation_function": "silu"},
    "swish": {"activation_function": "swish"},
    "tanh": {"activation_function": "tanh"},
    "quick-gelu": {"activation_function": "quick_gelu"},
    "n-inner": {"n_inner": 40},
    "inverse-layer": {"scale_attn_by_inverse_layer_idx": True},
    "unscaled": {"scale_attn_weights": False},
    "unscaled-inverse-layer": {
        "scale_attn_weights": False,
        "scale_attn_by_inverse_layer_idx": True,
    },
    "reordered": {"reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True},
    "norm-eps": {"layer_norm_epsilon": 1e-2, "tie_word_embeddings": False},
    "one-head": {"n_head": 1, "n_layer": 1},
}


@pytest.mark.parametrize("options", GPT2.values(), ids=GPT2)
def test_gpt2_options(make: Make, options: dict[str, Any]) -> None:
    same_forward(make("gpt2", **options), lengths=(*LENGTHS, 32))


# -- ways to save ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_shards(make: Make, kind: str) -> None:
    folder = make(kind, save={"max_shard_size": "8KB"})
    assert (folder / "model.safetensors.index.json").exists()
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    same_forward(folder)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_stored_dtype(tmp_path: Path, kind: str, dtype: str) -> None:
    """Widening is exact: refl on the half-precision file equals transformers' model of that file,
    cast to float64.
    """
    random_model(kind).to(getattr(torch, dtype)).save_pretrained(tmp_path)
    agree(refl.load(tmp_path, dtype="float64").logits(draw(13)), reference(tmp_path, [draw(13)])[0])


@pytest.mark.parametrize(("kind", "inner"), [("llama", "model"), ("gpt2", "transformer")])
def test_bare_model_without_prefix(tmp_path: Path, kind: str, inner: str) -> None:
    """LlamaModel's and GPT2Model's own files name their tensors without `model.` and
    `transformer.`; they hold no head, which is said, and tied where the caller wants one.
    """
    model = random_model(kind, tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "whole")
    getattr(model, inner).save_pretrained(tmp_path / "bare")
    with pytest.raises(ReflError, match="to go by the tensors"):
        refl.load(tmp_path / "bare")
    bare = refl.load(tmp_path / "bare", dtype="float64", ignore=["architectures"])
    assert not any(name.startswith(f"{inner}.") for name in bare.weights.weights)
    ours = bare.logits(draw(13))
    agree(ours, reference(tmp_path / "whole", [draw(13)])[0])


# -- batches ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options"),
    [("llama", {"num_key_value_heads": 2}), ("gpt2", {"reorder_and_upcast_attn": True})],
)
def test_padded_batch(make: Make, kind: str, options: dict[str, Any]) -> None:
    """Right padding, as refl pads: the logits after each text's last token, beside transformers'
    with its attention_mask.
    """
    folder = make(kind, **options)
    texts = [draw(5), draw(13), draw(1)]
    padded = [text + [0] * (13 - len(text)) for text in texts]
    theirs = reference(folder, padded, [[i < len(text) for i in range(13)] for text in texts])
    model = refl.load(folder, dtype="float64")
    _, logits = model.trace(texts)
    agree(logits.array[:, 0], np.stack([theirs[b, len(text) - 1] for b, text in enumerate(texts)]))
    for item, one in zip(texts, model.explain(texts, keep=()), strict=True):
        assert one.relevance.shape == (len(item),)
        assert one.logit == pytest.approx(model.logits(item)[-1].max(), rel=BOUND)


# -- what is refused -------------------------------------------------------------------------------

LONGROPE = {
    "rope_type": "longrope",
    "factor": 2.0,
    "short_factor": [1.0] * 3,
    "long_factor": [2.0] * 3,
}

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"rope_scaling": LONGROPE | {"long_factor": [2.0]}}, "1 numbers in long_factor"),
    ("llama", {"rope_scaling": {"rope_type": "su", "factor": 2.0}}, "'su'"),
    ("llama", {"rope_scaling": {"rope_type": "mrope", "mrope_section": [1, 1, 1]}}, "mrope"),
    ("llama", {"rope_scaling": {"rope_type": "linear"}}, "factor"),
    (
        "llama",
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "attention_factor": 1.1}},
        "attention_factor",
    ),
    (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.5,
            }
        },
        "partial_rotary_factor",
    ),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    (
        "llama",
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
        "quantization_config",
    ),
    ("llama", {"pruned_heads": {"0": [1]}}, "pruned_heads"),
    ("llama", {"sliding_window": 8}, "sliding_window"),
    ("llama", {"hidden_act": "gelu_10"}, "gelu_10"),
    ("llama", {"attn_logit_softcapping": 30.0}, "attn_logit_softcapping"),
    ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
    ("gpt2", {"is_encoder_decoder": True}, "is_encoder_decoder"),
    ("gpt2", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config"),
    ("gpt2", {"pruned_heads": {"1": [0]}}, "pruned_heads"),
    ("gpt2", {"activation_function": "mish"}, "mish"),
    ("gpt2", {"model_type": "gpt_neo"}, "gpt_neo"),
]


@pytest.mark.parametrize(
    ("kind", "options", "named"),
    REFUSED,
    ids=[f"{kind}-{named.strip(chr(39))}" for kind, _, named in REFUSED],
)
def test_refused_by_name(make: Make, kind: str, options: dict[str, Any], named: str) -> None:
    """An option that would change the computation, and that is not
    implemented, is named in the refusal.
    """
    folder = make(kind)
    refl.load(folder)
    config = json.loads((folder / "config.json").read_text()) | options
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ReflError, match=named):
        refl.load(folder)
