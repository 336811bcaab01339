"""The ways relevance takes through each block: they add up, and are what sites and the ledger have,
on every architecture and in whatever way the net is run. Attention sinks: a plain loop.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

import refl
from refl.errors import ReflError
from refl.explanation import Explanation
from refl.ledger import Entry
from refl.paths import BlockPaths
from refl.verification.random_models import ARCHITECTURES, LLAMA, T5, random_model
from tests.support.parts import EPSILON, asked, explained, item_of, model_of

METHODS = ("attnlrp", "cp-lrp", "attnlrp-gradient", EPSILON)
U = 2.0**-53

on_every_net = pytest.mark.parametrize("name", ARCHITECTURES)
with_every_method = pytest.mark.parametrize("method", METHODS)


def add_up(e: Explanation) -> list[BlockPaths]:
    """The two identities of every block, to the rounding that the audit allows and that of a few
    sums more.
    """
    ledger = e.ledger
    terms = [abs(v) for entry in ledger for v in (entry.received, *entry.passed.values())]
    assert ledger.rounding_bound is not None
    bound = ledger.rounding_bound + 8 * U * sum(terms)
    found = list(e.paths())
    for row in found:
        parts = (row.attention, row.mlp, row.residual, *row.absorbed.values())
        assert abs(row.received + row.returned - math.fsum(parts)) <= bound, row
        assert abs(row.received + row.returned - sum(row.parts.values())) <= bound, row
        for a in row.attentions:
            inside = (a.queries, a.keys, a.values, *a.absorbed.values())
            assert abs(a.received - math.fsum(inside)) <= bound, a
    return found


def summed(e: Explanation, site: str) -> float:
    return float(e[site].sum())


def entry_of(e: Explanation, site: str) -> Entry:
    return e.ledger[e.sites.canonical(site)]


@on_every_net
@with_every_method
def test_they_add_up_and_are_what_sites_have(name: str, method: str) -> None:
    """What is relevance at a site is read from the site, which knows nothing of the ledger."""
    e = explained(name, method)
    near = pytest.approx
    for row, block in zip(add_up(e), e.components.blocks, strict=True):
        tolerance: dict[str, float] = {"rel": 1e-11, "abs": 1e-12}
        assert (row.block, row.site) == (block.label, block.site)
        assert row.received == near(summed(e, block.site), **tolerance)
        attentions = [a for a in e.components.attentions if a.block == block.label]
        assert [a.name for a in row.attentions] == [a.label for a in attentions]
        for found, a in zip(row.attentions, attentions, strict=True):
            assert found.received == near(summed(e, a.output), **tolerance)
            assert found.queries == near(summed(e, a.query), **tolerance)
            assert found.keys == near(summed(e, a.key), **tolerance)
            assert found.values == near(summed(e, a.value), **tolerance)
        tops = {
            m.tokens.partition(".experts.")[0] if m.tokens else m.output
            for m in e.components.neurons_of(block.label)
        }
        assert row.mlp == near(math.fsum(summed(e, top) for top in tops), **tolerance)


@on_every_net
def test_everything_absorbed_in_a_block_is_there(name: str) -> None:
    """By blocks and outside of them, all that the whole ledger has absorbed."""
    e = explained(name)
    paths = [block.site for block in e.components.blocks]
    outside: dict[str, float] = {}
    for entry in e.ledger:
        shared = ".relative_attention_bias" in entry.site or ".SelfAttention.bias" in entry.site
        if shared or not any(entry.site == p or entry.site.startswith(f"{p}.") for p in paths):
            for cause, amount in entry.absorbed.items():
                outside[cause] = outside.get(cause, 0.0) + amount
    for cause, amount in e.ledger.absorbed.items():
        rows = [row.inside.get(cause, 0.0) for row in e.paths()]
        assert math.fsum([*rows, outside.get(cause, 0.0)]) == pytest.approx(amount, rel=1e-12)


# -- residual and returned, by hand where the net's block says where they are ----------------------

LAST = {
    # name: the sum that passes on to the block's input; what hands back to the stream, and where to
    "llama": ("residual", "post_attention_layernorm", "residual"),
    "gemma2": ("residual", "pre_feedforward_layernorm", "residual"),
    "olmo2": ("residual", "mlp", "residual"),
    "gpt2": ("residual", "ln_2", "residual"),
    "mixtral": ("residual", "post_attention_layernorm", "residual"),
    "vit": ("residual", "layernorm_after", "residual"),
    "bert": ("attention.output.residual", "intermediate.dense", "attention.output"),
    "phi": ("", "", ""),
}


@pytest.mark.parametrize("name", LAST)
def test_residual_and_returned_by_hand(name: str) -> None:
    e = explained(name)
    last, norm, back = LAST[name]
    for row in e.paths():
        path = row.site

        def at(site: str, path: str = path) -> str:
            return e.sites.canonical(f"{path}.{site}" if site else path)

        stream = e.sites.canonical(f"{path}.input")
        assert row.residual == e.ledger[at(last)].passed[stream]
        if name == "olmo2":  # the MLP reads the stream without a norm
            ends = [e.ledger[at(f"mlp.{one}")] for one in ("gate_proj", "up_proj")]
            assert row.returned == pytest.approx(sum(x.passed[at(back)] for x in ends), rel=1e-14)
        else:
            assert row.returned == (e.ledger[at(norm)].passed[at(back)] if norm else 0.0)


def test_a_bias_that_all_blocks_share() -> None:
    """T5's table of distances lies under the path of the first block, and all blocks feed it."""
    e = explained("t5")
    for stack in ("encoder", "decoder"):
        table = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias"
        rows = [row for row in e.paths() if row.block.startswith(stack)]
        own = [a.absorbed["position"] for r in rows for a in r.attentions if "cross" not in a.name]
        assert len(own) == len(rows)
        assert math.fsum(own) == pytest.approx(e.ledger[table].received, rel=1e-12)
    one = random_model(T5 | {"num_layers": 1, "num_decoder_layers": 1}, 3)
    alone = one.explain([3, 4, 5], decoder=[0, 2], keep="*", audit=True)
    encoder, decoder = add_up(alone)
    table = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias"
    assert encoder.attentions[0].absorbed["position"] == alone.ledger[table].received
    assert decoder.attentions[1].name == "decoder.L0.cross"


