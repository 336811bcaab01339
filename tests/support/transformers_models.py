"""Random models made by transformers, small, every parameter drawn: transformers starts biases at 0
and norm weights at 1, which would hide them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Make = Callable[..., Path]
"""Writes a random model of a kind, with options, and returns its folder."""


def _transformers() -> Any:
    return pytest.importorskip(
        "transformers", reason="transformers is not installed (the extra 'peers')"
    )


def _drawn(model: Any, scaled: Callable[[str, Any], Any], seed: int = 20240501) -> Any:
    """The model, each parameter replaced by noise as `scaled(name, noise)` scales it."""
    import torch

    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(scaled(name, torch.randn(p.shape, generator=draw)))
    return model.eval()


_TEXT: dict[str, Any] = {
    "vocab_size": 29,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
}

# -- decoders --------------------------------------------------------------------------------------

SMALL: dict[str, dict[str, Any]] = {
    "llama": _TEXT,
    "gpt2": {"vocab_size": 29, "n_positions": 32, "n_embd": 24, "n_layer": 3, "n_head": 4},
}

_DECODER: dict[str, Any] = _TEXT | {"num_key_value_heads": 4}
_GEMMA: dict[str, Any] = _DECODER | {
    "head_dim": 6,
    "num_key_value_heads": 2,
    "query_pre_attn_scalar": 7,
    "sliding_window": 3,
}
_EXPERTS: dict[str, Any] = _TEXT | {
    "intermediate_size": 20,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
}
EXPERTS: dict[str, dict[str, Any]] = {
    "mixtral": _EXPERTS | {"num_local_experts": 5},
    "qwen3_moe": _EXPERTS
    | {"num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 10, "head_dim": 6},
}
SMALL |= EXPERTS | {
    "mistral": _DECODER,
    "qwen2": _DECODER,
    "qwen3": _DECODER | {"head_dim": 6},
    "olmo2": _DECODER,
    "phi": _DECODER | {"partial_rotary_factor": 0.7},
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA | {"sliding_window_pattern": 2},
}

# newer decoders
SMALL |= {
    "phi3": _DECODER | {"partial_rotary_factor": 0.7, "pad_token_id": 0},
    "granite": _DECODER
    | {
        "embedding_multiplier": 1.7,
        "attention_multiplier": 0.6,
        "residual_multiplier": 0.4,
        "logits_scaling": 0.3,
    },
    "cohere": _DECODER | {"logit_scale": 1.6},
    "cohere2": _DECODER
    | {"logit_scale": 0.7, "sliding_window": 3, "sliding_window_pattern": 2, "head_dim": 6},
    "gpt_neox": _TEXT | {"rotary_pct": 0.7},
    "starcoder2": _DECODER,
    "stablelm": _DECODER | {"partial_rotary_factor": 0.7},
    "opt": {
        "vocab_size": 29,
        "hidden_size": 24,
        "word_embed_proj_dim": 24,
        "ffn_dim": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 32,
    },
}


def random_model(kind: str, **options: Any) -> Any:
    """A causal language model, at a scale that keeps activations near 1."""
    transformers = _transformers()
    config = transformers.AutoConfig.for_model(kind, **(SMALL[kind] | options))
    model = transformers.AutoModelForCausalLM.from_config(config)
    return _drawn(model, _scaled)


def _scaled(name: str, noise: Any) -> Any:
    if name.endswith("weight") and ("norm" in name or "ln_" in name):
        return 1 + 0.3 * noise
    return (
        0.3 * noise
        if noise.ndim == 1 or "wpe" in name or "embed" in name
        else noise * noise.shape[1] ** -0.5
    )


# -- encoders --------------------------------------------------------------------------------------

LABELS = {"id2label": {0: "no", 1: "yes", 2: "maybe"}, "label2id": {"no": 0, "yes": 1, "maybe": 2}}

ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertForMaskedLM", {}),
    "bert-untied": (
        "BertForMaskedLM",
        {"tie_word_embeddings": False, "hidden_act": "relu", "layer_norm_eps": 1e-3},
    ),
    "bert-gelu-new": (
        "BertForMaskedLM",
        {"hidden_act": "gelu_new", "num_attention_heads": 1, "type_vocab_size": 3},
    ),
    "bert-silu-deep": (
        "BertForMaskedLM",
        {"hidden_act": "silu", "num_hidden_layers": 4, "chunk_size_feed_forward": 1},
    ),
    "bert-tanh": ("BertForMaskedLM", {"hidden_act": "tanh", "num_attention_heads": 12}),
    "bert-pre-training": ("BertForPreTraining", {"hidden_act": "quick_gelu"}),
    "bert-classes": ("BertForSequenceClassification", LABELS),
    "bert-two-classes": (
        "BertForSequenceClassification",
        {"hidden_act": "gelu_pytorch_tanh", "num_labels": 2},
    ),
    "bert-one-number": ("BertForSequenceClassification", {"num_labels": 1}),
    "bert-no-head": ("BertModel", {}),
    "roberta": ("RobertaForMaskedLM", {}),
    "roberta-gelu-new": (
        "RobertaForMaskedLM",
        {"hidden_act": "gelu_new", "type_vocab_size": 1, "layer_norm_eps": 1e-5},
    ),
    "roberta-untied": ("RobertaForMaskedLM", {"tie_word_embeddings": False, "hidden_act": "relu"}),
    "roberta-padding-0": ("RobertaForMaskedLM", {"pad_token_id": 0}),
    "roberta-padding-5": ("RobertaForMaskedLM", {"pad_token_id": 5, "num_attention_heads": 2}),
    "roberta-classes": ("RobertaForSequenceClassification", LABELS),
    "roberta-no-head": ("RobertaModel", {"hidden_act": "silu"}),
    "xlm-roberta": ("XLMRobertaForMaskedLM", {"type_vocab_size": 1}),
    "xlm-roberta-classes": ("XLMRobertaForSequenceClassification", LABELS),
    "camembert": ("CamembertForMaskedLM", {}),
    "camembert-classes": ("CamembertForSequenceClassification", {"num_labels": 4}),
    "albert": ("AlbertForMaskedLM", {"embedding_size": 12}),
    "albert-wide-embedding": (
        "AlbertForMaskedLM",
        {"embedding_size": 40, "hidden_act": "gelu", "num_hidden_layers": 3},
    ),
    "albert-groups": (
        "AlbertForMaskedLM",
        {"embedding_size": 8, "num_hidden_layers": 6, "num_hidden_groups": 3},
    ),
    "albert-uneven-groups": (
        "AlbertForMaskedLM",
        {"embedding_size": 8, "num_hidden_layers": 7, "num_hidden_groups": 3},
    ),
    "albert-inner-groups": (
        "AlbertForMaskedLM",
        {"embedding_size": 8, "num_hidden_layers": 4, "num_hidden_groups": 2, "inner_group_num": 2},
    ),
    "albert-untied": (
        "AlbertForMaskedLM",
        {"embedding_size": 12, "tie_word_embeddings": False, "hidden_act": "relu"},
    ),
    "albert-pre-training": ("AlbertForPreTraining", {"embedding_size": 12, "type_vocab_size": 4}),
    "albert-classes": (
        "AlbertForSequenceClassification",
        LABELS | {"embedding_size": 12, "layer_norm_eps": 1e-2},
    ),
    "albert-no-head": ("AlbertModel", {"embedding_size": 12}),
}


def write_encoder(folder: Path, kind: str, options: dict[str, Any]) -> Path:
    """A checkpoint of the class `kind`."""
    transformers = _transformers()
    cls = getattr(transformers, kind)
    model = cls(cls.config_class(**_TEXT | options))
    _drawn(model, _scaled_encoder).save_pretrained(folder)
    return folder


def _scaled_encoder(name: str, noise: Any) -> Any:
    if noise.ndim == 1:
        return 1 + 0.3 * noise if name.endswith("weight") else 0.3 * noise
    return noise if "_embeddings" in name else noise * noise.shape[1] ** -0.5


# -- T5 --------------------------------------------------------------------------------------------

T5: dict[str, Any] = {
    "vocab_size": 29,
    "d_model": 24,
    "d_kv": 5,
    "d_ff": 32,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "decoder_start_token_id": 0,
}


def random_t5(cls: str = "T5ForConditionalGeneration", **options: Any) -> Any:
    transformers = _transformers()
    model = getattr(transformers, cls)(transformers.T5Config(**(T5 | options)))
    return _drawn(model, _scaled)


# -- vision ----------------------------------------------------------------------------------------

VISION: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "image_size": 12,
    "patch_size": 4,
    "num_channels": 3,
    "num_labels": 5,
}


def random_vision(kind: str, head: str, **options: Any) -> Any:
    """Tokens and positions are drawn too."""
    transformers = _transformers()
    config = transformers.AutoConfig.for_model(kind, **(VISION | options))
    model = getattr(transformers, {"vit": "ViT", "deit": "DeiT"}[kind] + head)(config)
    return _drawn(model, _scaled_vision, seed=7)


def _scaled_vision(name: str, noise: Any) -> Any:
    if name.endswith("weight") and "layernorm" in name:
        return 1 + 0.3 * noise
    wide = noise.ndim in (2, 4) and "token" not in name
    return noise * noise[0].numel() ** -0.5 if wide else 0.3 * noise
