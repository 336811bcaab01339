"""Attention rollout, gradient rollout and Grad-CAM on attention that is known exactly, and at the
edges: one token, masked rows, negative gradients, nothing and nearly everything discarded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction as F
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refl.edits import Edit
from refl.errors import ReflError
from refl.explanation import Explanation
from refl.methods import METHODS, chosen
from refl.methods.attention_maps import (
    CROSS,
    READER,
    SOURCE,
    BlockAttention,
    positive_mean,
    rows,
)
from refl.methods.gradient_rollout import accumulated, normalized
from refl.methods.rollout import AttentionRollout
from refl.model import Model
from refl.question import Question
from refl.seeds import Seed
from refl.verification.random_models import BERT, DEIT, GPT2, MISTRAL, T5, VIT, random_model
from refl.verification.random_models import with_weights as changed

READING = ("grad-cam", "attention-rollout", "gradient-rollout")
Matrix = list[list[F]]


def block(*heads: Sequence[Sequence[float]], kind: str = READER) -> BlockAttention:
    return BlockAttention("", kind, np.array(heads, dtype=np.float64))


def product(a: Matrix, b: Matrix) -> Matrix:
    return [
        [sum((x * y for x, y in zip(r, c, strict=True)), F(0)) for c in zip(*b, strict=True)]
        for r in a
    ]


def same(found: Any, exact: Matrix) -> None:
    """To the last bit: every number is a sum of few powers of two."""
    assert found.tolist() == [[float(x) for x in row] for row in exact]


# -- two tokens by hand ----------------------------------------------------------------------------

FIRST = [[1, 0], [0.25, 0.75]]
SECOND = [[1, 0], [0.5, 0.5]]


def test_rollout_of_two_tokens() -> None:
    """(A + I) of the second block times that of the first, and a quarter of it."""
    b = product([[F(2), F(0)], [F(1, 2), F(3, 2)]], [[F(2), F(0)], [F(1, 4), F(7, 4)]])
    assert b[1] == [F(11, 8), F(21, 8)]
    blocks = [block(FIRST), block(SECOND)]
    same(AttentionRollout("none").rolled_out(blocks)[0], b)
    same(AttentionRollout().rolled_out(blocks)[0], [[x / 4 for x in row] for row in b])


def test_heads_are_joined_before_the_blocks_are() -> None:
    """Mean, largest and smallest of 1/4 and 1/2; rows of A + I are divided by their sum."""
    one = [block(FIRST, SECOND)]
    expected = {"mean": ([F(3, 8), F(13, 8)], 2), "max": ([F(1, 2), F(7, 4)], F(9, 4))}
    expected["min"] = ([F(1, 4), F(3, 2)], F(7, 4))
    for heads, (row, total) in expected.items():
        plain = AttentionRollout("none", heads).rolled_out(one)[0][1]
        assert plain.tolist() == [float(x) for x in row]
        normal = AttentionRollout("rows", heads).rolled_out(one)[0][1]
        np.testing.assert_allclose(normal, [float(x / total) for x in row], rtol=1e-15)


def test_gradient_rollout_of_two_tokens() -> None:
    """One head's positive products are averaged with the other's zeros."""
    g = np.array([[[1.0, 0.0], [4.0, -2.0]], [[-1.0, 0.0], [-1.0, 1.0]]])
    c = [[F(1, 2), F(0)], [F(1, 2), F(1, 4)]]
    r = [[F(3, 2), F(0)], [F(1, 2), F(5, 4)]]
    assert positive_mean(g * block(FIRST, SECOND).weights).tolist() == [
        [float(x) for x in row] for row in c
    ]
    blocks = [block(FIRST, SECOND)] * 2
    same(accumulated(blocks, [g, g])[0], product(r, r))


def test_gradient_rollout_from_decoder_to_encoder() -> None:
    """One token written, two read: R_sq = N(R_ss)^T C N(R_qq), by hand."""
    blocks = [
        block([[0.5, 0.5], [0.25, 0.75]], kind=SOURCE),
        block([[1]], kind=READER),
        block([[0.25, 0.75]], kind=CROSS),
    ]
    g = [np.array(x) for x in ([[[2.0, 0.0], [4.0, 4.0]]], [[[3.0]]], [[[4.0, 4.0]]])]
    reader, source = accumulated(blocks, g)
    # R_qq = I + [[1, 0], [1, 3]], N(R_qq) = I + [[1, 0], [1/4, 3/4]]; R_ss = 4, N(R_ss) = 2
    same(reader, [[F(4)]])
    same(source, product([[F(2), F(6)]], [[F(2), F(0)], [F(1, 4), F(7, 4)]]))


def test_gradient_rollout_from_two_tokens_of_a_decoder() -> None:
    """N(R_ss) is transposed: what token 1 took in from token 0 goes to row 0."""
    half = [[1, 0], [0.5, 0.5]]
    blocks = [block([[1, 0]] * 2, kind=SOURCE), block(half), block([[1, 0], [0, 1]], kind=CROSS)]
    g = [np.zeros((1, 2, 2)), np.array([[[0.0, 0.0], [2.0, 0.0]]]), np.ones((1, 2, 2))]
    reader, source = accumulated(blocks, g)
    # R_ss = I + [[0, 0], [1, 0]] = N(R_ss), R_qq = I = N(R_qq), C = I: R_sq = R_ss^T
    same(reader, [[F(1), F(0)], [F(1), F(1)]])
    same(source, [[F(1), F(1)], [F(0), F(1)]])


def test_a_row_without_relevance_is_not_normalized() -> None:
    r = np.array([[1.0, 0.0], [2.0, 3.0]])
    same(normalized(r), [[F(1), F(0)], [F(1, 2), F(3, 2)]])


def test_negative_gradients_leave_the_identity() -> None:
    same(accumulated([block(FIRST)], [-np.ones((1, 2, 2))])[0], [[F(1), F(0)], [F(0), F(1)]])
    assert not positive_mean(-np.ones((1, 2, 2)) * block(FIRST).weights).any()


# -- discarding ------------------------------------------------------------------------------------

WIDE = [[0.5, 0.125, 0.25, 0.125], [0.125, 0.5, 0.25, 0.125], [0, 0, 1, 0], [0.25] * 4]
"""A masked row, and one of ties."""


def discarded(fraction: float, normalization: str = "none") -> Any:
    rows = AttentionRollout(normalization, "mean", fraction).rolled_out([block(WIDE)])[0]
    return rows - np.eye(4) if normalization == "none" else rows


def test_the_lowest_of_each_row_go() -> None:
    """Half of a row: its two lowest, of equal ones the earlier first; the first token's weight
    stays where it is the lowest. What is kept has the sum that the row had.
    """
    expected = [
        [F(2, 3), 0, F(1, 3), 0],
        [F(1, 5), F(4, 5), 0, 0],
        [0, 0, 1, 0],
        [F(1, 2), 0, 0, F(1, 2)],
    ]
    np.testing.assert_allclose(
        discarded(0.5), np.array(expected, dtype=np.float64), rtol=1e-15, atol=1e-16
    )


def test_rows_sum_to_one_whatever_is_discarded() -> None:
    for fraction in (0.0, 0.3, 0.5, 0.999):
        np.testing.assert_allclose(discarded(fraction, "rows").sum(axis=1), 1, rtol=1e-15)


def test_near_one_the_first_token_and_one_more_are_left() -> None:
    """0.999 of four weights are three: all but the first token's, where that is not the largest."""
    expected = [[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0]]
    np.testing.assert_allclose(discarded(0.999), expected, atol=1e-15)


