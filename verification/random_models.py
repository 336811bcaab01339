"""Models with random weights, from the options of a config.json: every architecture, as small and as strange as a test needs.

Scales are chosen so that activations stay of the order of 1 at any width and depth: matrices have entries of standard deviation
1/sqrt(fan-in), embeddings 1, biases 0.3, and norm weights lie about 1 with standard deviation 0.3 (never at 1, where a forgotten
weight would go unseen).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from refl.arrays import Array, asnumpy
from refl.model import Model, architecture
from refl.nets.config import parse

LLAMA: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 17, "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False,
}  # fmt: skip
"""A bias-free Llama with grouped queries."""

GPT2: dict[str, Any] = {
    "model_type": "gpt2", "vocab_size": 17, "n_positions": 512, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_inner": 24,
    "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True,
}  # fmt: skip
"""A GPT-2; biases everywhere, as always there."""


def random_model(config: dict[str, Any], seed: int, dtype: str = "float64") -> Model:
    """A model of this config.json content (`LLAMA | {"mlp_bias": True}`, say) with weights drawn from `seed`.

    The same seed gives the same weights in either dtype, rounded. There is no tokenizer: inputs are token ids.
    Raises ReflError for a config that no net takes.
    """
    net = architecture(config)
    parsed = parse(net.Config, config)
    random = np.random.default_rng(seed)
    weights = {name: _frozen(_draw(random, name, shape).astype(dtype)) for name, shape, _ in net.shapes(parsed)}
    return Model(net, parsed, weights, None, lambda array: array, dtype, name=f"random {net.MODEL_TYPE} {seed}")


def with_weights(model: Model, **changed: Any) -> Model:
    """The same model with some tensors replaced, by name."""
    return replace(model, weights={**model.weights, **{name: _frozen(np.asarray(w)) for name, w in changed.items()}})


def moved(model: Model, place: Callable[[Any], Array]) -> Model:
    """The same model in another array library or on another device; `place` takes a NumPy array there."""
    return replace(model, weights={name: place(asnumpy(model.weights[name])) for name in model.weights}, place=place)


def _draw(random: np.random.Generator, name: str, shape: tuple[int, ...]) -> Array:
    drawn = random.standard_normal(shape)
    if name.endswith(".bias"):
        return 0.3 * drawn
    if len(shape) == 1:  # a norm's weight
        return 1 + 0.3 * drawn
    if name.rpartition(".")[0].endswith(("embed_tokens", "wte", "wpe")):
        return drawn
    return drawn / np.sqrt(shape[0] if _is_conv1d(name) else shape[1])


def _is_conv1d(name: str) -> bool:
    """GPT-2 stores these (I, O), everyone else (O, I)."""
    return name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))


def _frozen(array: Array) -> Array:
    array.flags.writeable = False
    return array
