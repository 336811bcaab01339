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


_DISTILBERT: dict[str, Any] = {
    "vocab_size": 29,
    "dim": 24,
    "hidden_dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "max_position_embeddings": 32,
}
_MODERNBERT: dict[str, Any] = _TEXT | {
    "num_hidden_layers": 4,
    "global_attn_every_n_layers": 2,
    "local_attention": 6,
    "global_rope_theta": 1000.0,
    "local_rope_theta": 50.0,
    "pad_token_id": 28,
    "reference_compile": False,
}
NEWER_ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "distilbert": ("DistilBertForMaskedLM", {}),
    "distilbert-untied": (
        "DistilBertForMaskedLM",
        {"tie_word_embeddings": False, "activation": "relu", "n_heads": 2},
    ),
    "distilbert-sinusoidal": (
        "DistilBertForMaskedLM",
        {"sinusoidal_pos_embds": True, "activation": "gelu_new", "n_layers": 4},
    ),
    "distilbert-silu": ("DistilBertForMaskedLM", {"activation": "silu", "n_heads": 24}),
    "distilbert-classes": ("DistilBertForSequenceClassification", LABELS),
    "distilbert-two-classes": (
        "DistilBertForSequenceClassification",
        {"num_labels": 2, "activation": "tanh", "hidden_dim": 5},
    ),
    "distilbert-one-number": ("DistilBertForSequenceClassification", {"num_labels": 1}),
    "distilbert-tokens": ("DistilBertForTokenClassification", LABELS | {"n_heads": 2}),
    "distilbert-tokens-relu": (
        "DistilBertForTokenClassification",
        {"num_labels": 5, "activation": "relu", "n_layers": 3},
    ),
    "distilbert-answers": ("DistilBertForQuestionAnswering", {"num_labels": 2}),
    "distilbert-answers-silu": ("DistilBertForQuestionAnswering", {"activation": "silu"}),
    "distilbert-no-head": ("DistilBertModel", {"n_heads": 1}),
    "modernbert": ("ModernBertForMaskedLM", {}),
    "modernbert-biases": (
        "ModernBertForMaskedLM",
        dict.fromkeys(("attention_bias", "classifier_bias", "mlp_bias", "norm_bias"), True),
    ),
    "modernbert-untied": (
        "ModernBertForMaskedLM",
        {
            "tie_word_embeddings": False,
            "decoder_bias": False,
            "hidden_activation": "relu",
            "classifier_activation": "tanh",
            "norm_eps": 1e-2,
        },
    ),
    "modernbert-itself-alone": (
        "ModernBertForMaskedLM",
        {"local_attention": 1, "local_rope_theta": None, "num_attention_heads": 1},
    ),
    "modernbert-odd-window": (
        "ModernBertForMaskedLM",
        {"local_attention": 5, "global_attn_every_n_layers": 9, "mlp_bias": True},
    ),
    "modernbert-all-global": (
        "ModernBertForMaskedLM",
        {"global_attn_every_n_layers": 1, "attention_bias": True, "hidden_activation": "silu"},
    ),
    "modernbert-every-third": ("ModernBertForMaskedLM", {"global_attn_every_n_layers": 3}),
    "modernbert-classes": ("ModernBertForSequenceClassification", LABELS | {"norm_bias": True}),
    "modernbert-mean": (
        "ModernBertForSequenceClassification",
        {"classifier_pooling": "mean", "num_labels": 2, "classifier_bias": True},
    ),
    "modernbert-classes-tanh": (
        "ModernBertForSequenceClassification",
        {"num_labels": 1, "classifier_activation": "tanh", "classifier_pooling": "mean"},
    ),
    "modernbert-tokens": ("ModernBertForTokenClassification", LABELS),
    "modernbert-tokens-biases": (
        "ModernBertForTokenClassification",
        {"num_labels": 5, "classifier_bias": True, "norm_bias": True, "mlp_bias": True},
    ),
    "modernbert-answers": ("ModernBertForQuestionAnswering", {"num_labels": 2}),
    "modernbert-answers-relu": (
        "ModernBertForQuestionAnswering",
        {"classifier_activation": "relu", "attention_bias": True},
    ),
    "modernbert-no-head": ("ModernBertModel", {"hidden_activation": "gelu_new"}),
}


