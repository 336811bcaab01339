"""What is special in Mamba: no attention, states that are handed over, all relevance conserved but
for biases, options. (What it computes is held against transformers and against MambaLRP in
tests/peers/test_mamba.py, its relevance against the surrogate in test_newer.py.)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_folders import checkpoint_of

import refl
from refl.errors import ReflError
from refl.nets import mamba
from refl.nets.config import parse
from refl.verification.random_models import MAMBA, random_model
from refl.walk import walk

IDS = [3, 1, 4, 1, 5, 9, 2]
BIASED = MAMBA | {"use_bias": True, "use_conv_bias": True, "conv_kernel": 4}


@pytest.mark.parametrize("config", [MAMBA, BIASED, MAMBA | {"conv_kernel": 1}])
def test_a_text_is_continued_from_states(config: dict[str, Any]) -> None:
    """As it is where the whole text is run for every token; from texts shorter than the kernel."""
    model = random_model(config, 5)
    for length in (1, 2, 7):
        ids = IDS[:length]
        for _ in range(6):
            ids = [*ids, int(model.logits(ids)[-1].argmax())]
        assert model.generate(IDS[:length], 6) == ids


@pytest.mark.parametrize("method", ["attnlrp-gradient", "cp-lrp", "relp", "lrp-0"])
def test_all_relevance_is_conserved(method: str) -> None:
    """Of a net without biases but those of step sizes, which are constants: half of the gate's
    product goes through the gate, and nothing is lost there.
    """
    e = random_model(MAMBA, 2).explain(IDS, method)
    assert abs(e.relevance.sum() - e.logit) <= 1e-12 * np.abs(e.relevance).sum()
    biased = random_model(BIASED, 2).explain(IDS, method)
    rest = biased.logit - biased.relevance.sum()
    assert abs(rest - biased.ledger.absorbed["bias"]) <= 1e-12 < abs(rest)


def test_step_sizes_and_coefficients_are_constants() -> None:
    """Nothing arrives at what makes them; by the true derivative something does."""
    model = random_model(MAMBA, 2)
    sites = [f"backbone.layers.1.mixer.{name}" for name in ("x_proj", "dt_proj", "B", "C")]
    for method, reached in (("attnlrp", False), ("cp-lrp", False), ("input-x-gradient", True)):
        e = model.explain(IDS, method, keep=sites)
        assert all(e[site].any() == reached for site in sites)
    gate = "backbone.layers.1.mixer.gate"
    through = {m: model.explain(IDS, m, keep=gate)[gate].sum() for m in ("attnlrp", "cp-lrp")}
    assert through["cp-lrp"] == 0 != through["attnlrp"]


def test_half_of_a_product_goes_through_the_gate() -> None:
    e = random_model(MAMBA, 2).explain(IDS, "attnlrp", keep="*")
    for i in range(2):
        gate, scanned = (f"backbone.layers.{i}.mixer.{name}" for name in ("gate", "scanned"))
        assert np.array_equal(e[gate], e[scanned])


def test_decompx_is_cp_lrp() -> None:
    """Forwards, token by token, with step sizes, coefficients and gates as in the run."""
    model = random_model(BIASED, 2)
    forwards, back = (model.explain(IDS, method) for method in ("decompx", "cp-lrp"))
    assert np.abs(forwards.relevance - back.relevance).max() <= 1e-12
    assert abs(forwards.ledger.absorbed["bias"] - back.ledger.absorbed["bias"]) <= 1e-12


@pytest.mark.parametrize("method", ["atman", "alti-logit", "attention-rollout", "chefer-2021"])
def test_a_method_that_reads_attention_is_refused(method: str) -> None:
    with pytest.raises(ReflError, match="no attention is below what is explained in random mamba"):
        random_model(MAMBA, 2).explain(IDS, method)


def test_a_walk_is_refused() -> None:
    with pytest.raises(ReflError, match="no equation for the operation causal_convolution"):
        walk(random_model(MAMBA, 2), IDS)


def test_a_mixer_s_channels_are_its_neurons() -> None:
    parts = random_model(MAMBA, 2).components
    assert [mlp.width for mlp in parts.mlps] == [24, 24] and parts.attentions == ()
    assert parts.part("L1.N23").site == "backbone.layers.1.mixer.out_proj.input"


# -- options -------------------------------------------------------------------------------------


def test_the_options_of_a_file_as_transformers_writes_it() -> None:
    """And of the first ones, which have older names beside those that are read."""
    told = MAMBA | {
        "d_inner": 999,
        "d_model": 999,
        "fused_add_norm": True,
        "n_layer": 999,
        "pad_vocab_size_multiple": 8,
        "residual_in_fp32": True,
        "rms_norm": True,
        "ssm_cfg": {},
        "time_step_floor": 1e-4,
        "time_step_init_scheme": "random",
        "time_step_min": 0.001,
        "use_mambapy": True,
    }
    assert parse(mamba.Config, told) == parse(mamba.Config, MAMBA)


def test_widths() -> None:
    """expand rounds down; intermediate_size wins; a sixteenth of the width, rounded up."""
    assert parse(mamba.Config, MAMBA | {"expand": 1.6}).inner == 19
    assert parse(mamba.Config, MAMBA | {"expand": 3, "intermediate_size": 7}).inner == 7
    auto = {"time_step_rank": "auto", "hidden_size": 33}
    assert parse(mamba.Config, MAMBA | auto).rank == 3
    assert parse(mamba.Config, {"model_type": "mamba"}).rank == 48


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"hidden_act": "mish"}, "hidden_act 'mish'"),
        ({"time_step_rank": "many"}, "time_step_rank = 'many': expected a whole number or 'auto'"),
        ({"ssm_cfg": {"layer": "Mamba2"}}, "sets ssm_cfg"),
        ({"architectures": ["MambaForSequenceClassification"]}, "MambaForSequenceClassification"),
        ({"model_type": "mamba2"}, "'mamba2', which is not implemented \\(one decay"),
        ({"model_type": "falcon_mamba"}, "'falcon_mamba', which is not implemented \\(norms"),
        ({"model_type": "jamba"}, "'jamba', which is not implemented \\(blocks"),
    ],
)
def test_what_is_refused(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    folder = checkpoint_of(tmp_path, MAMBA)
    (folder / "config.json").write_text(json.dumps(MAMBA | changed))
    with pytest.raises(ReflError, match=said):
        refl.load(folder)
