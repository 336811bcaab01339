"""The report on switching: its inputs, and its page from a few of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoints import checkpoint

import refl
from refl.latent.switching import inputs as switched_inputs
from refl.latent.switching import switching
from refl.latent.switching.figure import figure
from refl.show.bands import panels
from refl.verification.quality.faithfulness.inputs import SHARED
from refl.verification.quality.switching import experiments, page
from refl.verification.quality.switching.experiments import EXPERIMENTS, Chosen


@pytest.mark.needs("matplotlib")
def test_the_page_and_its_figure() -> None:
    found = switching(refl.load(), switched_inputs.shipped(4), k=(2, 8), draws=1)
    known = Chosen([], {"sentences of a kind": (3, 4)})
    text = page.page({"shipped off input": (found, known)}, "by hand.")
    assert "## shipped, switched off, each input ranked by itself, 4 inputs" in text
    assert "| sentences of a kind | 75.0% | 4 |" in text
    assert "attnlrp against input-x-gradient. More flips at" in text
    for k in (2, 8):
        mean = found.change["cp-lrp"][:, found.k.index(k)].mean()
        assert f"| {k} | cp-lrp |" in text and f"{mean:+.2f} [" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 5  # five tables, each of one width
    drawn = [figure([("a & b", found), ("c", found)], "svg") for _ in range(2)]
    assert drawn[0] == drawn[1] and b"<svg" in drawn[0]
    text_as_text = figure([("a & b", found)], letters="none")
    assert b">a &amp; b<" in text_as_text and b">a &amp; b<" not in drawn[0]
    with pytest.raises(refl.ReflError, match="rows is empty"):
        panels([], x="k", kind="svg")


def test_of_each_ranking_the_ks_at_which_it_is_better() -> None:
    found = switching(
        refl.load(), switched_inputs.shipped(8), ["attnlrp", "activation"], (1, 16), draws=0
    )
    less = {k: found.less("change", "attnlrp", "activation", k) for k in found.k}
    assert less[16].high < 0
    assert "16" in page._ks(less, False) and page._ks(less, True) == "no k"


def test_sentences_of_characters_are_those_that_are_answered_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint("babyllama105")
    if not experiments.SENTENCES.exists():
        pytest.skip("there are no sentences of Marvin and Linzen here")
    some = experiments.SENTENCES.read_text(encoding="utf-8").splitlines(keepends=True)[:41]
    monkeypatch.setattr(experiments, "SENTENCES", tmp_path / "some.tsv")
    (tmp_path / "some.tsv").write_text("".join(some), encoding="utf-8")
    model = refl.load(SHARED / "checkpoints" / "babyllama105")
    chosen = experiments.characters(model, 3)
    assert len(chosen.items) == 3
    assert all(switched_inputs.asked(model, item).correct for item in chosen.items)
    correct, of = chosen.accuracy["simple_agrmt"]
    assert 3 <= correct < of == 40
    others = [known for name, known in chosen.accuracy.items() if "rather than" in name]
    assert [sum(numbers) for numbers in zip(*others, strict=True)] == [correct, of]


@pytest.mark.needs("matplotlib")
def test_the_twos_are_twos() -> None:
    checkpoint("vit_mnist_012_hf")
    model = refl.load(SHARED / "checkpoints" / "vit_mnist_012_hf")
    chosen = EXPERIMENTS["vit_mnist_012_hf off input"].items(model, 3)
    assert [item.facts["digit"] for item in chosen.items] == [2, 2, 2]
