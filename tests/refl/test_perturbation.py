"""Perturbation curves: their identities, a linear model's in closed form, and against a loop that
perturbs one input at a time.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from checkpoints import checkpoint
from hypothesis import given
from hypothesis import strategies as st

import refl
from refl.edits import Edit
from refl.errors import ReflError
from refl.evaluation import (
    Case,
    Item,
    Perturbation,
    Subject,
    judged,
    metric,
    perturbation,
)
from refl.evaluation.leave_one_out import LeaveOneOut
from refl.evaluation.perturbation import boundaries, rank, states
from refl.model import Model
from refl.question import Question
from refl.verification.random_models import BERT, GPT2, LLAMA, T5, VIT, random_model

IDS = [3, 9, 4, 12, 7]
SCORES = [0.3, -1.0, 2.0, 0.3, 0.0]
MORF = [2, 0, 3, 4, 1]
"""By hand: 2.0, then the two 0.3 by position, then 0.0 and -1.0."""


def subject(config: dict[str, Any] = LLAMA, ids: Any = IDS, **item: Any) -> Subject:
    model = random_model(config, 3)
    return Subject.read(model, Item("one", ids, **{"target": 5} | item))


# -- orders, with ties -----------------------------------------------------------------------------

few = st.lists(st.sampled_from([-1.0, 0.0, 0.0, 0.5, 2.0]), min_size=0, max_size=9)


@given(few)
def test_the_order_is_by_score_then_by_position(scores: list[float]) -> None:
    order = sorted(range(len(scores)), key=lambda t: (-scores[t], t))
    places = rank(np.asarray(scores))
    assert [int(places[t]) for t in order] == list(range(len(scores)))


@given(few, st.none() | st.integers(1, 12))
def test_states_are_those_of_the_order_and_of_its_reverse(
    scores: list[float], steps: int | None
) -> None:
    n = len(scores)
    most = sorted(range(n), key=lambda t: (-scores[t], t))
    least = most[::-1]
    bounds = boundaries(n, steps)
    sizes = np.diff(bounds)
    assert bounds[0] == 0 and bounds[-1] == n
    assert len(bounds) == (n if steps is None else min(steps, n)) + 1
    assert not len(sizes) or sizes.max() - sizes.min() <= 1
    found = states(rank(np.asarray(scores)), bounds).reshape(2, len(bounds), n)
    for first, rest, b in zip(*found, bounds, strict=True):
        assert set(np.flatnonzero(first)) == set(most[:b])
        assert set(np.flatnonzero(rest)) == set(least[: n - b])


# -- a linear model --------------------------------------------------------------------------------

TABLE = np.asarray([[2.0, 1.0], [-3.0, 0.5], [0.25, 4.0], [1.0, 1.0], [-0.5, 0.0]])
HEAD = np.asarray([[1.0, -2.0], [0.5, 8.0]])


def linear_model() -> Model:
    """Logits HEAD . (sum of the embeddings): linear in each."""

    def forward(t: Any, c: Any, batch: Any) -> Any:
        h = t.embedding("embed", batch.ids)
        ones = np.ones((*h.array.shape[:2], 1))
        return t.linear("head", t.scale("sum", t.mean("mean", h, ones), ones.shape[1]))

    net = SimpleNamespace(MODEL_TYPE="linear", forward=forward, task=lambda c: "class")
    weights = {"embed.weight": TABLE, "head.weight": HEAD}
    config = SimpleNamespace(vocab_size=5, longest=99)
    return Model(
        net,  # type: ignore[arg-type]
        config,
        weights,
        None,
        lambda array: array,
        "float64",
        labels={0: "a", 1: "b"},
    )


def exact(ids: list[int], target: int) -> list[Fraction]:
    """What each token adds to the logit."""
    return [
        sum((Fraction(w) * Fraction(x) for w, x in zip(HEAD[target], TABLE[i], strict=True)))
        for i in ids
    ]  # type: ignore[misc]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=6), st.permutations(range(6)))
def test_a_linear_model_in_closed_form(ids: list[int], order: list[int]) -> None:
    """Unit i of the order is there in the first i states of flipping (i from 1), in the last N + 1
    - i of its reverse: dA = sum_i (N + 1 - 2 i) c_i / (N + 1).
    """
    s = Subject.read(linear_model(), Item("linear", ids, target=1))
    c, n = exact(ids, 1), len(ids)
    order = [t for t in order if t < n]
    scores = np.empty(n)
    scores[order] = -np.arange(n)
    found = Perturbation().judge(s, scores)
    most = [sum((c[t] for t in order[k:]), Fraction(0)) for k in range(n + 1)]
    least = [sum((c[t] for t in order[: n - k]), Fraction(0)) for k in range(n + 1)]
    np.testing.assert_allclose(found.curves["MoRF_flip"], list(map(float, most)), atol=1e-12)
    np.testing.assert_allclose(found.curves["LeRF_flip"], list(map(float, least)), atol=1e-12)
    weighted = sum(((n + 1 - 2 * i) * c[t] for i, t in enumerate(order, 1)), Fraction(0))
    assert found.numbers["dA_flip"] == pytest.approx(float(weighted / (n + 1)), abs=1e-12)


def test_no_order_is_better_than_that_of_the_contributions() -> None:
    ids = [0, 1, 2, 3]
    s = Subject.read(linear_model(), Item("linear", ids, target=1))
    orders = [np.asarray(p, dtype=float) for p in itertools.permutations(range(4))]
    found = [j.numbers["dA_flip"] for j in Perturbation().judge_all([Case(s, p) for p in orders])]
    own = Perturbation().judge(s, list(map(float, exact(ids, 1)))).numbers["dA_flip"]
    assert own == pytest.approx(max(found), abs=1e-12) and own > min(found)


# -- identities ------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [None, 2, 3])
@pytest.mark.parametrize("baseline", ["zero", "mean", 8])
def test_flipping_and_inserting_go_through_the_same_states(baseline: Any, steps: Any) -> None:
    s, options = subject(), {"baseline": baseline, "steps": steps}
    flip = Perturbation("flip", **options).judge(s, SCORES)
    insert = Perturbation("insert", **options).judge(s, SCORES)
    for a, b in (("MoRF", "LeRF"), ("LeRF", "MoRF")):
        assert (flip.curves[f"{a}_flip"] == insert.curves[f"{b}_insert"][::-1]).all()
        assert flip.numbers[f"A_{a}_flip"] == pytest.approx(insert.numbers[f"A_{b}_insert"])
    assert flip.numbers["dA_flip"] == pytest.approx(insert.numbers["dA_insert"], abs=1e-14)
    n = 5 if steps is None else steps
    assert all(len(c) == n + 1 for c in (*flip.curves.values(), *insert.curves.values()))
    assert flip.curves["MoRF_flip"][0] == flip.curves["LeRF_flip"][0] == pytest.approx(s.value)


def test_every_order_and_its_reverse_cancel() -> None:
    """The mean over all orders is 0: what random scores have in expectation."""
    s = subject(ids=IDS[:4])
    orders = [np.asarray(p, dtype=float) for p in itertools.permutations(range(4))]
    found = [j.numbers["dA_flip"] for j in Perturbation().judge_all([Case(s, p) for p in orders])]
    assert abs(np.mean(found)) <= 1e-13 * np.abs(found).max() and np.std(found) > 0.01


def test_random_scores_have_mean_0() -> None:
    """200 draws: beyond 4 standard errors by chance once in 16,000."""
    model = random_model(LLAMA, 3)
    methods = {str(n): refl.methods.chosen("random", options={"draw": n}) for n in range(200)}
    rows = judged(model, Item("one", IDS, target=5), methods, ["flip"])
    found = np.asarray([row.numbers["dA_flip"] for row in rows])
    assert abs(found.mean()) < 4 * found.std(ddof=1) / np.sqrt(len(found))
    assert len(set(found.tolist())) > 20  # of 120 orders


# -- against a loop --------------------------------------------------------------------------------


def looped(order: list[int], value: Any) -> list[float]:
    return [value(order[:k]) for k in range(len(order) + 1)]


def zeroed(site: str, gone: list[int]) -> dict[str, Edit]:
    return {site: Edit(factor=0.0, index=(gone,))} if gone else {}


def test_zero_embeddings_against_a_loop() -> None:
    s, model = subject(), random_model(LLAMA, 3)

    def value(gone: list[int]) -> float:
        return float(model.logits(IDS, edits=zeroed("model.embed_tokens", gone))[-1, 5])

    found = Perturbation().judge(s, SCORES).curves
    np.testing.assert_allclose(found["MoRF_flip"], looped(MORF, value), rtol=1e-12)
    np.testing.assert_allclose(found["LeRF_flip"], looped(MORF[::-1], value), rtol=1e-12)


@pytest.mark.parametrize("quantity", ["logit", "log-probability", "probability"])
def test_another_token_against_a_loop(quantity: str) -> None:
    s, model = subject(), random_model(LLAMA, 3)

    def value(gone: list[int]) -> float:
        z = model.logits([8 if t in gone else i for t, i in enumerate(IDS)])[-1]
        p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        return float({"logit": z, "probability": p, "log-probability": np.log(p)}[quantity][5])

    found = Perturbation(baseline=8, quantity=quantity).judge(s, SCORES).curves
    np.testing.assert_allclose(found["MoRF_flip"], looped(MORF, value), rtol=1e-11)


def test_a_contrast_and_groups_against_a_loop() -> None:
    s, model = subject(target=None, contrast=(5, 2)), random_model(LLAMA, 3)

    def value(gone: list[int]) -> float:
        z = model.logits([8 if t in gone else i for t, i in enumerate(IDS)])[-1]
        return float(z[5] - z[2])

    found = Perturbation(baseline=8, steps=2).judge(s, SCORES).curves
    whole = looped(MORF, value)
    np.testing.assert_allclose(found["MoRF_flip"], [whole[0], whole[2], whole[5]], rtol=1e-11)
    with pytest.raises(ReflError, match="difference of logits"):
        Perturbation(quantity="probability").judge(s, SCORES)


def test_deletion_against_a_loop() -> None:
    """Of the shipped model, whose <s> stays: the output is that of the last token left."""
    model = refl.load(dtype="float64")
    s = Subject.read(model, Item("keys", "now the old keys", contrast=("were", "was")))
    ids, scores = s.reading.input, [9.0, 0.0, 3.0, 1.0, 2.0]
    a, b = model.token_id("were"), model.token_id("was")

    def value(gone: list[int]) -> float:
        z = model.logits([i for t, i in enumerate(ids) if t not in gone])[-1]
        return float(z[a] - z[b])

    found = Perturbation(baseline="delete").judge(s, scores).curves
    order = [2, 4, 3, 1]
    np.testing.assert_allclose(found["MoRF_flip"], looped(order, value), rtol=1e-10)
    np.testing.assert_allclose(found["LeRF_flip"], looped(order[::-1], value), rtol=1e-10)


def test_a_deletion_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ReflError, match="nothing|none to read"):
        Perturbation(baseline="delete").judge(subject(), SCORES)


def test_a_guessed_token_is_never_deleted() -> None:
    model = replace(random_model(BERT, 3), mask_id=16)
    ids = [3, 16, 9, 4]
    s = Subject.read(model, Item("mask", ids, target=5))

    def value(gone: list[int]) -> float:
        left = [i for t, i in enumerate(ids) if t not in gone]
        return float(model.logits(left)[left.index(16), 5])

    found = Perturbation(baseline="delete", special=True).judge(s, [1.0, 9.0, 3.0, 2.0]).curves
    np.testing.assert_allclose(found["MoRF_flip"], looped([2, 3, 0], value), rtol=1e-11)


@pytest.mark.parametrize("baseline", ["zero", "mean"])
def test_patches_against_a_loop(baseline: str) -> None:
    model = random_model(VIT, 3)
    x = np.random.default_rng(0).standard_normal((3, 8, 12))
    s = Subject.read(model, Item("picture", x, target=2))
    scores = np.random.default_rng(1).standard_normal((8, 12))
    by_patch = {
        (r, c): scores[4 * r : 4 * r + 4, 3 * c : 3 * c + 3].sum() for r in (0, 1) for c in range(4)
    }
    order = sorted(by_patch, key=lambda patch: -by_patch[patch])
    base = np.zeros(3) if baseline == "zero" else x.mean(axis=(1, 2))

    def value(gone: list[tuple[int, int]]) -> float:
        changed = x.copy()
        for r, c in gone:
            changed[:, 4 * r : 4 * r + 4, 3 * c : 3 * c + 3] = base[:, None, None]
        return float(model.trace([changed])[1].array[0, 0, 2])

    expected = [value(order[:k]) for k in range(9)]
    found = Perturbation(baseline=baseline).judge(s, scores)
    np.testing.assert_allclose(found.curves["MoRF_flip"], expected, rtol=1e-11)
    patches = np.asarray([[by_patch[r, c] for c in range(4)] for r in (0, 1)])
    assert Perturbation(baseline=baseline).judge(s, patches).numbers == found.numbers


def test_a_decoders_tokens_are_units_where_that_is_asked() -> None:
    model = random_model(T5, 3)
    s = Subject.read(model, Item("t5", [3, 9, 4], target=5, decoder=[0, 7, 2]))

    def value(gone: list[int]) -> float:
        _, z = model.trace(
            [[3, 9, 4]],
            decoder=[0, 7, 2],
            edits=zeroed("encoder.embed_tokens", [g for g in gone if g < 3])
            | zeroed("decoder.embed_tokens", [g - 3 for g in gone if g >= 3]),
        )
        return float(z.array[0, 0, 5])

    scores, written = [1.0, 3.0, 2.0], [99.0, 2.5, 0.5]  # the start token stays
    both = Perturbation(decoder=True).judge(s, scores, written).curves["MoRF_flip"]
    np.testing.assert_allclose(both, looped([1, 4, 2, 0, 5], value), rtol=1e-11)
    read = Perturbation().judge(s, scores, written).curves["MoRF_flip"]
    np.testing.assert_allclose(read, looped([1, 2, 0], value), rtol=1e-11)
    with pytest.raises(ReflError, match="no scores"):
        Perturbation(decoder=True).judge(s, scores)


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_in_batches_as_one_by_one(config: dict[str, Any]) -> None:
    """Inputs of several lengths and several methods at once; a bound of one copy for each batch."""
    model = random_model(config, 3)
    random = np.random.default_rng(0)
    items = [Item(str(n), [int(i) for i in random.integers(1, 17, n)]) for n in (1, 7, 3, 7)]
    asked = ["attnlrp", "random"]
    together = judged(model, items, asked, ["flip", "insert:baseline=8"])
    apart = [
        row
        for item in items
        for row in judged(model, item, asked, ["flip", "insert:baseline=8"], batch_tokens=1)
    ]
    assert [(r.item, r.method, r.metric) for r in together] == [
        (r.item, r.method, r.metric) for r in apart
    ]
    for a, b in zip(together, apart, strict=True):
        for name, curve in a.curves.items():
            np.testing.assert_allclose(curve, b.curves[name], rtol=1e-10, atol=1e-12)


def test_no_state_is_run_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 N states of a method, of which two methods share the first and the last."""
    s, rows, ran = subject(), Question.rows, []

    def counted(self: Question, readings: Any, **how: Any) -> Any:
        ran.append(len(readings))
        return rows(self, readings, **how)

    monkeypatch.setattr(Question, "rows", counted)
    cases = [Case(s, SCORES), Case(s, [1.0, 2.0, 3.0, 4.0, 5.0]), Case(s, SCORES)]
    Perturbation("flip").judge_all(cases)
    gone = {
        frozenset(o[:k]) for m in (MORF, [4, 3, 2, 1, 0]) for o in (m, m[::-1]) for k in range(6)
    }
    assert sum(ran) == len(gone)
    Perturbation("insert").judge_all(cases)
    assert sum(ran) == len(gone)


