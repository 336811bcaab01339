"""Second-order attribution: the Shapley engine against the definition, written out over all orders,
and the closed forms of a game on paper; the method against explanations of masked inputs that are
made in another way.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import SHARED, checkpoint
from hypothesis import given
from hypothesis import strategies as st

import refl
from refl.conditions import Conditions
from refl.edits import Edit
from refl.errors import ReflError
from refl.explanation import MethodFacts
from refl.methods import chosen, shapley
from refl.methods.base import Table
from refl.methods.metagame import Metagame
from refl.model import Model
from refl.rules.published import ATTNLRP
from refl.verification.random_models import BERT, GPT2, LLAMA, T5, VIT, random_model

# -- a game on paper: f = x1 + x1 x2^2, baseline 0, I = x1 x2^2 ------------------------------------


def input_x_gradient(x1: Any, x2: Any) -> list[Any]:
    return [x1 * (1 + x2**2), x2 * 2 * x1 * x2]


def integrated_gradients(x1: Any, x2: Any) -> list[Any]:
    """x1 times the integral of 1 + t^2 x2^2, x2 times that of 2 t^2 x1 x2."""
    return [x1 + x1 * x2**2 / 3, 2 * x1 * x2**2 / 3]


def shapley_value(x1: Any, x2: Any) -> list[Any]:
    return [x1 + x1 * x2**2 / 2, x1 * x2**2 / 2]


@pytest.mark.parametrize(
    ("inner", "ratios"),
    [
        (input_x_gradient, (1, 2)),
        (integrated_gradients, (1 / 3, 2 / 3)),
        (shapley_value, (1 / 2, 1 / 2)),
    ],
)
@pytest.mark.parametrize("sampled", [False, True])
def test_closed_forms(inner: Callable[..., Any], ratios: Any, sampled: bool) -> None:
    """(phi_{2->1}, phi_{1->2}) / I, phi_11 = x1, phi_22 = 0. With two players an order and its
    reverse are all orders.
    """
    x1, x2 = 1.7, -2.3

    def game(masks: Any) -> Any:
        return np.stack(inner(x1 * masks[:, 0], x2 * masks[:, 1]), axis=1)

    found = shapley.sampled_pairs(game, 2, 1) if sampled else shapley.pairs(game, 2)
    interaction = x1 * x2**2
    expected = [[x1, ratios[0] * interaction], [ratios[1] * interaction, 0.0]]
    assert np.abs(found - expected).max() <= 1e-12


# -- the engine ------------------------------------------------------------------------------------


def table_game(players: int, seed: int, width: int | None = None) -> Any:
    """A number, or an attribution, for every coalition, at random; and how often each is asked."""
    random = np.random.default_rng(seed)
    size = (1 << players,) if width is None else (1 << players, width)
    table, asked = random.standard_normal(size), np.zeros(1 << players, dtype=int)

    def game(masks: Any) -> Any:
        numbers = masks @ (1 << np.arange(players))
        np.add.at(asked, numbers, 1)
        return table[numbers]

    return game, table, asked


def by_definition(table: Any, players: int) -> Any:
    """phi_{j->i}, the mean over every order of the others of what j adds."""
    found = np.zeros((players, players))
    for i in range(players):
        others = [j for j in range(players) if j != i]
        orders = list(permutations(others))
        for order in orders:
            members = {i}
            for j in order:
                before = sum(1 << k for k in members)
                members.add(j)
                found[i, j] += table[before | 1 << j, i] - table[before, i]
        found[i] /= len(orders)
        found[i, i] = table[1 << i, i]
    return found


@given(st.integers(1, 5), st.integers(0, 99))
def test_pairs_are_their_definition(players: int, seed: int) -> None:
    game, table, asked = table_game(players, seed, players)
    found = shapley.pairs(game, players)
    assert np.abs(found - by_definition(table, players)).max() <= 1e-12
    assert np.abs(found.sum(axis=1) - table[-1]).max() <= 1e-12
    assert asked[1:].max(initial=1) == 1 and asked[0] == 0


def test_all_orders_sampled_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    game, table, asked = table_game(4, 3, 4)
    every = [list(order) for order in permutations(range(4))]
    monkeypatch.setattr(shapley, "_orders", lambda *_: iter(every))
    assert np.abs(shapley.sampled_pairs(game, 4, 1) - by_definition(table, 4)).max() <= 1e-12
    assert asked.max() == 1, "a coalition that several orders ask for is asked for once"


@given(st.integers(1, 7), st.integers(1, 3), st.integers(0, 99))
def test_sampled_pairs_add_up_however_few(players: int, count: int, draw: int) -> None:
    game, table, _ = table_game(players, 5, players)
    found = shapley.sampled_pairs(game, players, count, draw)
    assert np.abs(found.sum(axis=1) - table[-1]).max() <= 1e-12
    assert np.array_equal(found, shapley.sampled_pairs(game, players, count, draw))


def test_every_order_has_its_reverse() -> None:
    orders = list(shapley._orders(6, 3, 1))
    assert orders[1::2] == [order[::-1] for order in orders[::2]] and len(orders) == 6
    assert orders != list(shapley._orders(6, 3, 2))


@given(st.integers(1, 5), st.integers(0, 99))
def test_values_are_their_definition(players: int, seed: int) -> None:
    game, table, _ = table_game(players, seed)
    expected = np.zeros(players)
    orders = list(permutations(range(players)))
    for order in orders:
        number = 0
        for j in order:
            expected[j] += table[number | 1 << j] - table[number]
            number |= 1 << j
    assert np.abs(shapley.values(game, players) - expected / len(orders)).max() <= 1e-12


def test_too_many_players_for_every_coalition() -> None:
    with pytest.raises(ReflError, match=r"a game of 21 players has 2\^21 coalitions"):
        shapley.pairs(lambda masks: masks, 21)


# -- the method ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped() -> Model:
    return refl.load(dtype="float64")


TEXT = "the keys to the cabinet"


@pytest.mark.parametrize("inner", ["attnlrp", "input-x-gradient"])
@pytest.mark.parametrize("how", [{}, {"permutations": 2}])
def test_pairs_of_a_token_add_up_to_its_relevance(
    shipped: Model, inner: str, how: dict[str, Any]
) -> None:
    """On the shipped model, exactly, and the relevance is the inner method's to the bit."""
    e = shipped.explain(TEXT, "metagame", options={"inner": inner} | how)
    first = shipped.explain(TEXT, inner, keep=())
    assert np.array_equal(e.relevance, first.relevance)
    assert np.abs(e.pairs.sum(axis=1) - e.relevance).max() <= 1e-12
    assert e.ledger.as_dict() == first.ledger.as_dict()
    assert e.method.options["inner"] == inner


