"""Relevance on Mistral, Qwen 2, Qwen 3, OLMo 2, Phi, Gemma 2 and Gemma 3, on random models of
each: the surrogate's gradient, the conservation ledger, conservation, batches, and the faster ways.
(What they compute is held against transformers in tests/peers/test_decoders.py.)
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from backends import BESIDE_NUMPY, Backend
from surrogate_truth import EXACT, Truth, close, text, turnover, u

from refl.errors import ReflError
from refl.explanation import Explanation
from refl.model import Model, architecture
from refl.nets import masks
from refl.nets.config import parse
from refl.rules import rms_norm
from refl.rules.published import METHODS
from refl.trace import QUERIES
from refl.verification.identities.conditioning import rounding_bound
from refl.verification.identities.runs import tiles_of
from refl.verification.random_models import (
    GEMMA2,
    GEMMA3,
    MISTRAL,
    OLMO2,
    PHI,
    QWEN2,
    QWEN3,
    moved,
    random_model,
)

CAPS = {"attn_logit_softcapping": None, "final_logit_softcapping": None}
NETS: dict[str, dict[str, Any]] = {
    "mistral": MISTRAL,
    "mistral, no window, tied": MISTRAL
    | {"sliding_window": None, "tie_word_embeddings": True, "hidden_act": "gelu"},
    "qwen2": QWEN2,
    "qwen2, windows": QWEN2
    | {
        "use_sliding_window": True,
        "sliding_window": 2,
        "max_window_layers": 0,
        "num_key_value_heads": 4,
    },
    "qwen3": QWEN3,
    "qwen3, biases": QWEN3
    | {
        "attention_bias": True,
        "layer_types": ["sliding_attention", "full_attention"],
        "num_key_value_heads": 1,
    },
    "olmo2": OLMO2,
    "olmo2, biases, one key head": OLMO2
    | {"attention_bias": True, "num_key_value_heads": 1, "hidden_act": "gelu"},
    "phi": PHI,
    "phi, normed queries, groups": PHI
    | {"qk_layernorm": True, "num_key_value_heads": 2, "hidden_act": "relu"},
    "phi, whole heads turned, tied": PHI
    | {"partial_rotary_factor": 1.0, "tie_word_embeddings": True},
    "gemma2": GEMMA2,
    "gemma2, no caps": GEMMA2 | CAPS | {"tie_word_embeddings": False},
    "gemma2, biases": GEMMA2 | {"attention_bias": True, "hidden_activation": "gelu"},
    "gemma3": GEMMA3,
    "gemma3, capped, biases": GEMMA3
    | {"final_logit_softcapping": 12.0, "attention_bias": True, "num_hidden_layers": 3},
}
BIAS_FREE = (
    "mistral",
    "mistral, no window, tied",
    "qwen3",
    "olmo2",
    "gemma2",
    "gemma2, no caps",
    "gemma3",
)
FIRST = tuple({config["model_type"]: name for name, config in reversed(NETS.items())}.values())
"""One of each architecture."""


@cache
def net(name: str, dtype: str = "float64") -> Model:
    return random_model(NETS[name], 11, dtype)


# -- options ---------------------------------------------------------------------------------------

COMMON = {
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "initializer_range": 0.02,
    "attention_dropout": 0.0,
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "Mistral 7B 0.1": {
        "model_type": "mistral",
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
        "vocab_size": 32000,
    },
    "Qwen 2.5 0.5B": {
        "model_type": "qwen2",
        "hidden_act": "silu",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "max_position_embeddings": 32768,
        "max_window_layers": 24,
        "num_attention_heads": 14,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "use_mrope": False,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "Qwen 3 0.6B": {
        "model_type": "qwen3",
        "attention_bias": False,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 1024,
        "vocab_size": 151936,
        "intermediate_size": 3072,
        "max_position_embeddings": 40960,
        "max_window_layers": 28,
        "num_attention_heads": 16,
        "num_hidden_layers": 28,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
    },
    "OLMo 2 7B": {
        "model_type": "olmo2",
        "attention_bias": False,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "max_position_embeddings": 4096,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 32,
        "pad_token_id": 100277,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 500000,
        "tie_word_embeddings": False,
        "vocab_size": 100352,
    },
    "Phi 1.5": {
        "model_type": "phi",
        "embd_pdrop": 0.0,
        "hidden_act": "gelu_new",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 2048,
        "num_attention_heads": 32,
        "num_hidden_layers": 24,
        "vocab_size": 51200,
        "num_key_value_heads": None,
        "partial_rotary_factor": 0.5,
        "qk_layernorm": False,
        "resid_pdrop": 0.0,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    },
    "Gemma 2 2B": {
        "model_type": "gemma2",
        "attention_bias": False,
        "attn_logit_softcapping": 50.0,
        "cache_implementation": "hybrid",
        "head_dim": 256,
        "final_logit_softcapping": 30.0,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "max_position_embeddings": 8192,
        "num_attention_heads": 8,
        "num_hidden_layers": 26,
        "vocab_size": 256000,
        "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
    },
    "Gemma 3 1B": {
        "model_type": "gemma3_text",
        "attention_bias": False,
        "attn_logit_softcapping": None,
        "cache_implementation": "hybrid",
        "final_logit_softcapping": None,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 1152,
        "intermediate_size": 6912,
        "max_position_embeddings": 32768,
        "num_attention_heads": 4,
        "num_hidden_layers": 26,
        "num_key_value_heads": 1,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
        "eos_token_id": [1, 106],
        "vocab_size": 262144,
    },
}
BLOCKS_WITH_A_WINDOW = {"Mistral 7B 0.1": 32, "Gemma 2 2B": 13, "Gemma 3 1B": 22}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_options_are_understood(name: str) -> None:
    """What the published files say, in their spelling: nothing unknown, and the blocks with a
    window counted.
    """
    raw = COMMON | PUBLISHED[name]
    module = architecture(raw)
    raw |= {"architectures": [next(iter(module.Config.classes(raw["model_type"])))]}
    c = parse(module.Config, raw)
    assert c.longest == raw["max_position_embeddings"]
    assert sum(w is not None for w in c.windows) == BLOCKS_WITH_A_WINDOW.get(name, 0)
    tensors = [tensor for tensor, _, _ in module.shapes(c)]
    assert len(tensors) == len(set(tensors))


def test_null_switches_off_and_silence_leaves_the_default() -> None:
    config = {k: v for k, v in MISTRAL.items() if k != "sliding_window"}
    assert random_model(config, 0).config.windows == (4096, 4096)
    assert random_model(config | {"sliding_window": None}, 0).config.windows == (None, None)
    assert random_model(GEMMA2 | CAPS, 0).config.final_logit_softcapping is None


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"full_attention": {}, "rope_theta": 1e4}, "rope_parameters with rope_theta: expected"),
        ({"full_attention": {}, "sliding_attention": {"rope_type": "su"}}, "rope_type 'su'"),
        (
            {"full_attention": {}, "sliding_attention": 3},
            "3 for rotary positions: expected an object",
        ),
    ],
)
def test_rotary_positions_of_both_kinds_of_block(parameters: dict[str, Any], named: str) -> None:
    """Gemma 3's: what is wrong with either is said when config.json is read."""
    with pytest.raises(ReflError, match=named):
        random_model(GEMMA3 | {"rope_parameters": parameters}, 0)


