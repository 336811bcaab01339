"""What explain() returns: reading its sites, writing it down, reading it back."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refl
from refl import Explanation
from refl.answer import CANDIDATES, _likeliest
from refl.explainer import lengths
from refl.explanation import MethodFacts
from refl.io.safetensors import read_safetensors, write_safetensors
from refl.rules.published import METHODS
from refl.verification.random_models import LLAMA, VIT, random_model

TEXT = "the keys to the cabinet"


@pytest.fixture(scope="module")
def model() -> refl.Model:
    return refl.load(dtype="float64")


@pytest.mark.parametrize("method", METHODS)
def test_an_oracle_file_read_back_is_the_same_explanation(
    model: refl.Model, tmp_path: Path, method: str
) -> None:
    e = model.explain(TEXT, method)
    e.save(tmp_path / "e.safetensors")
    f = Explanation.load(tmp_path / "e.safetensors")
    assert f.as_dict() == e.as_dict()
    assert list(f) == list(e)  # from the output down, though the file sorts its arrays by name
    for site in e:
        assert np.array_equal(f[site], e[site]) and np.array_equal(
            f.activation(site), e.activation(site)
        )
        if e.composite.formulation == "gradient_x_input":
            assert np.array_equal(f.gradient(site), e.gradient(site))
    # aliases survive
    assert np.array_equal(f["model.layers.0.mlp"], f["model.layers.0.mlp.down_proj"])


def test_a_method_read_back_explains_the_same(model: refl.Model, tmp_path: Path) -> None:
    e = model.explain(TEXT, "attnlrp", eps=1e-3)
    e.save(tmp_path / "e.safetensors")
    again = model.explain(TEXT, Explanation.load(tmp_path / "e.safetensors").composite)
    assert np.array_equal(again.relevance, e.relevance)
    assert not np.array_equal(again.relevance, model.explain(TEXT, "attnlrp").relevance)


def test_an_oracle_file_of_a_contrast_and_of_a_neuron(model: refl.Model, tmp_path: Path) -> None:
    for number, how in enumerate(
        ({"contrast": ("are", "is")}, {"at": ("model.layers.1.mlp.act_fn", (3, 7))})
    ):
        e = model.explain(TEXT, **how)
        e.save(tmp_path / f"{number}.safetensors")
        f = Explanation.load(tmp_path / f"{number}.safetensors")
        assert f.as_dict() == e.as_dict() and str(f) == str(e)


def test_what_is_no_oracle_file_is_refused(model: refl.Model, tmp_path: Path) -> None:
    write_safetensors(tmp_path / "other.safetensors", {"a": np.zeros(2)}, {})
    with pytest.raises(refl.ReflError, match="no oracle file"):
        Explanation.load(tmp_path / "other.safetensors")
    model.explain(TEXT, keep=()).save(tmp_path / "e.safetensors")
    arrays, metadata = read_safetensors(tmp_path / "e.safetensors")
    write_safetensors(tmp_path / "next.safetensors", arrays, metadata | {"format": "3"})
    with pytest.raises(refl.ReflError, match="of format 3, this refl reads formats 1 to 2"):
        Explanation.load(tmp_path / "next.safetensors")


def test_a_site_that_was_not_kept_is_refused_by_name(model: refl.Model) -> None:
    e = model.explain(TEXT, keep="*.mlp")
    assert e["model.layers.0.mlp"].shape == (6, 64)
    with pytest.raises(refl.ReflError, match="q_proj"):
        e["model.layers.0.self_attn.q_proj"]
    with pytest.raises(refl.ReflError, match="is in relevance form"):
        e.gradient("model.layers.0.mlp")


@pytest.mark.parametrize("item", [5, None, np.int64(3), [None], [1.5], ["the", 3], [[]], []])
def test_what_is_no_input_is_refused(model: refl.Model, item: Any) -> None:
    with pytest.raises(refl.ReflError, match="expected"):
        model.explain(item)


@pytest.mark.parametrize("target", [2.0, object(), [1.5]])
def test_what_is_no_target_is_refused(model: refl.Model, target: Any) -> None:
    with pytest.raises(refl.ReflError, match="is no token id: expected a whole number"):
        model.explain(TEXT, target=target)


@pytest.mark.parametrize("target", [np.int64(7), np.asarray(7), [7], np.asarray([7])])
def test_numbers_of_numpy_are_targets(model: refl.Model, target: Any) -> None:
    e = model.explain(np.asarray([3, 4]), target=target)
    assert e.target_id == 7 and e.input_ids == [3, 4]


@pytest.mark.parametrize("pattern", ["*.score?", "*.[s]cores", "*.scores"])
def test_any_pattern_reaches_the_sites_of_attention(model: refl.Model, pattern: str) -> None:
    """They are kept by the plain form alone, so a pattern that may mean one asks for it."""
    kept = [site for site in model.explain(TEXT, keep=pattern) if site.endswith(".scores")]
    assert len(kept) == model.config.num_hidden_layers


def test_it_shows_itself(model: refl.Model) -> None:
    e = model.explain(TEXT)
    assert (
        "cabinet" in str(e) and "softmax_offset" in str(e.ledger) and "cabinet" in e._repr_html_()
    )
    assert e.html().lower().startswith("<!doctype html>")


def test_tokens_of_evidence_carry_the_contrast(model: refl.Model) -> None:
    """The shipped model's evidence: under AttnLRP the subject noun leads in most agreement
    sentences of its own data file.
    """
    lines = [
        json.loads(line)
        for line in (Path(refl.__file__).parent / "shipped" / "evidence.jsonl")
        .read_text()
        .splitlines()
    ]
    sentences = [line for line in lines if line["task"] == "agreement"][:60]
    assert len(sentences) == 60
    found = 0
    for line in sentences:
        e = model.explain(
            line["prefix"], "attnlrp", contrast=(line["target"], line["foil"]), keep=()
        )
        assert e.explained > 0  # the logit of the right form is the larger
        found += int(np.argmax(e.relevance)) in (*line["evidence_tokens"], *line["support_tokens"])
    assert found >= 0.7 * len(sentences)  # measured over all 200: 77.5 %


def test_another_method_is_held_as_it_is(model: refl.Model, tmp_path: Path) -> None:
    """Without a table of rules and without a ledger:
    nothing is made up for them, shown or written.
    """
    e = model.explain(TEXT, keep="*.mlp")
    other = MethodFacts("rollout", source="someone 2020", summary="attention, multiplied")
    bare = replace(e, method=other, recorded=None)
    bare.save(tmp_path / "bare.safetensors")
    again = refl.Explanation.load(tmp_path / "bare.safetensors")
    assert again.as_dict() == bare.as_dict() and again.method == other
    assert again.as_dict()["ledger"] is None and "rules" not in again.as_dict()["method"]
    assert np.array_equal(again["model.layers.0.mlp"], e["model.layers.0.mlp"])
    for part, sentence in (("ledger", "keeps no conservation ledger"), ("composite", "no table")):
        with pytest.raises(refl.ReflError, match=f"method rollout .*{sentence}"):
            getattr(again, part)
    rest = e.explained - float(e.relevance.sum())
    for shown in (str(again), again.html(), again._repr_html_()):
        assert "rollout" in shown and "softmax_offset" not in shown and "not recorded" in shown
        assert f"{rest:.6f}"[:6] in shown
    assert "The conservation ledger" not in again.html() and "table of rules" not in again.html()


# -- good objects ----------------------------------------------------------------------------------


def test_every_object_is_one_line(model: refl.Model) -> None:
    e, batch = model.explain(TEXT), model.explain(["the keys"] * 5, keep=())
    for one in (e, e.ledger, e.composite, e.sites, model, batch):
        assert "\n" not in repr(one) and len(repr(one)) <= 240, repr(one)
    assert "'are'" in repr(e) and "6 tokens" in repr(e) and "attnlrp" in repr(e)
    hostile = replace(e, target="\n\x1b[31m" * 500, tokens=["a"] * 20000)
    assert "\n" not in repr(hostile) and "\x1b" not in repr(hostile) and len(repr(hostile)) <= 240
    picture = random_model(VIT, 0).explain(np.zeros((3, 8, 12)) + 0.5)
    assert "a picture of 8 x 12" in repr(picture)


def test_scalars_where_there_is_one_example(model: refl.Model) -> None:
    for e in (model.explain(TEXT), *model.explain([TEXT, "the key"], audit=True)):
        sums = (e.ledger.explained, e.ledger.tokens, e.ledger.conservation_error)
        assert all(type(s) is float for s in (e.logit, e.probability, e.explained, *sums))
        assert all(type(s) is float for s in e.ledger.absorbed.values())
        entry = e.ledger["lm_head"]
        assert type(entry.received) is type(entry.conservation_error) is float
        assert type(e.target_id) is int and type(e.target) is str
        # one line of the account, added by hand
        assert e.ledger.explained == pytest.approx(
            e.ledger.tokens + sum(e.ledger.absorbed.values()), rel=1e-12
        )


def test_a_site_that_is_none_is_a_missing_key(model: refl.Model) -> None:
    e = model.explain(TEXT, keep="*.mlp")
    for site in ("lm_heed", 5, None, ["lm_head"], ("lm_head",), b"lm_head"):
        for read in (e.__getitem__, e.activation, e.ledger.__getitem__):
            with pytest.raises(refl.ReflError) as caught:
                read(site)  # type: ignore[arg-type]
            assert isinstance(caught.value, KeyError) and "\n" not in str(caught.value)


@pytest.mark.parametrize("again", [lambda x: pickle.loads(pickle.dumps(x)), copy.deepcopy])
@pytest.mark.parametrize("keep", [None, "*.mlp", ()])
def test_pickled_and_copied(model: refl.Model, again: Any, keep: Any) -> None:
    e = model.explain(TEXT, "attnlrp-gradient", contrast=("are", "is"), keep=keep)
    f = again(e)
    assert f.as_dict() == e.as_dict() and str(f) == str(e) and list(f) == list(e)
    for site in e:
        assert np.array_equal(f[site], e[site]) and np.array_equal(
            f.gradient(site), e.gradient(site)
        )
    assert str(again(e.ledger)) == str(e.ledger)
    both = again(model.explain([TEXT, "the key"], keep=keep))
    assert repr(both).startswith("<Batch of 2") and len(both[1].relevance) == 3


@pytest.mark.parametrize("again", [lambda x: pickle.loads(pickle.dumps(x)), copy.deepcopy])
def test_a_model_is_pickled_by_the_path_of_its_weights(model: refl.Model, again: Any) -> None:
    other = again(model)
    assert len(pickle.dumps(model)) < 50_000 < Path(model_folder(model)).stat().st_size
    wanted = model.explain(TEXT, keep=())
    assert np.array_equal(other.explain(TEXT, keep=()).relevance, wanted.relevance)
    for config in (LLAMA, VIT):
        drawn = random_model(config, 0)
        assert all(np.array_equal(again(drawn).weights[n], drawn.weights[n]) for n in drawn.weights)


def model_folder(model: refl.Model) -> Path:
    return Path(refl.__file__).parent / model.name / "model.safetensors"


def test_a_pickled_model_whose_checkpoint_has_changed(tmp_path: Path) -> None:
    shutil.copytree(Path(refl.__file__).parent / "shipped", tmp_path / "copy")
    pickled = pickle.dumps(refl.load(tmp_path / "copy"))
    assert pickle.loads(pickled).explain(TEXT, keep=()).target == "are"
    (tmp_path / "copy" / "config.json").write_text(
        (tmp_path / "copy" / "config.json").read_text() + " "
    )
    with pytest.raises(refl.ReflError, match="has changed since the model was pickled"):
        pickle.loads(pickled)
    shutil.rmtree(tmp_path / "copy")
    with pytest.raises(refl.ReflError):
        pickle.loads(pickled)


# -- sites on demand -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["attnlrp", "attnlrp-gradient"])
def test_sites_on_demand_are_those_that_are_kept(model: refl.Model, method: str) -> None:
    """By default nothing is held; the first site that is asked for runs the input again, alone."""
    how: dict[str, Any] = {"target": ["is", "were"]}
    lazy = model.explain([TEXT, "the key"], method, **how)
    kept = model.explain([TEXT, "the key"], method, keep="*", **how)
    for e, wanted in zip(lazy, kept, strict=True):
        assert list(e) == list(wanted) and e.sites.aliases == wanted.sites.aliases
        for site in wanted:
            assert e[site].shape == e.activation(site).shape
            length = e[site].shape
            inside = tuple(slice(n) for n in length)  # of a padded batch
            size = np.abs(wanted[site]).max()
            assert np.abs(e[site] - wanted[site][inside]).max() <= 1e-9 * max(size, 1.0), site


def test_a_neuron_on_demand(model: refl.Model) -> None:
    at = ("model.layers.1.mlp.act_fn", (3, 7))
    e, wanted = (model.explain(TEXT, at=at, keep=keep) for keep in (None, "*"))
    assert list(e) == list(wanted)
    assert np.array_equal(e["model.layers.0"], wanted["model.layers.0"])


def test_an_explanation_is_found_among_others(model: refl.Model) -> None:
    """Compared number by number, arrays have no one truth."""
    batch = model.explain(["the keys", "the key"], keep=())
    assert batch.index(batch[1]) == 1 and batch[1] in batch and len(set(batch)) == 2
    assert batch[0] != batch[1] and batch[0] not in batch[1:]


@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        ("float32", 1e-30),
        ("float32", 1.0),
        ("float32", 1e25),
        ("float64", 1e-300),
        ("float64", 1e200),
    ],
)
def test_the_length_of_a_gradient_of_any_size(dtype: str, size: float) -> None:
    """3, 4, 12 -> 13, and a row of zeros."""
    x = np.asarray([[3, 4, 12], [0, 0, 0]], dtype) * np.asarray(size, dtype)
    expected = [13 * float(x[0, 0]) / 3, 0]
    np.testing.assert_allclose(lengths(x), expected, rtol=4 * np.finfo(dtype).eps)
    assert lengths(x).dtype == x.dtype


def test_the_second_logit_of_a_contrast_is_shown_as_it_is(model: refl.Model) -> None:
    """Not as what is left of the first, which rounding of the difference moves."""
    e = model.explain(TEXT, contrast=("are", "is"), keep=())
    e = replace(e, logit=2e4, against_logit=1e4, explained=1e4 - 0.25)
    shown = str(e)
    assert "10000.0000" in shown and "10000.25" not in shown


@given(
    st.lists(
        st.sampled_from([0.0, -0.0, 1.0, 2.0, -3.0, float("inf"), float("-inf"), float("nan")]),
        min_size=1,
        max_size=12,
    )
)
def test_the_likeliest_are_the_first_of_all_sorted(numbers: list[float]) -> None:
    """Ties, infinities, and what is no number at the end."""
    z = np.array(numbers)
    wanted = np.argsort(-z, kind="stable")[:CANDIDATES].tolist()
    assert _likeliest(z) == wanted
