"""Makes the model-level conformance vectors.

    python -m refl.verification.vectors.make_model_vectors [ARCHITECTURE ...]

For every architecture a folder as Hugging Face's transformers write them (config.json,
model.safetensors) with a small random model, and beside it expected.safetensors: the logits, every
activation and every relevance of one or two inputs under each method, from exact_sweep.py, and how
far roundoff may move each site. Equal code gives equal bytes: weights and inputs come from
`random()` of Python's generator, whose sequence is promised to stay, and every expected number is
exact before it is rounded once.

Weights and pixels are multiples of 1/256 and 1/16 below 8: they are the same numbers in float16.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import refl
from refl.anatomy import watched
from refl.io.files import atomic_write
from refl.io.safetensors import write_safetensors
from refl.model import Model, architecture
from refl.nets.config import parse
from refl.verification.definitions import exact_sweep
from refl.verification.vectors import FORMAT
from refl.verification.vectors.model_vectors import EXPECTED, FOLDER, UNITS, vector_item

TEXT_METHODS = ("attnlrp", "attnlrp-gradient", "cp-lrp", "input-x-gradient")
METHODS = {
    "llama": (*TEXT_METHODS, "lxt-explicit"),
    "vit": (*TEXT_METHODS, "attnlrp-vit"),
    "deit": (*TEXT_METHODS, "attnlrp-vit"),
    "dinov2": (*TEXT_METHODS, "attnlrp-vit"),
}

_DECODER: dict[str, Any] = {
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
_GEMMA: dict[str, Any] = _DECODER | {
    "hidden_activation": "gelu_pytorch_tanh",
    "sliding_window": 3,
    "query_pre_attn_scalar": 16,
    "tie_word_embeddings": True,
    "attention_bias": False,
}
del _GEMMA["hidden_act"]
_LAYER_NORMED: dict[str, Any] = {k: v for k, v in _DECODER.items() if k != "rms_norm_eps"}
_COHERE: dict[str, Any] = _LAYER_NORMED | {
    "layer_norm_eps": 1e-5,
    "attention_bias": False,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
}
_ENCODER: dict[str, Any] = {
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_act": "gelu",
    "max_position_embeddings": 16,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-5,
}
_VISION: dict[str, Any] = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "image_size": [4, 6],
    "patch_size": [2, 3],
    "num_channels": 3,
    "qkv_bias": True,
    "id2label": {"0": "a", "1": "b", "2": "c"},
    "label2id": {"a": 0, "b": 1, "c": 2},
}
_CLIP_VISION: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "image_size": 4,
    "patch_size": 2,
    "num_channels": 3,
    "projection_dim": 6,
}
_CLIP_TEXT: dict[str, Any] = {
    "model_type": "clip_text_model",
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 16,
    "projection_dim": 6,
    "eos_token_id": 2,
    "bos_token_id": 0,
    "pad_token_id": 1,
}
_CLASSES = {"id2label": _VISION["id2label"], "label2id": _VISION["label2id"]}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _DECODER
    | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "gpt2": {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": 11,
        "n_positions": 16,
        "n_embd": 8,
        "n_layer": 2,
        "n_head": 2,
        "n_inner": 12,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
    },
    "mistral": _DECODER
    | {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 3},
    "qwen2": _DECODER
    | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "num_hidden_layers": 1},
    "qwen3": _DECODER
    | {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "num_hidden_layers": 1,
        "attention_bias": False,
    },
    "olmo2": _DECODER
    | {
        "architectures": ["Olmo2ForCausalLM"],
        "model_type": "olmo2",
        "num_hidden_layers": 1,
        "attention_bias": False,
    },
    "phi": {
        "architectures": ["PhiForCausalLM"],
        "model_type": "phi",
        "vocab_size": 11,
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
        "rope_theta": 100.0,
        "hidden_act": "gelu_new",
        "layer_norm_eps": 1e-5,
        "partial_rotary_factor": 0.5,
        "qk_layernorm": False,
        "tie_word_embeddings": False,
    },
    "gemma2": _GEMMA
    | {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "attn_logit_softcapping": 8.0,
        "final_logit_softcapping": 16.0,
    },
    "gemma3_text": _GEMMA
    | {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "sliding_window_pattern": 2,
        "rope_local_base_freq": 10.0,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    },
    "mixtral": _DECODER
    | {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "num_hidden_layers": 1,
        "intermediate_size": 6,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": None,
    },
    "qwen3_moe": _DECODER
    | {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "attention_bias": False,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 6,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [1],
    },
    # newer decoders
    "phi3": _DECODER
    | {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "num_hidden_layers": 1,
        "head_dim": 6,
        "partial_rotary_factor": 0.7,
        "sliding_window": 3,
        "pad_token_id": 0,
    },
    "smollm3": _DECODER
    | {
        "architectures": ["SmolLM3ForCausalLM"],
        "model_type": "smollm3",
        "no_rope_layers": [1, 0],
        "no_rope_layer_interval": 2,
        "use_sliding_window": True,
        "sliding_window": 3,
        "pad_token_id": 0,
    },
    "granite": _DECODER
    | {
        "architectures": ["GraniteForCausalLM"],
        "model_type": "granite",
        "num_hidden_layers": 1,
        "attention_bias": False,
        "mlp_bias": False,
        "embedding_multiplier": 1.5,
        "attention_multiplier": 0.75,
        "residual_multiplier": 0.5,
        "logits_scaling": 0.25,
    },
    "cohere": _COHERE
    | {
        "architectures": ["CohereForCausalLM"],
        "model_type": "cohere",
        "num_hidden_layers": 1,
        "logit_scale": 1.5,
        "use_qk_norm": True,
    },
    "cohere2": _COHERE
    | {
        "architectures": ["Cohere2ForCausalLM"],
        "model_type": "cohere2",
        "logit_scale": 0.75,
        "sliding_window": 3,
        "sliding_window_pattern": 2,
    },
    "gpt_neox": {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "vocab_size": 11,
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
        "rotary_emb_base": 100,
        "rotary_pct": 0.5,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "use_parallel_residual": True,
        "attention_bias": True,
        "tie_word_embeddings": False,
    },
    "starcoder2": _LAYER_NORMED
    | {
        "architectures": ["Starcoder2ForCausalLM"],
        "model_type": "starcoder2",
        "num_hidden_layers": 1,
        "norm_epsilon": 1e-5,
        "hidden_act": "gelu_pytorch_tanh",
        "use_bias": True,
        "sliding_window": 3,
        "tie_word_embeddings": True,
    },
    "stablelm": _LAYER_NORMED
    | {
        "architectures": ["StableLmForCausalLM"],
        "model_type": "stablelm",
        "num_hidden_layers": 1,
        "layer_norm_eps": 1e-5,
        "partial_rotary_factor": 0.5,
        "use_qkv_bias": True,
        "use_parallel_residual": True,
    },
    "opt": {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "vocab_size": 11,
        "hidden_size": 8,
        "word_embed_proj_dim": 6,
        "ffn_dim": 12,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 16,
        "activation_function": "relu",
        "do_layer_norm_before": False,
        "tie_word_embeddings": True,
        "pad_token_id": 1,
    },
    "bert": _ENCODER
    | _CLASSES
    | {"architectures": ["BertForSequenceClassification"], "model_type": "bert", "pad_token_id": 0},
    "roberta": _ENCODER
    | {
        "architectures": ["RobertaForMaskedLM"],
        "model_type": "roberta",
        "num_hidden_layers": 1,
        "type_vocab_size": 1,
        "pad_token_id": 1,
    },
    "albert": _ENCODER
    | _CLASSES
    | {
        "architectures": ["AlbertForSequenceClassification"],
        "model_type": "albert",
        "embedding_size": 6,
        "num_hidden_layers": 3,
        "num_hidden_groups": 2,
        "inner_group_num": 1,
        "hidden_act": "gelu_new",
        "pad_token_id": 0,
    },
    "distilbert": {
        "architectures": ["DistilBertForSequenceClassification"],
        "model_type": "distilbert",
        "vocab_size": 11,
        "dim": 8,
        "hidden_dim": 12,
        "n_layers": 1,
        "n_heads": 2,
        "activation": "gelu",
        "max_position_embeddings": 16,
        "pad_token_id": 0,
    }
    | _CLASSES,
    "modernbert": {
        "architectures": ["ModernBertForMaskedLM"],
        "model_type": "modernbert",
        "vocab_size": 11,
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 16,
        "global_attn_every_n_layers": 2,
        "local_attention": 2,
        "global_rope_theta": 100.0,
        "local_rope_theta": 10.0,
        "hidden_activation": "gelu",
        "classifier_activation": "gelu",
        "norm_eps": 1e-5,
        "pad_token_id": 0,
    },
    "t5": {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "vocab_size": 11,
        "d_model": 8,
        "d_kv": 4,
        "d_ff": 12,
        "num_layers": 1,
        "num_decoder_layers": 2,
        "num_heads": 2,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 12,
        "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": "gated-gelu",
        "is_encoder_decoder": True,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "tie_word_embeddings": False,
    },
    "whisper": {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "vocab_size": 11,
        "num_mel_bins": 3,
        "d_model": 8,
        "encoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 12,
        "decoder_layers": 1,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 12,
        "max_source_positions": 3,
        "max_target_positions": 8,
        "activation_function": "gelu",
        "is_encoder_decoder": True,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "tie_word_embeddings": True,
    },
    "vit": _VISION | {"architectures": ["ViTForImageClassification"], "model_type": "vit"},
    "deit": _VISION
    | {
        "architectures": ["DeiTForImageClassificationWithTeacher"],
        "model_type": "deit",
        "num_hidden_layers": 1,
    },
    "dinov2": _VISION
    | {
        "architectures": ["Dinov2ForImageClassification"],
        "model_type": "dinov2",
        "num_hidden_layers": 1,
        "mlp_ratio": 1.5,
        "use_swiglu_ffn": True,
        "use_mask_token": False,
        "image_size": [4, 4],
        "patch_size": [2, 2],
    },
    "clip": {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": 6,
        "text_config": _CLIP_TEXT,
        "vision_config": _CLIP_VISION,
    },
    "clip_text_model": _CLIP_TEXT | {"architectures": ["CLIPTextModelWithProjection"]},
    "clip_vision_model": _CLIP_VISION | {"architectures": ["CLIPVisionModelWithProjection"]},
}
CONFIGS["mamba"] = {
    "architectures": ["MambaForCausalLM"],
    "model_type": "mamba",
    "vocab_size": 11,
    "hidden_size": 6,
    "expand": 2,
    "state_size": 3,
    "time_step_rank": 2,
    "conv_kernel": 3,
    "num_hidden_layers": 1,
    "layer_norm_epsilon": 1e-5,
    "hidden_act": "silu",
    "use_bias": True,
    "use_conv_bias": True,
    "tie_word_embeddings": True,
}
del CONFIGS["dinov2"]["intermediate_size"]
"""Every architecture as small as it can be and still show what is its own: groups of heads,
windows, caps, ties, shared layers.
"""

HEADS: dict[str, dict[str, Any]] = {
    "llama-class": CONFIGS["llama"]
    | _CLASSES
    | {
        "architectures": ["LlamaForSequenceClassification"],
        "num_hidden_layers": 1,
        "pad_token_id": 0,
    },
    "llama-answer-span": CONFIGS["llama"]
    | {"architectures": ["LlamaForQuestionAnswering"], "num_hidden_layers": 1},
    "bert-token-class": CONFIGS["bert"]
    | {"architectures": ["BertForTokenClassification"], "num_hidden_layers": 1},
    "bert-features": {
        key: value for key, value in CONFIGS["bert"].items() if key not in ("id2label", "label2id")
    }
    | {"architectures": ["BertModel"], "num_hidden_layers": 1, "add_pooling_layer": False},
}
"""And every further head, on one of them."""

RELATIVES: dict[str, dict[str, Any]] = {
    "umt5": CONFIGS["t5"]
    | {
        "architectures": ["UMT5ForConditionalGeneration"],
        "model_type": "umt5",
        "d_kv": 3,
        "d_ff": 8,
        "num_layers": 2,
        "num_decoder_layers": 1,
    },
}
"""And what another model_type of a net computes otherwise."""

ALL = CONFIGS | HEADS | RELATIVES

SEEDS = {
    "llama": 5,
    "gpt2": 1,
    "mistral": 7,
    "qwen2": 5,
    "qwen3": 7,
    "olmo2": 2,
    "phi": 4,
    "gemma2": 5,
    "gemma3_text": 0,
    "mixtral": 0,
    "qwen3_moe": 7,
    "phi3": 5,
    "smollm3": 1,
    "granite": 1,
    "cohere": 0,
    "cohere2": 1,
    "gpt_neox": 2,
    "starcoder2": 3,
    "stablelm": 3,
    "opt": 7,
    "bert": 2,
    "roberta": 6,
    "albert": 7,
    "distilbert": 5,
    "modernbert": 5,
    "t5": 5,
    "whisper": 3,
    "vit": 0,
    "deit": 4,
    "dinov2": 6,
    "clip": 0,
    "clip_text_model": 0,
    "clip_vision_model": 2,
    "llama-class": 0,
    "llama-answer-span": 4,
    "bert-token-class": 2,
    "bert-features": 4,
    "umt5": 3,
}
"""Chosen so that no output that a rule divides by lies near zero and no
choice of experts is close: see `search`.
"""

NOTES = {
    "llama": "grouped queries: 4 heads on 2 keys and values",
    "gpt2": "matrices stored (in, out), tied head, q, k and v from one matrix",
    "mistral": "a window of 3 tokens in every block, one key and value head",
    "qwen2": "biases on q, k and v alone",
    "qwen3": "RMSNorm on every head's queries and keys",
    "olmo2": "RMSNorm behind attention and MLP, and on the queries of all heads together",
    "phi": "attention and MLP side by side, half of each head turned, biases everywhere",
    "gemma2": "norm weights stored as what differs from 1, soft caps on scores and logits, a "
    "window of 3 tokens in the first block",
    "gemma3_text": "norms on queries and keys, a window and rotary positions "
    "of its own in the first block",
    "mixtral": "4 experts of which 2 are chosen, their weights made to sum to one",
    "qwen3_moe": "experts in the first block, none in the second",
    "phi3": "queries, keys and values from one matrix, gate and up from another, two thirds of "
    "each head turned, a window of 3 tokens",
    "smollm3": "no rotary positions in the second block, and a window of 3 tokens there",
    "granite": "scalars on embeddings, scores, both half-blocks and logits",
    "cohere": "attention and MLP behind one norm without a bias, neighboring features turned "
    "together, norms with weights of each head, scaled logits",
    "cohere2": "a window of 3 tokens and rotary positions in the first block, none in the second",
    "gpt_neox": "attention and MLP side by side behind norms of their own, query, key and value of "
    "each head beside one another",
    "starcoder2": "layer norms and biases around grouped queries, an MLP without a gate",
    "stablelm": "attention and a gated MLP side by side behind one norm, half of each head turned",
    "opt": "norms behind both sums, embeddings narrower than the blocks, positions counted from 2",
    "bert": "a classifier that reads the first token through a pooler",
    "roberta": "a masked token; positions counted from pad_token_id + 1",
    "albert": "three layers from two sets of weights, narrow embeddings",
    "distilbert": "a classifier with a ReLU on the first token, no token types",
    "modernbert": "a masked token; one token to either side in the second block, with rotary "
    "positions of its own; gate and up, and queries, keys and values, each from one matrix",
    "t5": "encoder and decoder, cross-attention, relative position bias, gated GELU, head of its "
    "own",
    "whisper": "log-mel features, two convolutions whose windows overlap, a decoder with a tied "
    "head",
    "vit": "pixels, patches that are no squares, a class token",
    "deit": "class and distillation token, the mean of two heads",
    "dinov2": "a learned factor for each feature behind attention and MLP, a gated MLP, the mean "
    "over patches beside the class token",
    "clip": "a picture compared with a text: two towers, both normalized, half of their product "
    "to each",
    "clip_text_model": "causal, and the token of the largest id speaks for the text",
    "clip_vision_model": "a norm in front of the blocks, a convolution without a bias",
    "llama-class": "a class of the text, read at its last token that is no padding",
    "llama-answer-span": "start and end logits of every token, behind each other: 2 t and 2 t + 1 "
    "of token t; the base is called `transformer`",
    "bert-token-class": "a class of one token",
    "bert-features": "no head and no pooler: the features of a token, one of which is explained",
    "umt5": "a table of distances in every block of both stacks",
}

SEEDS["mamba"] = 2
NOTES["mamba"] = "no attention: a causal convolution and a selective scan in its one block, gated"

RUNS = 8
"""How often everything is moved to see what that does."""

CLOSE = 0.005
"""A choice of experts by less could fall otherwise in a low precision."""

SOURCE = (
    "python -m refl.verification.vectors.make_model_vectors: every operation and rule from its "
    "definition, 60 digits, rounded once to float64"
)


# -- weights and inputs ----------------------------------------------------------------------------


def _grid(draw: random.Random, size: float, step: float, center: float = 0.0) -> float:
    """A multiple of `step`, never 0, from the uniform distribution about `center` with standard
    deviation `size`.
    """
    while True:
        value = round((center + size * math.sqrt(3.0) * (2 * draw.random() - 1)) / step) * step
        if value:
            return value


def _scale(name: str, shape: tuple[int, ...], config: dict[str, Any]) -> tuple[float, float]:
    """Standard deviation and center of a tensor's entries:
    activations stay about 1, norm weights are never 1.
    """
    if name.endswith("bias"):
        return 0.3, 0.0
    if len(shape) == 1 or name.endswith("_norm.weight"):
        return 0.3, 0.0 if config["model_type"].startswith("gemma") else 1.0
    if any(
        part in name
        for part in ("embed", "wte", "wpe", "token", "shared", "relative_attention_bias")
    ):
        return (0.35 if config["model_type"].startswith("gemma") else 1.0), 0.0
    into = (
        shape[0]
        if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
        else math.prod(shape[1:])
    )
    return into**-0.5, 0.0


def weights(config: dict[str, Any], seed: int) -> dict[str, Any]:
    """Tensor name -> float32 array."""
    net = architecture(config)
    drawn = {}
    for name, shape, _ in net.shapes(parse(net.Config, config)):
        draw = random.Random(f"{config['model_type']} {seed} {name}")
        size, center = _scale(name, shape, config)
        numbers = [_grid(draw, size, 2.0**-8, center) for _ in range(math.prod(shape))]
        drawn[name] = np.array(numbers, dtype=np.float32).reshape(shape)
    return drawn


@dataclass(frozen=True)
class Input:
    """What a model reads; the fields that its kind of input has."""

    ids: list[int] | None = None
    pixels: Any = None
    decoder_ids: list[int] | None = None
    position: int | None = None

    @property
    def item(self) -> Any:
        return vector_item(self.ids, self.pixels)


def inputs(config: dict[str, Any], seed: int) -> list[Input]:
    """Two: of five tokens, one of them twice, and of three; or two pictures; or these with those
    texts.
    """
    draw, kind = random.Random(f"inputs {config['model_type']} {seed}"), config["model_type"]
    net = architecture(config)
    parsed, pictures = parse(net.Config, config), []
    if hasattr(parsed, "image") and kind != "whisper":
        shape = (parsed.num_channels, *parsed.image)
        pictures = [_pixels(draw, shape) for _ in range(2)]
    if pictures and kind != "clip":
        return [Input(pixels=one) for one in pictures]
    long, short = (
        [2 + int(draw.random() * (parsed.vocab_size - 2)) for _ in range(n)] for n in (5, 3)
    )
    long[3] = long[1]
    if kind == "whisper":
        size = parsed.image
        return [
            Input(pixels=_pixels(draw, size), decoder_ids=[0, *ids]) for ids in (short, long[:1])
        ]
    if pictures:
        return [Input(ids, one) for ids, one in zip((long, short), pictures, strict=True)]
    if kind in ("t5", "umt5"):
        return [Input(long, decoder_ids=[0, *short]), Input(short, decoder_ids=[0, long[0]])]
    (written_by,) = config["architectures"]
    one = written_by.endswith(("MaskedLM", "TokenClassification")) or written_by == "BertModel"
    return [Input(ids, position=1 if one else None) for ids in (long, short)]


def _pixels(draw: random.Random, shape: tuple[int, ...]) -> Any:
    return np.array(
        [_grid(draw, 1.0, 2.0**-4) for _ in range(math.prod(shape))], dtype=np.float32
    ).reshape(shape)


# -- one architecture ------------------------------------------------------------------------------


def answer(
    model: Model, model_input: Input, methods: Sequence[str], runs: int = RUNS
) -> tuple[exact_sweep.Conditioned, int, dict[str, str]]:
    """The exact answer for one input, the target (the largest logit),
    and the aliases of its sites.
    """
    trace, logits = model.trace([model_input.item], model_input.position, model_input.decoder_ids)
    target = int(logits.array[0].argmax())
    found = exact_sweep.run(trace.records, logits, [target], methods, model.config, runs)
    if found.conservation_error > 1e-40:
        raise ValueError(
            f"the exact conservation ledger of {model.name} misses {found.conservation_error}"
        )
    aliases = {
        name: value.site
        for value in trace.values.values()
        for name in value.names
        if name != value.site
    }
    return found, target, dict(sorted(aliases.items()))


def expected(
    number: int, model_input: Input, found: exact_sweep.Conditioned, sites: list[str]
) -> Iterator[tuple[str, Any]]:  # without the batch axis
    """Name of a tensor -> its numbers, for one input."""
    yield f"{number}/logits", found.logits[0].ravel()
    if model_input.pixels is not None:
        yield f"{number}/pixels", model_input.pixels
    for site in sites:
        yield f"{number}/activation/{site}", found.values[site][0]
    for method, relevance in found.relevance.items():
        for site in sites:
            yield f"{number}/relevance/{method}/{site}", relevance[site][0]
    for what, condition in found.condition.items():
        yield f"{number}/condition/{what}", np.array([condition[site] for site in sites])


def described(
    model_input: Input,
    found: exact_sweep.Conditioned,
    target: int,
    sites: list[str],
    aliases: dict[str, str],
) -> dict[str, Any]:
    about: dict[str, Any] = {"target": target, "logit": float(found.logits[0].ravel()[target])}
    about |= {
        name: value
        for name in ("ids", "decoder_ids", "position")
        if (value := getattr(model_input, name)) is not None
    }
    return about | {"absorbed": found.absorbed, "sites": sites, "aliases": aliases}


def table(method: str, operations: Collection[str]) -> dict[str, Any]:
    """A method's lines as plain numbers and strings; of those for operations that few nets have,
    the ones for these.
    """
    said = exact_sweep.METHODS[method]
    later = (line for line in said.later if line[0] in operations)
    lines: list[dict[str, Any]] = [
        {
            "operation": operation,
            "site": site,
            "rule": rule,
            **{k: v if isinstance(v, str) else float(v) for k, v in options.items()},
        }
        for operation, site, rule, options in (*said.lines, *later)
    ]
    return {"formulation": said.formulation, "rules": lines}


def stored(config: dict[str, Any]) -> dict[str, Any]:
    """As transformers write it: that there is no pooler, the tensors alone say."""
    return {key: value for key, value in config.items() if key != "add_pooling_layer"}


def build(kind: str, folder: Path) -> None:
    """Write the three files of one architecture."""
    config = ALL[kind]
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(
        folder / "config.json",
        (json.dumps(stored(config), indent=1, sort_keys=True) + "\n").encode(),
    )
    write_safetensors(folder / "model.safetensors", weights(config, SEEDS[kind]), {"format": "pt"})
    write_safetensors(folder / EXPECTED, *answers(kind, folder))


def answers(kind: str, folder: Path, runs: int = RUNS) -> tuple[dict[str, Any], dict[str, str]]:
    """The tensors of expected.safetensors and its header, for the model in `folder`."""
    arrays: dict[str, Any] = {}
    methods, about = METHODS.get(kind, TEXT_METHODS), []
    model = refl.load(folder, dtype="float64")
    operations = {record.operation for record in watched(model).records}
    for number, model_input in enumerate(inputs(ALL[kind], SEEDS[kind])):
        found, target, aliases = answer(model, model_input, methods, runs)
        sites = list(next(iter(found.relevance.values())))
        arrays |= dict(expected(number, model_input, found, sites))
        about.append(described(model_input, found, target, sites, aliases))
    said = {
        "format": FORMAT,
        "architecture": kind,
        "seed": SEEDS[kind],
        "note": NOTES[kind],
        "source": SOURCE,
        "units": UNITS,
        "count": sum("/relevance/" in name for name in arrays),
        "inputs": about,
        "methods": {name: table(name, operations) for name in methods},
    }
    return arrays, {key: json.dumps(value, sort_keys=True) for key, value in said.items()}


def search(kind: str, count: int = 12) -> list[tuple[float, int]]:
    """Seeds by how badly conditioned their worst site is, the best first. For whoever changes a
    config and wants another seed.
    """
    found = []
    for seed in range(count):
        net, config = architecture(ALL[kind]), ALL[kind]
        drawn = {name: w.astype(np.float64) for name, w in weights(config, seed).items()}
        model = Model(
            net, parse(net.Config, config), drawn, None, lambda array: array, "float64", name=kind
        )
        found.append(
            (
                max(
                    _strain(answer(model, model_input, METHODS.get(kind, TEXT_METHODS), 1)[0])
                    for model_input in inputs(config, seed)
                ),
                seed,
            )
        )
    return sorted(found)


def _strain(found: exact_sweep.Conditioned) -> float:
    """The largest condition number beside the largest relevance;
    infinite for a choice of experts that is close.
    """
    worst = max(
        max(found.condition[m].values()) / max(abs(r).max() for r in found.relevance[m].values())
        for m in found.relevance
    )
    for site, p in found.values.items():
        if site.endswith(".chosen"):
            every = np.sort(found.values[site.removesuffix("chosen") + "probabilities"], axis=-1)
            k = p.shape[-1]
            if (every[..., -k] - every[..., -k - 1]).min() < CLOSE:
                return math.inf
    return float(worst)


def main(kinds: Sequence[str]) -> None:
    for kind in kinds or ALL:
        build(kind, FOLDER / kind)
        print(kind, sum(path.stat().st_size for path in (FOLDER / kind).iterdir()))


if __name__ == "__main__":
    main(sys.argv[1:])