# -- against the surrogate -------------------------------------------------------------------------


@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("name", NETS)
def test_relevance_is_activation_times_surrogate_gradient(name: str, method: str) -> None:
    """At every operation's output, in every block. Measured at most 9e-15."""
    assert Truth(net(name), [3, 1, 16, 1, 8]).deviation(method, lambda site: True) < 1e-12


@pytest.mark.parametrize("name", NETS)
def test_attnlrp_tends_to_the_surrogate_linearly_in_eps(name: str) -> None:
    """At eps = 1e-14 within 1e-9; a hundred times the eps, a hundred times as far."""
    truth = Truth(net(name), [0, 5, 9, 2, 11, 7])
    small, large = (truth.deviation("attnlrp", eps=eps) for eps in (1e-14, 1e-12))
    assert small < 1e-9
    assert large == pytest.approx(100 * small, rel=0.1)


# -- the conservation ledger -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NETS)
def test_every_site_balances_and_the_account_closes(name: str, dtype: str) -> None:
    """Site by site within 8 u sum|terms|, with plain and with fast attention; the whole to 1e-12
    (float32: 1e-5) of what is explained.
    """
    model = net(name, dtype)
    for method in METHODS:
        for keep in ("*", ()):
            ledger = model.explain(text(model, 7), method, keep=keep, audit=True).ledger
            for entry in ledger:
                assert abs(entry.conservation_error) <= 8 * u(dtype) * entry.rounding_scale, (
                    f"{method}: {entry.site} ({entry.operation})"
                )
            scale = turnover(ledger) if method == "lxt-explicit" else abs(ledger.explained)
            assert (
                abs(ledger.conservation_error) <= {"float32": 1e-5, "float64": 1e-12}[dtype] * scale
            ), method


