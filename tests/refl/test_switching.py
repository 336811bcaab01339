"""Switching neurons by rankings: batches of copies against plain loops over edited models."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refl
from refl.cli import main
from refl.errors import ReflError
from refl.evaluation.subject import Item
from refl.evaluation.tuning import split
from refl.latent.switching import BY, Switching, switching
from refl.latent.switching import inputs as switched_inputs
from refl.latent.switching.pool import Pool
from refl.model import Model
from refl.network import CLASSIFIES
from refl.verification.random_models import ARCHITECTURES, BERT, LLAMA, MIXTRAL, VIT, random_model

FLOAT64 = 2.0**-53
ROUNDING = 1e4 * FLOAT64
"""Of a logit of the order of 1, in a batch and alone."""

KINDS = {
    "llama": LLAMA,
    "mixtral": MIXTRAL,
    "t5": ARCHITECTURES["t5"],
    "bert": BERT,
    "vit": VIT,
    "bert-class": BERT | {"architectures": ["BertForSequenceClassification"]},
}


def model_of(name: str) -> Model:
    model = random_model(KINDS[name], 5)
    model.mask_id = 3 if model.task == "masked-token" else None
    return model


def inputs(model: Model, count: int = 4) -> list[Any]:
    random = np.random.default_rng(3)
    if model.takes_images:
        return [5 * random.standard_normal((3, *model.config.image)) for _ in range(count)]
    end = [3] if model.task == "masked-token" else []
    return [[*map(int, random.integers(4, 17, 2 + n % 3)), *end] for n in range(count)]


def logits(model: Model, item: Any) -> Any:
    """Of what is explained, from a forward pass of one input."""
    batch = model.batch([model.read(item)], None if model.task in CLASSIFIES else -1)
    return model.forward(model._unrecorded(model._edits(None)), batch).array.reshape(-1)


def first_two(model: Model, item: Any) -> tuple[int, int]:
    best = np.argsort(-logits(model, item))
    return int(best[0]), int(best[1])


def items(model: Model, count: int = 4) -> list[Item]:
    """Each answered by its likeliest output, against the next."""
    return [
        Item(str(n), one, contrast=first_two(model, one))
        for n, one in enumerate(inputs(model, count))
    ]


def by_hand(model: Model, item: Item, names: Any, change: Any = refl.off) -> tuple[float, float]:
    """Flips and change, by a model with edits."""
    a, b = item.contrast or (0, 0)
    before = logits(model, item.input)
    after = logits(model.with_edits(dict.fromkeys(names, change)), item.input)
    flips = int(after.argmax()) != a if model.task in CLASSIFIES else after[a] <= after[b]
    return float(flips), float((after[a] - after[b]) - (before[a] - before[b]))


def scores(model: Model, item: Item, by: str) -> dict[str, float]:
    """Of every neuron by its name, in a plain loop."""
    table = "attnlrp" if by == "activation" else by
    sites = [mlp.neurons for mlp in model.components.mlps]
    e = model.explain(item.input, table, contrast=item.contrast, keep=sites)
    found = {}
    for mlp in model.components.mlps:
        ran = mlp.neurons in {**e.sites.activations, **e.sites.aliases}
        array = np.zeros((1, mlp.width))
        if ran:
            array = np.abs(e.activation(mlp.neurons)) if by == "activation" else e[mlp.neurons]
        for n in range(mlp.width):
            found[f"{mlp.label}.N{n}"] = float(sum(row[n] for row in array))
    return found


def largest(found: dict[str, float], k: int) -> list[str]:
    return sorted(found, key=lambda name: -found[name])[:k]


def lots(label: str, k: int, row: int, seed: int = 0) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(label.encode()), k, row])


@pytest.mark.parametrize("name", KINDS)
def test_off_is_a_plain_loop_of_edited_models(name: str) -> None:
    model = model_of(name)
    some, by, ks = items(model, 2), ("attnlrp", "input-x-gradient", "activation"), (1, 4)
    found = switching(model, some, by, ks, draws=2)
    assert found.often.keys() == set(by)
    pool = Pool.neurons(model.components)
    assert found.inputs == ("0", "1") and found.rankings == [*by, "random"]
    for row, item in enumerate(some):
        known = {one: scores(model, item, one) for one in by}
        for place, k in enumerate(ks):
            for one in by:
                names = largest(known[one], k)
                own = by_hand(model, item, names)
                assert found.flips[one][row, place] == own[0]
                assert abs(found.change[one][row, place] - own[1]) < ROUNDING
                drawn = pool.beside(pool.numbers(names), 2, lots(one, k, row))
                _same(model, item, pool, drawn, found, (one, row, place), beside=True)
            drawn = pool.anywhere(k, 2, lots("random", k, row))
            _same(model, item, pool, drawn, found, ("random", row, place), beside=False)


def _same(
    model: Model,
    item: Item,
    pool: Pool,
    drawn: list[Any],
    found: Switching,
    at: tuple[str, int, int],
    beside: bool,
) -> None:
    """The means over draws are those of edited models."""
    each = np.array([by_hand(model, item, [pool.names[i] for i in one]) for one in drawn])
    label, row, place = at
    for number, expected in zip(("flips", "change"), each.mean(axis=0), strict=True):
        numbers = found.beside[number] if beside else getattr(found, number)
        assert abs(numbers[label][row, place] - expected) < ROUNDING


def test_some_answers_flip_and_some_do_not() -> None:
    """Else the loops above would say nothing of flips."""
    found = switching(model_of("llama"), items(model_of("llama"), 12), ["attnlrp"], (8,), draws=2)
    assert 0 < found.flips["attnlrp"].mean() < 1


# -- the other answer ------------------------------------------------------------------------------


def to_values(
    model: Model, names: list[str], values: dict[str, Any], at: Any = slice(None)
) -> Model:
    """The model with neurons at values of their sites, by functions."""
    edits = {}
    for name in names:
        part = model.components.part(name)
        edits.setdefault(part.site, []).append(part.number)

    def function(site: str) -> Any:
        def change(z: Any) -> Any:
            for n in edits[site]:
                z[:, at, n] = values[site][:, n] if isinstance(at, slice) else values[site][n]
            return z

        return change

    return model.with_edits({site: function(site) for site in edits})


def activation(model: Model, item: Any) -> dict[str, Any]:
    e = model.explain(item, keep=[m.neurons for m in model.components.mlps], target=0)
    return {m.neurons: e.activation(m.neurons) for m in model.components.mlps}


def test_other_is_the_counterpart_position_by_position() -> None:
    model = model_of("llama")
    some = [
        Item(
            "0", [5, 9, 4], contrast=first_two(model, [5, 9, 4]), facts={"counterpart": [5, 8, 4]}
        ),
        Item("1", [7, 6], contrast=first_two(model, [7, 6]), facts={"counterpart": [16, 6]}),
    ]
    found = switching(model, some, ["attnlrp"], (1, 5), to="other", draws=0)
    for row, item in enumerate(some):
        values = activation(model, item.facts["counterpart"])
        for place, k in enumerate((1, 5)):
            names = largest(scores(model, item, "attnlrp"), k)
            after = logits(to_values(model, names, values), item.input)
            before, (a, b) = logits(model, item.input), item.contrast or (0, 0)
            expected = (after[a] - after[b]) - (before[a] - before[b])
            assert abs(found.change["attnlrp"][row, place] - expected) < ROUNDING
    assert (
        "counterpart" in found.how and found.left_out["without an input of the other answer"] == 0
    )


def test_all_neurons_at_the_counterpart_make_it_the_counterpart_after_the_last_block() -> None:
    """All MLPs of a net without attention's part: the difference that is left is attention's, so
    of one token and one block nothing is left but the embedding.
    """
    model = random_model(LLAMA | {"num_hidden_layers": 1}, 5)
    item = Item("0", [5], contrast=first_two(model, [5]), facts={"counterpart": [9]})
    found = switching(model, [item], ["attnlrp"], (20,), to="other", draws=0)
    every = [f"L0.N{n}" for n in range(20)]
    after = logits(to_values(model, every, activation(model, [9])), [5])
    a, b = item.contrast or (0, 0)
    assert abs(found.before[0] + found.change["attnlrp"][0, 0] - (after[a] - after[b])) < ROUNDING


@pytest.mark.parametrize("name", ["llama", "bert", "vit"])
def test_other_is_a_mean_over_inputs_of_the_other_answer(name: str) -> None:
    model = model_of(name)
    some, at = items(model, 12 if name == "vit" else 40), slice(None) if name == "vit" else -1
    found = switching(model, some, ["input-x-gradient"], (3,), to="other", draws=0)
    by_answer: dict[int, list[Item]] = {}
    for item in some:
        by_answer.setdefault((item.contrast or (0, 0))[0], []).append(item)
    use = [item for item in some if (item.contrast or (0, 0))[1] in by_answer]
    assert found.inputs == tuple(item.name for item in use) and use
    assert found.left_out["without an input of the other answer"] == len(some) - len(use)
    for row, item in enumerate(use[:4]):
        a, b = item.contrast or (0, 0)
        each = [activation(model, another.input) for another in by_answer[b]]
        values = {site: np.mean([one[site][at] for one in each], axis=0) for site in each[0]}
        e = model.explain(item.input, "input-x-gradient", contrast=(a, b))
        ranked = {}
        for mlp in model.components.mlps:
            r = e[mlp.neurons][at] if at == -1 else e[mlp.neurons].sum(axis=0)
            ranked |= {f"{mlp.label}.N{n}": float(r[n]) for n in range(mlp.width)}
        after = logits(to_values(model, largest(ranked, 3), values, at), item.input)
        before = logits(model, item.input)
        expected = (after[a] - after[b]) - (before[a] - before[b])
        assert abs(found.change["input-x-gradient"][row, 0] - expected) < ROUNDING


# -- which inputs, which ranking -------------------------------------------------------------------


def test_only_inputs_answered_so_at_first_are_counted() -> None:
    model = model_of("llama")
    correct = items(model, 5)
    wrong = [Item(f"w{i.name}", i.input, contrast=(i.contrast or (0, 0))[::-1]) for i in correct]
    found = switching(model, [*wrong[:2], *correct, *wrong[2:]], ["attnlrp"], (2,), draws=2)
    alone = switching(model, correct, ["attnlrp"], (2,), draws=2)
    assert found.inputs == alone.inputs and found.left_out["not answered so at first"] == 5
    assert (found.before > 0).all()
    for number in ("flips", "change"):
        assert (getattr(found, number)["attnlrp"] == getattr(alone, number)["attnlrp"]).all()
    with pytest.raises(ReflError, match="answers none of the 5 inputs"):
        switching(model, wrong, ["attnlrp"], (2,), draws=2)


def test_of_a_classifier_the_foil_is_the_class_that_comes_next() -> None:
    model = model_of("vit")
    some = inputs(model, 4)
    found = switching(model, [Item(str(n), x) for n, x in enumerate(some)], ["attnlrp"], (3,))
    both = switching(model, items(model, 4), ["attnlrp"], (3,))
    assert (found.change["attnlrp"] == both.change["attnlrp"]).all()
    wrong = [Item("w", some[0], target=first_two(model, some[0])[1]), Item("r", some[1])]
    assert switching(model, wrong, ["attnlrp"], (3,)).inputs == ("r",)


def test_a_ranking_of_the_corpus_is_of_the_half_that_is_not_switched() -> None:
    model = model_of("llama")
    some = [Item(str(n), [5 + n, 4], contrast=first_two(model, [5 + n, 4])) for n in range(8)]
    found = switching(model, some, ["attnlrp", "activation"], (2, 6), rank="corpus", draws=0)
    held, rest = split(some, 4)
    assert found.inputs == tuple(i.name for i in rest) and found.ranked_on == len(held) == 4
    assert "attnlrp, the first 6: L" in str(found) and "by the mean over 4 other" in str(found)
    for by in ("attnlrp", "activation"):
        each = [scores(model, item, by) for item in held]
        mean = {name: float(np.mean([one[name] for one in each])) for name in each[0]}
        for row, item in enumerate(rest):
            for place, k in enumerate((2, 6)):
                flips, change = by_hand(model, item, largest(mean, k))
                assert found.flips[by][row, place] == flips
                assert abs(found.change[by][row, place] - change) < ROUNDING


def test_seeded_and_no_ranking_depends_on_the_others() -> None:
    model = model_of("llama")
    some = items(model, 3)
    first = switching(model, some, ["attnlrp"], (3,), draws=4)
    again = switching(model, some[:2], ["activation", "attnlrp"], (1, 3), draws=4)
    other = switching(model, some, ["attnlrp"], (3,), draws=4, seed=1)
    for number in ("flips", "change"):
        beside = first.beside[number]["attnlrp"]
        # in batches of other sizes sums round otherwise
        assert np.abs(beside[:2, 0] - again.beside[number]["attnlrp"][:, 1]).max() < ROUNDING
        assert np.abs(first.change["random"][:2, 0] - again.change["random"][:, 1]).max() < ROUNDING
    assert not (first.beside["change"]["attnlrp"] == other.beside["change"]["attnlrp"]).any()
    assert np.abs(first.change["attnlrp"] - other.change["attnlrp"]).max() < ROUNDING


def test_what_is_said() -> None:
    model = model_of("llama")
    found = switching(model, items(model, 6), BY, (1, 2), draws=3)
    said = json.loads(json.dumps(found.as_dict()))
    assert [(r["k"], r["ranking"]) for r in said["rows"]] == [
        (k, r) for k in (1, 2) for r in (*BY, "random")
    ]
    assert len(said["differences"]) == 2 * 2 * 10 and said["draws"] == 3
    row = said["rows"][0]
    assert row["change"]["mean"] == pytest.approx(found.change["attnlrp"][:, 0].mean(), abs=1e-15)
    less = found.change["attnlrp"][:, 0] - found.beside["change"]["attnlrp"][:, 0]
    assert row["change_less_beside"]["mean"] == pytest.approx(less.mean(), abs=1e-15)
    assert row["change"]["low"] <= row["change"]["mean"] <= row["change"]["high"]
    each = [set(largest(scores(model, item, "attnlrp"), 2)) for item in items(model, 6)]
    names = {name: float(np.mean([name in one for one in each])) for name in set.union(*each)}
    assert len(said["often"]["attnlrp"]) == 2
    assert all(names[name] == fraction for name, fraction in said["often"]["attnlrp"])
    assert max(names.values()) == said["often"]["attnlrp"][0][1]
    text = str(found)
    assert "6 inputs" in text and "switched off" in text and "input-x-gradient" in text
    without = switching(model, items(model, 2), ["attnlrp"], 2, draws=0)
    assert without.rankings == ["attnlrp"] and "beside:" not in str(without)
    assert "flips_beside" not in without.as_dict()["rows"][0]


def test_by_default_as_many_neurons_as_have_others_beside_them() -> None:
    model = model_of("llama")  # 20 neurons in an MLP
    assert switching(model, items(model, 1), ["attnlrp"], draws=1).k == (1, 2, 4, 8)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"by": ["random-forest"]}, "unknown method"),
        ({"by": ["integrated-gradients"]}, "is no table of rules"),
        ({"by": ["attnlrp", "attnlrp"]}, "twice"),
        ({"by": []}, "expected methods that are tables"),
        ({"by": ["random"]}, "expected methods that are tables"),
        ({"k": 0}, "whole numbers above 0"),
        ({"k": [2, 2]}, "whole numbers above 0"),
        ({"k": "many"}, "whole numbers above 0"),
        ({"k": 11}, "k is 11: expected at most 10, for L0 has 20 neurons"),
        ({"k": 41, "draws": 0}, "expected at most 40, the neurons of the model"),
        ({"to": "on"}, "expected one of off, other"),
        ({"rank": "mean"}, "expected one of input, corpus"),
        ({"draws": -1}, "0 or more"),
        ({"seed": 0.5}, "0 or more"),
        ({"items": []}, "expected a list of refl.evaluation's Items"),
        ({"items": "text"}, "expected a list of refl.evaluation's Items"),
        ({"items": [Item("a", [5, 4], target=3)]}, "item a has no foil"),
        ({"items": [Item("a", [5, 4])]}, "item a has no foil"),
        ({"rank": "corpus"}, "expected two or more"),
    ],
)
def test_bad_input_is_one_sentence(how: dict[str, Any], words: str) -> None:
    model = model_of("llama")
    asked = {"items": items(model, 1), "by": ["attnlrp"], "k": 2} | how
    with pytest.raises(ReflError, match=words):
        switching(model, asked.pop("items"), asked.pop("by"), asked.pop("k"), **asked)


def test_other_where_it_is_not_defined() -> None:
    llama = model_of("llama")
    pair = first_two(llama, [5, 4])
    one = Item("a", [5, 4], contrast=pair, facts={"counterpart": [5, 4, 4]})
    with pytest.raises(ReflError, match="item a has 2 tokens and its counterpart 3"):
        switching(llama, [one], ["attnlrp"], 2, to="other")
    some = [Item("a", [5, 4], contrast=pair, facts={"counterpart": [6, 4]}), items(llama, 1)[0]]
    with pytest.raises(ReflError, match="item 0 has no counterpart and others have one"):
        switching(llama, some, ["attnlrp"], 2, to="other")
    with pytest.raises(ReflError, match="no input has the foil of another as its answer"):
        switching(llama, items(llama, 1), ["attnlrp"], 2, to="other")
    for name, words in (
        ("mixtral", "neurons of experts"),
        ("t5", "explains no position of its input"),
        ("bert-class", "explains no position of its input"),
    ):
        model = model_of(name)
        with pytest.raises(ReflError, match=words):
            switching(model, items(model, 2), ["attnlrp"], 2, to="other")


# -- files and the command line --------------------------------------------------------------------


def lines(path: Path, *said: Any) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in said), encoding="utf-8")
    return path


def test_files_of_inputs(tmp_path: Path) -> None:
    model = refl.load()
    plain = lines(
        tmp_path / "a.jsonl",
        {"text": "the keys", "target": "are", "foil": "is", "counterpart": "the key"},
        {"text": "the dog", "target": "is", "foil": "are"},
    )
    (first, second) = switched_inputs.items(model, plain)
    assert first.contrast == ("are", "is") and first.facts["counterpart"] == "the key"
    assert len(switched_inputs.items(model, plain, 1)) == 1 and second.input == "the dog"
    circuits = lines(
        tmp_path / "b.json",
        {
            "clean_prefix": "the keys",
            "patch_prefix": "the key",
            "clean_answer": "are",
            "patch_answer": "is",
        },
        {
            "clean_prefix": "the zebras",
            "patch_prefix": "the zebra",
            "clean_answer": "are",
            "patch_answer": "is",
        },
    )
    (one,) = switched_inputs.items(model, circuits)  # no zebra is known
    assert one.input == model.encode("the keys")
    assert one.facts["counterpart"] == model.encode("the key")
    assert one.contrast == (model.output_id("are"), model.output_id("is"))
    pairs = tmp_path / "c.tsv"
    pairs.write_text(
        "case\tsubcase\tgood\tbad\nsimple_agrmt\tplur\tthe farmers run\tthe farmers runs\n"
    )
    (one,) = switched_inputs.items(model, pairs)
    assert one.contrast == (model.output_id("run"), model.output_id("runs"))
    for content, words in (("", "no input"), ("[1]\n", "expected a JSON object"), ("{\n", "JSON")):
        (tmp_path / "d.jsonl").write_text(content)
        with pytest.raises(ReflError, match=words):
            switched_inputs.items(model, tmp_path / "d.jsonl")
    with pytest.raises(ReflError, match="limit"):
        switched_inputs.items(model, plain, 0)


@pytest.mark.needs("matplotlib")
def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = tmp_path / "flips.svg"
    asked = ["switch", "--limit", "3", "--k", "1", "4", "--draws", "2", "--by", "attnlrp"]
    assert main([*asked, "activation", "--svg", str(drawn)]) == 0
    out = capsys.readouterr().out
    assert "3 inputs; 704 neurons, switched off" in out and "wrote" in out
    assert drawn.read_bytes().startswith(b"<?xml")
    assert main([*asked, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["k"] == [1, 4] and len(said["inputs"]) == 3 and said["by"] == ["attnlrp"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "x"], "--model needs --data"),
        (["--by", "nothing"], "unknown method"),
        (["--k", "-1"], "--k is [-1]"),
        (["--k", "100"], "--k is 100: expected at most 88"),
        (["--limit", "0"], "--limit is 0"),
        (["--draws", "-2"], "--draws is -2"),
        (["--data", "not-there.jsonl"], "does not exist"),
    ],
)
def test_command_refuses(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["switch", *arguments]) == 2
    printed = capsys.readouterr()
    assert words in printed.err and printed.err.count("\n") == 1 and not printed.out


def test_command_counts_the_flips_of_a_plain_loop(capsys: pytest.CaptureFixture[str]) -> None:
    """The printed percentages and changes, of sentences some of which flip."""
    model, some = refl.load(), switched_inputs.shipped(6)
    asked = ["switch", "--limit", "6", "--k", "48", "--draws", "0", "--by", "attnlrp", "activation"]
    assert main(asked) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    printed = {row[1]: row for row in rows if row[:1] == ["48"]}
    for by in ("attnlrp", "activation"):
        flips, change = [], []
        for item in some:
            a, b = (model.output_id(word) for word in item.contrast or ())
            names = largest(scores(model, item, by), 48)
            z = [
                one.logits(item.input).reshape(-1, one.logits(item.input).shape[-1])[-1]
                for one in (model, model.with_edits(dict.fromkeys(names, refl.off)))
            ]
            before, after = (float(one[a]) - float(one[b]) for one in z)
            assert before > 0
            flips.append(after <= 0)
            change.append(after - before)
        assert printed[by][2] == f"{np.mean(flips):.1%}"
        assert abs(float(printed[by][6]) - np.mean(change)) < 0.0051
    assert printed["attnlrp"][2] not in ("0.0%", "100.0%")


def test_few_inputs_have_no_stars_and_one_has_no_interval() -> None:
    """Five differences have one sign by chance in one of 16 cases: more often than 5 %."""
    model = model_of("llama")
    for count, starred in ((1, False), (5, False), (6, True)):
        text = str(switching(model, items(model, 6)[:count], ["attnlrp"], (8,), draws=3))
        row = next(line for line in text.splitlines() if line.strip().startswith("8  attnlrp"))
        assert ("*" in row) == starred and "nan" not in text
        assert (" - " in row) == (count == 1)


def test_the_best_ranking_has_most_flips_and_the_largest_loss() -> None:
    found = switching(model_of("llama"), items(model_of("llama"), 12), BY, (8,), draws=2)
    flips = {one: found.flips[one].mean() for one in found.rankings}
    change = {one: found.change[one].mean() for one in found.rankings}
    assert flips[found.best("flips", 8)[0] or ""] == max(flips.values())
    assert found.best("change", 8)[0] == min(change, key=change.__getitem__)
