"""Options tuned on held-out inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refl.errors import ReflError
from refl.evaluation import Item, judged, tuning
from refl.verification.random_models import LLAMA, random_model

MODEL = random_model(LLAMA, 0)
ITEMS = [Item(str(n), [3, n % 17, 4, 5], target=5) for n in range(30)]


def test_the_best_of_the_grid_on_these_items() -> None:
    found = tuning.tuned(MODEL, ITEMS[:4], "random", {"draw": range(6)}, "flip")
    means = [
        np.mean([row.numbers["dA_flip"] for row in judged(MODEL, ITEMS[:4], [one], ["flip"])])
        for one in (tuning.chosen("random", options={"draw": n}) for n in range(6))
    ]
    assert found.options == {"draw": int(np.argmax(means))}
    assert [s.mean for _, s in found.tried] == pytest.approx(means)
    assert found.items == ("0", "1", "2", "3") and found.number == "dA_flip"
    worst = tuning.tuned(MODEL, ITEMS[:4], "random", {"draw": range(6)}, "flip", "A_MoRF_flip")
    assert worst.tried[worst.options["draw"]][1].mean == min(s.mean for _, s in worst.tried)


def test_rules_have_options_too() -> None:
    found = tuning.tuned(MODEL, ITEMS[:2], "attnlrp", {"eps": [1e-6, 3.0]}, "insert")
    assert len({s.mean for _, s in found.tried}) == 2 and found.as_dict()["metric"] == "insert"


def test_held_out_items_are_never_judged() -> None:
    held, rest = tuning.split(ITEMS, 5)
    inputs = [{tuple(i.input) for i in part} for part in (held, rest)]
    assert len(held) + len(rest) == 30 and 5 <= len(held) <= 6 and not inputs[0] & inputs[1]
    again, _ = tuning.split(ITEMS[::-1], 5)
    assert {i.name for i in again} == {i.name for i in held}  # whatever their order
    assert {i.name for i in tuning.split(ITEMS, 5, draw=1)[0]} != {i.name for i in held}
    found = tuning.tuned(MODEL, held, "random", {"draw": [0, 1]})
    found.refuse_overlap(rest)
    with pytest.raises(ReflError, match="used to tune random"):
        found.refuse_overlap([*rest, Item("other name", held[0].input, target=1)])


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"grid": {}}, "no choice"),
        ({"grid": {"draw": []}}, "no choice"),
        ({"items": []}, "no held-out items"),
        ({"grid": {"speed": [1]}}, "no option"),
        ({"number": "hits"}, "cannot be tuned by"),
        ({"by": "evidence"}, "no choice of the grid has a number"),
    ],
)
def test_what_cannot_be_tuned(how: dict[str, Any], words: str) -> None:
    asked = {"items": ITEMS[:1], "grid": {"draw": [0, 1]}} | how
    with pytest.raises(ReflError, match=words):
        tuning.tuned(MODEL, asked.pop("items"), "random", asked.pop("grid"), **asked)


def test_all_cannot_be_held_out() -> None:
    with pytest.raises(ReflError, match="some left to be judged"):
        tuning.split(ITEMS, 30)


def test_pictures_have_fingerprints() -> None:
    x = np.arange(6.0).reshape(1, 2, 3)
    prints = [tuning.fingerprint(Item("p", a)) for a in (x, x.copy(), x + 1, x.reshape(1, 3, 2))]
    assert prints[0] == prints[1] and len(set(prints)) == 3
