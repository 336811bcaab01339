"""Models with random weights, from the options of a config.json: every architecture, as small and
as strange as a test needs.

Scales are chosen so that activations stay of the order of 1 at any width and depth: matrices have
entries of standard deviation 1/sqrt(fan-in), embeddings 1, biases 0.3, and norm weights lie about 1
with standard deviation 0.3 (never at 1, where a forgotten weight would go unseen).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from refl.arrays import Array, asnumpy
from refl.io.config import labels
from refl.model import Model, architecture
from refl.nets.config import parse
from refl.network import LABELED

_DECODER: dict[str, Any] = {
    "vocab_size": 17,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}

LLAMA: dict[str, Any] = _DECODER | {
    "model_type": "llama",
    "head_dim": 4,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
}
"""A bias-free Llama with grouped queries."""

GPT2: dict[str, Any] = {
    "model_type": "gpt2",
    "vocab_size": 17,
    "n_positions": 512,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 4,
    "n_inner": 24,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
}
"""A GPT-2; biases everywhere, as always there."""

MISTRAL: dict[str, Any] = _DECODER | {
    "model_type": "mistral",
    "head_dim": 6,
    "rms_norm_eps": 1e-5,
    "sliding_window": 3,
}
"""A bias-free Mistral with a window of three tokens."""

QWEN2: dict[str, Any] = _DECODER | {"model_type": "qwen2", "rms_norm_eps": 1e-5}
"""A Qwen 2; biases on queries, keys and values, as always there."""

QWEN3: dict[str, Any] = QWEN2 | {
    "model_type": "qwen3",
    "head_dim": 6,
    "use_sliding_window": True,
    "sliding_window": 3,
    "max_window_layers": 1,
}
"""A bias-free Qwen 3 with a window of three tokens in the second block."""

OLMO2: dict[str, Any] = QWEN2 | {"model_type": "olmo2", "head_dim": 6}
"""A bias-free OLMo 2."""

PHI: dict[str, Any] = {
    "model_type": "phi",
    "vocab_size": 17,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "partial_rotary_factor": 0.7,
}
"""A Phi that turns four of a head's six features; biases everywhere, as always there."""

GEMMA2: dict[str, Any] = _DECODER | {
    "model_type": "gemma2",
    "head_dim": 6,
    "sliding_window": 3,
    "query_pre_attn_scalar": 5,
    "attn_logit_softcapping": 8.0,
    "final_logit_softcapping": 12.0,
}
"""A bias-free Gemma 2: a window in the first block, caps that are felt."""

GEMMA3: dict[str, Any] = GEMMA2 | {
    "model_type": "gemma3_text",
    "sliding_window_pattern": 2,
    "rope_local_base_freq": 100.0,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
}
"""A bias-free Gemma 3: a window in the first block, with rotary positions of its own."""

MIXTRAL: dict[str, Any] = _DECODER | {
    "model_type": "mixtral",
    "intermediate_size": 12,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "sliding_window": None,
    "num_local_experts": 6,
    "num_experts_per_tok": 2,
    "tie_word_embeddings": False,
}
"""A Mixtral; bias-free, as always there."""

QWEN3_MOE: dict[str, Any] = _DECODER | {
    "model_type": "qwen3_moe",
    "num_hidden_layers": 3,
    "head_dim": 6,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": False,
    "num_experts": 7,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 8,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [1],
}
"""A bias-free Qwen 3-MoE; one block has no experts."""

BERT: dict[str, Any] = {
    "model_type": "bert",
    "architectures": ["BertForMaskedLM"],
    "vocab_size": 17,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-5,
}
"""A masked language model; `{"architectures": ["BertForSequenceClassification"]}` on top makes it a
classifier of two classes.
"""

ROBERTA: dict[str, Any] = BERT | {
    "model_type": "roberta",
    "architectures": ["RobertaForMaskedLM"],
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "pad_token_id": 1,
}

ALBERT: dict[str, Any] = BERT | {
    "model_type": "albert",
    "architectures": ["AlbertForMaskedLM"],
    "embedding_size": 12,
    "num_hidden_layers": 3,
    "num_hidden_groups": 2,
    "inner_group_num": 2,
}
"""Six inner layers from four sets of weights."""

T5: dict[str, Any] = {
    "model_type": "t5",
    "vocab_size": 17,
    "d_model": 16,
    "d_kv": 6,
    "d_ff": 24,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "relu",
    "is_encoder_decoder": True,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
}
"""A T5 as first published; bias-free but for its tables of distances.
`FLAN` on top makes it a Flan-T5.
"""

VIT: dict[str, Any] = {
    "model_type": "vit",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "image_size": [8, 12],
    "patch_size": [4, 3],
    "num_channels": 3,
    "num_labels": 5,
}
"""Eight patches, not square, of an image that is not square."""

