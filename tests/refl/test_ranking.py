"""Neurons, heads and blocks by their relevance: sums are those of what they are made of, orders and
tokens those of a plain loop, on every architecture; and what is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refl
from refl.components import Attention, Mlp
from refl.errors import ReflError
from refl.explanation import Explanation, Sites
from refl.kept import is_kept
from refl.ranking import _first, needed
from refl.verification.random_models import ARCHITECTURES, moved
from tests.support.backends import BESIDE_NUMPY, backend_named
from tests.support.parts import asked, explained, item_of, model_of

METHODS = ("attnlrp", "attnlrp-gradient")
ALL = 10**6
U = 2.0**-53

on_every_net = pytest.mark.parametrize("name", ARCHITECTURES)
in_both_forms = pytest.mark.parametrize("method", METHODS)


def close(found: float, parts: Any, what: str = "") -> None:
    """Equal to the sum of parts, to the rounding of two sums of them in some order."""
    parts = np.asarray(parts, dtype=np.float64).ravel()
    bound = 2 * U * len(parts) * abs(parts).sum()
    assert abs(found - parts.sum()) <= bound, (what, found, parts.sum())


def of_label(e: Explanation, owner: Mlp | Attention, **how: Any) -> list[Any]:
    """The rows of one MLP, or one attention."""
    by = "neuron" if isinstance(owner, Mlp) else "head"
    rows = e.top(k=ALL, by=by, **how)
    return [row for row in rows if row.name.rpartition(".")[0] == owner.label]


# -- sums ------------------------------------------------------------------------------------------


@on_every_net
@in_both_forms
def test_heads_add_up_to_the_site_after_them(name: str, method: str) -> None:
    e = explained(name, method)
    for a in e.components.attentions:
        rows = of_label(e, a)
        assert [row.number for row in sorted(rows, key=lambda r: r.number)] == [*range(a.heads)]
        merged = e[f"{a.context}.merged"]
        close(sum(row.relevance for row in rows), merged, a.label)


@on_every_net
@in_both_forms
def test_neurons_add_up_to_what_their_layer_received(name: str, method: str) -> None:
    e = explained(name, method)
    ran = 0
    for mlp in e.components.mlps:
        rows = of_label(e, mlp)
        if not rows:  # an expert that no token chose
            assert mlp.tokens is not None and not is_kept(e, mlp.neurons)
            continue
        ran += 1
        passed = e.ledger[mlp.output].passed[e.sites.canonical(mlp.neurons)]
        assert len(rows) == mlp.width
        sums = [row.relevance for row in rows]
        scale = 4 * U * e[mlp.neurons].size * abs(e[mlp.neurons]).sum()
        assert abs(sum(sums) - passed) <= scale
    assert ran >= len(e.components.blocks)


@on_every_net
@in_both_forms
def test_a_block_is_what_the_ledger_has(name: str, method: str) -> None:
    e = explained(name, method)
    rows = {row.name: row for row in e.top(k=ALL, by="block")}
    assert sorted(rows) == sorted(block.label for block in e.components.blocks)
    for block in e.components.blocks:
        received = e.ledger[e.sites.canonical(block.site)].received
        r = e[block.site]
        assert abs(rows[block.label].relevance - received) <= 4 * U * r.size * abs(r).sum()
        assert rows[block.label].fraction == rows[block.label].relevance / e.explained


@on_every_net
@pytest.mark.parametrize("by", ["neuron", "head", "block"])
def test_each_adds_up_to_positions(name: str, by: str) -> None:
    e = explained(name)
    summed = {row.name: row.relevance for row in e.top(k=ALL, by=by)}
    each: dict[str, list[float]] = {}
    for row in e.top(k=ALL, by=by, over="each"):
        assert row.position == row.strongest
        each.setdefault(row.name, []).append(row.relevance)
    assert each.keys() == summed.keys()
    for one, parts in each.items():
        close(summed[one], parts, one)


# -- a plain loop ----------------------------------------------------------------------------------


def tokens_of(e: Explanation, mlp: Mlp, name: str) -> list[int]:
    """The token of each row, from the record of the gather where it is an expert's."""
    if mlp.tokens is None:
        return list(range(e.activation(mlp.neurons).shape[0]))
    model = model_of(name)
    records = model.trace([item_of(model)], asked(model)["position"])[0].records
    gathers = [r for r in records if r.output.site == mlp.tokens]
    assert [r.operation for r in gathers] == ["gather"]
    return [int(t) for t in gathers[0].attributes["index"][0]]