@pytest.mark.parametrize("config", [GPT2, LLAMA, T5, BERT], ids=lambda c: str(c["model_type"]))
@pytest.mark.parametrize("inner", ["attnlrp-gradient", "random"])
def test_two_tokens_by_hand(config: dict[str, Any], inner: str) -> None:
    """Each masked input explained on its own, an edit in the place of its embedding: the relevance
    of a token alone, and what the other adds.
    """
    model, ids = random_model(config, 3), [3, 5]
    how: dict[str, Any] = {"position": 0} if config is BERT else {}
    how |= {"target": 2, "keep": ()}
    e = model.explain(ids, "metagame", options={"inner": inner}, **how)
    both = model.explain(ids, inner, **how).relevance
    site = e_site(model)
    alone = [
        model.explain(ids, inner, edits={site: Edit(factor=0.0, index=(1 - i,))}, **how)
        for i in (0, 1)
    ]
    for i in (0, 1):
        assert e.pairs[i, i] == pytest.approx(alone[i].relevance[i], abs=1e-12)
        assert e.pairs[i, 1 - i] == pytest.approx(both[i] - alone[i].relevance[i], abs=1e-12)


def e_site(model: Model) -> str:
    trace, _ = model.trace(
        [[3, 5]], position=0, decoder=[[0]] if model.net.MODEL_TYPE == "t5" else None
    )
    return next(r.output.site for r in trace.records if r.role == "tokens")


def test_masked_by_another_token_and_by_deletion() -> None:
    """Of a decoder: the token put in place, and the token gone, as ids of their own."""
    model, ids = random_model(LLAMA, 3), [3, 5]
    how: dict[str, Any] = {"target": 2, "keep": ()}
    by_token = model.explain(ids, "metagame", options={"fill": 7}, **how).pairs
    alone = [model.explain(i, "attnlrp", **how).relevance for i in ([3, 7], [7, 5])]
    assert np.abs(np.diag(by_token) - [alone[0][0], alone[1][1]]).max() <= 1e-12
    by_deletion = model.explain(ids, "metagame", options={"fill": "delete"}, **how).pairs
    alone = [model.explain([i], "attnlrp", **how).relevance for i in ids]
    assert np.abs(np.diag(by_deletion) - np.concatenate(alone)).max() <= 1e-12
    assert not np.allclose(by_token, by_deletion)


def test_thirteen_tokens_are_sampled() -> None:
    model, ids = random_model(LLAMA | {"num_hidden_layers": 1}, 3), list(range(1, 14))
    how: dict[str, Any] = {"target": 2, "keep": ()}
    one, two = (
        model.explain(ids, "metagame", options={"permutations": 1, "draw": draw}, **how)
        for draw in (0, 1)
    )
    for e in (one, two):
        assert np.abs(e.pairs.sum(axis=1) - e.relevance).max() <= 1e-12
    assert not np.allclose(one.pairs, two.pairs)
    assert np.allclose(np.diag(one.pairs), np.diag(two.pairs), atol=1e-12)