DEIT: dict[str, Any] = VIT | {
    "model_type": "deit",
    "architectures": ["DeiTForImageClassificationWithTeacher"],
}
"""A class and a distillation token, and a head on each."""

DINOV2: dict[str, Any] = {
    "model_type": "dinov2",
    "hidden_size": 16,
    "mlp_ratio": 1.5,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 8,
    "patch_size": [4, 3],
    "num_channels": 3,
    "num_labels": 5,
}
"""Four patches, not square, of which the last column of pixels but one is in none."""

REGISTERS: dict[str, Any] = {
    "model_type": "dinov2_with_registers",
    "architectures": ["Dinov2WithRegistersForImageClassification"],
    "num_register_tokens": 3,
    "use_swiglu_ffn": True,
}
"""On top of DINOV2: register tokens, and a gated MLP."""

_CLIP_TEXT: dict[str, Any] = {
    "vocab_size": 17,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 24,
    "projection_dim": 10,
    "eos_token_id": 2,
}
_CLIP_VISION: dict[str, Any] = {
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 8,
    "patch_size": 4,
    "projection_dim": 10,
}

CLIP: dict[str, Any] = {
    "model_type": "clip",
    "projection_dim": 10,
    "text_config": _CLIP_TEXT,
    "vision_config": _CLIP_VISION,
    "num_labels": 5,
}
"""A CLIP whose texts end at the token of the largest id; `{"architectures":
["CLIPForImageClassification"]}` on top makes it a classifier of pictures.
"""

CLIP_TEXT: dict[str, Any] = _CLIP_TEXT | {"model_type": "clip_text_model"}
"""Its text tower; `{"architectures": ["CLIPTextModelWithProjection"]}` on top projects."""

CLIP_VISION: dict[str, Any] = _CLIP_VISION | {"model_type": "clip_vision_model"}
"""Its picture tower; `{"architectures": ["CLIPVisionModelWithProjection"]}` on top projects."""

FLAN: dict[str, Any] = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}

MAMBA: dict[str, Any] = {
    "model_type": "mamba",
    "vocab_size": 17,
    "hidden_size": 12,
    "state_size": 5,
    "num_hidden_layers": 2,
    "conv_kernel": 3,
    "time_step_rank": 3,
    "use_bias": False,
    "use_conv_bias": False,
}
"""A Mamba whose only biases are those of its step sizes, as always there."""

# -- newer decoders --------------------------------------------------------------------------------

PHI3: dict[str, Any] = _DECODER | {
    "model_type": "phi3",
    "head_dim": 6,
    "partial_rotary_factor": 0.7,
    "sliding_window": 3,
}
"""A bias-free Phi-3 with a window of three tokens that turns four of a head's six features."""

SMOLLM3: dict[str, Any] = _DECODER | {
    "model_type": "smollm3",
    "num_hidden_layers": 3,
    "no_rope_layer_interval": 2,
    "use_sliding_window": True,
    "sliding_window": 3,
}
"""A bias-free SmolLM 3 whose second block has a window of three tokens and no rotary positions."""

GRANITE: dict[str, Any] = _DECODER | {
    "model_type": "granite",
    "embedding_multiplier": 1.7,
    "attention_multiplier": 0.6,
    "residual_multiplier": 0.4,
    "logits_scaling": 0.3,
}
"""A bias-free Granite, each scalar another."""

COHERE: dict[str, Any] = _DECODER | {
    "model_type": "cohere",
    "logit_scale": 1.6,
    "use_qk_norm": True,
}
"""A bias-free Command R with norms on queries and keys."""

COHERE2: dict[str, Any] = _DECODER | {
    "model_type": "cohere2",
    "logit_scale": 0.7,
    "sliding_window": 3,
    "sliding_window_pattern": 2,
}
"""A bias-free Command R7B: a window and rotary positions in the first block."""

GPT_NEOX: dict[str, Any] = {
    "model_type": "gpt_neox",
    "vocab_size": 17,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "rotary_pct": 0.7,
}
"""A Pythia that turns four of a head's six features; biases everywhere, as always there."""

STARCODER2: dict[str, Any] = _DECODER | {"model_type": "starcoder2", "sliding_window": 3}
"""A StarCoder 2 with a window of three tokens; biases everywhere."""

STABLELM: dict[str, Any] = _DECODER | {
    "model_type": "stablelm",
    "head_dim": 6,
    "partial_rotary_factor": 0.7,
}
"""A StableLM that turns four of a head's six features; biases in its norms."""

OPT: dict[str, Any] = {
    "model_type": "opt",
    "vocab_size": 17,
    "hidden_size": 16,
    "ffn_dim": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": None,
}
"""An OPT; biases everywhere."""

