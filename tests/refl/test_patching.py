"""Activation patching against one run at a time, and its approximations where they are exact."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from small_networks import linear_net

import refl
from refl import anatomy
from refl.edits import Edit
from refl.errors import ReflError
from refl.evaluation import patching
from refl.evaluation.patching import Agreement, Pair
from refl.rules.published import ATTNLRP, ATTNLRP_GRADIENT, CP_LRP, GRADIENT, RELP
from refl.trace import Trace, Value
from refl.verification.random_models import (
    ARCHITECTURES,
    GPT2,
    LLAMA,
    random_model,
    with_weights,
)

CLEAN, CORRUPTED = [3, 5, 2, 6], [3, 1, 2, 6]


def pair(model: Any, clean: Any = CLEAN, corrupted: Any = CORRUPTED, **how: Any) -> Pair:
    return Pair.read(model, clean, corrupted, 4, 2, **how)


def test_of_a_linear_net_all_are_exact() -> None:
    """RelP = attribution patching = patching, component by component."""
    model = linear_net(0)
    p = pair(model)
    for kind in ("residual", "mlp"):
        sites = anatomy.sites(model, kind)
        assert len(sites) == 2
        truth = patching.exact(p, sites)
        for table in (RELP, GRADIENT, CP_LRP, ATTNLRP_GRADIENT):
            found = patching.approximate(p, sites, table)
            for site in sites:
                assert np.abs(found[site] - truth[site]).max() <= 1e-12, (site, table.name)
                assert truth[site][1] != 0, "only the changed token has an effect"
                assert np.abs(np.delete(truth[site], 1)).max() <= 1e-12
    assert patching.agreement([p] * 2, kinds=["mlp"])[0].mean == pytest.approx(1.0)


@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_each_component_is_a_run_of_its_own(config: dict[str, Any]) -> None:
    """The clean activation of one site at one token, by an edit of an unbatched run; the metric is
    the clean answer's logit less the other's.
    """
    model = random_model(config, 1)
    p, clean = pair(model, batch_tokens=12), model.trace([CLEAN], position=-1)[0]
    before = np.subtract(*model.logits(CORRUPTED)[-1, [4, 2]])
    for kind in anatomy.KINDS:
        sites = anatomy.sites(model, kind)
        found = patching.exact(p, sites)
        for site in sites:
            a = clean.values[site].array[0]
            for t in range(4):
                edit = Edit(factor=0.0, amount=a[t], index=(t,))
                z = model.logits(CORRUPTED, edits={site: edit})[-1]
                assert found[site][t] == pytest.approx(z[4] - z[2] - before, abs=1e-12)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES.keys() - {"vit", "deit", "t5"}))
def test_everything_patched_is_the_clean_run(name: str) -> None:
    """On every text architecture: the last block's output whole, and every component at once."""
    model = random_model(ARCHITECTURES[name], 1)
    position = None if model.task == "class" else 3
    p = pair(model, position=position)
    clean, corrupted = p.metric(p.clean), p.metric(p.corrupted)
    assert abs(clean - corrupted) > 1e-3
    streams = anatomy.sites(model, "residual")
    everything = [site for kind in anatomy.KINDS for site in anatomy.sites(model, kind)]
    for sites in (streams[-1:], everything):
        assert patching.patched(p, sites) == pytest.approx(clean, abs=1e-12)


def test_of_a_component_that_is_edited_what_is_read_of_it_is_put_in_place() -> None:
    """A net whose component is edited to half is the net with half its weights."""
    model, site = random_model(LLAMA, 1), "model.layers.0.mlp"
    name = f"{site}.down_proj.weight"
    half = with_weights(model, **{name: 0.5 * model.weights[name]})
    edited, other = pair(model.with_edits({site: Edit(0.5)})), pair(half)
    truth = patching.exact(other, [site])[site]
    assert np.abs(truth).max() > 1e-3
    assert np.abs(patching.exact(edited, [site])[site] - truth).max() <= 1e-12
    assert abs(patching.patched(edited, [site]) - patching.patched(other, [site])) <= 1e-12
    found, expected = (patching.approximate(p, [site], GRADIENT)[site] for p in (edited, other))
    assert np.abs(found - expected).max() <= 1e-12


