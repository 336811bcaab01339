"""Answers and features as targets: what is explained, how it is asked for and said, what a file
keeps of it, and what is refused.
"""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_folders import checkpoint_of

import refl
from refl.cli import main
from refl.errors import ReflError
from refl.methods import METHODS
from refl.model import Model
from refl.network import Reading
from refl.question import Question
from refl.seeds import Cosine, Part, Seed, Sum
from refl.targets import Span, best_spans, span
from refl.verification.compare.compare import compare
from refl.verification.random_models import BERT, LLAMA, VIT, random_model

FINDER = BERT | {"architectures": ["BertForQuestionAnswering"]}
HEADLESS = BERT | {"architectures": ["BertModel"]}
IDS = [3, 5, 2, 7, 8, 9]
V = np.arange(16.0) - 3


@pytest.fixture(scope="module")
def finder() -> Model:
    return random_model(FINDER, 1)


@pytest.fixture(scope="module")
def headless() -> Model:
    return random_model(HEADLESS, 1)


# -- seeds -----------------------------------------------------------------------------------------


def test_a_sum_is_of_its_parts() -> None:
    """2 log p_1 of the first three, less z_0 of the last two; what is in no part has no seed."""
    z = np.asarray([0.5, -1.0, 2.0, 9.0, 4.0, -3.0])
    parts = (
        Part(slice(0, 3), Seed("log-probability", 1), 2.0),
        Part(slice(4, 6), Seed("logit", 0), -1.0),
    )
    p = np.exp(z[:3]) / np.exp(z[:3]).sum()
    s = [*(2 * (np.asarray([0, 1, 0]) - p)), 0, -1, 0]
    assert list(Sum(parts).gradient(z)) == pytest.approx(s, rel=1e-14)
    assert list(Sum(parts).relevance(z)) == pytest.approx(list(z * s), rel=1e-14)
    assert list(Sum(parts).derivative(z)) == pytest.approx(s, rel=1e-14)
    assert Sum(parts).value(z) == pytest.approx(2 * math.log(p[1]) - 4, rel=1e-14)


def test_parts_that_overlap_add_up() -> None:
    twice = Sum((Part(slice(0, 2), Seed("logit", 0)), Part(slice(0, 2), Seed("logit", 0))))
    assert list(twice.gradient(np.asarray([3.0, 1.0]))) == [2, 0]


@pytest.mark.parametrize("tokens", [1, 3])
def test_the_seed_of_a_cosine(tokens: int) -> None:
    """(3, 4) and (4, 3) have the cosine 24/25; its derivative by differences. Rows of padding have
    none.
    """
    z = np.asarray([3.0, 4.0] * tokens + [100.0, 7.0])
    z[0] += tokens - 1  # means are what counts: the first three rows are no longer alike
    mean = z[: 2 * tokens].reshape(-1, 2).mean(axis=0)
    seed, v = Cosine(np.asarray([4.0, 3.0]), tokens), np.asarray([4.0, 3.0])
    cosine = float(mean @ v / (np.sqrt(mean @ mean) * 5))
    assert seed.value(z) == pytest.approx(cosine, rel=1e-15)
    assert seed.relevance(z).sum() == pytest.approx(cosine, rel=1e-14)
    assert list(seed.gradient(z)[-2:]) == list(seed.derivative(z)[-2:]) == [0, 0]
    for k, step in itertools.product(range(2 * tokens), (1e-6,)):
        up, down = z.copy(), z.copy()
        up[k], down[k] = up[k] + step, down[k] - step
        slope = (seed.value(up) - seed.value(down)) / (2 * step)
        assert seed.derivative(z)[k] == pytest.approx(slope, abs=1e-9)
    assert z @ seed.derivative(z) == pytest.approx(0, abs=1e-15)


def test_a_cosine_of_numbers_near_the_end_of_their_range() -> None:
    """The squares of these are 0, or infinite."""
    for size in (1e-200, 1e200):
        seed = Cosine(np.asarray([4.0, 3.0]) * size)
        assert seed.value(np.asarray([3.0, 4.0]) / size) == pytest.approx(24 / 25, rel=1e-15)