ARCHITECTURES: dict[str, dict[str, Any]] = {
    config["model_type"]: config
    for config in (
        LLAMA,
        GPT2,
        MISTRAL,
        QWEN2,
        QWEN3,
        OLMO2,
        PHI,
        GEMMA2,
        GEMMA3,
        MIXTRAL,
        QWEN3_MOE,
        BERT,
        ROBERTA,
        ALBERT,
        VIT,
        DEIT,
        T5,
    )
}
"""One of each of the first nets, on which every part of refl is tried."""

DISTILBERT: dict[str, Any] = {
    "model_type": "distilbert",
    "architectures": ["DistilBertForMaskedLM"],
    "vocab_size": 17,
    "dim": 16,
    "hidden_dim": 24,
    "n_layers": 2,
    "n_heads": 4,
}
"""A masked language model, without token types."""

MODERNBERT: dict[str, Any] = {
    "model_type": "modernbert",
    "architectures": ["ModernBertForMaskedLM"],
    "vocab_size": 17,
    "hidden_size": 16,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "global_rope_theta": 1000.0,
    "local_rope_theta": 100.0,
    "local_attention": 4,
    "global_attn_every_n_layers": 2,
}
"""A masked language model; two tokens to either side in the second block."""

UMT5: dict[str, Any] = T5 | FLAN | {"model_type": "umt5", "num_decoder_layers": 2}
"""A umT5: a table of distances in every block."""

WHISPER: dict[str, Any] = {
    "model_type": "whisper",
    "vocab_size": 17,
    "num_mel_bins": 5,
    "d_model": 16,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 24,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 20,
    "max_source_positions": 6,
    "max_target_positions": 64,
    "activation_function": "gelu",
    "decoder_start_token_id": 0,
}
"""A Whisper that reads twelve frames of five mel bins."""

NEWER: dict[str, dict[str, Any]] = {
    config["model_type"]: config
    for config in (
        MAMBA,
        PHI3,
        SMOLLM3,
        GRANITE,
        COHERE,
        COHERE2,
        GPT_NEOX,
        STARCODER2,
        STABLELM,
        OPT,
        DISTILBERT,
        MODERNBERT,
        DINOV2,
        CLIP,
        CLIP_TEXT,
        CLIP_VISION,
        UMT5,
        WHISPER,
    )
}
"""One of each net that came later. They are made of the same operations, so what is tried on them
is the net (tests/nets/test_newer.py), and not every part of refl once more.
"""


def random_model(config: dict[str, Any], seed: int, dtype: str = "float64") -> Model:
    """A model of this config.json content (`LLAMA | {"mlp_bias": True}`, say) with weights drawn
    from `seed`.

    The same seed gives the same weights in either dtype, rounded. There is no tokenizer: inputs are
    token ids. Raises ReflError for a config that no net takes.
    """
    net = architecture(config)
    parsed = parse(net.Config, config)
    random = np.random.default_rng(seed)
    weights = {
        name: _read_only(_draw(random, name, shape).astype(dtype))
        for name, shape, _ in net.shapes(parsed)
    }
    return Model(
        net,
        parsed,
        weights,
        None,
        lambda array: array,
        dtype,
        name=f"random {net.MODEL_TYPE} {seed}",
        labels=labels(config, parsed.labels) if net.task(parsed) in LABELED else {},
    )


def with_weights(model: Model, **changed: Any) -> Model:
    """The same model with some tensors replaced, by name."""
    return replace(
        model,
        weights={
            **model.weights,
            **{name: _read_only(np.asarray(w)) for name, w in changed.items()},
        },
    )


def moved(model: Model, place: Callable[[Any], Array]) -> Model:
    """The same model in another array library or on another device;
    `place` takes a NumPy array there.
    """
    return replace(
        model,
        weights={name: place(asnumpy(model.weights[name])) for name in model.weights},
        place=place,
    )


def _draw(random: np.random.Generator, name: str, shape: tuple[int, ...]) -> Array:
    drawn = random.standard_normal(shape)
    if name.endswith(".bias"):
        return 0.3 * drawn
    if not shape:  # CLIP's logit_scale
        return np.asarray(1 + 0.3 * drawn)
    if name.endswith("class_embedding"):
        return 0.5 * drawn
    if len(shape) == 1 or name.endswith("_norm.weight"):  # a norm's weight
        return 1 + 0.3 * drawn
    if name.endswith(("cls_token", "distillation_token", "register_tokens", "position_embeddings")):
        return 0.5 * drawn
    tables = (
        *("embed_tokens", "embed_positions", "embed_in", "wte", "wpe", "embeddings"),
        "_embedding",
    )
    if name.rpartition(".")[0].endswith(tables) and len(shape) == 2:
        return drawn
    return drawn / np.sqrt(shape[0] if _is_conv1d(name) else math.prod(shape[1:]))


def _is_conv1d(name: str) -> bool:
    """GPT-2 stores these (I, O), everyone else (O, I)."""
    return name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))


def _read_only(array: Array) -> Array:
    array.flags.writeable = False
    return array
