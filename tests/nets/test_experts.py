"""Nets of experts: relevance against the frozen surrogate, the conservation ledger, batches,
recomputation, and that only chosen experts are read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backends import BESIDE_NUMPY, Backend, Recorder, refusal
from surrogate_truth import EXACT, Truth, is_stage, turnover, u

from refl.cli import main
from refl.errors import ReflError
from refl.io.safetensors import write_safetensors
from refl.model import Model
from refl.nets import moe
from refl.rules.composites import Rule
from refl.rules.published import ATTNLRP, ATTNLRP_GRADIENT, METHODS
from refl.trace import Trace
from refl.verification.identities.conditioning import rounding_bound
from refl.verification.random_models import MIXTRAL, QWEN3_MOE, moved, random_model

BIAS_FREE = {
    "mixtral": MIXTRAL,
    "mixtral, window, tied": MIXTRAL
    | {"sliding_window": 3, "tie_word_embeddings": True, "num_key_value_heads": 4},
    "mixtral, all experts": MIXTRAL
    | {"num_experts_per_tok": 6, "hidden_act": "gelu", "num_hidden_layers": 1},
    "mixtral, one expert": MIXTRAL
    | {"num_experts_per_tok": 1, "num_key_value_heads": 1, "head_dim": 6},
    "qwen3-moe": QWEN3_MOE,
    "qwen3-moe, as chosen": QWEN3_MOE
    | {"norm_topk_prob": False, "mlp_only_layers": [], "num_hidden_layers": 2},
    "qwen3-moe, every second": QWEN3_MOE
    | {"decoder_sparse_step": 2, "mlp_only_layers": [0], "tie_word_embeddings": True},
}
NETS = BIAS_FREE | {
    "qwen3-moe, biases": QWEN3_MOE | {"attention_bias": True, "hidden_act": "quick_gelu"}
}

IDS = [3, 1, 16, 1, 8, 0, 11]
TEXTS = [IDS, [2], [5, 5, 9]]


@cache
def net(name: str, dtype: str = "float64") -> Model:
    return random_model(NETS[name], 6, dtype)


@cache
def truth_of(name: str) -> Truth:
    return Truth(net(name), IDS)


def chosen(model: Model, ids: list[int]) -> dict[str, Any]:
    """Site of each router's choice -> the experts of each token."""
    trace, _ = model.trace([ids])
    return {
        r.output.site: r.attributes["chosen"][0] for r in trace.records if r.operation == "top_k"
    }


def experts_of(model: Model, ids: list[int]) -> set[str]:
    """The modules of the experts that serve a text."""
    return {
        f"{site.removesuffix('.chosen')}.experts.{e}"
        for site, rows in chosen(model, ids).items()
        for row in rows
        for e in row
    }


@pytest.mark.parametrize("name", NETS)
def test_routing_is_spread(name: str) -> None:
    """Otherwise nothing below would test much: at every router more experts serve the text than
    serve one token, or all do.
    """
    model = net(name)
    for rows in chosen(model, IDS).values():
        k, used = len(rows[0]), {e for row in rows for e in row}
        assert len(used) > k or k == model.config.num_local_experts


# -- the surrogate ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("name", NETS)
def test_relevance_is_activation_times_surrogate_gradient(name: str, method: str) -> None:
    """At every operation's output, router and experts included: chosen experts and the sum of their
    weights are frozen.

    The weight of a single expert, made to sum to one, is 1: the true gradient behind it is zero,
    and the router's sites have no scale.
    """
    flat = name == "mixtral, one expert" and method == "input-x-gradient"
    assert truth_of(name).deviation(method, is_stage if flat else lambda site: True) < 1e-12


@pytest.mark.parametrize("name", NETS)
def test_attnlrp_tends_to_the_surrogate_linearly_in_eps(name: str) -> None:
    small, large = (truth_of(name).deviation("attnlrp", eps=eps) for eps in (1e-14, 1e-12))
    assert small < 1e-9
    assert large == pytest.approx(100 * small, rel=0.1)