@pytest.mark.parametrize("name", BIAS_FREE)
def test_cp_lrp_without_biases_conserves(name: str) -> None:
    """Sum of relevance = logit, caps or not: a cap is an activation, whose rule is the identity."""
    e = net(name).explain(text(net(name), 8), "cp-lrp")
    assert abs(e.relevance.sum() - e.logit) <= 1e-12 * abs(e.logit)


# -- batches and the faster ways -------------------------------------------------------------------


@pytest.mark.parametrize("keep", ["*", ()])
@pytest.mark.parametrize("name", NETS)
def test_a_padded_batch_is_its_members(name: str, keep: Any) -> None:
    model = net(name)
    texts = [text(model, length, seed=length) for length in (7, 3, 1, 5)]
    for method in ("attnlrp", "attnlrp-gradient", "cp-lrp"):
        for ids, e in zip(texts, model.explain(texts, method, keep=keep, audit=True), strict=True):
            alone = model.explain(ids, method, keep=keep, audit=True)
            close(e.relevance, alone.relevance, rounding_bound(alone))


@pytest.mark.parametrize("name", FIRST)
def test_fast_is_plain(name: str) -> None:
    """More tokens than a block of queries or a tile has rows, padding beside:
    the same logits, relevance and ledger.
    """
    model = net(name)
    texts = [text(model, n, seed=n) for n in (QUERIES + 1, QUERIES - 5, 3)]
    for method in ("attnlrp", "attnlrp-gradient", "cp-lrp"):
        plain = model.explain(texts, method, keep="*", audit=True)
        fast = model.explain(texts, method, keep=(), audit=True)  # in blocks
        with tiles_of(QUERIES // 2):
            fast += model.explain(texts, method, keep=())
        for p, f in zip([*plain, *plain], fast, strict=True):
            close(f.relevance, p.relevance, rounding_bound(p))
            same_ledger(f, p)


def same_ledger(one: Explanation, other: Explanation) -> None:
    entries = {entry.site: entry for entry in other.ledger}
    for entry in one.ledger:
        assert abs(entry.received - entries[entry.site].received) <= rounding_bound(other), (
            entry.site
        )
        assert entry.absorbed.keys() == entries[entry.site].absorbed.keys()


@pytest.mark.parametrize("keep", ["*", ()])
@pytest.mark.parametrize("name", NETS)
def test_recomputing_changes_no_bit(name: str, keep: Any) -> None:
    model = net(name, "float32")
    texts = [text(model, 6), text(model, 4)]
    for full, less in zip(
        *(model.explain(texts, keep=keep, recompute=r) for r in (False, True)), strict=True
    ):
        assert set(full) == set(less)
        assert np.array_equal(full.relevance, less.relevance)
        assert all(np.array_equal(full[site], less[site]) for site in full)
        assert full.ledger.as_dict() == less.ledger.as_dict()


@pytest.mark.parametrize("backend", BESIDE_NUMPY, indirect=True)
@pytest.mark.parametrize("name", NETS)
def test_every_backend(name: str, backend: Backend) -> None:
    """Wherever the arrays live, in either dtype: no operation widens what it was given, and the
    relevance is the same.
    """
    for dtype in ("float32", "float64"):
        home = net(name, dtype)
        away = moved(home, backend.place)
        for method in ("attnlrp", "attnlrp-gradient", "cp-lrp", "input-x-gradient"):
            for keep in ("*", ()):
                here, there = (
                    m.explain([[3, 1, 16, 1, 8], [2, 0]], method, keep=keep, audit=True)
                    for m in (home, away)
                )
                for a, b in zip(here, there, strict=True):
                    assert all(
                        b[site].dtype == b.activation(site).dtype == np.dtype(dtype) for site in b
                    )
                    close(b.relevance, a.relevance, rounding_bound(a))


# -- what is new in them ---------------------------------------------------------------------------


def test_a_window_hides_what_is_further_back() -> None:
    mask = masks.causal(np.zeros((1, 5), dtype=int), window=2).array[0, 0]
    assert mask.tolist() == [[t - 2 < i <= t for i in range(5)] for t in range(5)]


def test_nothing_beyond_the_window_is_relevant() -> None:
    """One block with a window of three: the logit is a function of the last three tokens."""
    for config in (MISTRAL, GEMMA2, GEMMA3):
        model = random_model(config | {"num_hidden_layers": 1}, 2)
        ids = text(model, 7)
        for keep in ("*", ()):
            e = model.explain(ids, keep=keep)
            assert not e.relevance[:4].any() and e.relevance[4:].all()
        assert np.array_equal(model.logits(ids)[-1], model.logits([0] * 4 + ids[4:])[-1])


@pytest.mark.parametrize(
    "rule", [rms_norm.forward, rms_norm.identity, rms_norm.identity_gxi, rms_norm.gradient]
)
def test_an_offset_is_added_to_the_weight(rule: Any) -> None:
    """Small numbers of quarters, so that 1 + w is exact: the same bits."""
    random = np.random.default_rng(3)
    x, z, g = random.standard_normal((3, 2, 5, 8))
    w = random.integers(-8, 8, 8) / 4
    after = () if rule is rms_norm.forward else (z, g)
    one, other = (
        rule(x, w, *after, norm_eps=1e-5, offset=1.0),
        rule(x, w + 1, *after, norm_eps=1e-5),
    )
    assert np.array_equal(
        *((one, other) if rule is rms_norm.forward else (one.inputs[0], other.inputs[0]))
    )


def test_queries_are_normed_over_all_heads_together() -> None:
    """OLMo 2: z / w has mean square 1 over the heads' features together, and not head by head."""
    model = net("olmo2")
    e = model.explain(text(model, 5))
    for name in ("q_norm", "k_norm"):
        at = f"model.layers.0.self_attn.{name}"
        unit = e.activation(at) / model.weights[f"{at}.weight"]
        assert np.allclose((unit**2).mean(-1), 1, rtol=0, atol=1e-4)
        assert np.abs((unit.reshape(5, -1, 6) ** 2).mean(-1) - 1).max() > 0.1


def test_what_is_not_turned_keeps_its_features() -> None:
    """Phi: four of a head's six features are turned, and relevance of the halves adds up to that of
    the whole, feature by feature.
    """
    e = net("phi").explain(text(net("phi"), 5), "attnlrp-gradient")
    at = "model.layers.0.self_attn.query"
    assert np.array_equal(e.activation(f"{at}.rotated")[..., 4:], e.activation(at)[..., 4:])
    assert np.array_equal(e[f"{at}.rotated"][..., 4:], e[at][..., 4:])
    assert not np.array_equal(e.activation(f"{at}.rotated")[:, 1:, :4], e.activation(at)[:, 1:, :4])


def test_a_cap_bounds_scores_and_logits() -> None:
    e = net("gemma2").explain(text(net("gemma2"), 6))
    for site, cap in (("model.layers.0.self_attn.scores", 8.0), ("lm_head", 12.0)):
        free, capped = e.activation(site), e.activation(f"{site}.capped")
        assert np.abs(free).max() > cap > np.abs(capped).max()
        assert np.allclose(capped, cap * np.tanh(free / cap), rtol=1e-14, atol=0)
