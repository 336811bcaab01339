"""Neurons, heads and sites changed by name: against the same change made by hand to what a module
computes, and against weights that say the same.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refl
from refl import Edit, ReflError
from refl.cli import main
from refl.edits import of_tokens
from refl.evaluation.corpus import explain_corpus
from refl.evaluation.run import evaluate
from refl.evaluation.shards import Folder
from refl.model import Model
from refl.verification.random_models import (
    ALBERT,
    ARCHITECTURES,
    GPT2,
    LLAMA,
    MIXTRAL,
    T5,
    VIT,
    random_model,
    with_weights,
)

IDS = [3, 1, 4, 1, 5]


@pytest.fixture(scope="module")
def llama() -> Model:
    return random_model(LLAMA, 1)


@pytest.fixture(scope="module")
def shipped() -> Model:
    return refl.load()


def item(model: Model) -> Any:
    if not model.takes_images:
        return [model.mask_id if model.mask_id is not None else 3, 1, 4, 1, 5]
    shape = (model.config.num_channels, *model.config.image)
    return np.linspace(-1, 1, int(np.prod(shape))).reshape(shape)


def outputs(model: Model) -> Any:
    position = 0 if model.task == "masked-token" else None
    return model.explain(item(model), "random", keep=(), position=position)


# -- a name is an entry of a site ------------------------------------------------------------------

CHANGES: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "off": (refl.off, lambda z: 0 * z),
    "value": (refl.value(0.7), lambda z: 0 * z + 0.7),
    "scale": (refl.scale(-1.5), lambda z: -1.5 * z),
    "function": (np.tanh, np.tanh),
}


@pytest.mark.parametrize("positions", [None, -1, [0, 2], slice(1, 3)], ids=str)
@pytest.mark.parametrize(("change", "by_hand"), CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("name", ["L1.N3", "L0.H2"])
def test_a_part_is_an_entry_of_its_site(
    name: str, change: Any, by_hand: Callable[[Any], Any], positions: Any, llama: Model
) -> None:
    """The same bits as a function that writes the entry, with every index said in full."""
    part = llama.components.part(name)
    rows = slice(None) if positions is None else positions
    place = (0, rows, 3) if part.kind == "neuron" else (0, 2, rows)

    def same(z: Any) -> Any:
        z[place] = by_hand(z[place])
        return z

    found = llama.with_edits({name: change}, positions).logits(IDS)
    np.testing.assert_array_equal(found, llama.logits(IDS, edits={part.site: same}))
    assert np.abs(found - llama.logits(IDS)).max() > 1e-9


def test_several_parts_of_a_site_are_one_edit(llama: Model) -> None:
    """Each with its own number: the weights of the down projection times these say the same."""
    factors = {0: 0.0, 3: 2.0, 7: -1.0}
    edited = llama.with_edits({f"L0.N{n}": refl.scale(f) for n, f in factors.items()})
    (edit,) = edited.edits.values()
    assert isinstance(edit, Edit) and edit.index == (Ellipsis, *edit.index[1:])
    name = "model.layers.0.mlp.down_proj.weight"
    down = np.array(llama.weights[name])
    for n, f in factors.items():
        down[:, n] *= f
    other = with_weights(llama, **{name: down})
    np.testing.assert_allclose(edited.logits(IDS), other.logits(IDS), rtol=1e-12, atol=1e-12)


def test_heads_are_columns_of_the_output_layer(llama: Model) -> None:
    edited = llama.with_edits({"L1.H0": refl.off, "L1.H3": refl.scale(2.0)})
    name = "model.layers.1.self_attn.o_proj.weight"
    output = np.array(llama.weights[name])
    output[:, 0:4], output[:, 12:16] = 0, 2 * output[:, 12:16]
    other = with_weights(llama, **{name: output})
    np.testing.assert_allclose(edited.logits(IDS), other.logits(IDS), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_part_of_every_net_can_be_switched(architecture: str) -> None:
    """All neurons of an MLP off is its last layer's input off; and of an attention the same."""
    model = random_model(ARCHITECTURES[architecture], 3)
    explained = outputs(model)
    for owners, letter, of in (
        (model.components.mlps, "N", "neurons"),
        (model.components.attentions, "H", "context"),
    ):
        owner = owners[-1]
        if ".experts." in getattr(owner, of):
            owner = next(m for m in owners if f"{getattr(m, of)}" in _run_sites(model))
        count = owner.width if letter == "N" else owner.heads
        names = {f"{owner.label}.{letter}{n}": refl.off for n in range(count)}
        off = outputs(model.with_edits(names))
        whole = outputs(model.with_edits({getattr(owner, of): refl.off}))
        assert off.logit == whole.logit
        assert off.logit != explained.logit or off.target_id != explained.target_id


