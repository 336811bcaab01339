"""Methods that are no tables of rules: the registry, their options, what they refuse, and what an
explanation by one of them says. The random one stands for all.
"""

from __future__ import annotations

import json
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from refl import Edit, ReflError
from refl.answer import Found
from refl.cli import main
from refl.conditions import Conditions
from refl.explanation import Explanation, MethodFacts
from refl.methods import METHODS, Attribution, Method, Table, chosen, method
from refl.methods.random import Random
from refl.model import Model, load
from refl.question import Forward, Question
from refl.rules.composites import Composite
from refl.rules.published import ATTNLRP
from refl.seeds import Seed
from refl.show.figure import compare
from refl.verification.random_models import (
    BERT,
    LLAMA,
    QWEN3_MOE,
    T5,
    VIT,
    random_model,
    with_weights,
)

IDS = [3, 1, 4, 1, 5]


@pytest.fixture(scope="module")
def llama() -> Model:
    return random_model(LLAMA, 1)


@dataclass(frozen=True)
class Counted(Attribution):
    """As many as there are tokens, and options of every kind."""

    number: float = 0.5
    several: Any = (1, 2)
    inner: Any = ATTNLRP

    name: ClassVar[str] = "counted"
    summary: ClassVar[str] = "one for each token"
    source: ClassVar[str] = "nobody"
    passes: ClassVar[str] = "1 forward"
    conserved: ClassVar[str] = "nothing"

    def refuse(self, network: Any) -> None:
        if network.takes_images:
            raise ReflError("method counted is not defined for pictures")

    def found(self, question: Question, forward: Forward, seed: Seed) -> Found:
        ids = forward.readings[0].input
        return Found(np.ones(len(ids)), explained=seed.value(forward.rows[0]))


# -- the registry ----------------------------------------------------------------------------------


def test_every_method_says_what_it_is() -> None:
    for name in METHODS:
        m: Method = chosen(name)
        assert m.name == name == m.facts().name
        for said in (m.summary, m.source, m.passes, m.conserved):
            assert isinstance(said, str) and said.strip() == said != ""
        assert pickle.loads(pickle.dumps(m)) == m
        json.dumps(m.facts().as_dict())


def test_a_method_is_chosen_by_name_or_as_it_is() -> None:
    assert chosen("random") == Random() == chosen(Random())
    assert chosen("random", options={"draw": 3}) == Random(draw=3)
    assert chosen("attnlrp") == Table(ATTNLRP) == chosen(ATTNLRP) == chosen(Table(ATTNLRP))
    by_option, by_name = chosen("attnlrp", options={"eps": 0.5}), chosen("attnlrp", eps=0.5)
    assert by_option == by_name == chosen(Table(ATTNLRP), eps=0.5) != chosen("attnlrp")
    assert isinstance(method("random"), Random) and isinstance(method("attnlrp"), Composite)


STRANGE: dict[str, tuple[tuple[Any, ...], dict[str, Any], str]] = {
    "no name": (("nonsense",), {}, "unknown method 'nonsense': expected one of attnlrp"),
    "a number": ((3,), {}, "method is 3: expected the name of a method"),
    "nothing": ((None,), {}, "method is None"),
    "bytes": ((b"random",), {}, "method is b'random'"),
    "a class": ((Random,), {}, "an object, not its class"),
    "an object": ((object(),), {}, "expected the name of a method"),
    "a model's method": ((Question,), {}, "expected the name of a method"),
    "eps": (("random",), {"eps": 0.1}, "method random has no rules with a stabilizer: leave eps"),
    "stabilizer": (("random",), {"stabilizer": "plain"}, "leave stabilizer out"),
    "an unknown option": (("random",), {"options": {"drew": 1}}, "no option 'drew': it has draw"),
    "of a table": (("attnlrp",), {"options": {"draw": 1}}, "no rule of composite attnlrp takes"),
    "twice": (("attnlrp",), {"eps": 0.1, "options": {"eps": 0.1}}, "eps is given twice"),
    "a list of options": (("random",), {"options": [1]}, "options is [1]: expected a mapping"),
    "no options": (("random",), {"options": 0}, "options is 0: expected a mapping"),
    "numbers for names": (("attnlrp",), {"options": {1: 2}}, "options is {1: 2}"),
    "a bad value": (("random",), {"options": {"draw": 1.5}}, "draw is 1.5: expected a whole"),
    "a bad number": (("random",), {"options": {"draw": -1}}, "draw is -1: expected a whole"),
}


