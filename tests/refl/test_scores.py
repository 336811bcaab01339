"""Scores from elsewhere: read, matched to inputs by name or in order, and refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refl.errors import ReflError
from refl.evaluation import Item, Perturbation, Subject, judged, scores
from refl.verification.random_models import BERT, LLAMA, T5, VIT, random_model

MODEL = random_model(LLAMA, 0)
ITEMS = [Item("a", [3, 9, 4], target=5), Item("b", [7, 2], target=5)]
ARRAYS = {"a": [1.0, -2.0, 0.5], "b": [0.0, 3.0]}


def numbers(found: scores.Scores) -> list[float]:
    return [row.numbers["dA_flip"] for row in judged(MODEL, ITEMS, [found], ["flip"])]


EXPECTED = [
    Perturbation().judge(Subject.read(MODEL, item), ARRAYS[item.name]).numbers["dA_flip"]
    for item in ITEMS
]


def saved(folder: Path, kind: str) -> Path:
    path = folder / f"lime.{kind.split()[0]}"
    if kind == "npz by name":
        np.savez(path, **{k: np.asarray(v) for k, v in ARRAYS.items()})
    elif kind == "npz":
        np.savez(path, *map(np.asarray, ARRAYS.values()))
    else:
        named = "name" in kind
        lines = [{"scores": v} | ({"name": k} if named else {}) for k, v in ARRAYS.items()]
        ordered = lines[::-1] if named else lines
        path.write_text("\n".join(map(json.dumps, ordered)) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["npz by name", "npz", "jsonl by name", "jsonl"])
def test_files(kind: str, tmp_path: Path) -> None:
    found = scores.read(saved(tmp_path, kind))
    assert found.name == "lime"
    np.testing.assert_allclose(numbers(found), EXPECTED, rtol=1e-12)
    np.testing.assert_allclose(numbers(found.matched(["a", "b"])), EXPECTED, rtol=1e-12)


def test_arrays_and_npy(tmp_path: Path) -> None:
    np.testing.assert_allclose(numbers(scores.of_arrays("x", ARRAYS)), EXPECTED, rtol=1e-12)
    np.testing.assert_allclose(
        numbers(scores.of_arrays("x", list(ARRAYS.values()))), EXPECTED, rtol=1e-12
    )
    np.save(tmp_path / "x.npy", np.ones((2, 4)))
    assert [len(f.scores) for f in scores.read(tmp_path / "x.npy").in_order] == [4, 4]


@pytest.mark.parametrize("names", [("a", "b"), ("0", "1")])
def test_oracle_files(names: tuple[str, str], tmp_path: Path) -> None:
    """By the names of the files, or in the order of their names."""
    for name, item in zip(names, ITEMS, strict=True):
        MODEL.explain(item.input, target=5, keep=()).save(tmp_path / f"{name}.safetensors")
    found = numbers(scores.read(tmp_path))
    own = [row.numbers["dA_flip"] for row in judged(MODEL, ITEMS, ["attnlrp"], ["flip"])]
    np.testing.assert_allclose(found, own, rtol=1e-12)


def test_oracle_files_of_something_else(tmp_path: Path) -> None:
    MODEL.explain([3, 9, 5], target=5, keep=()).save(tmp_path / "a.safetensors")
    MODEL.explain([7, 2], target=4, keep=()).save(tmp_path / "b.safetensors")
    for item, words in zip(ITEMS, ("of other tokens", "expected the output"), strict=True):
        with pytest.raises(ReflError, match=words):
            judged(MODEL, item, [scores.read(tmp_path)], ["flip"])


def test_a_contrast_is_another_output(tmp_path: Path) -> None:
    MODEL.explain([3, 9, 4], contrast=(5, 2), keep=()).save(tmp_path / "a.safetensors")
    found = scores.read(tmp_path)
    item = Item("a", [3, 9, 4], contrast=(5, 2))
    assert judged(MODEL, item, [found], ["flip"])
    for other in (Item("a", [3, 9, 4], target=5), Item("a", [3, 9, 4], contrast=(5, 1))):
        with pytest.raises(ReflError, match="expected the output"):
            judged(MODEL, other, [found], ["flip"])


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        ({}, "logit", ""),
        ({"position": 2}, "logit", ""),
        ({"position": -1}, "logit", ""),
        ({"position": 0}, "logit", "the output of token 0: expected that of token 2, which"),
        ({}, "probability", "explains logit of .*: expected the probability, which is judged"),
        ({"seed": "probability"}, "probability", ""),
        ({"seed": "probability"}, "logit", "explains probability of .*: expected the logit"),
        ({"seed": "log-probability"}, "logit", "explains log-probability of"),
    ],
)
def test_oracle_files_of_another_position_or_number(
    said: dict[str, Any], kind: str, words: str, tmp_path: Path
) -> None:
    MODEL.explain([3, 9, 4], target=5, keep=(), **said).save(tmp_path / "a.safetensors")
    found = scores.read(tmp_path)
    for item in (ITEMS[0], replace(ITEMS[0], position=2)):
        subject = Subject.read(MODEL, item, kind)
        if words:
            with pytest.raises(ReflError, match=words):
                found.cases([subject])
        else:
            assert found.cases([subject])
    if said.get("position") == 0:
        assert found.cases([Subject.read(MODEL, replace(ITEMS[0], position=0), kind)])


def test_the_explained_token_of_an_oracle_file(tmp_path: Path) -> None:
    """The file that fits one item is refused for the other."""
    MODEL.explain([3, 9, 4], target=5, position=1, keep=()).save(tmp_path / "a.safetensors")
    found = scores.read(tmp_path)
    assert found.cases([Subject.read(MODEL, replace(ITEMS[0], position=1))])
    with pytest.raises(ReflError, match="the output of token 1: expected that of token 2, which"):
        found.cases([Subject.read(MODEL, ITEMS[0])])


@pytest.mark.parametrize(
    ("of_file", "of_item", "fits"),
    [
        (None, (0, 1, 1), True),  # nothing is said
        ([0, 0, 0], None, True),  # what a net takes where nothing is said
        ([0, 1, 1], (0, 1, 1), True),
        ([0, 1, 1], None, False),
        ([0, 0, 0], (0, 1, 1), False),
    ],
)
def test_oracle_files_of_other_token_types(
    of_file: Any, of_item: Any, fits: bool, tmp_path: Path
) -> None:
    model, path = random_model(BERT, 0), tmp_path / "a.safetensors"
    model.explain([3, 9, 4], target=5, types=of_file, position=1, keep=()).save(path)
    item = Item("a", [3, 9, 4], target=5, types=of_item, position=1)
    subject, found = Subject.read(model, item), scores.read(path)
    if fits:
        assert found.cases([subject])
    else:
        with pytest.raises(ReflError, match="is of other token types: expected those of the item"):
            found.cases([subject])


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"a": [1.0, 2.0, 3.0]}, "no scores of b"),
        ([[1.0, 2.0, 3.0]], "scores of 1 inputs, the data has 2"),
        ({"a": [1.0, 2.0], "b": [1.0, 2.0]}, "one for each of 3 tokens"),
        ({"a": [1.0, 2.0, float("nan")]}, "not all finite"),
        ({"a": ["x", 2.0, 3.0]}, "no array of numbers"),
        ({"a": [1j, 2.0, 3.0]}, "complex numbers have no order"),
        ({"a": np.asarray([1j, 2.0, 3.0])}, "complex numbers have no order"),
        ({"a": ["1", "2", "3"]}, "no array of numbers: their dtype is <U1"),
        ({"a": [True, False, True]}, "one of them is a bool"),
        ({"a": [1.5, True, 2]}, "one of them is a bool"),
        ({"a": [None, 1.0, 2.0]}, "one of them is a NoneType"),
        ({"a": None}, "one of them is a NoneType"),
        ({"a": np.asarray(["1", "2", "3"])}, "their dtype is <U1"),
        ({"a": np.asarray([True, False, True])}, "their dtype is bool"),
        ({"a": np.asarray([1, 2, 3], dtype="datetime64[D]")}, "their dtype is datetime64"),
        ({"a": np.asarray([1, "2", 3], dtype=object)}, "one of them is a str"),
        ({"a": [10**400, 2, 3]}, "no array of numbers: int too large"),
    ],
)
def test_scores_that_do_not_fit(arrays: Any, words: str) -> None:
    with pytest.raises(ReflError, match=words):
        found = scores.of_arrays("x", arrays)
        judged(MODEL, ITEMS, [found.matched(["a", "b"])], ["flip"])


@pytest.mark.parametrize("many", [
    [1, 2.5, -3], (1, 2.5, -3), np.asarray([1, 2.5, -3], dtype=object), [np.float32(1), 2.5, -3],
    [np.asarray(1.0), np.int8(2) + 0.5, -3], np.asarray([1, 2.5, -3], dtype=np.float16),
    np.asarray([2, 5, -6], dtype=np.int8) / 2,
])  # fmt: skip
def test_numbers_of_any_kind(many: Any) -> None:
    (found,) = scores.of_arrays("x", [many]).in_order
    assert found.scores.dtype == np.float64 and found.scores.tolist() == [1.0, 2.5, -3.0]
    (picture,) = scores.of_arrays("x", [[list(many), list(many)]]).in_order
    assert picture.scores.tolist() == [[1.0, 2.5, -3.0]] * 2
    (whole,) = scores.of_arrays("x", [np.asarray([0, 255], dtype=np.uint8)]).in_order
    assert whole.scores.tolist() == [0.0, 255.0]


@pytest.mark.parametrize("arrays", [ARRAYS, list(ARRAYS.values())], ids=["by name", "in order"])
def test_inputs_of_one_name_are_refused(arrays: Any) -> None:
    """The scores of one would be judged as those of the other."""
    with pytest.raises(ReflError, match="2 inputs have the name a, and scores go by name"):
        scores.of_arrays("x", arrays).matched(["a", "a"])


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("x.txt", b"", "no file of scores"),
        ("x.npz", b"junk", "cannot be read as .npz"),
        ("x.npy", b"junk", "cannot be read as .npy"),
        ("x.jsonl", b"{", "no JSON"),
        ("x.jsonl", b"[]", "expected an object"),
        ("x.jsonl", b'{"scores": [1], "name": "a"}\n{"scores": [1]}', "names some"),
        ("x.jsonl", b'{"scores": [1], "name": "a"}\n{"scores": [1], "name": "a"}', "twice"),
        ("x.jsonl", b'{"scores": [1, [2]]}', "no array of numbers"),
        ("x.jsonl", b'{"scores": ["1", "2"]}', "line 1: the scores are no array of numbers"),
        ("x.jsonl", b'{"scores": [true, false]}', "one of them is a bool"),
        ("x.jsonl", b'{"scores": [' + b"9" * 400 + b"]}", "no array of numbers: int too large"),
        ("x.jsonl", b'{"scores": ' + b"[" * 200 + b"]" * 200 + b"}", "no array of numbers"),
    ],
)
def test_files_of_something_else(file: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ReflError, match=words):
        scores.read(tmp_path / file)


def test_pickles_and_empty_folders_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.asarray([[1.0], [1.0, 2.0]], dtype=object), allow_pickle=True)
    with pytest.raises(ReflError, match="several lengths"):
        scores.read(tmp_path / "x.npy")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ReflError, match="without oracle files"):
        scores.read(tmp_path / "empty")


def test_pictures_and_decoders() -> None:
    vit = random_model(VIT, 0)
    item = Item("p", np.ones((3, 8, 12)), target=1)
    for shape in ((8, 12), (2, 4)):
        assert judged(vit, item, [scores.of_arrays("x", {"p": np.ones(shape)})], ["flip"])
    with pytest.raises(ReflError, match="patches \\(2, 4\\)"):
        judged(vit, item, [scores.of_arrays("x", {"p": np.ones((3, 8, 12))})], ["flip"])
    t5 = random_model(T5, 0)
    item = Item("t", [3, 9], target=1, decoder=[0, 4])
    found = scores.Found([1.0, 2.0], [0.0, 1.0])
    asked = ["flip:decoder=True"]
    assert judged(t5, item, [scores.of_arrays("x", {"t": found})], asked)
    with pytest.raises(ReflError, match="decoder_scores of t"):
        judged(t5, item, [scores.of_arrays("x", {"t": scores.Found([1.0, 2.0], [0.0])})], asked)