@given(st.integers(1, 6), st.sampled_from([0.0, 0.4, 0.99]), st.integers(0, 99))
def test_rollout_rows_are_distributions(length: int, discard: float, draw: int) -> None:
    """Ties and zeros among the weights; a row may be all zero."""
    random = np.random.default_rng(draw)
    weights = random.integers(0, 3, (2, length, length)) / 4
    for heads in ("mean", "max", "min"):
        rolled = AttentionRollout("rows", heads, discard).rolled_out([block(*weights)] * 3)[0]
        assert (rolled >= 0).all()
        np.testing.assert_allclose(rolled.sum(axis=1), 1, rtol=1e-12)


# -- in a model ------------------------------------------------------------------------------------


def even(layers: int) -> Model:
    """A GPT-2 whose queries are zero: each token attends evenly to those before it and itself."""
    model = random_model(GPT2 | {"n_layer": layers}, 0)
    zero = {}
    for i in range(layers):
        for end in ("weight", "bias"):
            name = f"transformer.h.{i}.attn.c_attn.{end}"
            zero[name] = np.array(model.weights[name])
            zero[name][..., :16] = 0
    return changed(model, **zero)


def test_rollout_of_even_attention() -> None:
    """B = [[1, 0], [1/4, 3/4]], squared: 7/16 and 9/16."""
    e = even(2).explain([3, 4], method="attention-rollout")
    assert e.relevance.tolist() == [7 / 16, 9 / 16]