def every_neuron(e: Explanation, name: str) -> Iterator[tuple[str, int, int, float, float]]:
    """Name, number, token, relevance, activation, in the order of the net."""
    for mlp in e.components.mlps:
        if is_kept(e, mlp.neurons):
            r, z, tokens = e[mlp.neurons], e.activation(mlp.neurons), tokens_of(e, mlp, name)
            assert len(tokens) == len(r)
            for n in range(mlp.width):
                for t, row in sorted((t, row) for row, t in enumerate(tokens)):
                    yield f"{mlp.label}.N{n}", n, t, float(r[row, n]), float(z[row, n])


@on_every_net
def test_each_is_what_a_loop_finds(name: str) -> None:
    e = explained(name)
    wanted = sorted(every_neuron(e, name), key=lambda one: -abs(one[3]))  # sorted() keeps ties
    found = e.top(k=ALL, over="each")
    assert [(r.name, r.number, r.position, r.relevance, r.activation) for r in found] == wanted
    few = e.top(k=7, over="each")
    assert list(few) == list(found)[:7]
    assert few.of == found.of == len(wanted)


@on_every_net
def test_a_token_is_what_a_loop_finds(name: str) -> None:
    e = explained(name)
    if e.decoder_tokens is not None:
        return  # two kinds of tokens: a test of its own
    length = max(t for _, _, t, _, _ in every_neuron(e, name)) + 1
    for token in (0, length - 1):
        wanted = [one for one in every_neuron(e, name) if one[2] == token]
        wanted.sort(key=lambda one: -abs(one[3]))
        for over in (token, token - length):
            found = e.top(k=ALL, over=over)
            assert [(r.name, r.number, r.position, r.relevance, r.activation) for r in found] == (
                wanted
            )


@on_every_net
def test_the_strongest_token_and_its_activation(name: str) -> None:
    e = explained(name)
    best: dict[str, tuple[float, int, float]] = {}
    for one, _, t, r, z in every_neuron(e, name):
        if one not in best or abs(r) > best[one][0]:
            best[one] = (abs(r), t, z)
    for row in e.top(k=ALL):
        assert (row.strongest, row.activation) == best[row.name][1:]
        assert row.position is None


def test_tokens_of_an_encoder_and_of_a_decoder() -> None:
    e = explained("t5")  # 5 tokens in the encoder, 3 in the decoder
    assert (len(e.tokens), len(e.decoder_tokens or [])) == (5, 3)
    for over, positions in ((-1, {"encoder": 4, "decoder": 2}), (1, {"encoder": 1, "decoder": 1})):
        for row in e.top(k=ALL, over=over):
            stack = row.name.partition(".")[0]
            assert row.position == positions[stack]
            tokens = e.tokens if stack == "encoder" else e.decoder_tokens
            assert tokens is not None and row.token == tokens[row.position]
            assert row.relevance == e[row.site][row.position, row.number]
    assert {row.name.partition(".")[0] for row in e.top(k=ALL, over=4)} == {"encoder"}
    with pytest.raises(ReflError, match="token 5, outside the input of 5 tokens: expected -5 to 4"):
        e.top(over=5)


def test_keys_of_cross_attention_are_those_of_the_encoder() -> None:
    e = explained("t5")
    rows = e.top("decoder.block.0.layer.1.EncDecAttention.k", k=ALL, over=4)
    assert {row.token for row in rows} == {e.tokens[4]}
    queries = e.top("decoder.block.0.layer.1.EncDecAttention.q", k=ALL, over=2)
    assert {row.token for row in queries} == {(e.decoder_tokens or [])[2]}
    heads = e.top("decoder.block.0.layer.1.EncDecAttention.key", k=ALL, over="each", by="head")
    assert {row.position for row in heads} == {*range(5)}