def test_a_file_and_json_hold_the_pairs(shipped: Model, tmp_path: Path) -> None:
    e = shipped.explain("the keys", "metagame")
    e.save(tmp_path / "e.safetensors")
    again = refl.Explanation.load(tmp_path / "e.safetensors")
    assert np.array_equal(again.pairs, e.pairs)
    assert again.as_dict() == e.as_dict() and e.as_dict()["pairs"] == e.pairs.tolist()
    assert "pairs" not in shipped.explain("the keys", keep=()).as_dict()
    e.pairs = e.pairs[:, :1]
    e.save(tmp_path / "torn.safetensors")
    with pytest.raises(ReflError, match=r"pairs is of float64 and shape \(3, 1\), expected floats"):
        refl.Explanation.load(tmp_path / "torn.safetensors")


def test_what_is_refused(shipped: Model) -> None:
    with pytest.raises(ReflError, match="is a game of tokens, and random vit 1 takes pictures"):
        picture = np.zeros((3, 8, 12))
        random_model(VIT, 1).explain(picture, "metagame")
    for options, said in (
        ({"inner": Metagame()}, "expected a first-order method"),
        ({"inner": "nothing"}, "unknown method 'nothing'"),
        ({"permutations": 0}, "permutations.* is 0: expected a whole number above 0"),
        ({"draw": -1}, "draw.* is -1: expected a whole number of at least 0"),
        ({"fill": "mask"}, "has no mask token"),
    ):
        with pytest.raises(ReflError, match=said):
            shipped.explain(TEXT, "metagame", options=options)
    with pytest.raises(ReflError, match="the edit of .* is in the way of method metagame"):
        site = e_site(model := random_model(LLAMA, 3))
        model.explain([3, 5], Metagame(chosen("random")), edits={site: Edit(factor=2.0)})


def test_inner_methods_with_options(shipped: Model) -> None:
    first = shipped.explain("the keys", "attnlrp", eps=1e-2, keep=())
    for named in ({"inner": "attnlrp"}, {}):
        options = named | {"inner_options": {"eps": 1e-2}}
        e = shipped.explain("the keys", "metagame", options=options)
        assert np.array_equal(e.relevance, first.relevance)
    assert Metagame(Table(ATTNLRP)).facts() == Metagame().facts()


def test_annotated_pairs_of_the_published_prompts() -> None:
    """The authors' words that belong together, each pair as a text: the pairs of tokens add up to
    the relevance, and phi_{i->i} is that of token i alone, the others masked by an edit.
    """
    file = SHARED / "data" / "metagame" / "prompts_pairs.json"
    if not file.is_file():
        pytest.skip("no prompts of the metagame paper beside the project (../shared)")
    lines = json.loads(file.read_text(encoding="utf-8"))
    assert len(lines) == 21 and sum(len(line["pairs"]) for line in lines) == 71
    model = refl.load(checkpoint("stories260K"), dtype="float64")
    some = [" ".join(line["pairs"][0]) for line in lines]
    short = sorted(some, key=lambda text: len(model.explain(text, "random").tokens))[:2]
    for text in short:
        e = model.explain(text, "metagame", options={"inner": "input-x-gradient"})
        assert np.abs(e.pairs.sum(axis=1) - e.relevance).max() <= 1e-10 * np.abs(e.pairs).max()
        first = e.input_ids
        alone = np.zeros(len(first))
        for i in range(len(first)):
            others = [t for t in range(len(first)) if t != i]
            edits = {"model.embed_tokens": Edit(factor=0, index=(others,))}
            how: dict[str, Any] = {"target": e.target_id, "edits": edits, "keep": ()}
            alone[i] = model.explain(first, "input-x-gradient", **how).relevance[i]
        np.testing.assert_allclose(np.diag(e.pairs), alone, rtol=1e-8, atol=1e-10)


SITE = "model.layers.0.mlp"
ONE_TOKEN = Conditions({SITE: (1,)})


def test_the_inner_method_keeps_its_conditions() -> None:
    """However it is said: pairs add up to the map under these conditions."""
    model, ids, inner = random_model(LLAMA, 1), [3, 5, 7], Table(ATTNLRP, ONE_TOKEN)
    expected = model.explain(ids, "attnlrp", target=2, conditions=ONE_TOKEN, keep=()).relevance
    assert abs(expected - model.explain(ids, target=2, keep=()).relevance).max() > 0.01
    for which, options in (
        ("metagame", {"inner": inner}),
        (Metagame(inner), None),
        (Metagame(inner), {"inner_options": {"eps": 1e-6}}),
    ):
        e = model.explain(ids, which, target=2, options=options)
        assert abs(e.relevance - expected).max() <= 1e-6 * abs(expected).max()
        assert abs(e.pairs.sum(axis=1) - e.relevance).max() <= 1e-12
        assert isinstance(e.method, MethodFacts)
        assert e.method.options["conditions"] == f"{SITE}: (1)"


def test_inner_methods_that_a_game_cannot_play() -> None:
    model, ids = random_model(LLAMA, 1), [3, 5, 7]
    with pytest.raises(ReflError, match="inner.* is leave-one-out, which deletes tokens"):
        model.explain(ids, "metagame", options={"inner": "leave-one-out"})
    with pytest.raises(ReflError, match="deletion moves the tokens, and .*conditions"):
        how = {"inner": Table(ATTNLRP, ONE_TOKEN), "fill": "delete"}
        model.explain(ids, "metagame", options=how)