def _run_sites(model: Model) -> set[str]:
    """Of the experts that this input chooses."""
    return set(model.trace([item(model)])[0].values)


def test_positions_are_those_of_the_text_as_it_grows(llama: Model) -> None:
    """In `generate` -1 is the last token there is, at every step."""
    edited, ids = llama.with_edits({"L1.H1": refl.scale(-9.0)}, positions=-1), list(IDS)
    for _ in range(4):
        ids.append(int(edited.logits(ids)[-1].argmax()))
    assert edited.generate(IDS, 4) == ids


# -- an edited model is a model --------------------------------------------------------------------


def test_it_explains_generates_and_is_pickled(shipped: Model) -> None:
    text = "the keys to the cabinet"
    edited = shipped.with_edits({"L2.N17": refl.off, "L1.H1": refl.scale(2.0)})
    e = edited.explain(text, target="are")
    assert e.logit == pytest.approx(edited.logits(text)[-1, e.target_id], rel=1e-6)
    assert abs(e.logit - shipped.explain(text, target="are").logit) > 1e-3
    assert "model.layers.2.mlp.down_proj.input: Edit(factor=0.0" in e.about["edits"]
    ledger = e.ledger
    assert abs(ledger.conservation_error) < 1e-4 * ledger.explained
    again = pickle.loads(pickle.dumps(edited))
    np.testing.assert_array_equal(again.logits(text), edited.logits(text))
    assert e["model.layers.2.mlp.down_proj.input.edited"][:, 17].any() == 0
    # the model itself is as it was
    assert "edits" not in shipped.explain(text).about and not shipped.edits


def test_edits_of_a_model_and_of_a_question_are_both_made(shipped: Model) -> None:
    text, further = "the keys", {"model.layers.0.mlp": Edit(factor=0.5)}
    edited = shipped.with_edits({"L2.H1": refl.off})
    both = shipped.with_edits({"L2.H1": refl.off, **further})
    np.testing.assert_array_equal(edited.logits(text, edits=further), both.logits(text))
    assert edited.explain(text, edits=further).logit == both.explain(text).logit
    assert edited.with_edits(further).explain(text).logit == both.explain(text).logit


def test_a_neuron_is_explained_whatever_is_changed_after_it(shipped: Model) -> None:
    """In a model with edits; an edit of the question alone, which would change nothing, is
    refused.
    """
    text, at = "the keys", ("model.layers.1.mlp.down_proj.input", (1, 5))
    edited = shipped.with_edits({"L3.N5": refl.off, "L0.N2": refl.value(0.5)})
    e = edited.explain(text, at=at)
    first = shipped.with_edits({"L0.N2": refl.value(0.5)})
    np.testing.assert_array_equal(e.relevance, first.explain(text, at=at).relevance)
    assert "model.layers.3.mlp.down_proj.input" in e.about["edits"]
    for later in ("model.layers.2.mlp", "model.layers.3.mlp.down_proj.input"):
        with pytest.raises(ReflError, match="it would change nothing"):
            edited.explain(text, at=at, edits={later: refl.off})


def test_it_evaluates_and_explains_corpora(tmp_path: Path, shipped: Model) -> None:
    """By the edited model's numbers; a folder of the model as it is, is refused."""
    file = tmp_path / "data.jsonl"
    file.write_text(json.dumps({"text": "the keys to the cabinet", "target": "are"}) + "\n")
    edited = shipped.with_edits({"L3.N5": refl.value(4.0)})
    explain_corpus(edited, file, tmp_path / "out")
    (shard,) = Folder(tmp_path / "out").finished().values()
    e = edited.explain("the keys to the cabinet", target="are")
    assert json.loads(shard.read_text())["logit"] == e.logit
    with pytest.raises(ReflError, match="another model edits"):
        explain_corpus(shipped, file, tmp_path / "out")
    found = evaluate(edited, file, tmp_path / "judged", ["attnlrp"], ["flip"])
    for curve in found.curves.values():  # of which one end is the input as it is
        assert min(abs(curve[0, 1, [0, -1]] - e.logit)) < 1e-5