@pytest.mark.parametrize(("name", "extra"), [("vit", 1), ("deit", 2)])
def test_patches_of_a_picture(name: str, extra: int) -> None:
    e = explained(name)
    found = e.top(k=ALL, over="each", by="block")
    assert {row.position for row in found} == {*range(8 + extra)}
    special = ["class token", "distillation token"][:extra]
    patches = [f"patch {row}, {column}" for row in range(2) for column in range(4)]
    names = [*special, *patches]  # 8 x 12 pixels in patches of 4 x 3
    assert all(row.position is not None and row.token == names[row.position] for row in found)
    assert e.top(k=1, over=0, by="head")[0].strongest == 0
    with pytest.raises(ReflError, match=f"outside the input of {8 + extra} tokens"):
        e.top(over=8 + extra)


@pytest.mark.parametrize("name", ["gpt2", "qwen3_moe", "t5", "vit"])
def test_one_token(name: str) -> None:
    model = model_of(name)
    if model.takes_images:
        e = explained(name)
    else:
        decoder = [0] if model.task == "sequence-to-sequence" else None
        e = model.explain([3], decoder=decoder)
        assert [r.relevance for r in e.top()] == [r.relevance for r in e.top(over=0)]
    assert len(e.top(k=3)) == 3


def test_by_head_and_block_are_what_a_loop_finds() -> None:
    e = explained("gemma2")
    heads = {
        (f"{a.label}.H{h}", t): float(e[a.context][h, t].sum())
        for a in e.components.attentions
        for h in range(a.heads)
        for t in range(5)
    }
    for row in e.top(k=ALL, by="head", over="each"):
        assert row.position is not None
        assert abs(row.relevance - heads.pop((row.name, row.position))) <= 1e-15
        assert row.activation is None
    assert not heads
    for row in e.top(k=ALL, by="block", over=2):
        close(row.relevance, e[row.site][2], row.name)


# -- order, signs, numbers -------------------------------------------------------------------------


def with_relevance(e: Explanation, *rows: Any) -> Explanation:
    """The same with these arrays at its first sites of neurons, and no others."""
    sites = [m.neurons for m in e.components.mlps]
    arrays = {s: np.asarray(r, dtype=float) for s, r in zip(sites, rows, strict=True)}
    return replace(e, sites=Sites(arrays, dict(arrays)), explained=4.0)


def test_of_equal_ones_the_first() -> None:
    """By the net, then the number, then the token; a number that cancels counts as nothing."""
    first = np.zeros((5, 20))
    first[0, 3], first[4, 1], first[2, 1], first[1, 0], first[2, 0] = 2, -2, 1, 5, -5
    second = np.zeros((5, 20))
    second[1, 0], second[0, 7] = 2, -2
    e = with_relevance(explained("llama"), first, second)
    summed = [(row.name, row.relevance, row.strongest) for row in e.top(k=5)]
    assert summed == [
        *[("L0.N3", 2.0, 0), ("L1.N0", 2.0, 1), ("L1.N7", -2.0, 0), ("L0.N1", -1.0, 4)],
        ("L0.N0", 0.0, 1),
    ]
    each = [(row.name, row.position, row.relevance) for row in e.top(k=8, over="each")]
    assert each == [
        *[("L0.N0", 1, 5.0), ("L0.N0", 2, -5.0)],
        *[("L0.N1", 4, -2.0), ("L0.N3", 0, 2.0), ("L1.N0", 1, 2.0), ("L1.N7", 0, -2.0)],
        *[("L0.N1", 2, 1.0), ("L0.N0", 0, 0.0)],
    ]
    assert [row.fraction for row in e.top(k=2)] == [0.5, 0.5]