def test_features_of_zeros_point_nowhere() -> None:
    with pytest.raises(ReflError, match="no cosine"):
        Cosine(np.ones(2)).value(np.zeros(2))


# -- the best answer -------------------------------------------------------------------------------


def test_the_best_answers_by_trying_all() -> None:
    """Against every pair there is, ties by the first."""
    random = np.random.default_rng(4)
    for length, most in itertools.product((1, 2, 6, 9), (1, 5)):
        start, end = random.integers(-3, 4, (2, length)).astype(float)
        inside = [bool(b) for b in random.integers(0, 4, length)]
        inside[0] = True
        pairs = [
            (-(start[s] + end[e]), s, e)
            for s, e in itertools.product(range(length), repeat=2)
            if s <= e and inside[s] and inside[e]
        ]
        want = [Span(s, e) for _, s, e in sorted(pairs)[:most]]
        assert best_spans(start, end, inside, most) == want


def test_an_answer_lies_in_the_second_text(finder: Model) -> None:
    """By what the tokenizer says of a pair, else by types 0 and 1; of one text anywhere."""
    question = Question(finder)
    z = np.zeros(2 * 6)
    z[2 * 0], z[2 * 1 + 1], z[2 * 4], z[2 * 3 + 1] = 9, 9, 1, 1
    assert question.likeliest(z, Reading(IDS)) == Span(0, 1)
    by_type = Reading(IDS, types=[0, 0, 0, 1, 1, 1])
    assert question.likeliest(z, by_type) == Span(3, 3)
    by_text = Reading(IDS, types=[0] * 6, second=[False, False, True, True, True, False])
    assert question.likeliest(z, by_text) == Span(2, 3)
    assert question.likeliest(z, Reading(IDS, types=[1] * 6)) == Span(0, 1)
    padded = np.concatenate([z, [50.0, 50.0]])
    assert question.likeliest(padded, Reading(IDS)) == Span(0, 1)


# -- answers explained -----------------------------------------------------------------------------


def test_both_ends_are_the_sum_of_each(finder: Model) -> None:
    both, start, end = (finder.explain(IDS, target=t) for t in ((2, 4), ("start", 2), ("end", 4)))
    assert np.allclose(both.relevance, start.relevance + end.relevance, atol=1e-13, rtol=0)
    z = finder.logits(IDS)
    assert both.logit == pytest.approx(z[2, 0] + z[4, 1], rel=1e-12)
    assert both.explained == pytest.approx(both.logit, rel=1e-14)
    assert (both.span, start.span, end.span) == ((2, 4), (2, None), (None, 4))
    p = np.exp(z) / np.exp(z).sum(axis=0)
    assert both.probability == pytest.approx(p[2, 0] * p[4, 1], rel=1e-13)
    assert end.what == "end logit of '8' (token 4)"
    assert both.what == "start logit + end logit of '2 7 8' (tokens 2 to 4)"


def test_the_log_probability_of_an_answer(finder: Model) -> None:
    """sum z (e_s - p) over starts, and over ends: linearized as everywhere."""
    e = finder.explain(IDS, target=(2, 4), seed="log-probability")
    z = finder.logits(IDS)
    p = np.exp(z) / np.exp(z).sum(axis=0)
    want = z[2, 0] + z[4, 1] - float((p * z).sum())
    assert e.explained == pytest.approx(want, rel=1e-12)
    with pytest.raises(ReflError, match="log-probability"):
        finder.explain(IDS, target=(2, 4), seed="probability")
    one = finder.explain(IDS, target=("end", 4), seed="probability", audit=True)
    assert one.explained == pytest.approx(0, abs=1e-15)
    assert one.probability == pytest.approx(p[4, 1], rel=1e-13)