@pytest.mark.parametrize(("what", "how", "words"), STRANGE.values(), ids=STRANGE)
def test_what_is_no_method(what: Any, how: dict[str, Any], words: str, llama: Model) -> None:
    for call in (
        lambda: chosen(*what, **how),
        lambda: llama.explain(IDS, *what, **how),
        lambda: llama.explain_each(IDS, [1], *what, **how),
        lambda: llama.explain_generated(IDS, 1, *what, **how),
    ):
        with pytest.raises(ReflError) as found:
            call()
        assert words in str(found.value) and "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"keep": "*"}, "has no sweep: leave keep out"),
        ({"keep": ["*.mlp"]}, "has no sweep: leave keep out"),
        ({"keep": 3}, "keep is 3"),
        ({"audit": True}, "has no sweep: leave audit out"),
        ({"audit": 1}, "audit is 1: expected True or False"),
    ],
)
def test_what_only_a_sweep_has(how: dict[str, Any], words: str, llama: Model) -> None:
    with pytest.raises(ReflError, match=words):
        llama.explain(IDS, "random", **how)


def test_a_net_that_a_method_is_not_for() -> None:
    model = random_model(VIT, 1)
    picture = np.zeros((model.config.num_channels, *model.config.image))
    with pytest.raises(ReflError, match="not defined for pictures"):
        model.explain(picture, Counted())


# -- in each way of asking -------------------------------------------------------------------------


def test_alone_in_a_list_for_several_targets_and_generated(llama: Model) -> None:
    edits, texts = {"model.layers.0.mlp": Edit(0)}, [IDS, [2, 7]]
    for text, e in zip(texts, llama.explain(texts, Counted(), edits=edits), strict=True):
        np.testing.assert_array_equal(e.relevance, np.ones(len(text)))
        z = llama.logits(text, edits=edits)[-1]
        assert e.target_id == int(z.argmax()) and abs(e.explained - z.max()) < 1e-12
    for target, e in zip([1, 4], llama.explain_each(IDS, [1, 4], Counted()), strict=True):
        assert e.target_id == target and abs(e.explained - llama.logits(IDS)[-1, target]) < 1e-12
    text = llama.generate(IDS, 3, edits=edits)
    generated = llama.explain_generated(IDS, 3, Counted(), edits=edits)
    assert [e.target_id for e in generated] == text[5:]
    assert [len(e.relevance) for e in generated] == [5, 6, 7]


@pytest.mark.parametrize(
    ("seed", "value"),
    [
        ("logit", lambda z: z[2]),
        ("probability", lambda z: np.exp(z[2]) / np.exp(z).sum()),
        ("log-probability", lambda z: z[2] - np.log(np.exp(z).sum())),
    ],
)
def test_what_is_explained(seed: str, value: Any, llama: Model) -> None:
    e = llama.explain(IDS, Counted(), target=2, seed=seed)
    assert abs(e.explained - value(llama.logits(IDS)[-1])) < 1e-12
    contrast = llama.explain(IDS, Counted(), contrast=(2, 5))
    z = llama.logits(IDS)[-1]
    assert abs(contrast.explained - (z[2] - z[5])) < 1e-12


def test_a_neuron(llama: Model) -> None:
    site = "model.layers.0.mlp"
    e = llama.explain(IDS, Counted(), at=(site, (2, 3)))
    assert abs(e.explained - llama.explain(IDS, keep="*").activation(site)[2, 3]) < 1e-12


