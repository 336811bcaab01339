"""Cards: what stands on them is what its sources say; of a head the products of queries and keys
add up to what the ledger has; a page needs nothing but itself, and is safe whatever tokens are.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refl
from refl.cli import main
from refl.errors import ReflError
from refl.latent import card as cards
from refl.latent.card import Card, card
from refl.latent.card_page import html
from refl.latent.effects import effect
from refl.latent.projection import project
from refl.latent.references import references
from refl.show.colors import LEVELS
from refl.verification.random_models import (
    ARCHITECTURES,
    BERT,
    GPT2,
    LLAMA,
    MIXTRAL,
    T5,
    VIT,
    random_model,
)

IDS = [3, 1, 4, 1, 5]
TEXT = "the keys to the old cabinet"
FEW: dict[str, Any] = {"limit": 12, "k": 2, "inputs": 3, "draws": 3}


@pytest.fixture(scope="module")
def neuron() -> Card:
    return card(refl.load(), "L2.N17", **FEW)


@pytest.fixture(scope="module")
def head() -> Card:
    return card(refl.load(), "L2.H1", example=TEXT, contrast=("are", "is"), **FEW)


# -- what stands on it -----------------------------------------------------------------------------


def test_it_is_what_its_sources_say(neuron: Card, tmp_path: Path) -> None:
    model = refl.load()
    found = references(model, cards.CORPUS, tmp_path, "L2.N17", 2, limit=12)
    of = found.of("L2.N17")
    assert neuron.histogram == of.histogram
    assert neuron.references is not None and neuron.projections is not None
    for by in ("activation", "relevance"):
        assert tuple(one.reference for one in neuron.references[by]) == of.by(by)
        again = found.heatmaps(model, cards.CORPUS, "L2.N17", by=by)
        for one, e in zip(neuron.references[by], again, strict=True):
            np.testing.assert_array_equal(one.explanation.relevance, e.relevance)
            assert one.place == f"position {one.reference.position}"
    for p, norm in zip(neuron.projections, (True, False), strict=True):
        np.testing.assert_array_equal(p.logits, project(model, "L2.N17", norm=norm).logits)
    assert not neuron.missing


def test_the_default_example_is_the_line_where_it_is_most_relevant(neuron: Card) -> None:
    assert neuron.references is not None and neuron.example is not None
    best = neuron.references["relevance"][0].reference
    lines = cards.CORPUS.read_text(encoding="utf-8").splitlines()
    said = json.loads(lines[best.line - 1])
    assert neuron.example.tokens[1:] == said["prefix"].split()
    assert neuron.facts["example"] == f"line {best.line} of the corpus"
    r = np.asarray(neuron.example["model.layers.2.mlp.down_proj.input"])[best.position, 17]
    assert r == pytest.approx(best.value, rel=1e-4)  # alone and in a batch: float32


def test_effects_are_of_lines_spread_over_the_file(neuron: Card) -> None:
    """Lines 1, 5 and 9 of 12; and those where it is most relevant."""
    assert neuron.effects is not None and neuron.references is not None
    spread, relevant = (e for _, e in neuron.effects)
    assert spread.inputs == ("1", "5", "9")
    best = [str(one.reference.line) for one in neuron.references["relevance"]]
    assert relevant.inputs == tuple(best)
    assert spread.random.shape == (3, 3)


def test_the_effect_in_an_example(head: Card) -> None:
    assert head.effects is not None
    e = dict(head.effects)["the example"]
    again = effect(refl.load(), TEXT, "L2.H1", contrast=("are", "is"), draws=3)
    assert e.measured.tolist() == again.measured.tolist()
    assert e.predicted.tolist() == again.predicted.tolist()


# -- queries and keys ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "bert", "vit", "t5"])
def test_products_of_all_heads_add_up_to_what_the_ledger_has(name: str) -> None:
    """Of each attention the ledger's entry of its scores; rows of probabilities add up to 1."""
    model = random_model(ARCHITECTURES[name], 7)
    how: dict[str, Any] = {"example": IDS}
    if name == "vit":
        how = {"example": np.random.default_rng(1).standard_normal((3, 8, 12))}
    if name == "t5":
        how |= {"decoder": [0, 2, 7]}
    if name == "bert":
        model = random_model(BERT | {"architectures": ["BertForSequenceClassification"]}, 7)
    for attention in model.components.attentions[:2]:
        made = [
            card(model, f"{attention.label}.H{h}", draws=0, **how) for h in range(attention.heads)
        ]
        e, total = made[0].example, 0.0
        assert e is not None
        for n, one in enumerate(made):
            s = one.scores
            assert s is not None and s.relevance.shape == (len(s.queries), len(s.keys))
            np.testing.assert_allclose(s.probabilities.sum(axis=1), 1, rtol=0, atol=1e-12)
            np.testing.assert_array_equal(s.relevance, e_scores(one)[n])
            total += s.total
        received = next(i for i in e.ledger.as_dict()["sites"] if i["site"] == s.site)["received"]
        scale = sum(float(np.abs(one.scores.relevance).sum()) for one in made if one.scores)
        assert abs(total - received) <= 100 * np.finfo(float).eps * scale