def test_padding_has_no_part_in_an_answer(finder: Model) -> None:
    """Nor in the softmax over starts, nor in that over ends."""
    items = [IDS, IDS[:2]]
    for target in (None, (0, 1), ("end", 1)):
        both = finder.explain(items, seed="log-probability", target=target, audit=True)
        for one, e in zip(items, both, strict=True):
            alone = finder.explain(one, seed="log-probability", target=target)
            assert (e.what, e.probability) == (alone.what, pytest.approx(alone.probability))
            assert e.explained == pytest.approx(alone.explained, rel=1e-12)
            assert np.allclose(e.relevance, alone.relevance, atol=1e-13, rtol=0)


def test_every_method_explains_an_answer_or_says_why_not(finder: Model) -> None:
    refused = {"alti-logit": "alti-logit", "atman": "score", "leave-one-out": "deletion"}
    for name in METHODS:
        if name in refused:
            with pytest.raises(ReflError, match=refused[name]):
                finder.explain(IDS, name, target=(2, 4))
        else:
            assert finder.explain(IDS, name, target=(2, 4)).explained == pytest.approx(
                finder.explain(IDS, target=(2, 4)).logit, rel=1e-12
            )


def test_several_answers_of_one_run(finder: Model) -> None:
    both = finder.explain_each(IDS, [(2, 4), ("start", 1)])
    assert [e.span for e in both] == [(2, 4), (1, None)]
    of_each = finder.explain([IDS, IDS[:3]], target=[(2, 4), (0, 1)])
    assert [e.span for e in of_each] == [(2, 4), (0, 1)]
    assert [e.span for e in finder.explain([IDS, IDS[:3]], target=(1, 2))] == [(1, 2)] * 2


def test_sites_on_demand_are_those_of_the_answer(finder: Model) -> None:
    site = "bert.embeddings"
    later, kept = (finder.explain(IDS, target=(2, 4), keep=k) for k in (None, "*"))
    assert np.array_equal(later[site], kept[site])


TARGETS = [
    ((4, 2), "does not end before it starts"),
    ((2, 99), "token 99 as the end"),
    (("start", 6), "has 6 tokens"),
    (("start", -1), "expected an answer"),
    (("begin", 2), "expected an answer"),
    ((1, 2, 3), "expected an answer"),
    ("start", "expected an answer"),
    (3, "expected an answer"),
    ((True, 2), "expected an answer"),
    (refl.coordinate(1), "has a head"),
]


@pytest.mark.parametrize(("target", "said"), TARGETS, ids=[str(n) for n in range(len(TARGETS))])
def test_what_is_no_answer(finder: Model, target: Any, said: str) -> None:
    with pytest.raises(ReflError, match=said):
        finder.explain(IDS, target=target)


def test_what_answers_have_none_of(finder: Model) -> None:
    for how, said in (({"position": 1}, "position="), ({"contrast": ((1, 2), (3, 4))}, "subtract")):
        with pytest.raises(ReflError, match=said):
            finder.explain(IDS, **how)
    assert span([np.int64(1), np.int64(2)]) == Span(1, 2)


# -- features --------------------------------------------------------------------------------------


def test_coordinates_and_cosines(headless: Model) -> None:
    z = headless.logits(IDS)
    mean = z.mean(axis=0)
    for target, how, want in (
        (refl.coordinate(5), {}, z[0, 5]),
        (refl.coordinate(5), {"position": -1}, z[5, 5]),
        (refl.coordinate(5, mean=True), {}, mean[5]),
        (refl.cosine(V), {"position": 2}, z[2] @ V / np.sqrt(z[2] @ z[2] * (V @ V))),
        (refl.cosine(V.tolist(), mean=True), {}, mean @ V / np.sqrt(mean @ mean * (V @ V))),
    ):
        for method in ("attnlrp", "cp-lrp", "integrated-gradients"):
            e = headless.explain(IDS, method, target=target, **how)
            assert e.explained == pytest.approx(want, rel=1e-12)
            assert e.logit == pytest.approx(want, rel=1e-12)
            assert math.isnan(e.probability) and e.candidates == []
        assert abs(e.explained) > 1e-3