# -- the conservation ledger -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NETS)
def test_the_ledger_closes(name: str, dtype: str) -> None:
    """Every site within 8 u sum|terms|, the whole account to 1e-12
    (float32: 1e-5) of what is explained.
    """
    model = net(name, dtype)
    for method, composite in METHODS.items():
        for keep in ("*", ()):
            e = model.explain(IDS, composite, keep=keep, audit=True)
            for entry in e.ledger:
                assert abs(entry.conservation_error) <= 8 * u(dtype) * entry.rounding_scale, (
                    f"{method}: {entry.site}"
                )
            bound = {"float32": 1e-5, "float64": 1e-12}[dtype]
            assert abs(e.ledger.conservation_error) <= bound * max(
                turnover(e.ledger), abs(e.explained)
            ), method


@pytest.mark.parametrize("name", BIAS_FREE)
def test_cp_lrp_conserves_with_constant_gates(name: str) -> None:
    """Gate weights are constants like attention's: the experts' outputs get everything, the router
    nothing, and no bias absorbs.
    """
    e = net(name).explain(IDS, "cp-lrp")
    assert abs(e.relevance.sum() - e.logit) <= 1e-12 * abs(e.logit)
    assert e.ledger.absorbed == {}
    sites = [entry.site for entry in e.ledger]
    assert not any(
        site.endswith((".gate", "probabilities", "chosen", "routing_weights", "routing_weight"))
        for site in sites
    )


@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe, biases"])
def test_experts_are_in_the_account(name: str) -> None:
    """At every sum over experts their relevances add up to what reached it, and each is what its
    expert and the router got.
    """
    e = net(name).explain(IDS, "attnlrp")
    shares = e.experts()
    sums = [entry for entry in e.ledger if entry.operation == "combine"]
    assert len(sums) == len(chosen(net(name), IDS))
    for entry in sums:
        mine = {site: r for site, r in shares.items() if site.startswith(f"{entry.site}.experts.")}
        used = {e for row in chosen(net(name), IDS)[f"{entry.site}.chosen"] for e in row}
        assert {int(site.rpartition(".")[2]) for site in mine} == used
        assert sum(mine.values()) + entry.absorbed["stabilizer"] == pytest.approx(
            entry.received, abs=1e-12
        )
        for site, r in mine.items():
            assert e[site].sum() == pytest.approx(r / 2, abs=1e-12)
            assert e[f"{site}.routing_weight"].sum() == pytest.approx(r / 2, abs=1e-12)
    order = [tuple(int(part) for part in site.split(".") if part.isdigit()) for site in shares]
    assert order == sorted(order)
    assert net(name).explain(IDS, "attnlrp", keep=()).experts() == pytest.approx(shares, abs=1e-12)


def test_sites_are_the_modules_of_the_checkpoint() -> None:
    """An expert's output and input stand under its module's path: a forward hook of another
    framework sees the same rows.
    """
    model = net("mixtral")
    e = model.explain(IDS)
    at = "model.layers.0.block_sparse_moe"
    for site in e.experts():
        path, _, number = site.rpartition(".")
        rows = chosen(model, IDS)[path.replace(".experts", ".chosen")]
        tokens = [t for k in range(2) for t, row in enumerate(rows) if row[k] == int(number)]
        assert np.array_equal(
            e.activation(f"{site}.input"), e.activation(path.replace(".experts", ".input"))[tokens]
        )
        assert np.array_equal(e.activation(site), e.activation(f"{site}.w2"))
    assert (
        e.activation(f"{at}.gate").shape
        == e.activation(f"{at}.probabilities").shape
        == (len(IDS), 6)
    )
    assert e.activation(f"{at}.routing_weights").sum(axis=-1) == pytest.approx(1.0)


# -- the renormalization ---------------------------------------------------------------------------


@pytest.mark.parametrize("composite", [ATTNLRP, ATTNLRP_GRADIENT], ids=lambda c: c.name)
def test_what_the_degree_0_reading_loses(composite: Any) -> None:
    """As a function of the chosen probabilities r/sum(r) is homogeneous of degree 0: its Jacobian
    passes on nothing in sum. As a normalization it passes on everything, which is the default."""
    model = net("mixtral")
    lost = model.explain(IDS, composite.override(Rule("renormalize", "epsilon"), name="degree 0"))
    kept = model.explain(IDS, composite)
    for site in (s for s in kept if s.endswith(".routing_weights")):
        there = kept.ledger[site]
        assert next(iter(there.passed.values())) == pytest.approx(
            there.received, abs=0 if composite is ATTNLRP else 1e-14
        )
        entry = lost.ledger[site]
        assert abs(next(iter(entry.passed.values()))) < 1e-15
        assert entry.absorbed["renormalization_offset"] == pytest.approx(entry.received, rel=1e-3)
    assert abs(lost.ledger.conservation_error) < 1e-12
    assert (
        "renormalization_offset" in lost.ledger.absorbed
        and "renormalization_offset" not in kept.ledger.absorbed
    )