def e_scores(c: Card) -> Any:
    assert c.example is not None and c.scores is not None
    return c.example[c.scores.site]


def test_the_sum_is_a_plain_loop() -> None:
    s = card(random_model(GPT2, 3), "L0.H2", example=IDS, draws=0).scores
    assert s is not None
    total = 0.0
    for j in range(5):
        for i in range(5):
            total += s.relevance[j, i]
            assert i <= j or s.relevance[j, i] == s.probabilities[j, i] == 0
    assert s.total == pytest.approx(total, rel=1e-12)


def test_axes_of_an_encoder_decoder_and_of_a_picture() -> None:
    model, how = random_model(T5, 0), {"example": [3, 1, 4], "decoder": [0, 2], "draws": 0}
    for name, queries, keys in (
        ("encoder.L1.H0", ["3", "1", "4"], ["3", "1", "4"]),
        ("decoder.L1.H0", ["0", "2"], ["0", "2"]),
        ("decoder.L1.cross.H0", ["0", "2"], ["3", "1", "4"]),
    ):
        s = card(model, name, **how).scores
        assert s is not None and (s.queries, s.keys) == (queries, keys)
    x = np.random.default_rng(1).standard_normal((3, 8, 12))
    s = card(random_model(VIT, 0), "L1.H0", example=x, draws=0).scores
    assert s is not None and s.keys[:3] == ["class", "0,0", "0,1"] and s.keys[-1] == "1,3"


# -- the page --------------------------------------------------------------------------------------


def test_the_page_of_a_neuron(neuron: Card) -> None:
    page = html(neuron)
    assert "L2.N17: neuron 17 of the MLP in block L2 of shipped" in page
    assert neuron.references is not None and neuron.effects is not None
    for by, some in neuron.references.items():
        for one in some:
            r = one.reference
            beside = f" (activation {one.explanation.explained:+.4g})" * (by == "relevance")
            assert f"{by} {r.value:+.4g}{beside} at position {r.position} of line {r.line}" in page
    assert page.count(' at"') == 4  # the framed tokens of two references of each kind
    for _, e in neuron.effects:
        assert f"{e.as_large:.0%} change it as much" in page
    assert neuron.projections is not None
    assert f"{neuron.projections[0].top[0].logit:+.3f}" in page
    assert "Which token asked which" not in page


def test_the_page_of_a_head(head: Card) -> None:
    page, s = html(head), head.scores
    assert s is not None and head.example is not None
    assert f"It adds up to {s.total:+.4g}: the part of {head.example.explained:.4g}" in page
    strongest = np.unravel_index(np.abs(s.relevance).argmax(), s.relevance.shape)
    j, i = (int(n) for n in strongest)
    title = f"{s.queries[j]} ({j}) to {s.keys[i]} ({i}): {s.relevance[j, i]:+.3g}"
    sign = "p" if s.relevance[j, i] > 0 else "n"
    listed = re.findall(r"<tr><td class=\"\">(\d+) <code>.*?<td class=\"\">(\d+) <code>", page)
    assert listed[0] == (str(j), str(i)) and j != i
    assert (
        f'<td class="{sign}{LEVELS}" title="{title.replace("<", "&lt;").replace(">", "&gt;")}"'
        in page
    )
    cells = re.findall(r'<td class="[^"]*" title="[^"]*: [01]\.\d{3}"', page)
    assert len(cells) + page.count("<td title=") >= np.count_nonzero(s.probabilities)


@pytest.mark.parametrize("name", ["neuron", "head"])
def test_a_page_needs_nothing_but_itself(name: str, request: pytest.FixtureRequest) -> None:
    page = html(request.getfixturevalue(name))
    assert "default-src 'none'" in page
    assert not re.search(r"<script|<link|<iframe|@import|url\(|https?:", page)
    assert all(source.startswith("data:image/png") for source in re.findall(r'src="([^"]*)', page))


HOSTILE = "<script>alert(1)</script>"


