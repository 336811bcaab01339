"""The report on faithfulness: its inputs, a checkpoint's part on a few of them, and its page."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from checkpoints import checkpoint

from refl.verification.quality.faithfulness import checkpoints, inputs, page, parts


def test_the_shipped_model_s_own_sentences() -> None:
    items = inputs.shipped(checkpoints.opened("shipped"), 4)
    assert [i.facts["task"] for i in items] == ["agreement", "question"] * 2
    assert all(i.contrast and i.evidence for i in items)


@pytest.mark.parametrize("name", ["stories260K", "babyllama105", "capp_gpt2", "rxnmapper_albert"])
def test_texts_of_its_own_kind(name: str) -> None:
    checkpoint(name)
    model = checkpoints.opened(name)
    items, again = (inputs.INPUTS[name](model, 5) for _ in range(2))
    assert [i.input for i in items] == [i.input for i in again]
    assert len({tuple(i.input) for i in items}) == 5
    if name == "rxnmapper_albert":
        assert all(i.input.count(model.mask_id) == 1 for i in items)


def test_a_part_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "HELD_OUT", 2)
    monkeypatch.setattr(checkpoints, "PIECE", 2)
    monkeypatch.setattr(checkpoints, "GRIDS", {"attention-rollout": {"discard": [0.0, 0.5]}})
    names = ("random", "attnlrp", "cp-lrp", "attention-rollout")
    monkeypatch.setattr(checkpoints, "METHODS_BY", dict.fromkeys(names))
    first, last = checkpoints.results("shipped", 4)
    assert (first["inputs"], last["inputs"]) == (2, 4)
    for column in last["numbers"].values():
        assert list(column) == list(names) and {len(v) for v in column.values()} == {4}
    assert last["tuned"]["attention-rollout"]["discard"] in (0.0, 0.5)


def result(name: str, **means: float) -> dict[str, Any]:
    draws = np.linspace(-0.1, 0.1, 50)
    return {
        "checkpoint": name,
        "inputs": 50,
        "tokens": [3, 9],
        "tuned": {"atman": {"p": 0.5}},
        "refused": {"grad-cam": "no attention"},
        "seconds": dict.fromkeys(means, 0.01),
        "numbers": {page.PRIMARY: {m: (mean + draws).tolist() for m, mean in means.items()}},
    }


def test_the_page_says_what_is_otherwise_than_published() -> None:
    ours = result("shipped", random=3.0, **{"cp-lrp": 2.0, "attnlrp": 1.0})
    text = page.page([ours], {}, "by hand.")
    assert "| random | **3.0" in text and "p = 0.5" in text and "grad-cam: no attention" in text
    assert "random above cp-lrp" in text and "cp-lrp above attnlrp" in text
    assert "-1.00" in text  # the published order, upside down


@pytest.mark.needs("matplotlib")
def test_the_figure_has_every_method() -> None:
    drawn = page.figure([result("a", random=0.0, gradient=1.0), result("b", random=0.5)])
    assert drawn == page.figure([result("a", random=0.0, gradient=1.0), result("b", random=0.5)])
    assert b"gradient" in drawn and b"random" in drawn


def test_every_part_has_a_name_of_its_own() -> None:
    names = list(parts.parts(8))
    assert len(set(names)) == len(names) and set(checkpoints.PARTS) <= set(names)