def test_progress_is_told(llama: Model) -> None:
    told: list[Any] = []
    llama.explain([IDS, [1]], Counted(), progress=lambda *said: told.append(said))
    assert told == [("counted", 1, 2), ("counted", 2, 2)]


# -- what is said of it ----------------------------------------------------------------------------


def test_a_file_has_the_method_and_its_options(llama: Model, tmp_path: Path) -> None:
    asked = Counted(number=np.float32(0.25), several=(np.int64(3), (4,)))
    e = llama.explain(IDS, asked)
    e.save(tmp_path / "e")
    read = Explanation.load(tmp_path / "e")
    assert read.method == e.method
    assert e.method == MethodFacts(
        "counted",
        "attribution",
        "nobody",
        "one for each token",
        options={"number": 0.25, "several": [3, [4]], "inner": "attnlrp"},
    )
    assert json.loads(json.dumps(e.as_dict()))["method"]["options"]["several"] == [3, [4]]
    assert pickle.loads(pickle.dumps(e)).as_dict() == e.as_dict() == read.as_dict()


OWN = ("random", "attention-rollout", "gradient-rollout", "grad-cam", "chefer-2021", "smoothgrad")
"""Methods whose scores are no parts of the logit."""


@pytest.mark.parametrize("name", [*OWN, "atman"])
def test_scores_in_another_unit_are_no_part_of_what_is_explained(llama: Model, name: str) -> None:
    """No sum of them stands beside a logit, no percentage of it, and no word of what is for it."""
    e = llama.explain(IDS, name)
    for shown in (str(e), e.html()):
        assert "not recorded" not in shown and "summed" not in shown
        assert "do not add up" in " ".join(shown.split()) or "a unit of their own" in shown
        assert ("red: for" in shown) is (name == "atman")
    assert "logit)" not in e.svg()
    with pytest.raises(ReflError, match="shared"):
        compare([e, llama.explain(IDS, "cp-lrp", target=e.target_id)], "shared")


@pytest.mark.parametrize("name", ["occlusion", "leave-one-out", "decompx", "integrated-gradients"])
def test_scores_in_the_unit_of_the_logit_are_compared_with_it(llama: Model, name: str) -> None:
    e = llama.explain(IDS, name)
    assert "unit of their own" not in str(e) and "red: for" in str(e) and "(logit)" in e.svg()
    compare([e, llama.explain(IDS, "cp-lrp", target=e.target_id)], "shared")


@pytest.mark.parametrize("kind", ["log-probability", "probability"])
@pytest.mark.parametrize("name", ["decompx", "pa-lrp", "metagame"])
def test_what_is_linearized_is_called_so(llama: Model, name: str, kind: str) -> None:
    """As of the table: sum z dy/dz is neither a log-probability nor a probability."""
    e, table = (llama.explain(IDS, m, seed=kind) for m in (name, "cp-lrp"))
    assert e.explained == pytest.approx(table.explained, abs=1e-12)
    assert (
        str(e).split(" = ")[0] == str(table).split(" = ")[0]
        and "ability of" not in str(llama.explain(IDS, name, seed="probability")).split(" = ")[0]
    )


def test_a_second_order_has_the_unit_of_its_first(llama: Model) -> None:
    options = {"inner": "smoothgrad", "inner_options": {"samples": 1}, "permutations": 1}
    said = llama.explain(IDS[:3], "metagame", options=options).method
    assert isinstance(said, MethodFacts) and (said.score, said.unit) == ("norm", "own")


def test_a_copy_that_does_not_come_to_a_neuron() -> None:
    """An expert that no copy's router chooses has no activation: said, not an index error."""
    model = random_model(QWEN3_MOE, 1)
    told = []
    for expert in range(7):
        at = (f"model.layers.0.mlp.experts.{expert}.act_fn", (0, 2))
        for name in ("integrated-gradients", "occlusion"):
            try:
                assert np.isfinite(model.explain(IDS, name, at=at).relevance).all()
            except ReflError as refused:
                told.append(str(refused))
    assert any("does not come to" in said for said in told), told


