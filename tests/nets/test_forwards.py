"""Llama and GPT-2 in plain NumPy, by loops over heads and queries; the causal mask, written out."""

from __future__ import annotations

from typing import Any

import numpy as np

from refl.nets import masks
from refl.verification.random_models import GPT2, LLAMA, random_model

IDS = [3, 1, 4, 1, 5]


def attend(q: Any, k: Any, v: Any) -> Any:  # (T, d) x 3 -> (T, d)
    """Causal attention of one head, one query at a time."""
    out = []
    for t in range(len(q)):
        e = np.exp(q[t] @ k[: t + 1].T / np.sqrt(q.shape[-1]))
        out.append(e / e.sum() @ v[: t + 1])
    return np.stack(out)


def rotated(x: Any, theta: float) -> Any:  # (T, d) -> (T, d)
    """Each pair (x_i, x_(i + d/2)) of position t as a complex number, times exp(i t
    theta^(-2i/d)).
    """
    half = x.shape[-1] // 2
    angle = np.arange(len(x))[:, None] * theta ** (-np.arange(half) / half)
    z = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angle)
    return np.concatenate([z.real, z.imag], axis=-1)


def test_llama_in_plain_numpy() -> None:
    model = random_model(LLAMA | {"attention_bias": True, "mlp_bias": True}, seed=1)
    w, c = model.weights, model.config

    def lin(name: str, x: Any) -> Any:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name: str, x: Any) -> Any:
        return w[f"{name}.weight"] * x / np.sqrt((x**2).mean(-1, keepdims=True) + c.rms_norm_eps)

    h = w["model.embed_tokens.weight"][IDS]
    for i in range(c.num_hidden_layers):
        at = f"model.layers.{i}"
        x = norm(f"{at}.input_layernorm", h)
        q, k, v = (lin(f"{at}.self_attn.{n}_proj", x).reshape(len(IDS), -1, 4) for n in "qkv")
        heads = [
            attend(rotated(q[:, j], 10000.0), rotated(k[:, j // 2], 10000.0), v[:, j // 2])
            for j in range(4)
        ]
        h = h + lin(f"{at}.self_attn.o_proj", np.concatenate(heads, axis=-1))
        x = norm(f"{at}.post_attention_layernorm", h)
        gate = lin(f"{at}.mlp.gate_proj", x)
        h = h + lin(f"{at}.mlp.down_proj", gate / (1 + np.exp(-gate)) * lin(f"{at}.mlp.up_proj", x))
    logits = norm("model.norm", h) @ w["lm_head.weight"].T
    assert np.abs(model.logits(IDS) - logits).max() <= 1e-12


def test_gpt2_in_plain_numpy() -> None:
    model = random_model(GPT2, seed=1)
    w, c = model.weights, model.config

    def lin(name: str, x: Any) -> Any:
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    def norm(name: str, x: Any) -> Any:
        z = (x - x.mean(-1, keepdims=True)) / np.sqrt(
            x.var(-1, keepdims=True) + c.layer_norm_epsilon
        )
        return z * w[f"{name}.weight"] + w[f"{name}.bias"]

    def gelu(x: Any) -> Any:
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    h = w["transformer.wte.weight"][IDS] + w["transformer.wpe.weight"][: len(IDS)]
    for i in range(c.n_layer):
        at = f"transformer.h.{i}"
        q, k, v = np.split(lin(f"{at}.attn.c_attn", norm(f"{at}.ln_1", h)), 3, axis=-1)
        heads = [attend(*(x[:, 4 * j : 4 * j + 4] for x in (q, k, v))) for j in range(4)]
        h = h + lin(f"{at}.attn.c_proj", np.concatenate(heads, axis=-1))
        h = h + lin(f"{at}.mlp.c_proj", gelu(lin(f"{at}.mlp.c_fc", norm(f"{at}.ln_2", h))))
    logits = norm("transformer.ln_f", h) @ w["transformer.wte.weight"].T
    assert np.abs(model.logits(IDS) - logits).max() <= 1e-12


def test_causal_mask() -> None:
    attention_mask = np.asarray([[True, True, False]])
    mask = masks.causal(np.asarray([[7, 7, 7]]), attention_mask).array
    assert mask.shape == (1, 1, 3, 3)
    assert mask[0, 0].tolist() == [[True, False, False], [True, True, False], [True, True, False]]