@pytest.mark.parametrize("name", READING)
def test_one_token(name: str) -> None:
    e = random_model(GPT2, 1).explain([3], method=name)
    assert e.relevance.shape == (1,) and np.isfinite(e.relevance).all()
    if name == "attention-rollout":
        assert e.relevance.tolist() == [1.0]


@pytest.mark.parametrize("name", READING)
def test_nothing_comes_from_behind_the_position(name: str) -> None:
    e = random_model(MISTRAL, 1).explain([3, 4, 5, 6, 7, 8], method=name, position=3)
    assert not e.relevance[4:].any() and e.relevance.any()


def test_a_window_hides_what_is_before_it() -> None:
    """Two blocks of a window of three reach four tokens back, the last block alone two."""
    model, ids = random_model(MISTRAL, 1), [3, 4, 5, 6, 7, 8, 9]
    rolled = model.explain(ids, method="attention-rollout").relevance
    assert not rolled[:2].any() and (rolled[2:] > 0).all()
    assert not model.explain(ids, method="grad-cam").relevance[:4].any()


@pytest.mark.parametrize("name", READING)
def test_a_list_is_its_members(name: str) -> None:
    """One input at a time: no padding enters."""
    model = random_model(GPT2, 1)
    together = model.explain([[3, 4, 5], [6, 7]], method=name)
    for ids, e in zip([[3, 4, 5], [6, 7]], together, strict=True):
        assert (e.relevance == model.explain(ids, method=name).relevance).all()


def test_the_row_of_a_classifier_is_the_one_that_it_reads() -> None:
    encoder = random_model(BERT | {"architectures": ["BertForSequenceClassification"]}, 0)
    decoder = random_model(GPT2 | {"architectures": ["GPT2ForSequenceClassification"]}, 0)
    for model, row in ((encoder, 0), (decoder, 2)):
        e = model.explain([3, 4, 5], method="gradient-rollout")
        assert e.relevance.argmax() == row and e.relevance[row] >= 1


@pytest.mark.parametrize("config", [VIT, DEIT], ids=["vit", "deit"])
@pytest.mark.parametrize("name", READING)
def test_patches_are_spread_over_their_pixels(config: dict[str, Any], name: str) -> None:
    x = np.random.default_rng(0).standard_normal((3, 8, 12))
    e = random_model(config, 0).explain(x, method=name)
    each = np.repeat(np.repeat(e.patches / 12, 4, axis=0), 3, axis=1)
    np.testing.assert_allclose(e.relevance, each, rtol=1e-14)


def test_the_neuron_of_a_token_has_a_row() -> None:
    """Blocks above it play no part: its own is the first, and the last."""
    model, site = random_model(GPT2 | {"n_layer": 3}, 0), "transformer.h.0"
    e = model.explain([3, 4, 5, 6], at=(site, (2, 5)), method="attention-rollout")
    one = random_model(GPT2 | {"n_layer": 3}, 0)
    forward = Question(one).forward(one.readings([[3, 4, 5, 6]]), plain=True)
    a = forward.trace.values["transformer.h.0.attn.probabilities"].array[0].mean(axis=0)
    np.testing.assert_allclose(e.relevance, (a[2] + np.eye(4)[2]) / 2, rtol=1e-14)