def test_whatever_tokens_and_names_are_they_are_text(head: Card, neuron: Card) -> None:
    assert head.example is not None and head.scores is not None and head.projections is not None
    tokens = [HOSTILE] * len(head.example.tokens)
    e = replace(head.example, tokens=tokens, target=HOSTILE, against='"><img src=x>')
    scores = replace(head.scores, queries=tokens, keys=[f'" onmouseover="{HOSTILE}'] * len(tokens))
    p = replace(head.projections[0], top=(head.projections[0].top[0]._replace(token=HOSTILE),) * 10)
    hostile = replace(
        head,
        example=e,
        scores=scores,
        projections=(replace(p, token=HOSTILE),),
        facts=dict.fromkeys(head.facts, HOSTILE),
        missing={"histogram": HOSTILE},
        histogram=None,
    )
    assert neuron.references is not None
    one = neuron.references["activation"][0]
    drawn = replace(one.explanation, tokens=[HOSTILE] * len(one.explanation.tokens))
    page = html(replace(hostile, references={"activation": [replace(one, explanation=drawn)]}))
    assert "<script" not in page and "<img" not in page
    assert not re.search(r'"[^"<>]* onmouseover="', page)
    assert page.count("&lt;script&gt;") > 20


def test_a_long_text_is_cut_around_the_reference(neuron: Card) -> None:
    """What is left out is counted, with the sum of its relevance."""
    assert neuron.references is not None
    one = neuron.references["activation"][0]
    r = np.arange(200) / 1024  # sums of these are exact
    long = replace(
        one.explanation,
        tokens=[f"w{t}" for t in range(200)],
        input_ids=list(range(200)),
        relevance=r,
        word_starts=None,
    )
    there = replace(one.reference, position=100)
    page = html(
        replace(
            neuron, references={"activation": [replace(one, explanation=long, reference=there)]}
        )
    )
    before, after = r[:60].sum(), r[112:].sum()
    assert f"… 60 tokens ({before:+.3g}) …" in page and f"… 88 tokens ({after:+.3g}) …" in page
    assert ">w59<" not in page and ">w60<" in page and ">w111<" in page and ">w112<" not in page


def test_a_large_matrix_shows_where_relevance_is() -> None:
    ids = [(5 * t * t + t) % 17 for t in range(40)]
    c = card(random_model(LLAMA, 1), "L1.H1", example=ids, draws=0)  # the last block: one row
    page, s = html(c), c.scores
    assert s is not None
    shown = np.sort(np.argsort(-np.abs(s.relevance).sum(axis=0), kind="stable")[:28])
    held = float(s.relevance[39, shown].sum())
    assert (
        f"the 1 of 40 queries and the 28 of 40 keys with most relevance, which hold {held:+.4g}"
        in page
    )


# -- what there is not -----------------------------------------------------------------------------


def test_what_is_left_out_is_said() -> None:
    model = random_model(BERT, 0)
    c = card(model, "L1.N3")
    assert set(c.missing) == {"histogram", "references", "effects", "example", "projections"}
    page = html(c)
    assert page.count("Left out: ") == 5
    assert "cls.predictions.transform.dense" in page
    assert "give an example" in card(random_model(LLAMA, 0), "L1.H1").missing["projections"]


def test_an_expert_that_no_token_chooses() -> None:
    model = random_model(MIXTRAL, 0)
    names = [f"L1.E{e}.N1" for e in range(6)]
    pages = [html(card(model, name, example=[3], draws=2)) for name in names]
    assert sum("no token of it chooses the expert" in page for page in pages) == 4  # 2 of 6 run


def test_a_single_head_has_none_beside_it() -> None:
    c = card(random_model(GPT2 | {"n_head": 1}, 0), "L0.H0", example=IDS)
    assert c.effects is not None and c.effects[0][1].random.shape == (1, 0)
    assert "Random:" not in html(c)


def test_pictures() -> None:
    x = np.random.default_rng(1).standard_normal((3, 8, 12))
    page = html(card(random_model(VIT, 0), "L1.N3", example=x, draws=2))
    assert 'src="data:image/png;base64,' in page


@pytest.mark.parametrize(
    ("name", "how", "words"),
    [
        ("L1", {}, "a card is of one neuron"),
        ("L9.N1", {}, "names no neuron"),
        ("L1.N1", {"method": "attention-rollout"}, "no table of rules"),
        ("L1.N1", {"references": "folder"}, "give the file"),
        ("L1.N1", {"decoder": [1]}, "give example too"),
        ("L1.N1", {"k": 0}, "above 0"),
        ("L1.N1", {"example": [99]}, "outside the vocabulary"),
        ("L1.N1", {"example": IDS, "target": 99}, "outside the vocabulary"),
        ("L1.N1", {"file": "nowhere.jsonl"}, "nowhere.jsonl"),
    ],
)
def test_what_cannot_be(name: str, how: dict[str, Any], words: str) -> None:
    with pytest.raises(ReflError, match=words):
        card(random_model(LLAMA, 0), name, **how)