def test_deletion_is_refused_where_an_edit_chooses_tokens(shipped: Model) -> None:
    text = "the keys to the cabinet"
    everywhere = shipped.with_edits({"L2.N17": refl.off, "L2.H1": refl.off})
    everywhere.explain(text, "leave-one-out", options={"fill": "delete"})
    for name in ("L2.N17", "L2.H1"):
        at_one = shipped.with_edits({name: refl.off}, positions=2)
        with pytest.raises(ReflError, match="chooses among them by their numbers"):
            at_one.explain(text, "leave-one-out", options={"fill": "delete"})
        with pytest.raises(ReflError, match="chooses among them by their numbers"):
            at_one.with_edits({name: refl.off}).explain(
                text, "leave-one-out", options={"fill": "delete"}
            )


def test_heads_are_no_tokens() -> None:
    context = "model.layers.0.self_attn.context"
    assert not of_tokens(context, Edit(0, index=([1], ...)))
    assert of_tokens(context, Edit(0, index=(1, 2)))
    assert of_tokens(context, Edit(np.ones((4, 5, 1)), index=([1], ...)))
    assert of_tokens("model.layers.0.mlp", Edit(0, index=([1], ...)))


# -- what cannot be done ---------------------------------------------------------------------------

REFUSED: dict[str, tuple[Any, Any, str]] = {
    "no neuron": ({"L1.N99": refl.off}, None, r"L1\.N99 is not there: L1 has 20 neurons, L1\.N0"),
    "no head": ({"L1.H4": refl.off}, None, r"L1\.H4 is not there: L1 has 4 heads, L1\.H0"),
    "no block": ({"L7.N1": refl.off}, None, r"L7\.N1 names no neuron, head or block .*L1\.N0"),
    "nothing like a name": ({"L1.N-1": refl.off}, None, r"L1\.N-1 names no neuron"),
    "a block": ({"L1": refl.off}, None, "L1 is a block, whose output is the whole residual"),
    "a number": ({"L1.N1": 3.0}, None, "the edit of L1.N1 is 3.0: expected refl.off"),
    "no mapping": ("L1.N1", None, "edits has to map neurons, heads or sites to changes"),
    "an index": ({"L1.N1": Edit(0, index=(2,))}, None, "without an index: refl.off"),
    "an array": ({"L1.N1": refl.value([1, 2])}, None, "has to be of numbers"),
    "no positions": ({"L1.N1": refl.off}, "first", "positions"),
    "no token at all": ({"L1.N1": refl.off}, [], "positions"),
    "an index twice": (
        {"model.layers.0.mlp": Edit(0, index=(2,))},
        1,
        "has an index of its own: leave positions out",
    ),
    "twice": (
        {"L1.N1": refl.off, "model.layers.1.mlp.down_proj.input": refl.off},
        None,
        "as a site and L1.N1, which is a part of it",
    ),
}