def test_in_portions_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    orders = [list(map(float, p)) for p in itertools.permutations(range(5))][:30]
    whole = Perturbation().judge_all([Case(subject(), p) for p in orders])
    monkeypatch.setattr(perturbation, "PORTION", 200)
    parts = Perturbation().judge_all([Case(subject(), p) for p in orders])
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a.curves["LeRF_flip"], b.curves["LeRF_flip"], rtol=1e-12)
    assert Perturbation().judge_all([]) == []


# -- edges -----------------------------------------------------------------------------------------


def test_one_token() -> None:
    found = Perturbation().judge(subject(ids=[3]), [7.0])
    assert found.numbers["dA_flip"] == 0
    assert found.numbers["A_MoRF_flip"] == found.numbers["A_LeRF_flip"]


def test_where_nothing_can_be_replaced_nothing_is_said() -> None:
    model = replace(random_model(LLAMA, 3), eos_ids=frozenset({3}))
    s = Subject.read(model, Item("only special", [3], target=5))
    found = Perturbation().judge(s, [7.0])
    assert all(np.isnan(value) for value in found.numbers.values())
    assert len(found.curves["MoRF_flip"]) == 1
    assert Perturbation(special=True).judge(s, [7.0]).numbers["dA_flip"] == 0


def test_special_tokens_stay() -> None:
    model = refl.load(dtype="float64")
    s = Subject.read(model, Item("keys", "now the old keys", target="were"))
    scores = [9.0, 1.0, 2.0, 3.0, 4.0]
    assert len(Perturbation().judge(s, scores).curves["MoRF_flip"]) == 5  # not <s>
    assert len(Perturbation(special=True).judge(s, scores).curves["MoRF_flip"]) == 6