def test_what_it_does_not_have_is_said(llama: Model) -> None:
    e = llama.explain(IDS, "random")
    for ask, words in (
        (lambda: e["lm_head"], "no site 'lm_head' was kept, nor any other"),
        (lambda: e.activation("lm_head"), "nor any other"),
        (lambda: e.ledger, "method random keeps no conservation ledger"),
        (lambda: e.composite, "method random is no table of rules"),
        (lambda: e.gradient("lm_head"), "method random"),
    ):
        with pytest.raises(ReflError, match=words):
            ask()
    assert list(e) == []


def test_its_account_claims_nothing(llama: Model) -> None:
    """Random scores reach nothing and absorb nothing."""
    e = llama.explain(IDS, "random")
    for words in (str(e), e.html()):
        assert "absorbed on the way" not in words and "what reached" not in words
        assert "unit of their own" in " ".join(words.split())


# -- random ----------------------------------------------------------------------------------------


def test_random_scores_are_of_the_input(llama: Model) -> None:
    """The same in any batch, for any target and net; others for another text or draw."""
    first = llama.explain(IDS, "random").relevance
    again = llama.explain([[2, 7], IDS], "random", target=3)[1].relevance
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, random_model(LLAMA, 9).explain(IDS, "random").relevance)
    others = [
        llama.explain(IDS, "random", options={"draw": 1}).relevance,
        llama.explain([*IDS[:-1], 6], "random").relevance,
    ]
    assert all(not np.array_equal(first, other) for other in others)


def test_random_scores_are_normal() -> None:
    model = random_model(BERT, 1)
    drawn = np.concatenate(
        [
            model.explain([t % 17 for t in range(100)], Random(n), position=0).relevance
            for n in range(20)
        ]
    )
    # 2000 draws: mean within 5 / sqrt(2000), variance within 5 sqrt(2 / 2000)
    assert abs(drawn.mean()) < 0.12 and abs(drawn.var() - 1) < 0.16


def test_random_on_both_sides_and_on_pixels() -> None:
    e = random_model(T5, 1).explain(IDS, "random", decoder=[0, 2, 1])
    assert len(e.relevance) == 5 and len(e.decoder_relevance) == 3
    model = random_model(VIT, 1)
    picture = np.random.default_rng(0).normal(size=(model.config.num_channels, *model.config.image))
    assert model.explain(picture, "random").relevance.shape == tuple(model.config.image)


# -- what a method of one's own may get wrong ------------------------------------------------------


@dataclass(frozen=True)
class Scored(Counted):
    """These numbers, whatever the input."""

    scores: Any = ()

    def found(self, question: Question, forward: Forward, seed: Seed) -> Found:
        return Found(np.asarray(self.scores), explained=0.0)


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ([1.0, 2.0, 3.0, 4.0, np.nan], "scores of method counted are not all finite in float64"),
        ([1.0, 2.0, 3.0, 4.0, -np.inf], "not all finite"),
        ([1.0], r"has scores of shape \(1,\): expected \(5,\), one for each token or pixel"),
        (1.0, r"has scores of shape \(\): expected \(5,\)"),
    ],
)
def test_scores_that_are_none(scores: Any, words: str, llama: Model) -> None:
    with pytest.raises(ReflError, match=words):
        llama.explain(IDS, Scored(scores=scores))
    with pytest.raises(ReflError, match=r"has scores of shape None: expected \(2,\)"):
        random_model(T5, 1).explain(IDS, Scored(scores=np.ones(5)), decoder=[0, 2])