def test_the_gradient_of_a_cosine_holds_nothing_constant(headless: Model) -> None:
    """By differences at the embeddings, where the table is one of derivatives; along z it is 0."""
    question = Question(headless, every=True)
    (reading,) = headless.readings([IDS])
    e = headless.explain(IDS, "input-x-gradient", target=refl.cosine(V, mean=True))
    forward = question.forward([reading])
    site = forward.embedded
    x, target = forward.leaf(site), (refl.cosine(V, mean=True), None)

    def value(leaf: Any) -> float:
        run = question.forward([reading], leaves={site: leaf})
        return question.seeds(run, [target])[0].value(run.rows[0])

    for t in (0, 3):
        step = np.zeros_like(x)
        step[0, t] = 1e-6 * x[0, t]
        slope = (value(x + step) - value(x - step)) / 2e-6
        assert e.relevance[t] == pytest.approx(slope, abs=1e-8)
    assert e.explained == pytest.approx(0, abs=1e-14)


def test_pictures_have_features_too() -> None:
    model = random_model(VIT | {"architectures": ["ViTModel"], "add_pooling_layer": False}, 1)
    x = np.random.default_rng(0).standard_normal((3, 8, 12))
    z = model.logits(x)[0]
    e = model.explain(x, target=refl.cosine(V))
    assert e.explained == pytest.approx(z @ V / np.sqrt(z @ z * (V @ V)), rel=1e-12)
    assert e.what == "cosine of the picture's features to the vector"
    with pytest.raises(ReflError, match="a picture has none"):
        model.explain(x, target=refl.cosine(V, mean=True))


FEATURES = [
    ({}, "without a head"),
    ({"target": 3}, "without a head"),
    ({"target": refl.coordinate(16)}, "the features are 16"),
    ({"target": refl.cosine([1.0, 2.0])}, "2 entries"),
    ({"target": refl.coordinate(1), "seed": "probability"}, "no probabilities"),
    ({"target": refl.coordinate(1, mean=True), "position": 2}, "all tokens"),
    ({"contrast": (1, 2)}, "subtract"),
]


@pytest.mark.parametrize(("how", "said"), FEATURES, ids=[str(n) for n in range(len(FEATURES))])
def test_what_is_no_feature(headless: Model, how: dict[str, Any], said: str) -> None:
    with pytest.raises(ReflError, match=said):
        headless.explain(IDS, **how)


def test_a_mean_and_a_token_are_explained_apart(headless: Model) -> None:
    with pytest.raises(ReflError, match="apart"):
        headless.explain_each(IDS, [refl.coordinate(1), refl.coordinate(1, mean=True)])


VECTORS = [[0.0, 0.0], [math.nan], [math.inf, 1], "1 2", [[1.0, 2.0]], [1, [2]], [], ["1"], [True]]


@pytest.mark.parametrize("vector", VECTORS, ids=[str(n) for n in range(len(VECTORS))])
def test_what_is_no_vector(vector: Any) -> None:
    with pytest.raises(ReflError, match="vector"):
        refl.cosine(vector)


def test_what_is_no_coordinate() -> None:
    for number in (-1, 1.5, "1", True, None):
        with pytest.raises(ReflError, match="number"):
            refl.coordinate(number)  # type: ignore[arg-type]


def test_a_caller_who_changes_his_vector_changes_no_target() -> None:
    v = V.copy()
    target = refl.cosine(v)
    v[:] = 0
    assert target.vector.any() and not target.vector.flags.writeable


# -- files, pages, comparisons ---------------------------------------------------------------------


def test_files_keep_what_was_explained(tmp_path: Path, finder: Model, headless: Model) -> None:
    cases = [finder.explain(IDS, target=t) for t in ((2, 4), ("start", 3), ("end", 1), (3, 3))]
    for t in (refl.coordinate(3), refl.coordinate(3, True), refl.cosine(V), refl.cosine(V, True)):
        cases.append(headless.explain(IDS, target=t))
    for e in cases:
        e.save(tmp_path / "e.safetensors")
        again = refl.Explanation.load(tmp_path / "e.safetensors")
        assert again.as_dict() == json.loads(json.dumps(e.as_dict()))
        assert again.what == e.what and str(again) == str(e) and again.html() == e.html()
        assert e.what in " ".join(str(e).split())
    assert cases[0].as_dict()["span"] == [2, 4] and cases[1].as_dict()["span"] == [3, None]