def write_newer_encoder(folder: Path, kind: str, options: dict[str, Any]) -> Path:
    """A checkpoint of the class `kind`."""
    base = _DISTILBERT if kind.startswith("Distil") else _MODERNBERT
    cls = getattr(_transformers(), kind)
    _drawn(cls(cls.config_class(**base | options)), _scaled_encoder).save_pretrained(folder)
    return folder


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
    """A T5, or one of its relatives: mT5, umT5, with any head."""
    kind = getattr(_transformers(), cls)
    return _drawn(kind(kind.config_class(**(T5 | options))), _scaled)


# -- Whisper ---------------------------------------------------------------------------------------

WHISPER: dict[str, Any] = {
    "vocab_size": 29,
    "num_mel_bins": 5,
    "d_model": 24,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 32,
    "decoder_layers": 2,
    "decoder_attention_heads": 3,
    "decoder_ffn_dim": 28,
    "max_source_positions": 9,
    "max_target_positions": 48,
    "decoder_start_token_id": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "begin_suppress_tokens": None,
}


def random_whisper(cls: str = "WhisperForConditionalGeneration", **options: Any) -> Any:
    """The sinusoids are drawn too: a checkpoint may hold any."""
    transformers = _transformers()
    model = getattr(transformers, cls)(transformers.WhisperConfig(**(WHISPER | options)))
    return _drawn(model, _scaled_whisper)


def _scaled_whisper(name: str, noise: Any) -> Any:
    if noise.ndim == 1:
        return 1 + 0.3 * noise if name.endswith("norm.weight") else 0.3 * noise
    return 0.6 * noise if "embed" in name else noise * noise[0].numel() ** -0.5


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


# -- DINOv2 and CLIP -------------------------------------------------------------------------------

DINOV2: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 12,
    "patch_size": 4,
    "num_labels": 5,
}


def random_dinov2(kind: str, head: str, **options: Any) -> Any:
    """`kind`: Dinov2 or Dinov2WithRegisters."""
    transformers = _transformers()
    config = getattr(transformers, f"{kind}Config")(**(DINOV2 | options))
    return _drawn(getattr(transformers, kind + head)(config), _scaled_newer_vision, seed=9)


_CLIP_VISION = {name: v for name, v in DINOV2.items() if name != "num_labels"}
_CLIP_VISION |= {"intermediate_size": 40, "projection_dim": 12}


def random_clip(
    cls: str, text: dict[str, Any], vision: dict[str, Any], both: dict[str, Any]
) -> Any:
    """Of any of CLIP's classes."""
    t = _transformers()
    inner = {"projection_dim": 12} | both
    texts = t.CLIPTextConfig(**(_TEXT | {"eos_token_id": 28} | inner | text))
    pictures = t.CLIPVisionConfig(**(_CLIP_VISION | inner | vision))
    config = t.CLIPConfig.from_text_vision_configs(texts, pictures, num_labels=5, **inner)
    config = texts if "Text" in cls else pictures if "Vision" in cls else config
    return _drawn(getattr(t, cls)(config), _scaled_newer_vision, seed=9)


def _scaled_newer_vision(name: str, noise: Any) -> Any:
    if noise.ndim == 0:
        return 1 + 0.3 * noise
    if noise.ndim == 1 and name.endswith((".weight", "lambda1")):
        return 1 + 0.3 * noise
    wide = noise.ndim in (2, 4) and "token" not in name and "position" not in name
    return noise * noise[0].numel() ** -0.5 if wide else 0.3 * noise