# -- in whatever way the net is run ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "t5", "phi", "albert"])
def test_recomputed_or_in_tiles(name: str) -> None:
    """Attention of more pairs than are held is entered as its operations."""
    model = model_of(name)
    item, how = item_of(model, 70), asked(model, 70)
    plain = model.explain(item, keep="*", audit=True, **how)
    tiled = model.explain(item, keep=(), **how)
    again = model.explain(item, keep=(), recompute=True, **how)
    for wanted, *others in zip(add_up(plain), tiled.paths(), again.paths(), strict=True):
        for other in others:
            assert other.parts == pytest.approx(wanted.parts, rel=1e-9, abs=1e-11)
            assert other.returned == pytest.approx(wanted.returned, rel=1e-9, abs=1e-11)


EDITS: dict[str, dict[str, Any]] = {
    "llama": {"L0.N3": refl.off, "L1.H2": refl.scale(2.0), "model.layers.0": refl.scale(0.5)},
    "bert": {
        "bert.encoder.layer.1.attention.output.dense": refl.value(0.3),
        "bert.encoder.layer.0.output.dense": refl.scale(2.0),
    },
    "mixtral": {"model.layers.0.block_sparse_moe": refl.scale(2.0), "L1.H0": refl.off},
    "t5": {"decoder.L1.cross.H0": refl.off, "encoder.L0.N1": refl.value(2.0)},
}


@pytest.mark.parametrize("name", EDITS)
def test_with_edits(name: str) -> None:
    model = model_of(name).with_edits(EDITS[name])
    add_up(model.explain(item_of(model), audit=True, keep=(), **asked(model)))


def test_an_edit_inside_the_mlp_is_no_part_of_the_stream() -> None:
    """Though it is a sum: of zero times the neurons, and what is in their place."""
    edited = model_of("llama").with_edits({"L1.N3": refl.value(0.7)})
    e = edited.explain([1, 2, 3], keep=(), audit=True)
    path, row = "model.layers.1", add_up(e)[1]
    norm = e.ledger[f"{path}.post_attention_layernorm"]
    assert any("edited" in entry.site for entry in e.ledger)
    assert row.returned == norm.passed[f"{path}.residual"]
    assert row.mlp == e.ledger[f"{path}.mlp.down_proj"].received


AT: dict[str, list[tuple[str, tuple[int, ...]]]] = {
    "llama": [
        ("model.layers.1.mlp.down_proj.input", (2, 3)),
        ("model.layers.1.mlp.down_proj", (2, 3)),
        ("model.layers.1.self_attn.context", (1, 2, 3)),
        ("model.layers.1.self_attn.scores", (1, 3, 2)),
        ("model.layers.1.self_attn.q_proj", (1, 3)),
        ("model.layers.1.input_layernorm", (1, 3)),
        ("model.layers.0", (1, 3)),
    ],
    "gpt2": [("transformer.h.1.attn.c_attn", (1, 3)), ("transformer.h.1.attn.query.flat", (1, 3))],
    "bert": [("bert.encoder.layer.1.intermediate.dense", (2, 3))],
    "albert": [
        ("albert.encoder.layer.1.albert_layers.1.attention.LayerNorm", (2, 3)),
        ("albert.encoder.layer.1.albert_layers.1.attention.context", (1, 2, 3)),
    ],
    "t5": [
        ("decoder.block.1.layer.1.EncDecAttention.context", (1, 2, 3)),
        ("decoder.block.1.layer.2.DenseReluDense.wo.input", (1, 4)),
    ],
    "phi": [("model.layers.1.mlp.fc1", (1, 3))],
}