def test_signs_and_how_many_there_are() -> None:
    first, second = np.zeros((5, 20)), np.zeros((5, 20))
    first[0, 3], first[1, 4], second[2, 5] = 2, -3, 1
    e = with_relevance(explained("llama"), first, second)
    positive, negative = (e.top(k=9, sign=sign) for sign in ("positive", "negative"))
    assert [row.name for row in positive] == ["L0.N3", "L1.N5"]
    assert [row.name for row in negative] == ["L0.N4"]
    assert (positive.of, negative.of, e.top().of, len(e.top(k=ALL))) == (2, 1, 40, 40)


def test_nothing_explained_has_no_fraction() -> None:
    zeros = np.zeros((5, 20))
    e = replace(with_relevance(explained("llama"), zeros, zeros), explained=0.0)
    assert e.top(k=1).as_dict()["rows"][0]["fraction"] is None
    assert "none" in str(e.top(sign="positive"))


# -- patterns of sites -----------------------------------------------------------------------------


def test_a_pattern_names_any_sites() -> None:
    e = explained("llama")
    rows = e.top("*.mlp.act_fn", k=ALL)
    assert {row.kind for row in rows} == {"feature"} and len(rows) == 40
    best = max(rows, key=lambda row: abs(row.relevance))
    assert rows[0] == best and best.name == f"{best.site}[{best.number}]"
    close(best.relevance, e[best.site][:, best.number])
    assert {r.name for r in e.top("*.down_proj.input", k=ALL)} == {r.name for r in e.top(k=ALL)}
    assert {r.name for r in e.top("*.gated", k=ALL)} == {r.name for r in e.top(k=ALL)}
    whole = e.top("*.self_attn", by="block")
    assert {row.name for row in whole} == {f"model.layers.{i}.self_attn.o_proj" for i in (0, 1)}
    assert {row.kind for row in whole} == {"site"}
    keys = e.top("*.key", k=ALL, by="head")
    assert {row.name for row in keys} == {
        f"model.layers.{i}.self_attn.key[{n}]" for i in (0, 1) for n in (0, 1)
    }
    logits = e.top("lm_head", k=1)[0]
    assert logits.name == f"lm_head[{e.target_id}]" and logits.strongest is None


# -- kept, saved, batched --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bert", "mixtral", "t5", "deit"])
def test_saved_and_loaded(name: str, tmp_path: Path) -> None:
    e = explained(name)
    e.save(tmp_path / "e.safetensors")
    back = refl.Explanation.load(tmp_path / "e.safetensors")
    for how in ({}, {"over": "each", "k": ALL}, {"by": "head", "over": 0}, {"by": "block"}):
        found: Any = back.top(**how)
        wanted: Any = e.top(**how)
        assert found.as_dict() == wanted.as_dict()
        assert json.loads(json.dumps(found.as_dict())) == found.as_dict()
    assert back.top("*", k=ALL, by="block").rows == e.top("*", k=ALL, by="block").rows
    assert back.paths().as_dict() == e.paths().as_dict()
    assert back.sinks().as_dict() == e.sinks().as_dict()


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "t5"])
@pytest.mark.parametrize("by", ["neuron", "head", "block"])
def test_what_is_needed_is_enough(name: str, by: str) -> None:
    model = model_of(name)
    keep = needed(model.components, by)
    e = model.explain(item_of(model), keep=keep, **asked(model))
    whole = explained(name)
    for over in ("positions", "each", 1):
        assert e.top(by=by, over=over).rows == whole.top(by=by, over=over).rows
    assert len(list(e)) < len(list(whole)) / 4