def test_a_small_step_is_the_gradient() -> None:
    """With activations so near that the net is linear between them, attribution patching is exact
    to second order, and RelP, which holds norms and slopes, is not.
    """
    model = random_model(LLAMA, 1)
    table = model.weights["model.embed_tokens.weight"].copy()
    table[1] = table[5] + 1e-5 * table[1]
    model = with_weights(model, **{"model.embed_tokens.weight": table})
    p, sites = pair(model), anatomy.sites(model, "mlp")
    truth, gradient, relp = (
        np.concatenate(list(effects.values()))
        for effects in (
            patching.exact(p, sites),
            patching.approximate(p, sites, GRADIENT),
            patching.approximate(p, sites, RELP),
        )
    )
    size = np.abs(truth).max()
    assert size > 1e-9
    assert np.abs(gradient - truth).max() <= 1e-3 * size
    assert np.abs(relp - truth).max() > 1e-2 * size


# -- the table of RelP -----------------------------------------------------------------------------


def test_a_gate_is_halved_and_attention_is_not() -> None:
    """Half-rule on the product of gate and up; the products of attention by their derivative."""
    random = np.random.default_rng(0)
    a, b, g = (random.standard_normal((1, 3, 3)) for _ in range(3))
    for operation, role, expected in (
        ("multiply", "mlp.product", (g * b / 2, g * a / 2)),
        ("matmul", "attention.context", (g @ b.swapaxes(1, 2), a.swapaxes(1, 2) @ g)),
        ("matmul", "attention.scores", (g @ b.swapaxes(1, 2), a.swapaxes(1, 2) @ g)),
    ):
        t = Trace({})
        x, y = (t.scale(n, Value(v, f"{n}.leaf"), 1.0) for n, v in (("x", a), ("y", b)))
        z = getattr(t, operation)("z", x, y, role=role)
        swept = refl.sweep.Sweep(RELP, lambda names: True).run(t, z, g)
        for name, one in zip("xy", expected, strict=True):
            assert np.abs(swept.propagated[name] - one).max() <= 1e-14, (role, name)


# -- agreement, and what is refused ----------------------------------------------------------------


def test_mean_and_standard_error() -> None:
    found = Agreement("mlp", "relp", (0.5, 1.0, math.nan, 0.9))
    assert found.mean == pytest.approx(0.8)
    assert found.error == pytest.approx(math.sqrt((0.09 + 0.04 + 0.01) / 2 / 3))
    assert math.isnan(Agreement("mlp", "relp", (0.5,)).error)
    assert math.isnan(Agreement("mlp", "relp", ()).mean)


def test_pairs_that_the_shipped_model_can_read() -> None:
    """Without unknown words, with answers of one token and prefixes of one length."""
    model = refl.load()
    lines = [
        {"clean_prefix": c, "patch_prefix": p, "clean_answer": a, "patch_answer": b}
        for c, p, a, b in (
            ("The farmers beside the hat", "The farmer beside the hat", " are", " is"),
            ("The wombats beside the hat", "The wombat beside the hat", " are", " is"),
            ("The farmers", "The farmer beside", " are", " is"),
            ("The farmers", "The farmer", " are mostly", " is"),
        )
    ]
    (found,) = patching.pairs(model, lines)
    assert found.metric(found.clean) > 0 > found.metric(found.corrupted)


def test_what_is_refused() -> None:
    model = random_model(LLAMA, 1)
    with pytest.raises(ReflError, match="the inputs of a pair have 4 and 3 tokens"):
        pair(model, CLEAN, CORRUPTED[:3])
    with pytest.raises(ReflError, match="attnlrp is in relevance form, which has no coefficients"):
        patching.approximate(pair(model), ["model.layers.0"], ATTNLRP)
    with pytest.raises(ReflError, match="names 'model.layers.9', which is no site"):
        patching.exact(pair(model), ["model.layers.9"])
    with pytest.raises(ReflError, match="unknown kind of component 'head'"):
        anatomy.sites(model, "head")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"a": 1}, "line 1 of the pairs has no clean_prefix: expected clean_prefix, patch_prefix"),
        ({"clean_answer": None}, "line 1 of the pairs has no clean_answer"),
        ({"patch_prefix": None}, "line 1 of the pairs has no patch_prefix"),
        ("text", "line 1 of the pairs is 'text': expected a mapping with clean_prefix"),
        (None, "line 1 of the pairs is None"),
    ],
)
def test_lines_that_are_no_pairs(line: Any, words: str) -> None:
    good = dict(zip(patching.KEYS, (CLEAN, CORRUPTED, 4, 2), strict=True))
    model = random_model(LLAMA, 1)
    assert len(patching.pairs(model, [good])) == 1
    bad = good | line if isinstance(line, dict) and "a" not in line else line
    with pytest.raises(ReflError, match=words):
        patching.pairs(model, [good, bad])