@pytest.mark.parametrize(
    ("options", "scores", "words"),
    [
        ({}, [1.0, 2.0], "one number for each of the 5 tokens"),
        ({}, [1.0, 2.0, float("nan"), 0.0, 0.0], "not all finite"),
        ({}, ["a", 2.0, 1.0, 0.0, 0.0], "no array of numbers"),
        ({"units": "patches"}, SCORES, "a text, which has none"),
        ({"units": "words"}, SCORES, "no tokenizer.json"),
        ({"baseline": "blur"}, SCORES, "tokenizer"),
        ({"baseline": "mask"}, SCORES, "has no mask token"),
        ({"patch": 3}, SCORES, "says nothing"),
        ({"decoder": True}, SCORES, "says nothing"),
        ({"mode": "swap"}, SCORES, "expected one of flip, insert"),
        ({"steps": 0}, SCORES, "above 0"),
        ({"quantity": "odds"}, SCORES, "expected one of logit"),
    ],
)
def test_what_it_is_not_defined_for(options: Any, scores: Any, words: str) -> None:
    with pytest.raises(ReflError, match=words):
        Perturbation(**options).judge(subject(), scores)


def test_a_metric_by_its_name() -> None:
    m = metric("flip:units=words:baseline=mask:steps=20")
    assert m == Perturbation("flip", "words", "mask", steps=20)
    assert metric(m.name) == m and metric(m) is m and metric("insert").name == "insert"
    assert metric("flip:baseline='5'") == Perturbation(baseline="5") != Perturbation(baseline=5)
    assert [Perturbation(baseline=b).name for b in ("5", 5, "keys", "a:b")] == [
        "flip:baseline='5'", "flip:baseline=5", "flip:baseline=keys", r"flip:baseline='a\x3ab'",
    ]  # fmt: skip
    for wrong in ("flp", "flip:speed=3", "flip:steps", 3):
        with pytest.raises(ReflError):
            metric(wrong)  # type: ignore[arg-type]