@pytest.mark.parametrize(("edits", "positions", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_changed(edits: Any, positions: Any, said: str, llama: Model) -> None:
    with pytest.raises(ReflError, match=said):
        llama.with_edits(edits, positions)


RUNS: dict[str, tuple[dict[str, Any], Any, str]] = {
    "no site": ({"nope": refl.off}, None, "'nope', which is no site of this model"),
    "a shape": ({"L1.N3": lambda z: z[:, 1:]}, None, r"L1\.N3 returns the shape \(1, 4\)"),
    "nan": ({"L1.N3": lambda z: z * np.nan}, None, r"L1\.N3 returns numbers that are not finite"),
    "inf": ({"L1.H3": lambda z: z / 0.0}, None, r"L1\.H3 returns numbers that are not finite"),
    "another dtype": ({"L1.N3": lambda z: z.astype("int64")}, None, "returns int64: expected"),
    "no array": ({"model.layers.0.mlp": lambda z: None}, None, "returns a NoneType"),
    "outside": ({"L1.N3": refl.off}, 9, "does not fit its activation"),
    "outside, by a function": ({"L1.N3": np.tanh}, 9, r"L1\.N3 does not fit its activation"),
}


@pytest.mark.parametrize(("edits", "positions", "said"), RUNS.values(), ids=RUNS)
def test_what_a_run_finds_wrong(
    edits: dict[str, Any], positions: Any, said: str, llama: Model
) -> None:
    with pytest.raises(ReflError, match=said), np.errstate(all="ignore"):
        llama.with_edits(edits, positions).logits(IDS)


def test_a_function_is_not_explained(llama: Model) -> None:
    with pytest.raises(ReflError, match="is a function, for which no rule is known"):
        llama.with_edits({"L1.N3": np.tanh}).explain(IDS)


def test_experts_have_rows_for_the_tokens_that_choose_them() -> None:
    model = random_model(MIXTRAL, 1)
    model.with_edits({"L0.E1.N2": refl.off})
    with pytest.raises(ReflError, match="leave positions out"):
        model.with_edits({"L0.E1.N2": refl.off}, positions=0)


def test_other_nets_have_other_names() -> None:
    t5, albert = random_model(T5, 1), random_model(ALBERT, 1)
    assert t5.with_edits({"encoder.L0.N1": refl.off, "decoder.L1.cross.H2": refl.off}).edits.keys()
    with pytest.raises(ReflError, match=r"L0\.N1 names no neuron"):
        t5.with_edits({"L0.N1": refl.off})
    assert albert.components.mlps[0].label == "L0.0"
    assert random_model(VIT, 1).with_edits({"L1.H0": refl.off}, positions=0).edits
    assert random_model(GPT2, 1).with_edits({"L1.N0": refl.off}).edits.keys() == {
        "transformer.h.1.mlp.c_proj.input"
    }


# -- on the command line ---------------------------------------------------------------------------


def test_the_option(capsys: pytest.CaptureFixture[str], shipped: Model) -> None:
    text = "the keys to the cabinet"
    how = ["--edit", "L2.N17=off", "L1.H1=x2", "--edit", "L3.N5@-1=0.5", "L0.N1@1:3=x-1", "--json"]
    assert main(["explain", text, *how]) == 0
    edited = shipped.with_edits({"L2.N17": refl.off, "L1.H1": refl.scale(2)})
    edited = edited.with_edits({"L3.N5": refl.value(0.5)}, positions=[-1])
    edited = edited.with_edits({"L0.N1": refl.scale(-1)}, positions=slice(1, 3))
    found = json.loads(capsys.readouterr().out)
    assert found["logit"] == edited.explain(text).logit != shipped.explain(text).logit


def test_edits_are_made_in_the_order_in_which_they_stand(
    capsys: pytest.CaptureFixture[str], shipped: Model
) -> None:
    """5 in place at the last token and then half of it, or 5 whatever was there."""
    text, found = "the keys to the cabinet", []
    orders = (["L3.N5@-1=5", "L3.N5=x0.5"], ["L2.N1=off", "L3.N5@-1=5", "L3.N5=x0.5"],
              ["L3.N5=x0.5", "L3.N5@-1=5"])  # fmt: skip
    for how in orders:
        assert main(["explain", text, "--edit", *how, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out)["logit"])
    for got, last, other in zip(found, (2.5, 2.5, 5.0), (1.0, 0.0, 1.0), strict=True):
        one = shipped.with_edits({"L3.N5": lambda z: 0.5 * z, "L2.N1": refl.scale(other)})
        z = one.with_edits({"L3.N5": lambda z, last=last: 0 * z + last}, positions=-1).logits(text)
        assert got == pytest.approx(z[-1].max(), rel=1e-6)


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("L1.N3", "expected NAME=off, NAME=0.5 or NAME=x2"),
        ("=off", "expected NAME=off"),
        ("L1.N3=xnan", "expected off, a finite number, or x and a finite factor"),
        ("L1.N3=on", "expected off, a finite number"),
        ("L1.N3@a=off", "--edit has the tokens 'a'"),
        ("L1.N3@=off", "--edit is 'L1.N3@=off': expected NAME=off"),
        ("L1.N3@1:2:3=off", "--edit has the tokens '1:2:3'"),
        ("L9.N1=off", "L9.N1 names no neuron"),
        ("L1.N999=off", "L1.N999 is not there: L1 has 176 neurons"),
        ("nowhere=off", "refl: --edit names 'nowhere', which is no site of this model"),
    ],
)
def test_the_option_misused(said: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "the keys", "--edit", said]) == 2
    errors = capsys.readouterr().err
    assert sentence in errors and errors.count("\n") == 1