COMPARED = {
    "answer": (FINDER, (2, 4)),
    "start": (FINDER, ("start", 2)),
    "cosine": (HEADLESS, refl.cosine(V, mean=True)),
    "coordinate": (HEADLESS, refl.coordinate(3)),
}


@pytest.mark.parametrize("name", COMPARED)
def test_a_comparison_runs_the_same_target_again(tmp_path: Path, name: str) -> None:
    """What is found makes two files equal: so the seed is that of the file."""
    config, target = COMPARED[name]
    files, folder = tmp_path / "files", tmp_path / "model"
    files.mkdir(), folder.mkdir()
    config = config | {"num_hidden_layers": 1}
    model = refl.load(checkpoint_of(folder, config), dtype="float64")
    for method in ("attnlrp", "cp-lrp"):
        e = model.explain(IDS[:3] if name != "answer" else IDS, method, target=target, keep="*")
        e.save(files / f"{method}.safetensors")
    found = compare(*sorted(files.iterdir()), model=model)
    assert "the two are equal" in str(found), str(found)


# -- the command line ------------------------------------------------------------------------------


def said(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str]:
    try:
        code = main([*args, "--ids", *map(str, IDS)])
    except SystemExit as stopped:
        code = int(str(stopped.code))
    out = capsys.readouterr()
    return code, out.out + out.err


def test_answers_on_the_command_line(tmp_path: Path, capsys: Any) -> None:
    folder = str(checkpoint_of(tmp_path, FINDER))
    for typed, what in (
        ("2-4", "tokens 2 to 4"),
        ("start=2", "start logit"),
        ("end=4", "end logit"),
    ):
        code, out = said(capsys, "explain", "--model", folder, "--target", typed)
        assert code == 0 and what in out
    for typed in ("4-2", "2", "begin=3", "2-x", "start=99"):
        code, out = said(capsys, "explain", "--model", folder, "--target", typed)
        assert code == 2 and out.count("\n") == 1 and "target" in out


def test_features_on_the_command_line(tmp_path: Path, capsys: Any) -> None:
    folder = str(checkpoint_of(tmp_path, HEADLESS))
    np.save(tmp_path / "v.npy", V[None])
    np.save(tmp_path / "wrong.npy", np.ones((2, 16)))
    cosine = ("--cosine", str(tmp_path / "v.npy"))
    for args, what in (
        ((*cosine, "--mean"), "cosine of the mean of all features"),
        (cosine, "cosine of the features of token 0"),
        (("--coordinate", "3", "--position", "-1"), "coordinate 3 of the features of token 5"),
    ):
        code, out = said(capsys, "explain", "--model", folder, *args)
        assert code == 0 and what in " ".join(out.split())
    for wrong in (
        ("--mean",),
        (*cosine, "--coordinate", "3"),
        (*cosine, "--target", "3"),
        ("--cosine", str(tmp_path / "none.npy")),
        ("--cosine", str(tmp_path / "wrong.npy")),
        ("--cosine", str(tmp_path / "config.json")),
        (),
    ):
        code, out = said(capsys, "explain", "--model", folder, *wrong)
        assert code == 2 and "Traceback" not in out


def test_decoders_find_answers_too() -> None:
    model = random_model(LLAMA | {"architectures": ["LlamaForQuestionAnswering"]}, 3)
    e = model.explain(IDS, "cp-lrp", audit=True)
    z = model.logits(IDS)
    best = max((z[a, 0] + z[b, 1], -a, -b) for a in range(6) for b in range(a, 6))
    assert e.span == (-best[1], -best[2]) and e.logit == pytest.approx(best[0], rel=1e-12)
