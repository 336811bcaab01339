"""Direct checks of what stands around the rules: forwards in plain NumPy, the sweep's sums, seeds,
masks, attention in blocks.

Each is the plainest test that sees a fault of `verification/plant_faults.py`; expected values are
written out here.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from refl.nets import masks
from refl.rules import attention, linear, matmul, softmax
from refl.rules.balance import RuleOutput
from refl.rules.composites import CP_LRP, LRP_0
from refl.seeds import Seed
from refl.sweep import Sweep
from refl.trace import Trace, Value
from refl.verification.random_models import GPT2, LLAMA, random_model

IDS = [3, 1, 4, 1, 5]


# -- forwards, by loops ----------------------------------------------------------------------------


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


# -- the sweep and its entry in the ledger ---------------------------------------------------------


def test_a_value_read_twice_gets_both_shares() -> None:
    """z = 3 x + x and y = x + x: all of the seed comes back to x, and is recorded."""
    for twice in (False, True):
        t = Trace({})
        x = t.scale("x", Value(np.asarray([[1.0, -2.0]]), "given"), 1.0)
        z = t.add("z", x if twice else t.scale("three", x, 3.0), x)
        swept = Sweep(LRP_0, keep=lambda names: "x" in names).run(t, z, z.array)
        assert np.array_equal(swept.propagated["x"], z.array)
        assert all(entry.conservation_error[0] == 0 for entry in swept.ledger)


def test_a_wrong_rule_leaves_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    """1000 R - 7 in place of R must show."""
    t = Trace({"w.weight": np.asarray([[1.0, 2.0]])})
    z = t.linear("w", Value(np.asarray([[1.0, 1.0]]), "x"))

    def wrong(x: Any, w: Any, b: Any, z: Any, r: Any, **options: Any) -> RuleOutput:
        right = linear.epsilon(x, w, b, z, r, **options)
        return right._replace(inputs=(1000 * right.inputs[0] - 7, None, None))

    monkeypatch.setattr("refl.rules.composites.RULES", {**_rules(), "linear": {"epsilon": wrong}})
    entry = next(iter(Sweep(LRP_0).run(t, z, z.array).ledger))
    assert entry.conservation_error[0] == 3 - (3000 - 14)


def _rules() -> Any:
    from refl.rules.composites import RULES

    return RULES


def test_the_seed_of_a_logit() -> None:
    z = np.asarray([0.5, -3.0, 2.0])
    assert list(Seed("logit", 1).gradient(z)) == [0, 1, 0]
    assert list(Seed("logit", 1).relevance(z)) == [0, -3, 0]
    assert list(Seed("logit", 2, against=1).gradient(z)) == [0, -1, 1]
    assert list(Seed("logit", 2, against=1).relevance(z)) == [0, 3, 2]


def test_cp_lrp_conserves() -> None:
    """Without biases all of the logit arrives at the tokens."""
    e = random_model(LLAMA, seed=2).explain(IDS, CP_LRP)
    assert abs(e.relevance.sum() - e.logit) <= 1e-12


# -- attention -------------------------------------------------------------------------------------


def test_causal_mask() -> None:
    real = np.asarray([[True, True, False]])
    seen = masks.causal(np.asarray([[7, 7, 7]]), real)
    assert seen.shape == (1, 1, 3, 3)
    assert seen[0, 0].tolist() == [[True, False, False], [True, True, False], [True, True, False]]


@pytest.mark.parametrize("causal", [True, False])
def test_attention_in_blocks(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 2 queries give what the three plain operations give."""
    monkeypatch.setattr(attention, "ROWS", 2)
    random = np.random.default_rng(3)
    q, k, v, r = (random.normal(size=(1, 2, 5, 3)) for _ in range(4))
    mask = np.tril(np.ones((5, 5), dtype=bool))[None, None] if causal else None
    scores = q @ k.swapaxes(-1, -2)
    p = softmax.forward(scores, mask=mask)
    z = p @ v
    assert np.abs(attention.forward(q, k, v, mask=mask, causal=causal) - z).max() <= 1e-14
    to_p, to_v = matmul.uniform(p, v, z, r).inputs
    to_scores = softmax.taylor(scores, p, to_p, mask=mask).inputs[0]
    to_q, to_k = matmul.uniform(q, k.swapaxes(-1, -2), scores, to_scores).inputs
    rules = (partial(matmul.uniform), partial(softmax.taylor), partial(matmul.uniform))
    shares, _ = attention.sweep(
        q,
        k,
        v,
        z,
        r,
        mask=mask,
        causal=causal,
        rules=rules,
        measure=lambda x, c: c.sum(axis=(1, 2, 3)),
        size=None,
    )
    for got, wanted in zip(shares, (to_q, to_k.swapaxes(-1, -2), to_v), strict=True):
        assert np.abs(got - wanted).max() <= 1e-12 * np.abs(wanted).max()