def test_two_targets_differ_where_gradients_play_a_part() -> None:
    model = random_model(T5, 0)

    def of(name: str, target: int) -> Explanation:
        return model.explain([3, 4, 5], decoder=[0, 6], target=target, method=name)

    for name in READING:
        pair = [of(name, target).relevance for target in (2, 9)]
        assert (pair[0] == pair[1]).all() == (name == "attention-rollout")


# -- what is refused -------------------------------------------------------------------------------


def refused(**how: Any) -> str:
    with pytest.raises(ReflError) as caught:
        random_model(GPT2, 0).explain([3, 4], **how)
    return str(caught.value)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"normalization": "row"}, "normalization is 'row': expected one of rows, none"),
        ({"heads": 3}, "heads is 3: expected one of mean, max, min"),
        ({"discard": 1}, "discard is 1: expected a number of at least 0 and below 1"),
        ({"discard": "a"}, "discard is 'a': expected a finite number"),
        ({"discard": float("nan")}, "discard is nan: expected a finite number"),
    ],
)
def test_options_are_checked(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ReflError) as caught:
        chosen("attention-rollout", options=options)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("name", READING)
def test_what_cannot_be_read_is_refused(name: str) -> None:
    assert "recompute out" in refused(method=name, recompute=True)
    assert "no row of" in refused(method=name, at=("transformer.h.1.attn.scores", (0, 1, 1)))
    assert "no attention is below" in refused(method=name, at=("transformer.wte", (1, 3)))
    assert METHODS[name].source


def test_an_output_of_no_token_has_no_row() -> None:
    """As where all tokens are pooled: nothing chose a row before the output."""
    model = random_model(GPT2, 0)
    question = Question(model)
    forward = question.forward(model.readings([[3, 4]]), plain=True)
    block = forward.trace.values["transformer.h.1"]
    with pytest.raises(ReflError, match="pooled over all tokens and belongs to none"):
        rows(question, replace(forward, explained=block), Seed("logit", 0))


@pytest.mark.parametrize("name", [*READING, "chefer-2021"])
def test_edited_attention_is_what_is_read(name: str) -> None:
    """A block whose weights are all set to 0 adds nothing to the identity."""
    config = GPT2 | {"n_layer": 1}
    edits = {"transformer.h.0.attn.probabilities": Edit(factor=0)}
    e = random_model(config, 0).explain([3, 4, 5], method=name, edits=edits)
    assert e.relevance.tolist() == [0, 0, float(name != "grad-cam")]


@pytest.mark.parametrize("prefix", [[0, 4], [0, 4, 6]])
def test_a_neuron_of_an_encoder_beside_a_decoder(prefix: list[int]) -> None:
    """Its row is that of the encoder's own attention; the decoder's tokens have no part in it,
    however many there are.
    """
    model, at = random_model(T5, 4), ("encoder.block.1.layer.1.DenseReluDense.wo", (1, 2))
    how: dict[str, Any] = {"at": at, "decoder": prefix}
    e = model.explain([3, 5, 7], "attention-rollout", **how)
    recorded = model.explain([3, 5, 7], keep="*.probabilities", **how)
    row = np.eye(3)[1]
    for block in (1, 0):
        site = f"encoder.block.{block}.layer.0.SelfAttention.probabilities"
        row = (row @ recorded.activation(site).mean(axis=0) + row) / 2
    assert abs(e.relevance - row).max() <= 1e-12
    for name in READING:
        e = model.explain([3, 5, 7], name, **how)
        assert e.relevance.any() and not e.decoder_relevance.any()


def test_a_fraction_is_of_whole_weights() -> None:
    """0.29 of 100 are 29, though the product of the floats is a little less."""
    row = np.arange(1.0, 101.0)[None]
    assert 0.29 * 100 < 29
    kept = AttentionRollout(discard=0.29, normalization="none")._kept(row)
    assert (kept == 0).sum() == 29