@pytest.mark.parametrize("name", ["llama", "mixtral", "t5", "gpt2"])
def test_padding_is_left_out(name: str) -> None:
    model = model_of(name)
    items = [item_of(model, 3), item_of(model, 6)]
    decoder = [[0], [0, 2, 3]] if model.task == "sequence-to-sequence" else None
    batch = model.explain(items, keep="*", decoder=decoder)
    for b, item in enumerate(items):
        alone = model.explain(item, keep="*", decoder=decoder and decoder[b])
        for how in (
            {"over": "each"},
            {"over": -1},
            {"by": "head"},
            {"by": "block", "over": "each"},
        ):
            found, wanted = batch[b].top(k=ALL, **how), alone.top(k=ALL, **how)
            assert found.of == wanted.of
            amounts = {(r.name, r.position): r for r in wanted}
            for row in found:
                other = amounts[row.name, row.position]
                assert row.token == other.token
                assert abs(row.relevance - other.relevance) <= 1e-13


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({"k": 0}, "k is 0: expected a whole number above 0"),
        ({"k": 2.0}, "k is 2.0: expected a whole number above 0"),
        ({"k": True}, "k is True: expected"),
        ({"by": "layer"}, "by is 'layer': expected one of neuron, head, block"),
        ({"sign": "+"}, "sign is '\\+': expected one of both, positive, negative"),
        ({"over": "position"}, "over is 'position': expected 'positions' \\(their sum\\), 'each'"),
        ({"over": 1.5}, "over is 1.5: expected"),
        ({"over": True}, "over is True: expected"),
        ({"over": 5}, "over is token 5, outside the input of 5 tokens: expected -5 to 4"),
        ({"over": -6}, "over is token -6, outside the input of 5 tokens"),
        ({"pattern": 3}, "pattern is 3: expected a pattern of sites"),
        ({"pattern": "*.mlp.act"}, "no site that was kept; nearest: .*mlp.act_fn"),
        ({"pattern": "model.embed"}, "no site that was kept; nearest: model.embed_tokens"),
        ({"pattern": "*.scores"}, "by 'neuron' ranks sites of two axes.*shape \\(4, 5, 5\\)"),
        ({"pattern": "*.mlp", "by": "head"}, "by 'head' ranks sites of three, \\(heads, tokens"),
        ({"pattern": "lm_head", "over": 0}, "rows of lm_head stand for no tokens: take over 'pos"),
    ],
)
def test_bad_arguments(how: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ReflError, match=sentence):
        explained("llama").top(**how)


def test_sites_that_were_not_kept() -> None:
    model = model_of("llama")
    e = model.explain([1, 2, 3], keep=())
    wanted = "explain again without keep, or with keep=\\['model.layers.\\*.mlp.down_proj.input'\\]"
    with pytest.raises(ReflError, match=wanted):
        e.top()
    with pytest.raises(
        ReflError,
        match=r"kept; nearest: none; or explain again without keep, or with keep='\*.mlp'",
    ):
        e.top("*.mlp")
    with pytest.raises(ReflError, match=r"keep=\['model.layers.\?'\]"):
        e.sinks()
    assert e.paths()[0].block == "L0"
    some = model.explain([1, 2, 3], keep="model.layers.0.*")
    with pytest.raises(ReflError, match="relevance at model.layers.1.mlp.down_proj.input was not"):
        some.top()
    assert some.top("model.layers.0.mlp.act_fn")


def test_what_the_router_found_was_not_kept() -> None:
    e = model_of("mixtral").explain([1, 2, 3], keep="*.w2.input")
    assert e.top(k=3)[0].strongest is None and e.top(k=3)[0].activation is not None
    with pytest.raises(
        ReflError, match="block_sparse_moe.chosen' in keep=, too, or take over 'pos"
    ):
        e.top(over=0)
    with pytest.raises(ReflError, match="experts"):
        model_of("mixtral").explain([1, 2, 3], keep="*.self_attn").top()


def test_experts_that_ran_and_were_not_kept() -> None:
    e = explained("mixtral")
    ran = [m.neurons for m in e.components.mlps if is_kept(e, m.neurons)]
    some = model_of("mixtral").explain(item_of(model_of("mixtral")), position=2, keep=ran[1:])
    with pytest.raises(ReflError, match=f"the relevance at {ran[0]} was not kept: explain again"):
        some.top()