def test_ratios_that_are_beyond_the_dtype() -> None:
    """Weights whose products are no numbers of float32 any more."""
    small = r"layers\.\d\.(self_attn\.[vo]_proj|mlp\.(up|down)_proj)"
    model = random_model(LLAMA, 1, "float32")
    weights = {n: w * np.float32(1e-20) for n, w in model.weights.items() if re.search(small, n)}
    with np.errstate(all="ignore"), pytest.raises(ReflError, match="not all finite in float32"):
        with_weights(model, **weights).explain(IDS, "voita-2021")


# -- what a site has nothing to do with ------------------------------------------------------------


@pytest.mark.parametrize("recompute", [False, True])
def test_what_comes_after_a_neuron_is_refused(recompute: bool, llama: Model) -> None:
    """It would change nothing, and be named beside the scores."""
    how: dict[str, Any] = {"at": ("model.layers.0", (2, 3)), "recompute": recompute}
    for site in ("model.layers.1.mlp", "model.layers.1", "lm_head"):
        with pytest.raises(ReflError, match=f"conditions.* names '{site}', which the neuron at"):
            llama.explain(IDS, conditions={site: (0,)}, **how)
        with pytest.raises(ReflError, match=f"edits.* names '{site}', which the neuron at"):
            llama.explain(IDS, edits={site: Edit(factor=0)}, **how)
    plain = llama.explain(IDS, **how).relevance
    of_itself: dict[str, Any] = {"conditions": {"model.layers.0": (..., [3, 4])}}
    changes: tuple[dict[str, Any], ...] = (
        of_itself,
        {"edits": {"model.layers.0.mlp": Edit(factor=0.5)}},
        {"conditions": {"model.layers.0.mlp": (..., 1)}},
    )
    for change in changes:
        e = llama.explain(IDS, **how, **change)
        assert np.array_equal(e.relevance, plain) == (change == of_itself)


def test_conditions_given_twice(llama: Model) -> None:
    table = Table(ATTNLRP, Conditions({"model.layers.0": (1,)}))
    with pytest.raises(ReflError, match="conditions.* are given twice: on their own, and with"):
        llama.explain(IDS, table, conditions={"model.layers.0": (2,)})


# -- on the command line ---------------------------------------------------------------------------


def test_methods_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    out = capsys.readouterr().out
    for name in METHODS:
        assert name in out and chosen(name).passes.split()[0] in out
    assert out.count("cost: ") == out.count("conserved: ") == len(METHODS)
    assert main(["methods", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [m["name"] for m in said] == list(METHODS)
    assert all({"passes", "conserved", "source"} <= set(m) for m in said)


def test_options_of_a_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "random"]) == 0
    assert "draw" in capsys.readouterr().out
    ask = ["explain", "The keys to the cabinet", "--method", "random", "--json"]
    assert main([*ask, "--option", "draw=3"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["method"]["options"] == {"draw": 3}
    expected = load().explain("The keys to the cabinet", Random(3)).relevance
    np.testing.assert_allclose(found["relevance"], expected)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--option", "draw"], "expected NAME=VALUE"),
        (["--option", "=3"], "expected NAME=VALUE"),
        (["--option", "draw=1", "draw=2"], "twice"),
        (["--option", "draw=1", "--option", "draw=2"], "twice"),
        (["--option", "draw=1.5"], "draw is 1.5"),
        (["--option", "drew=1"], "no option 'drew'"),
        (["--eps", "0.1"], "leave --eps out"),
    ],
)
def test_options_that_are_none(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", "The keys", "--method", "random", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_two_options_in_two_words(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither of them is forgotten."""
    ask = ["explain", "The keys", "--json", "--option", "eps=0.5", "--option", "stabilizer=plain"]
    assert main(ask) == 0
    rules = json.loads(capsys.readouterr().out)["method"]["rules"]
    linear = next(line for line in rules if line["operation"] == "linear")
    assert linear["options"]["eps"] == 0.5 and linear["options"]["stabilizer"] == "plain"


def test_a_trace_needs_a_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "The keys", "--method", "random"]) == 2
    assert "has no operations to follow" in capsys.readouterr().err
