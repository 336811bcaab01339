"""Runs that start from leaves: against nets whose embeddings are those, and against differences."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from backends import BESIDE_NUMPY, Backend

from refl import Edit, ReflError
from refl.arrays import asnumpy
from refl.model import Model
from refl.question import Question
from refl.rules.published import METHODS
from refl.seeds import Seed
from refl.verification.random_models import (
    BERT,
    GEMMA2,
    GPT2,
    LLAMA,
    T5,
    VIT,
    moved,
    random_model,
    with_weights,
)

IDS = [3, 1, 4, 1, 5]


def leaf_of(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).normal(size=shape)


# -- another net, whose tables are the leaves ------------------------------------------------------

TABLES: dict[str, tuple[dict[str, Any], str]] = {
    "llama": (LLAMA, "model.embed_tokens"),
    "gemma2: scaled after it": (GEMMA2 | {"tie_word_embeddings": False}, "model.embed_tokens"),
    "gpt2": (GPT2 | {"tie_word_embeddings": False}, "transformer.wte"),
    "gpt2, positions": (GPT2, "transformer.wpe"),
    "bert": (BERT | {"tie_word_embeddings": False}, "bert.embeddings.word_embeddings"),
    "bert, positions": (BERT, "bert.embeddings.position_embeddings"),
    "bert, types": (BERT, "bert.embeddings.token_type_embeddings"),
}


@pytest.mark.parametrize(("config", "site"), TABLES.values(), ids=TABLES)
def test_a_leaf_is_another_table(config: dict[str, Any], site: str) -> None:
    """Every token has a row of its own, so that no row has to be two things."""
    model, ids = random_model(config, 1), [3, 1, 4, 2, 5]
    readings = model.readings([ids])
    question = Question(model, position=1 if model.task == "masked-token" else None)
    table = np.array(model.weights[f"{site}.weight"])
    rows = ids if site.endswith(("embed_tokens", "wte", "word_embeddings")) else list(range(5))
    if site.endswith("token_type_embeddings"):
        rows = [0] * 5
    leaf = leaf_of(2, 1, 5, table.shape[1])
    leaf[:] = leaf[:, :1] if len(set(rows)) == 1 else leaf
    table[rows] = leaf[0]
    other = with_weights(model, **{f"{site}.weight": table})
    expected = Question(other, position=question.position).forward(readings)
    forward = question.forward(readings, leaves={site: leaf})
    np.testing.assert_array_equal(forward.rows, expected.rows)
    np.testing.assert_array_equal(question.rows(readings, leaves={site: leaf}), expected.rows)
    assert np.abs(question.rows(readings) - expected.rows).max() > 1e-6


@pytest.mark.parametrize("sides", [("encoder",), ("decoder",), ("encoder", "decoder")])
def test_both_sides_of_t5_start_apart(sides: tuple[str, ...]) -> None:
    """One table, two sites: each is read by its own side."""
    model = random_model(T5, 1)
    table, readings = model.weights["shared.weight"], model.readings([IDS], [0, 2])
    wanted = {"encoder": [7, 8, 9, 10, 11], "decoder": [0, 6]}
    now = {"encoder": IDS, "decoder": [0, 2]} | {side: wanted[side] for side in sides}
    leaves = {f"{side}.embed_tokens": table[wanted[side]][None] for side in sides}
    found = Question(model).forward(readings, leaves=leaves)
    expected = Question(model).forward(model.readings([now["encoder"]], now["decoder"])).rows
    np.testing.assert_array_equal(found.rows, expected)
    assert found.input_sites() == ["encoder.embed_tokens", "decoder.embed_tokens"]
    for site, leaf in leaves.items():
        np.testing.assert_array_equal(found.leaf(site), leaf)


def test_pixels() -> None:
    model = random_model(VIT, 1)
    shape = (model.config.num_channels, *model.config.image)
    one, other = leaf_of(1, *shape), leaf_of(2, *shape)
    a = Question(model).forward(model.readings([one]), leaves={"pixel_values": other[None]})
    np.testing.assert_array_equal(a.rows, Question(model).forward(model.readings([other])).rows)
    np.testing.assert_array_equal(a.leaf(a.embedded)[0], other)


def test_a_batch_of_leaves_of_one_text() -> None:
    """As points on a path are run."""
    model = random_model(LLAMA, 1)
    (reading,) = model.readings([IDS])
    leaves = leaf_of(1, 3, 5, 16)
    rows = Question(model).rows([reading] * 3, leaves={"model.embed_tokens": leaves})
    for leaf, row in zip(leaves, rows, strict=True):
        alone = Question(model).rows([reading], leaves={"model.embed_tokens": leaf[None]})
        np.testing.assert_allclose(row, alone[0], atol=1e-12)


# -- recorded, swept -------------------------------------------------------------------------------


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    ("kind", "against"),
    [("logit", None), ("logit", 5), ("log-probability", None), ("probability", None)],
)
def test_gradients_at_leaves(kind: str, against: int | None, recompute: bool) -> None:
    """`derivative` is that of `value`, down to where the run starts: by central differences."""
    model = random_model(T5, 1)
    readings = model.readings([IDS], [0, 2])
    question = Question(model, kind=kind, recompute=recompute)
    sites = ["encoder.embed_tokens", "decoder.embed_tokens"]
    leaves = {sites[0]: leaf_of(1, 1, 5, 16), sites[1]: leaf_of(2, 1, 2, 16)}
    forward = question.forward(readings, leaves=leaves)
    seeds = question.seeds(forward, [(4, against)])
    gradients = question.gradients(forward, seeds, sites, METHODS["input-x-gradient"])
    h, along = 1e-5, {site: leaf_of(3, *leaf.shape) for site, leaf in leaves.items()}
    up, down = (
        seeds[0].value(
            question.rows(
                readings, leaves={s: leaf + sign * h * along[s] for s, leaf in leaves.items()}
            )[0]
        )
        for sign in (1, -1)
    )
    found = sum(float((gradients[site] * along[site]).sum()) for site in sites)
    assert math.isclose(found, (up - down) / (2 * h), rel_tol=1e-6, abs_tol=1e-8)


def test_an_edit_comes_after_a_leaf() -> None:
    model, site = random_model(LLAMA, 1), "model.embed_tokens"
    readings, leaf = model.readings([IDS]), leaf_of(1, 1, 5, 16)
    edited = Question(model, edits={site: Edit(2, 0.5)}).rows(readings, leaves={site: leaf})
    expected = Question(model).rows(readings, leaves={site: 2 * leaf + 0.5})
    np.testing.assert_array_equal(edited, expected)


@pytest.mark.parametrize("backend", BESIDE_NUMPY, indirect=True)
def test_wherever_arrays_lie(backend: Backend) -> None:
    """A leaf of the host, and one of the device."""
    home = random_model(LLAMA, 1)
    there, leaf = moved(home, backend.place), leaf_of(1, 1, 5, 16)
    expected = Question(home).rows(home.readings([IDS]), leaves={"model.embed_tokens": leaf})
    for one in (leaf, backend.place(leaf), leaf.astype(np.float32).astype(float)):
        question = Question(there)
        leaves = {"model.embed_tokens": one}
        forward = question.forward(there.readings([IDS]), leaves=leaves)
        np.testing.assert_allclose(forward.rows, expected, atol=1e-6)
        np.testing.assert_allclose(asnumpy(forward.leaf("model.embed_tokens")), asnumpy(one))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64, list])
def test_a_leaf_is_taken_to_the_nets_dtype(dtype: str, kind: Any) -> None:
    model, leaf = random_model(LLAMA, 1, dtype=dtype), np.ones((1, 5, 16))
    leaves = {"model.embed_tokens": leaf.tolist() if kind is list else leaf.astype(kind)}
    forward = Question(model).forward(model.readings([IDS]), leaves=leaves)
    assert forward.rows.dtype == dtype
    assert forward.leaf("model.embed_tokens").dtype == dtype


# -- what is refused -------------------------------------------------------------------------------

FITS = np.ones((1, 5, 16))
UNFIT: dict[str, tuple[Any, str]] = {
    "no mapping": ([FITS], "a mapping of sites to arrays"),
    "a number for a site": ({1: FITS}, "a mapping of sites to arrays"),
    "a number": ({"model.embed_tokens": 1.0}, "a mapping of sites to arrays"),
    "without examples": (
        {"model.embed_tokens": FITS[0]},
        "has the shape (5, 16): expected (1, 5, 16)",
    ),
    "too many examples": ({"model.embed_tokens": np.ones((2, 5, 16))}, "expected (1, 5, 16)"),
    "nan": ({"model.embed_tokens": FITS * math.nan}, "no finite number"),
    "texts": ({"model.embed_tokens": FITS.astype(str)}, "no finite number"),
    "booleans": ({"model.embed_tokens": FITS > 0}, "no finite number"),
    "complex": ({"model.embed_tokens": FITS * 1j}, "no finite number"),
    "where nothing starts": ({"model.layers.0": FITS}, "expected one of model.embed_tokens"),
    "no site": ({"embed": FITS}, "where this run does not start"),
}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("leaves", "words"), UNFIT.values(), ids=UNFIT)
def test_what_is_no_leaf(leaves: Any, words: str, recompute: bool, llama: Model) -> None:
    question, readings = Question(llama, recompute=recompute), llama.readings([IDS])
    for run in (question.forward, question.rows):
        with pytest.raises(ReflError) as found:
            run(readings, leaves=leaves)
        assert words in str(found.value) and "\n" not in str(found.value)


@pytest.fixture(scope="module")
def llama() -> Model:
    return random_model(LLAMA, 1)


# -- the number that is explained ------------------------------------------------------------------


def test_values_of_a_seed() -> None:
    """Written out in Python's own floats."""
    z = np.asarray([1.0, -0.5, 2.25], dtype=np.float32)
    total = math.fsum(math.exp(float(v)) for v in z)
    assert Seed("logit", 2).value(z) == 2.25
    assert Seed("logit", 2, 1).value(z) == 2.75
    assert math.isclose(Seed("probability", 1).value(z), math.exp(-0.5) / total, rel_tol=1e-14)
    expected = -0.5 - math.log(total)
    assert math.isclose(Seed("log-probability", 1).value(z), expected, rel_tol=1e-14)


def test_no_digit_of_a_log_probability_cancels() -> None:
    """log p of what is nearly sure is less the sum of the others; of the unlikely it is finite."""
    z = np.asarray([60.0, 10.0, 0.0])
    small = math.exp(-50) + math.exp(-60)
    assert math.isclose(Seed("log-probability", 0).value(z), -small, rel_tol=1e-12)
    assert Seed("log-probability", 2).value(np.asarray([2000.0, 0.0, -2000.0])) == -4000.0
    assert Seed("log-probability", 0).value(np.asarray([3.0])) == 0.0
