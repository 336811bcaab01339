"""The model-level vectors: refl finds every number of them, their files are sound, and a wrong
answer is told from a right one.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refl
from refl.errors import ReflError
from refl.io.safetensors import read_safetensors, write_safetensors
from refl.nets import NETS
from refl.targets import numbered
from refl.verification.vectors import make_model_vectors, model_vectors
from refl.verification.vectors.model_vectors import (
    ModelCase,
    architectures,
    check,
    check_activations,
    lint,
    load,
    unknown,
)

KINDS = architectures()


def explain(model: Any, case: ModelCase, **how: Any) -> Any:
    return model.explain(
        case.item,
        case.method,
        target=numbered(model.task, case.target),
        decoder=case.decoder_ids,
        position=case.position,
        **how,
    )


def answer(e: Any) -> dict[str, Any]:
    return {site: e[site] for site in e} | {"logit": e.logit}


def lines(found: list[Any]) -> str:
    return "\n".join(map(str, found))


def test_every_architecture_has_vectors() -> None:
    assert {net.MODEL_TYPE for net in NETS.values()} == set(make_model_vectors.CONFIGS)
    assert set(KINDS) == set(make_model_vectors.ALL)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kind", KINDS)
def test_refl_finds_every_number(kind: str, dtype: str) -> None:
    model = refl.load(model_vectors.FOLDER / kind, dtype=dtype)
    for case in load(kind):
        e = explain(model, case)
        assert list(e) == case.sites and unknown(case, answer(e)) == []
        assert not (found := check(case, answer(e), dtype)), lines(found)
        assert not (
            found := check_activations(case, {site: e.activation(site) for site in e}, dtype)
        ), lines(found)
        assert e.sites.aliases == case.aliases and e.composite.formulation == case.formulation


@pytest.mark.parametrize("kind", KINDS)
def test_the_ledger_is_the_expected_one(kind: str) -> None:
    model = refl.load(model_vectors.FOLDER / kind, dtype="float64")
    for case in load(kind):
        ledger = explain(model, case, keep=()).ledger
        recorded = {cause: float(amount) for cause, amount in ledger.absorbed.items()} | {
            ledger.destination: float(ledger.tokens)
        }
        size = sum(map(abs, case.absorbed.values()))
        for cause in recorded.keys() | case.absorbed.keys():
            amount = case.absorbed.get(cause, 0.0)
            assert abs(recorded.get(cause, 0.0) - amount) < 1e-12 * size, cause


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("vit", "deit")])
def test_padding_changes_nothing(kind: str) -> None:
    """Both inputs as one batch: what is expected of each stands at its own tokens."""
    model = refl.load(model_vectors.FOLDER / kind, dtype="float64")
    first, second = load(kind, ["attnlrp"])
    decoder = None if first.decoder_ids is None else [first.decoder_ids, second.decoder_ids]
    both = model.explain(
        [first.ids, second.ids],
        "attnlrp",
        target=[numbered(model.task, one.target) for one in (first, second)],
        decoder=decoder,
        position=first.position,
    )
    for case, e in zip((first, second), both, strict=True):
        got = {
            site: _cut(e[site], case.expected[site].shape)
            for site in case.sites
            if ".bias." not in site
        }
        assert not (found := check(case, got)), lines(found)


def _cut(padded: Any, shape: tuple[int, ...]) -> Any:
    return padded[tuple(slice(n) for n in shape)]


# -- what check says of a wrong answer -------------------------------------------------------------


@pytest.fixture(scope="module")
def case() -> ModelCase:
    return load("llama", ["attnlrp"])[0]


def correct(case: ModelCase) -> dict[str, Any]:
    return {site: r.copy() for site, r in case.expected.items()} | {"logit": case.logit}


def test_the_expected_passes(case: ModelCase) -> None:
    assert check(case, correct(case)) == check(case, correct(case), "float32") == []


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_every_single_site_counts(case: ModelCase, dtype: str) -> None:
    for site in case.sites:
        got = correct(case)
        got[site].flat[-1] += 20 * model_vectors.ROUNDOFF[dtype] * case.condition[site]
        assert [found.site for found in check(case, got, dtype)] == (
            [site] if case.condition[site] else []
        )


def test_sites_come_in_the_order_of_the_sweep(case: ModelCase) -> None:
    got = correct(case)
    for site in ("model.embed_tokens", "model.layers.1", "model.layers.0.mlp.down_proj"):
        got[site] = 1.1 * got[site]
    found = check(case, got)
    assert [f.site for f in found] == [
        "model.layers.1",
        "model.layers.0.mlp.down_proj",
        "model.embed_tokens",
    ]
    assert str(found[0]).startswith("model.layers.1[") and "allowed" in str(found[0])


def test_names_and_shapes_that_are_accepted(case: ModelCase) -> None:
    got = {"model.layers.1.input": case.expected["model.layers.0"][None], "what": np.zeros(3)}
    assert case.aliases["model.layers.1.input"] == "model.layers.0"
    assert check(case, got) == [] and unknown(case, got) == ["what"]
    assert [
        f.site for f in check(case, {"model.layers.1.input": 2 * got["model.layers.1.input"]})
    ] == ["model.layers.1.input"]


def test_an_alias_does_not_hide_a_site(case: ModelCase) -> None:
    """A value under two names is compared under both, whichever comes last."""
    site, alias = "model.layers.0", "model.layers.1.input"
    right, wrong = case.expected[site], 2 * case.expected[site]
    for got in ({site: wrong, alias: right}, {alias: right, site: wrong}):
        assert [f.site for f in check(case, got)] == [site]
    assert [f.site for f in check(case, {site: right, alias: wrong})] == [alias]


@pytest.mark.parametrize("kind", ["llama", "bert", "vit"])
def test_all_rows_where_one_is_kept(kind: str) -> None:
    """A hook on lm_head, a pooler or a classifier sees every row; the others have no relevance."""
    case = load(kind, ["attnlrp"])[0]
    site = case.sites[0] if kind != "bert" else "bert.pooler.dense"
    wanted, x = case.expected[site], case.activations[site]
    assert wanted.size == wanted.shape[-1], "one row"
    rows = np.zeros((1, 5, wanted.shape[-1]))
    rows[0, 2], forward = wanted.reshape(-1), np.ones_like(rows)
    forward[0, 2] = x.reshape(-1)
    assert check(case, {site: rows}) == [] and check(case, {site: rows[0]}) == []
    assert check_activations(case, {site: forward}) == []
    rows[0, 4, 0] = 1e-9
    (found,) = check(case, {site: rows})
    assert "2 of 5 rows have relevance, where only the explained one may" in str(found)
    (zero,) = check(case, {site: 0 * rows})
    assert not zero.why and zero.got == 0
    (longer,) = check(case, {site: np.concatenate([wanted, 0 * wanted], axis=-1)})
    assert "shape" in longer.why


@pytest.mark.parametrize("kind", KINDS)
def test_the_input_is_below_all_blocks(kind: str) -> None:
    """Embeddings, or pixels, are what every sweep ends at."""
    case = load(kind, ["attnlrp"])[0]
    ends = (
        *("embed_tokens", "word_embeddings", "tok_embeddings", "wte", "stored"),
        "pixel_values",
    )
    assert case.input_sites[-1].split(".")[-1] in ends
    assert not any(".0." in site for site in case.input_sites)


def test_answers_that_cannot_be_compared(case: ModelCase) -> None:
    site = "model.layers.0"
    assert "shape" in str(check(case, {site: case.expected[site].T})[0])
    assert (
        check(case, {site: np.where(case.expected[site] > 0, np.nan, case.expected[site])})[
            0
        ].deviation
        == np.inf
    )
    assert (
        check(case, {site: case.expected[site], "logit": case.logit * (1 + 1e-12)})[0].site
        == "logit"
    )
    with pytest.raises(ReflError, match="no site of llama-0-attnlrp"):
        check(case, {"layers.0": case.expected[site]})
    with pytest.raises(ReflError, match="unknown dtype"):
        check(case, correct(case), "float8")


def test_activations_that_cannot_be_compared_are_refused() -> None:
    case = next(iter(load("llama")))
    with pytest.raises(ReflError, match="no site of .* is among nonsense"):
        check_activations(case, {"nonsense": np.zeros(3)}, "float64")
    with pytest.raises(ReflError, match="unknown dtype 'float8'"):
        check_activations(case, {case.sites[0]: np.zeros(3)}, "float8")


def test_unknown_architecture() -> None:
    with pytest.raises(ReflError, match="no model vectors for 'mamba'"):
        load("mamba")


@pytest.mark.parametrize("kind", KINDS)
def test_methods_are_told_apart(kind: str) -> None:
    """No method's numbers pass for another's in float32; but for AttnLRP's two forms and LXT's,
    which come close there without biases and are told apart in float64.
    """
    for case in load(kind):
        for other in load(kind):
            if other.number == case.number and other.method != case.method:
                dtype = (
                    "float64"
                    if {case.method, other.method}
                    <= {"attnlrp", "attnlrp-gradient", "lxt-explicit"}
                    else "float32"
                )
                assert check(case, other.expected, dtype) != []


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_lint(kind: str) -> None:
    assert lint(kind) == []


@pytest.mark.parametrize("kind", ["qwen2", "mixtral"])
def test_made_again_byte_for_byte(kind: str, tmp_path: Path) -> None:
    make_model_vectors.build(kind, tmp_path)
    for name in ("config.json", "model.safetensors", model_vectors.EXPECTED):
        assert (tmp_path / name).read_bytes() == (
            model_vectors.FOLDER / kind / name
        ).read_bytes(), name


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("qwen2", "mixtral")])
def test_made_again(kind: str) -> None:
    """Everything but the condition, which takes eight times as long."""
    folder = model_vectors.FOLDER / kind
    stored, weights = (
        read_safetensors(folder / model_vectors.EXPECTED),
        read_safetensors(folder / "model.safetensors")[0],
    )
    arrays, header = make_model_vectors.answers(kind, folder, runs=0)
    assert header == stored[1] and set(arrays) == set(stored[0])
    assert all(
        np.array_equal(array, stored[0][name])
        for name, array in arrays.items()
        if "/condition/" not in name
    )
    again = make_model_vectors.weights(make_model_vectors.ALL[kind], make_model_vectors.SEEDS[kind])
    assert set(again) == set(weights) and all(
        np.array_equal(w, weights[name]) for name, w in again.items()
    )
    assert json.loads((folder / "config.json").read_text()) == make_model_vectors.stored(
        make_model_vectors.ALL[kind]
    )


def test_the_whole_is_small() -> None:
    assert (
        sum(path.stat().st_size for path in model_vectors.FOLDER.rglob("*") if path.is_file()) < 6e6
    )


def test_weights_are_the_same_in_half_precision() -> None:
    for kind in KINDS:
        for name, w in read_safetensors(model_vectors.FOLDER / kind / "model.safetensors")[
            0
        ].items():
            assert np.array_equal(w, w.astype(np.float16)), name


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(model_vectors.FOLDER / "qwen2", tmp_path / "qwen2")
    monkeypatch.setattr(model_vectors, "FOLDER", tmp_path)
    return tmp_path / "qwen2"


def change(folder: Path, arrays: dict[str, Any], **metadata: Any) -> list[str]:
    """What lint says once these tensors (None: taken out)
    and entries of the header are written over.
    """
    before, said = read_safetensors(folder / model_vectors.EXPECTED)
    after = {name: array for name, array in (before | arrays).items() if array is not None}
    write_safetensors(
        folder / model_vectors.EXPECTED,
        after,
        said | {key: json.dumps(value) for key, value in metadata.items()},
    )
    return lint("qwen2")


def test_lint_sees_what_is_wrong(copied: Path) -> None:
    assert lint("qwen2") == []
    site = "0/relevance/attnlrp/lm_head"
    arrays, said = read_safetensors(copied / model_vectors.EXPECTED)
    before, about = arrays[site].copy(), json.loads(said["inputs"])
    assert "not finite" in change(copied, {site: before * np.nan})[0]
    assert [
        line for line in change(copied, {site: None}) if "counts" in line or "missing" in line
    ] != []
    assert "belongs to nothing" in change(copied, {site: before, "what": before})[0]
    assert "condition below" in change(copied, {site: 2 * before, "what": None})[0]
    assert "has relevance" in change(copied, {site: before.T})[0]
    assert (
        "outside the vocabulary"
        in change(copied, {site: before}, inputs=[{**about[0], "ids": [11]}, about[1]])[0]
    )
    assert (
        "which the logits do not say"
        in change(copied, {}, inputs=[{**about[0], "target": 99}, about[1]])[0]
    )
    assert (
        "does not close"
        in change(
            copied,
            {},
            inputs=[
                {**about[0], "absorbed": {m: {"tokens": 9.0} for m in json.loads(said["methods"])}},
                about[1],
            ],
        )[0]
    )
    assert change(copied, {}, inputs=about) == []


def test_another_format_is_refused(copied: Path) -> None:
    with pytest.raises(ReflError, match="format 1"):
        change(copied, {}, format=1)