# -- batches and memory ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["attnlrp", "attnlrp-gradient", "cp-lrp"])
@pytest.mark.parametrize("name", NETS)
def test_batch_and_padding(name: str, method: str) -> None:
    """Each member of a padded batch is explained as alone, ledger included, though other members
    use other experts.
    """
    model = net(name)
    for ids, e in zip(TEXTS, model.explain(TEXTS, method, audit=True), strict=True):
        alone = model.explain(ids, method, target=e.target_id, audit=True)
        assert np.abs(e.relevance - alone.relevance).max() <= rounding_bound(alone)
        assert e.explained == pytest.approx(alone.explained, abs=rounding_bound(alone))
        theirs = alone.experts()
        for site, r in e.experts().items():
            assert r == pytest.approx(theirs.get(site, 0.0), abs=rounding_bound(alone)), site
        for entry in e.ledger:
            assert abs(entry.conservation_error) <= 8 * e.ledger.roundoff * entry.rounding_scale, (
                entry.site
            )


def test_padding_is_sent_to_no_expert() -> None:
    trace, _ = net("mixtral").trace(TEXTS)
    for record in trace.records:
        if record.operation == "gather" and record.output.site.endswith(".tokens"):
            for ids, places in zip(TEXTS, record.attributes["index"], strict=True):
                assert all(t is None or t < len(ids) for t in places)


@pytest.mark.parametrize("method", ["attnlrp", "cp-lrp"])
@pytest.mark.parametrize("name", NETS)
def test_recomputation(name: str, method: str) -> None:
    """Bit for bit, the chosen experts being chosen again."""
    whole, again = (net(name).explain(TEXTS, method, recompute=r) for r in (False, True))
    for a, b in zip(whole, again, strict=True):
        assert np.array_equal(a.relevance, b.relevance)
        assert a.experts() == b.experts()


@pytest.mark.parametrize("backend", BESIDE_NUMPY, indirect=True)
@pytest.mark.parametrize("name", ["mixtral, window, tied", "qwen3-moe, biases"])
def test_the_same_in_every_backend(name: str, backend: Backend) -> None:
    away = moved(net(name), backend.place)
    for method in ("attnlrp", "attnlrp-gradient", "cp-lrp"):
        for composite in (
            METHODS[method],
            METHODS[method].override(Rule("renormalize", "epsilon")),
        ):
            for here, there in zip(
                net(name).explain(TEXTS, composite, audit=True),
                away.explain(TEXTS, composite, audit=True),
                strict=True,
            ):
                assert np.abs(here.relevance - there.relevance).max() <= rounding_bound(here)
                assert there.experts() == pytest.approx(here.experts(), abs=rounding_bound(here))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe"])
def test_dtype_is_kept(name: str, dtype: str) -> None:
    e = net(name, dtype).explain(IDS, "attnlrp")
    assert all(e.activation(site).dtype == e[site].dtype == np.dtype(dtype) for site in e)


# -- laziness --------------------------------------------------------------------------------------


class Recorded(Mapping[str, Any]):
    """Weights that remember which were fetched."""

    def __init__(self, weights: Mapping[str, Any]) -> None:
        self.weights = weights
        self.fetched: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.fetched.add(name)
        return self.weights[name]

    def __contains__(self, name: object) -> bool:
        return name in self.weights

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe"])
@pytest.mark.parametrize("recompute", [False, True])
def test_only_chosen_experts_are_fetched(name: str, recompute: bool) -> None:
    """In the forward pass and in the sweep; padding chooses none."""
    ids, weights = [2, 7], Recorded(net(name).weights)
    model = replace(net(name), weights=weights)
    model.explain([ids, [2]], "attnlrp", recompute=recompute)
    fetched, everyone = (
        {tensor.rsplit(".", 2)[0] for tensor in tensors if ".experts." in tensor}
        for tensors in (weights.fetched, weights)
    )
    assert fetched == experts_of(net(name), ids) < everyone