@pytest.mark.parametrize(("name", "at"), [(n, at) for n, several in AT.items() for at in several])
def test_where_a_neuron_is_explained(name: str, at: tuple[str, tuple[int, ...]]) -> None:
    """Blocks above it have nothing, its own what is explained."""
    model = model_of(name)
    decoder = asked(model)["decoder"]
    e = model.explain(item_of(model), at=at, decoder=decoder, audit=True, keep=())
    rows = add_up(e)
    own = [row for row in rows if at[0] == row.site or at[0].startswith(f"{row.site}.")]
    assert own[0].received == e.explained != 0
    for row in rows[rows.index(own[0]) + 1 :]:
        assert row.received == row.attention == row.mlp == row.residual == 0
        assert all(math.isnan(v) for v in row.fractions.values())
        assert json.loads(json.dumps(row.as_dict()))["fractions"]["mlp"] is None
    inside = {"context", "scores"} & set(at[0].split("."))
    if inside and name == "llama":
        assert own[0].attention == e.explained and own[0].mlp == own[0].residual == 0
    if at[0].endswith("q_proj"):
        assert (own[0].queries, own[0].keys, own[0].attention) == (e.explained, 0, e.explained)
    if at[0].endswith("c_attn"):  # below queries, keys and values
        assert own[0].attention == own[0].mlp == 0 != own[0].residual
    if at[0].endswith("down_proj"):
        assert own[0].mlp == e.explained


def test_conditions_are_refused() -> None:
    model = model_of("llama")
    e = model.explain([1, 2, 3], conditions={"model.layers.0.mlp": (0, ...)})
    with pytest.raises(ReflError, match="ask for paths without conditions, or read the ledger"):
        e.paths()


def test_fractions_and_json() -> None:
    e = explained("t5")
    for row in e.paths():
        sizes = {name: abs(v) for name, v in row.parts.items()}
        wanted = {name: v / sum(sizes.values()) for name, v in sizes.items()}
        assert row.fractions == pytest.approx(wanted, rel=1e-14)
    said = e.paths().as_dict()
    assert json.loads(json.dumps(said)) == said
    assert "decoder.L2.cross" in str(e.paths())


# -- attention sinks -------------------------------------------------------------------------------


@on_every_net
def test_sinks_are_what_a_loop_finds(name: str) -> None:
    e = explained(name)
    for sink, block in zip(e.sinks(), e.components.blocks, strict=True):
        r = [math.fsum(map(float, row)) for row in e[block.site]]
        near = {"rel": 1e-10, "abs": 1e-13}
        assert sink.relevance == pytest.approx(r[0], **near)
        assert sink.fraction == pytest.approx(r[0] / math.fsum(r), **near)
        assert sink.of_sizes == pytest.approx(abs(r[0]) / math.fsum(map(abs, r)), **near)
        received = [
            float(query[0])
            for a in e.components.attentions
            if a.block == block.label and not a.cross
            for head in e.activation(a.context.replace("context", "probabilities"))
            for query in head
        ]
        assert sink.attention == pytest.approx(math.fsum(received) / len(received), rel=1e-13)
        first = e.decoder_tokens if block.label.startswith("decoder") else e.tokens
        assert sink.token == ("class token" if e.picture is not None else (first or [])[0])


def test_a_net_whose_attention_is_even() -> None:
    """Queries of zero look everywhere alike: query j at the first token with 1 / (j + 1)."""
    model = random_model(LLAMA, 1)
    off = model.with_edits({f"model.layers.{i}.self_attn.q_proj": refl.off for i in (0, 1)})
    e = off.explain([1, 2, 3, 4], keep="*")
    wanted = np.mean([1 / (j + 1) for j in range(4)])
    assert [s.attention for s in e.sinks()] == pytest.approx([wanted] * 2, rel=1e-14)
    assert e.sinks()[1].fraction == 0  # only the last token has relevance at the last output


def test_sinks_where_little_was_kept_or_nothing_came() -> None:
    model = model_of("llama")
    kept = ["model.layers.0", "model.layers.1"]
    e = model.explain([1, 2, 3], keep=kept, at=("model.layers.0", (0, 1)))
    first, second = e.sinks()
    assert first.attention is None and first.fraction == first.of_sizes == 1
    assert math.isnan(second.fraction) and second.as_dict()["of_sizes"] is None
    assert json.loads(json.dumps(e.sinks().as_dict())) == e.sinks().as_dict()


def test_sinks_of_a_padded_batch() -> None:
    model = model_of("llama")
    items = [[1, 2, 3], [4, 5, 6, 7, 8]]
    for e, item in zip(model.explain(items, keep="*"), items, strict=True):
        alone = model.explain(item, keep="*").sinks()
        for found, wanted in zip(e.sinks(), alone, strict=True):
            assert found.attention == pytest.approx(wanted.attention, rel=1e-12)
            assert found.fraction == pytest.approx(wanted.fraction, rel=1e-9, abs=1e-12)