# -- folders, and the command ----------------------------------------------------------------------


def test_a_folder_of_references_is_made_once(tmp_path: Path) -> None:
    model, folder = refl.load(), tmp_path / "references"
    first = card(model, "L2.N17", folder, **FEW)
    made = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    again = card(model, "L2.N17", folder, **FEW)
    assert {p: p.stat().st_mtime_ns for p in folder.iterdir()} == made
    assert again.as_dict() == first.as_dict()
    with pytest.raises(ReflError, match=r"L2\.N18"):
        card(model, "L2.N18", folder, **FEW)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], neuron: Card) -> None:
    page = tmp_path / "card.html"
    few = ["--limit", "12", "--top", "2", "--inputs", "3", "--draws", "3"]
    assert main(["card", "L2.N17", *few, "--html", str(page)]) == 0
    said = capsys.readouterr().out
    assert page.read_text(encoding="utf-8") == html(neuron)
    assert "largest relevance" in said and "in 3 lines, spread over the file" in said
    assert main(["card", "L2.N17", *few, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(neuron.as_dict()))


NOWHERE = ("--model", "nowhere")
"""It is not even looked for where numbers cannot be."""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["L2"], "a card is of one neuron"),
        (["L2.N17", "--top", "0"], "--top is 0"),
        (["L2.N17", "--inputs", "0", *NOWHERE], "--inputs is 0: expected a whole number above 0"),
        (
            ["L2.N17", "--draws", "-1", *NOWHERE],
            "--draws is -1: expected a whole number, 0 or more",
        ),
        (["L2.N17", "--limit", "-2", *NOWHERE], "--limit is -2: expected a whole number above 0"),
        (["L2.N17", "--target", "are"], "give --example too"),
        (["L2.N17", "--example", "the", "--target", "are", "--contrast", "a", "b"], "not both"),
        (["L2.N17", "--html", "card.pdf"], "--html writes .html"),
    ],
)
def test_the_command_refuses(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["card", *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


def test_the_json_of_one(head: Card) -> None:
    said = json.loads(json.dumps(head.as_dict()))
    assert head.scores is not None
    assert said["scores"]["sum"] == head.scores.total
    assert len(said["projections"]) == 2 and len(said["effects"]) == 3


# -- references that there are ---------------------------------------------------------------------


def test_references_of_another_method_or_of_other_lines_are_refused(tmp_path: Path) -> None:
    model, few = refl.load(), FEW | {"draws": 0}
    found = references(model, cards.CORPUS, tmp_path, "L2.N17", 2, limit=12)
    with pytest.raises(ReflError, match=r"found by attnlrp, and method is input-x-gradient"):
        card(model, "L2.N17", tmp_path, method="input-x-gradient", **few)
    for folder in (tmp_path, found):
        with pytest.raises(ReflError, match=r"those of 12 lines, and limit is 3"):
            card(model, "L2.N17", folder, **few | {"limit": 3})


def test_a_card_is_of_the_lines_of_its_references(tmp_path: Path) -> None:
    """However many more the file has; and a line that is there twice is one line."""
    model = refl.load()
    references(model, cards.CORPUS, tmp_path, "L2.N17", 5, limit=4, every_position=True)
    made = card(model, "L2.N17", tmp_path, inputs=20, draws=0)
    assert made.references is not None and made.effects is not None
    best = {one.reference.line for one in made.references["relevance"]}
    assert len(best) < len(made.references["relevance"])  # so that it is tested
    (words, spread), (most, relevant) = made.effects
    assert (words, len(spread.inputs)) == ("4 lines, spread over the file", 4)
    assert most == f"the {len(best)} lines where it is most relevant"
    assert len(relevant.inputs) == len(best)


def test_a_line_without_relevance_is_none_where_it_is_most_relevant(tmp_path: Path) -> None:
    """A neuron that is off has no relevance anywhere: its effects are of lines spread over the
    file alone.
    """
    file = tmp_path / "corpus.jsonl"
    file.write_text("".join(f'{{"text": "the {word}"}}\n' for word in ("keys", "key", "cats")))
    off = refl.load().with_edits({"L2.N17": refl.off})
    found = card(off, "L2.N17", file=file, inputs=2, draws=0)
    assert [words for words, _ in found.effects] == ["2 lines, spread over the file"]