def test_an_expert_that_nobody_chose_may_be_anything() -> None:
    """NaN in its weights is never seen."""
    model = net("mixtral")
    used = tuple(f"{expert}." for expert in experts_of(model, [2, 7]))
    poisoned = {
        name: np.full_like(w, np.nan) if ".experts." in name and not name.startswith(used) else w
        for name, w in model.weights.items()
    }
    e, clean = replace(model, weights=poisoned).explain([2, 7]), model.explain([2, 7])
    assert np.array_equal(e.relevance, clean.relevance)


def test_dispatch_lists_every_choice_once() -> None:
    choices = (((0, 2), (2, 1), (1, 0)), ((2, 0), (0, 1), (0, 1)))
    attention_mask = np.asarray([[True, True, True], [True, False, False]])
    found = {e: (tokens, weights) for e, tokens, weights in moe.dispatched(choices, attention_mask)}
    assert found == {
        0: (((0, 2), (0, None)), ((0, 5), (1, None))),
        1: (((2, 1), (None, None)), ((4, 3), (None, None))),
        2: (((1, 0), (0, None)), ((2, 1), (0, None))),
    }


def test_more_choices_than_experts_are_refused() -> None:
    for config, name in ((MIXTRAL, "num_local_experts"), (QWEN3_MOE, "num_experts")):
        with pytest.raises(
            ReflError, match=f"num_experts_per_tok = 9, but only 3 experts .{name}."
        ):
            random_model(config | {"num_experts_per_tok": 9, name: 3}, 0)


def test_an_expert_of_another_width_is_told_by_its_own_option() -> None:
    model = net("qwen3-moe")
    shapes = {name: why for name, _, why in model.net.shapes(model.config)}
    assert shapes["model.layers.0.mlp.experts.0.up_proj.weight"].endswith("moe_intermediate_size")
    assert shapes["model.layers.1.mlp.up_proj.weight"] == "hidden_size and intermediate_size"


def test_switching_an_expert_off_changes_the_logits() -> None:
    """The account names experts; an edited run shows what one of them does:
    its output at its site.
    """
    model = net("mixtral")
    strongest = max(model.explain(IDS).experts().items(), key=lambda item: abs(item[1]))[0]
    t = Trace(model.weights, record=False, edits={strongest: lambda x: 0 * x})
    edited = model.net.forward(t, model.config, model.batch([IDS])).array
    assert np.abs(edited[0, 0] - model.logits(IDS)[-1]).max() > 1e-3


# -- the command line, and CuPy's signatures -------------------------------------------------------


def test_keep_patterns_may_name_any_expert(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names are checked on a text of one token, which not every expert serves."""
    write_safetensors(
        tmp_path / "model.safetensors",
        {name: np.asarray(w) for name, w in net("mixtral").weights.items()},
        {},
    )
    (tmp_path / "config.json").write_text(json.dumps(MIXTRAL))
    for expert in range(6):
        asked = [
            "explain",
            "--model",
            str(tmp_path),
            "--ids",
            *map(str, IDS),
            "--keep",
            f"*.experts.{expert}",
            "--json",
            "--dtype",
            "float64",
        ]
        assert main(asked) == 0
        kept = [
            site for site in json.loads(capsys.readouterr().out)["sites"] if ".experts." in site
        ]
        served = [
            site for site in net("mixtral").explain(IDS).experts() if site.endswith(f".{expert}")
        ]
        assert len(kept) == len(served)
    assert main([*asked[:-5], "--keep", "*.expert.3"]) != 0
    assert main(["trace", "--model", str(tmp_path), "--ids", *map(str, IDS), "--json"]) == 0
    assert '"model.layers.1.block_sparse_moe.experts.' in capsys.readouterr().out


@pytest.mark.needs("cupy")
def test_cupy_would_take_every_call(recorder: Recorder) -> None:
    import cupy

    for composite in (ATTNLRP, ATTNLRP_GRADIENT, ATTNLRP.override(Rule("renormalize", "epsilon"))):
        net("mixtral").explain(TEXTS, composite, audit=True)
    assert {"take", "concat", "asarray"} <= {name for name, _, _ in recorder.calls}
    assert not {refusal(cupy, *call) for call in recorder.calls} - {None}
