"""Qwen 2, Qwen 3 and Gemma 3 beside LXT 2.1's gradient x input form: where they agree, and the one
option where LXT is wrong, with both numbers.

Run with `-s` to see the numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers_models import Make

import refl
from refl.explanation import Explanation
from refl.verification.definitions import surrogate
from refl.verification.peers import lxt

pytestmark = pytest.mark.peers
torch = pytest.importorskip("torch", reason="torch is not installed (the extra 'peers')")
pytest.importorskip("transformers", reason="transformers is not installed (the extra 'peers')")
try:
    lxt.load()
except ImportError as absent:
    pytest.skip(f"LXT is not usable here: {absent}", allow_module_level=True)

ROUNDING = 1e-12
"""float64 on both sides, of the largest relevance."""

IDS = np.random.default_rng(5).integers(0, 29, 11).tolist()

WINDOW = {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 0}
AGREES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("qwen2", {}),
    "qwen2-groups-window": (
        "qwen2",
        {"num_key_value_heads": 2, "tie_word_embeddings": True} | WINDOW,
    ),
    "qwen3": ("qwen3", {}),
    "qwen3-biases-groups": (
        "qwen3",
        {"num_key_value_heads": 1, "attention_bias": True, "hidden_act": "gelu"},
    ),
    "qwen3-window": ("qwen3", WINDOW),
    "gemma3": ("gemma3_text", {}),
    "gemma3-biases": (
        "gemma3_text",
        {"attention_bias": True, "tie_word_embeddings": False, "rope_local_base_freq": 30.0},
    ),
    "gemma3-full": ("gemma3_text", {"sliding_window_pattern": 1, "num_key_value_heads": 1}),
}


def both(folder: Path, method: str, eps: float) -> tuple[Explanation, lxt.Found]:
    e = refl.load(folder, dtype="float64").explain(IDS, method)
    found = lxt.gradient_form(folder, IDS, e.target_id, method, identity_eps=eps)
    assert found.logit == pytest.approx(e.logit, rel=ROUNDING)
    return e, found


def apart(ours: Any, theirs: Any) -> float:
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(ours).max())


@pytest.mark.parametrize("method", lxt.MAPS)
@pytest.mark.parametrize(("kind", "options"), AGREES.values(), ids=AGREES)
def test_gradient_forms_agree(make: Make, kind: str, options: dict[str, Any], method: str) -> None:
    """At the embeddings and at every block; with LXT's eps in f(x)/(x + 1e-10) within what that can
    do, without it to rounding.
    """
    folder = make(kind, **options)
    for eps in (lxt.IDENTITY_EPS, 0.0):
        e, found = both(folder, method, eps)
        bound = ROUNDING + len(found.blocks) * eps / found.smallest
        assert apart(e.relevance, found.relevance) < bound
        for block, theirs in found.blocks.items():
            assert apart(e[block], theirs) < bound, block


def test_fault_a_capped_logit_is_no_identity(make: Make) -> None:
    """LXT leaves the tanh of final_logit_softcapping to autograd: all relevance is multiplied by x
    tanh'(x) / tanh(x), x = z/c.

    The paper's rule for an activation is the identity (eq. 9). CP-LRP decides it: without biases it
    sums to the logit.
    """
    folder = make("gemma3_text", final_logit_softcapping=2.0)
    e, found = both(folder, "cp-lrp", 0.0)
    x = e.activation("lm_head.divided")[0, e.target_id]
    lost = x * (1 - np.tanh(x) ** 2) / np.tanh(x)
    print(
        f"\nGemma 3, logits capped at 2: refl {e.relevance.sum()}, LXT "
        f"{found.relevance.sum()}; the logit is {e.logit}: refl is right"
    )
    assert e.relevance.sum() == pytest.approx(e.logit, rel=ROUNDING)
    assert apart(lost * e.relevance, found.relevance) < 1e-9 * abs(lost) + ROUNDING
    assert abs(found.relevance.sum()) < 0.5 * abs(e.logit)


def test_the_surrogate_agrees_with_refl_on_the_cap(make: Make) -> None:
    """AttnLRP on the same: the frozen surrogate, in which the ratio tanh(x)/x is a constant, has
    refl's relevance, not LXT's.
    """
    folder = make("gemma3_text", final_logit_softcapping=2.0)
    model = refl.load(folder, dtype="float64")
    e, found = both(folder, "attnlrp-gradient", 0.0)
    around, _ = surrogate.record(model, IDS)
    g = surrogate.gradient(model, IDS, "model.embed_tokens", e.target_id, around=around)
    truth = (g * e.activation("model.embed_tokens")).sum(axis=-1)
    print(
        f"\nGemma 3, logits capped at 2: surrogate {truth.sum()}, refl "
        f"{e.relevance.sum()}, LXT {found.relevance.sum()}"
    )
    assert apart(truth, e.relevance) < ROUNDING
    assert apart(truth, found.relevance) > 0.5


@pytest.mark.parametrize("kind", ["qwen2", "gemma3_text"])
def test_patches_are_undone(make: Make, kind: str) -> None:
    """After LXT has run, the model's gradient is the plain one again."""
    folder = make(kind)
    before = plain_gradient(folder)
    for method in lxt.MAPS:
        lxt.gradient_form(folder, [1, 2, 3], 4, method)
    assert before == plain_gradient(folder)


def plain_gradient(folder: Path) -> list[float]:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    model(torch.tensor([[1, 2, 3]])).logits[0, -1, 4].backward()
    return [float(g) for g in model.get_input_embeddings().weight.grad[2]]