def test_a_router_that_was_edited() -> None:
    """Who chose what is decided by what the edit makes of its probabilities."""
    path = "model.layers.0.block_sparse_moe"
    always = refl.Edit(0.0, 2.0, (..., 5))
    model = model_of("mixtral").with_edits({f"{path}.probabilities": always})
    e = model.explain([3, 1, 4, 1, 5], keep="*")
    tokens = {row.position for row in e.top(k=ALL, over="each") if row.name == "L0.E5.N0"}
    assert tokens == {0, 1, 2, 3, 4}
    first = [row for row in e.top(k=ALL, over="each") if row.name.startswith("L0.E")]
    assert len(first) == 5 * 2 * 12


def test_a_method_without_sites() -> None:
    e = model_of("llama").explain([1, 2, 3], "occlusion")
    with pytest.raises(ReflError, match="occlusion is no table of rules and has no relevance at"):
        e.top()
    with pytest.raises(ReflError, match="keeps no conservation ledger"):
        e.paths()
    with pytest.raises(ReflError, match="no table of rules"):
        e.sinks()


def test_nothing_known_of_components(tmp_path: Path) -> None:
    """As in files of another library, which have sites and no names of neurons."""
    e = replace(explained("llama"), parts=lambda: None)
    with pytest.raises(ReflError, match="nothing is known of the net's blocks"):
        e.top()
    rows = e.top("*.down_proj.input", k=2)
    assert [row.kind for row in rows] == ["feature", "feature"]
    assert rows[0].relevance == explained("llama").top(k=1)[0].relevance


def test_printed() -> None:
    e = explained("mixtral")
    text = str(e.top(k=3, over="each"))
    assert text.splitlines()[0].startswith("3 of ") and "│" in text
    assert [e.top(k=3, over="each")[i].name in text for i in range(3)] == [True] * 3
    assert repr(e.top(k=3)).startswith("<Ranking of 3 of ")
    assert "<pre>" in e.top()._repr_html_() and "returned" in str(e.paths())
    assert "of sum |R|" in str(e.sinks()) and "<pre>" in e.paths()._repr_html_()


@pytest.mark.parametrize("sign", ["both", "positive", "negative"])
def test_the_first_of_many_that_tie(sign: str) -> None:
    """Against a sort of all, on numbers of few values, of any length down to none."""
    random = np.random.default_rng(7)
    for length in (0, 1, 2, 9, 50):
        values = random.integers(-2, 3, length).astype(float)
        wanted = [i for i in range(length) if sign == "both" or SIGN[sign] * values[i] > 0]
        wanted.sort(key=lambda i: -abs(values[i]))  # sort() keeps ties in order
        for k in (1, 2, 7, 60):
            assert _first(values, k, sign) == wanted[:k]


SIGN = {"positive": 1, "negative": -1}


@pytest.mark.parametrize("library", BESIDE_NUMPY)
@pytest.mark.parametrize("name", ["mixtral", "t5"])
def test_on_a_device(name: str, library: str) -> None:
    model = model_of(name)
    away = moved(model, backend_named(library).place)
    e = away.explain(item_of(model), "attnlrp-gradient", keep="*", **asked(model))
    wanted = explained(name, "attnlrp-gradient")
    for how in ({"over": "each"}, {"by": "head"}, {"by": "block", "over": 0}):
        found: Any = e.top(k=5, **how)
        for row, other in zip(found, wanted.top(k=5, **how), strict=True):  # type: ignore[arg-type]
            assert (row.name, row.position) == (other.name, other.position)
            assert row.relevance == pytest.approx(other.relevance, rel=1e-9)
    for ours, others in ((e.paths(), wanted.paths()), (e.sinks(), wanted.sinks())):
        for one, two in zip(ours, others, strict=True):
            assert one.block == two.block
    assert e.paths()[0].mlp == pytest.approx(wanted.paths()[0].mlp, rel=1e-9)
    assert e.sinks()[0].attention == pytest.approx(wanted.sinks()[0].attention, rel=1e-12)