@given(st.text(max_size=6) | st.sampled_from([
    "None", "True", "1e3", "0x10", " 5", "'5'", "(1)", "'", '"', "\\", "a:b", "a,b", "[]", "-", "=",
]) | st.integers(), st.booleans())  # fmt: skip
def test_the_name_of_a_metric_reads_as_itself(value: str | int, special: bool) -> None:
    """As one name among others between commas, too."""
    for m in (Perturbation(baseline=value, special=special), LeaveOneOut(fill=value)):
        assert metric(m.name) == m and "," not in m.name and m.name == m.name.strip()
        assert m.name.isprintable()


def test_an_option_of_a_metric_twice() -> None:
    with pytest.raises(ReflError, match="option 'steps' is given twice"):
        metric("flip:steps=2:steps=3")


# -- units -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["stories260K", "babyllama105"])
def test_words_are_replaced_whole(name: str) -> None:
    """Pieces of a word, and characters, with the sum of their scores."""
    model = refl.load(checkpoint(name))
    s = Subject.read(model, Item("keys", "The old keys", target=5))
    pieces = model.tokens(s.reading.input)
    words = np.cumsum([p.startswith(" ") for p in pieces]) - 1  # <s> is of none
    scores = np.random.default_rng(0).standard_normal(len(pieces))
    sums = [scores[words == w].sum() for w in range(3)]
    order = sorted(range(3), key=lambda w: -sums[w])

    def value(gone: list[int]) -> float:
        index = [t for t, w in enumerate(words) if w in gone]
        edits = zeroed("model.embed_tokens", index)
        return float(model.logits(s.reading.input, edits=edits)[-1, 5])

    found = Perturbation(units="words").judge(s, scores).curves["MoRF_flip"]
    np.testing.assert_allclose(found, looped(order, value), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["stories260K", "babyllama105"])
def test_words_beside_two_blanks(name: str) -> None:
    """What a vocabulary is made of is no matter of the text: every word is a unit of its own."""
    model = refl.load(checkpoint(name))
    s = Subject.read(model, Item("she", "she was happy  she said", target=5))
    found = Perturbation(units="words").parts(s).numbers
    pieces = np.asarray(model.tokens(s.reading.input))
    texts = ["".join(pieces[found == w]) for w in range(found.max() + 1)]
    assert texts == [" she", " was", " happy", " ", " she", " said"]
