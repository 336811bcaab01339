"""A whole answer as one target, and each of its tokens: against sums of single outputs, each from a
run of its own, the frozen surrogate, and logits added up by hand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from surrogate_truth import Truth, u

import refl
from refl.answer_matrix import AnswerMatrix
from refl.errors import ReflError, UnknownWords
from refl.explanation import Explanation
from refl.io.safetensors import read_safetensors
from refl.model import Model
from refl.show.answer import FEW, ShownAnswer, terminal, text
from refl.show.answer_figure import figure
from refl.show.drawing import Words
from refl.show.lines import width_of
from refl.verification.compare.compare import compare
from refl.verification.random_models import (
    BERT,
    FLAN,
    GEMMA2,
    GPT2,
    LLAMA,
    MIXTRAL,
    PHI,
    T5,
    VIT,
    random_model,
)

NETS = {"llama": LLAMA, "gpt2": GPT2, "gemma2": GEMMA2, "mixtral": MIXTRAL, "phi": PHI}
NETS |= {"t5": T5, "flan": T5 | FLAN}
READ, PROMPT, ANSWER = [3, 1, 16, 8], [5, 2, 9], [7, 1, 1, 12]
"""What the encoder of a T5 reads; what stands before the answer; the answer."""

ROUNDINGS = 1e4
"""In units of roundoff of the largest relevance: as for the explanations of one net in another
shape of run (tests/refl/test_cache.py).
"""

METHODS = ("attnlrp", "attnlrp-gradient", "cp-lrp", "lrp-0", "input-x-gradient")
SEEDS = ("logit", "log-probability")


@cache
def net(name: str) -> Model:
    return random_model(NETS[name], 11)


def asked(model: Model, prompt: Sequence[int]) -> tuple[list[int], dict[str, Any]]:
    """The input, and what a decoder has said."""
    if model.task == "sequence-to-sequence":
        return READ, {"decoder": list(prompt)}
    return list(prompt), {}


def spanned(model: Model, prompt: Sequence[int], answer: Sequence[int], **how: Any) -> Explanation:
    item, decoder = asked(model, prompt)
    e: Explanation = model.explain(item, answer=list(answer), keep=(), **decoder, **how)
    return e


def each_alone(
    model: Model, prompt: Sequence[int], answer: Sequence[int], **how: Any
) -> list[Explanation]:
    """Every token of the answer as the target of a text of its own."""
    found = []
    for n, target in enumerate(answer):
        item, decoder = asked(model, [*prompt, *answer[:n]])
        found.append(model.explain(item, target=target, keep=(), **decoder, **how))
    return found


def relevance_of(e: Explanation) -> Any:
    return np.concatenate([r for r in (e.relevance, e.decoder_relevance) if r is not None])


def added(each: Sequence[Explanation], like: Explanation) -> Any:
    """Relevance summed token by token; a shorter text says nothing of the tokens behind it."""
    total = np.zeros_like(relevance_of(like))
    for e in each:
        r = relevance_of(e)
        total[: len(r)] += r
    return total


def assert_close(got: Any, expected: Any, scale: float | None = None) -> None:
    size = float(np.abs(expected).max()) if scale is None else scale
    assert np.shape(got) == np.shape(expected)
    assert float(np.abs(np.asarray(got) - expected).max()) <= ROUNDINGS * u("float64") * size


def sizes(each: Sequence[Explanation]) -> float:
    return sum(float(np.abs(relevance_of(e)).max()) for e in each)


# -- the answer as one target ----------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["llama", "t5"])
def test_a_span_is_the_sum_of_its_tokens(name: str, method: str, seed: str) -> None:
    how = {"method": method, "seed": seed}
    e = spanned(net(name), PROMPT, ANSWER, **how)
    each = each_alone(net(name), PROMPT, ANSWER, **how)
    assert_close(relevance_of(e), added(each, e), sizes(each))
    assert_close(e.explained, sum(one.explained for one in each), sizes(each))
    assert e.seed == seed and e.target_id == ANSWER[0] and e.position is None
    assert relevance_of(e)[-1] == 0  # nothing comes after it


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "mixtral", "phi", "flan"])
def test_of_every_kind_of_decoder(name: str) -> None:
    e = spanned(net(name), PROMPT, ANSWER, seed="log-probability", recompute=True)
    each = each_alone(net(name), PROMPT, ANSWER, seed="log-probability")
    assert_close(relevance_of(e), added(each, e), sizes(each))
    assert abs(e.ledger.conservation_error) <= ROUNDINGS * u("float64") * sizes(each)


def test_against_the_surrogate() -> None:
    """Sums of x dz/dx of the frozen net, of logits that are the largest of each beginning."""
    model = net("llama")
    whole = model.generate(PROMPT, 3)
    e = spanned(model, PROMPT, whole[len(PROMPT) :], method="cp-lrp")
    total = np.zeros(len(whole))
    for end in range(len(PROMPT), len(whole)):
        truth = Truth(model, whole[:end])
        assert truth.target == whole[end]
        r = truth.relevance("model.embed_tokens", "cp-lrp").sum(axis=-1)
        total[:end] += r
    assert_close(e.relevance, total)


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_what_is_explained_is_added_up_by_hand(name: str) -> None:
    model = net(name)
    logits = []
    for n in range(len(ANSWER)):
        item, decoder = asked(model, [*PROMPT, *ANSWER[:n]])
        logits.append(model.logits(item, **decoder)[-1])
    e = spanned(model, PROMPT, ANSWER)
    assert e.answer is not None and [token.id for token in e.answer] == ANSWER
    of_tokens, log_p, linearized = 0.0, 0.0, 0.0
    for z, token, i in zip(logits, e.answer, ANSWER, strict=True):
        p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        assert_close(token.logit, z[i], 1 + abs(z[i]))
        assert_close(token.probability, p[i], 1)
        of_tokens, log_p = of_tokens + z[i], log_p + np.log(p[i])
        linearized += z[i] - (p * z).sum()
    scale = float(np.abs(logits).max()) * len(ANSWER)
    assert_close(e.explained, of_tokens, scale)
    assert_close(e.logit, of_tokens, scale)
    assert_close(np.log(e.probability), log_p, scale)
    log = spanned(model, PROMPT, ANSWER, seed="log-probability")
    assert_close(log.explained, linearized, scale)
    exact = spanned(model, PROMPT, ANSWER, seed="log-probability", method="random")
    assert_close(exact.explained, log_p, scale)


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_a_batch_is_its_members(name: str) -> None:
    """Answers and prompts of several lengths: what is padded is explained by nobody."""
    model = net(name)
    prompts = [[5], [5, 2, 9, 4, 4], [1, 2]]
    answers = [[7, 1, 1, 12], [3], [8, 8]]
    items, decoder = prompts, {}
    if model.task == "sequence-to-sequence":
        items, decoder = [READ, [2], READ[:2]], {"decoder": prompts}
    how: dict[str, Any] = {"seed": "log-probability", "audit": True, "keep": ()}
    together = model.explain(items, answer=answers, **decoder, **how)
    for k, e in enumerate(together):
        one = {"decoder": prompts[k]} if decoder else {}
        alone = model.explain(items[k], answer=answers[k], **one, **how)
        assert (e.tokens, e.decoder_tokens, e.answer[0].id) == (
            *(alone.tokens, alone.decoder_tokens),
            answers[k][0],
        )
        assert_close(relevance_of(e), relevance_of(alone))
        assert_close(e.explained, alone.explained, 1 + abs(alone.explained))
        assert abs(e.ledger.conservation_error) <= e.ledger.rounding_bound
    one_for_all = model.explain(items, answer=[7, 3], keep=(), **decoder)
    assert [[token.id for token in e.answer] for e in one_for_all] == [[7, 3]] * 3


prompts = st.lists(st.integers(0, 16), min_size=1, max_size=6)
several = st.lists(st.integers(0, 16), min_size=1, max_size=4)


@settings(max_examples=12, deadline=None)
@given(prompts, several, st.sampled_from(["llama", "t5"]), st.sampled_from(SEEDS))
def test_any_prompt_and_answer(prompt: list[int], answer: list[int], name: str, seed: str) -> None:
    model = net(name)
    e, each = (
        make(model, prompt, answer, seed=seed, method="attnlrp-gradient")
        for make in (spanned, each_alone)
    )
    assert_close(relevance_of(e), added(each, e), sizes(each))
    said = e.input_ids if e.decoder_ids is None else e.decoder_ids
    assert said == [*prompt, *answer] and len(e.answer or ()) == len(answer)


def test_sites_of_the_whole_text_come_on_demand() -> None:
    model = net("llama")
    later = model.explain(PROMPT, answer=ANSWER, method="attnlrp-gradient")
    kept = model.explain(PROMPT, answer=ANSWER, method="attnlrp-gradient", keep="*.mlp")
    site = "model.layers.1.mlp"
    assert later[site].shape[0] == len(PROMPT) + len(ANSWER)
    np.testing.assert_array_equal(later[site], kept[site])


@pytest.mark.parametrize("options", [{"conditions": ["L1.N3"]}, {"edits": "L0.N2"}])
def test_conditions_and_edits(options: dict[str, Any]) -> None:
    model, how = net("llama"), dict[str, Any](options)
    if "edits" in how:
        model = model.with_edits({how.pop("edits"): refl.off})
    e, each = (make(model, PROMPT, ANSWER, **how) for make in (spanned, each_alone))
    assert_close(relevance_of(e), added(each, e), sizes(each))


# -- methods that are no tables of rules -----------------------------------------------------------


def test_integrated_gradients_are_complete() -> None:
    model = net("llama")
    e = spanned(model, PROMPT, ANSWER, method="integrated-gradients", seed="log-probability")
    p = [e.probability for e in each_alone(model, PROMPT, ANSWER)]
    assert_close(e.explained, float(np.log(p).sum()), 10)
    on_tokens = float(e.relevance.sum())
    absorbed = sum(e.ledger.absorbed.values())
    assert_close(on_tokens + absorbed + e.ledger.conservation_error, e.explained, 10)


@pytest.mark.parametrize("method", ["smoothgrad", "pa-lrp", "random"])
def test_methods_of_several_outputs(method: str) -> None:
    e = spanned(net("llama"), PROMPT, ANSWER, method=method)
    assert e.relevance.shape == (len(PROMPT) + len(ANSWER),)
    if method == "pa-lrp":
        how: dict[str, Any] = {"method": method, "options": {"signed": True}}
        signed, each = (make(net("llama"), PROMPT, ANSWER, **how) for make in (spanned, each_alone))
        assert_close(signed.relevance, added(each, signed), sizes(each))


ONE_AT_A_TIME = (
    *("occlusion", "leave-one-out", "atman", "grad-cam", "attention-rollout", "gradient-rollout"),
    *("chefer-2021", "voita-2021", "alti-logit", "decompx", "metagame"),
)


@pytest.mark.parametrize("method", ONE_AT_A_TIME)
def test_methods_of_one_output_refuse(method: str) -> None:
    with pytest.raises(ReflError, match="explains one output at a time, and an answer has several"):
        spanned(net("llama"), PROMPT, ANSWER, method=method)


def test_every_method_explains_answers_or_refuses() -> None:
    from refl.methods import FURTHER

    able = {m.name for m in FURTHER if m.of_answers}
    assert able == {"integrated-gradients", "smoothgrad", "pa-lrp", "random"}
    assert {m.name for m in FURTHER} - able == set(ONE_AT_A_TIME)


# -- what is refused -------------------------------------------------------------------------------


REFUSED: dict[str, Callable[[], object]] = {
    "the answer is empty": lambda: net("llama").explain(PROMPT, answer=[]),
    "the input is empty": lambda: net("llama").explain([], answer=[1]),
    "says what is explained.*leave target": lambda: net("llama").explain(
        PROMPT, answer=ANSWER, target=3
    ),
    "leave position": lambda: net("llama").explain(PROMPT, answer=ANSWER, position=0),
    "leave at=": lambda: net("llama").explain(PROMPT, answer=ANSWER, at=("model.norm", (0, 0))),
    "to contrast two answers explain each": lambda: net("llama").explain(
        PROMPT, answer=ANSWER, contrast=(1, 2)
    ),
    "'probability' is that of one token": lambda: net("llama").explain(
        PROMPT, answer=ANSWER, seed="probability"
    ),
    "unknown seed": lambda: net("llama").explain(PROMPT, answer=ANSWER, seed="odd"),
    "outside the vocabulary": lambda: net("llama").explain(PROMPT, answer=[9999]),
    "answer is 5: expected a text": lambda: net("llama").explain(PROMPT, answer=5),
    r"answer is \[1, \[2\]\]": lambda: net("llama").explain(PROMPT, answer=[1, [2]]),
    "2 answers for 3 inputs": lambda: net("llama").explain([PROMPT] * 3, answer=[[1], [2]]),
    "has no tokenizer": lambda: net("llama").explain(PROMPT, answer="are"),
    "writes no text .its task is masked": lambda: random_model(BERT, 0).explain([1], answer=[2]),
    "writes no text .its task is image": lambda: random_model(VIT, 0).explain(
        np.zeros((VIT["num_channels"], 8, 12)), answer=[2]
    ),
    "the model has positions for": lambda: net("gpt2").explain([1] * 30, answer=[2] * 9000),
    "the model adds nothing": lambda: net("llama").explain_answer(PROMPT, tokens=0),
    "explains one answer": lambda: net("llama").explain_answer([PROMPT, PROMPT], [1]),
    "explain_answer has no option target": lambda: net("llama").explain_answer(
        PROMPT, [1], target=3
    ),
    "an answer of no tokens": lambda: AnswerMatrix("", []),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_is_refused(words: str) -> None:
    with pytest.raises(ReflError, match=words):
        REFUSED[words]()


# -- texts -----------------------------------------------------------------------------------------

KEYS = "the keys to the cabinet"


@cache
def shipped() -> Model:
    return refl.load(dtype="float64")


def test_a_text_is_what_follows() -> None:
    """What a model writes is read back as the same ids; a word by itself is encoded by itself."""
    model, before = shipped(), len(shipped().encode(KEYS))
    ids = model.generate(KEYS, 4)
    new = model.text.decode(ids).removeprefix(KEYS)  # type: ignore[union-attr]
    for answer in (new, new.strip(), ids[before:], np.asarray(ids[before:])):
        e = model.explain(KEYS, answer=answer, keep=())
        assert e.input_ids == ids and e.target == new.strip()
        assert [token.token for token in e.answer] == e.tokens[before:]
    with pytest.warns(UnknownWords, match="'xyzzy'"):
        assert model.explain(KEYS, answer=" xyzzy", keep=()).answer[0].token == "<unk>"
    texts = model.explain([KEYS, "the dog"], answer=[" are", " is on"], keep=())
    assert [e.target for e in texts] == ["are", "is on"]


def test_an_answer_of_special_tokens_has_a_name() -> None:
    """Decoded there is nothing left of it."""
    model = refl.load()
    m, e = model.explain_answer("the keys", [1, 2]), model.explain("the keys", answer=[1, 2])
    assert m.answer == e.target == "<unk> <s>"


def test_pieces_of_words() -> None:
    """SentencePiece: a text continues the word, or begins one with its blank."""
    model = refl.load(checkpoint("stories260K"))
    prompt = "Once upon a time"
    for answer in (", there was", "s", " there was"):
        e = model.explain(prompt, answer=answer, keep=())
        assert e.input_ids == model.encode(prompt + answer)
        assert "".join(token.token for token in e.answer) == answer


# -- each token ------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["attnlrp", "attnlrp-gradient", "grad-cam", "occlusion"])
@pytest.mark.parametrize("name", ["llama", "t5"])
def test_a_row_is_an_explanation_of_its_beginning(name: str, way: str) -> None:
    model, how = net(name), {"seed": "log-probability", "method": way}
    item, decoder = asked(model, PROMPT)
    m = model.explain_answer(item, ANSWER, **decoder, **how)
    each = each_alone(model, PROMPT, ANSWER, **how)
    assert len(m) == len(each) and m.answer_ids == ANSWER
    parts = m.parts
    for n, (row, e) in enumerate(zip(m.matrix, each, strict=True)):
        assert_close(row[: len(relevance_of(e))], relevance_of(e), sizes(each))
        assert (row[parts["answer"]][n:] == 0).all()
        assert (m[n].target_id, m[n].input_ids) == (ANSWER[n], e.input_ids)
    assert_close(m.explained, np.asarray([e.explained for e in each]), 10)
    assert_close(m.logits, np.asarray([e.logit for e in each]), 10)
    assert_close(m.log_probabilities, np.log([e.probability for e in each]), 10)
    np.testing.assert_array_equal(m.relevance, m.matrix[:, parts["input"]])
    np.testing.assert_array_equal(m.before, m.matrix[:, parts["answer"]])
    if name == "t5":
        np.testing.assert_array_equal(m.decoder_relevance, m.matrix[:, parts["decoder"]])
        assert (m.relevance.shape, m.decoder_relevance.shape) == ((4, len(READ)), (4, len(PROMPT)))
    else:
        assert m.decoder_relevance is None and m.relevance.shape == (4, len(PROMPT))


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_rows_and_columns_add_up(name: str) -> None:
    model = net(name)
    item, decoder = asked(model, PROMPT)
    m = model.explain_answer(item, ANSWER, seed="log-probability", audit=True, **decoder)
    for row, e in zip(m.matrix, m, strict=True):
        absorbed = sum(e.ledger.absorbed.values())
        assert abs(e.explained - row.sum() - absorbed) <= e.ledger.rounding_bound
    on_parts = sum(m.sums.values())
    np.testing.assert_allclose(on_parts + m.rest, m.explained, rtol=1e-13)
    whole = spanned(model, PROMPT, ANSWER, seed="log-probability")
    assert_close(m.total, relevance_of(whole), sizes(list(m)))
    assert [e.ledger.explained for e in m] == m.explained.tolist()
    assert len(m.ledgers) == len(ANSWER)


def test_what_the_model_itself_writes() -> None:
    model = shipped()
    m = model.explain_answer(KEYS, tokens=4)
    ids = model.generate(KEYS, 4)
    assert isinstance(m, ShownAnswer) and m[0].input_ids + m.answer_ids == ids
    assert m.tokens == model.tokens(m[0].input_ids) and m.answer == "are behind the chair"
    same = model.explain_answer(KEYS, f" {m.answer}")
    np.testing.assert_array_equal(same.matrix, m.matrix)
    assert m[1:3] == [m[1], m[2]] and list(m) == m.explanations
    assert repr(m) == ("<ShownAnswer: 'are behind the chair', 4 tokens by 10, logit, attnlrp>")


def test_one_token() -> None:
    m = net("t5").explain_answer([4], [6], decoder=[0])
    assert m.matrix.shape == (1, 3) and m.before.tolist() == [[0.0]]
    assert "1 token, the logit of it" in text(m) and "the logit of it" in m.html()


def test_progress() -> None:
    seen: list[Any] = []
    net("llama").explain_answer(PROMPT, ANSWER, progress=lambda *now: seen.append(now))
    _, done, of = zip(*seen, strict=True)
    assert list(done) == list(range(1, of[0] + 1))


# -- how it is shown -------------------------------------------------------------------------------


def long(rows: int, columns: int) -> ShownAnswer:
    """A matrix of a short net, for a page."""
    random = np.random.default_rng(0)
    ids = random.integers(0, net("llama").config.vocab_size, rows + columns).tolist()
    return net("llama").explain_answer(ids[:columns], ids[columns:])


@pytest.mark.parametrize("width", [40, 60, 100, 200])
@pytest.mark.parametrize("size", [(3, 3), (9, 12)])
def test_lines_are_no_wider_than_the_terminal(width: int, size: tuple[int, int]) -> None:
    m = long(*size)
    lines = terminal(m, width)
    assert max(map(width_of, lines)) <= width
    shown = text(m, width)
    assert "the prompt" in shown and "answer" in shown and "explained" in shown


def numbers(line: str) -> list[float]:
    return [float(n) for n in re.findall(r"[-+]?\d+\.\d+", line)]


def test_a_terminal_shows_every_number_and_sums_that_add_up() -> None:
    m = net("llama").explain_answer(PROMPT, ANSWER)
    shown = text(m, 200).splitlines()
    rows = [line for line in shown if re.match(r"  \d+  ", line)]
    assert len(rows) == len(ANSWER)
    for n, line in enumerate(rows):
        found = numbers(line.replace("%", ""))
        before = len(PROMPT) + n
        np.testing.assert_allclose(found[:before], m.matrix[n, :before], atol=6e-3 * m.matrix.max())
        *parts, whole, _ = found[before:]
        assert round(sum(parts) - whole, 9) == 0
    assert str(m) == text(m)


def test_many_columns_are_shown_in_ninths() -> None:
    m = long(12, 60)
    shown = text(m, 80)
    assert "ninths of the strongest" in " ".join(shown.split()) and "9" in shown.split("\n\n")[1]
    assert max(len(line) for line in shown.splitlines()) <= 80


class Table(HTMLParser):
    """The matrix of a page: heads, cells, and whether every element is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.scopes: list[str] = []
        self.cells, self.inside = list[str](), False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("meta", "br", "wbr", "img", "link"):
            return
        self.open.append(tag)
        said = dict(attrs)
        if tag == "th" and "scope" in said:
            self.scopes.append(str(said["scope"]))
        if tag == "td" and "cell" in str(said.get("class")).split():
            self.inside = True
            self.cells.append("")
            assert said["tabindex"] == "0"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.inside = self.inside and tag != "td"

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.cells[-1] += data


@pytest.mark.parametrize(("rows", "columns"), [(3, 3), (1, 1), (20, 40)])
def test_a_page_has_every_number_under_heads(rows: int, columns: int) -> None:
    m = long(rows, columns)
    page, table = m.html(), Table()
    table.feed(page)
    assert table.open == []
    strict_lower = rows * columns + rows * (rows - 1) // 2
    assert len(table.cells) == strict_lower + columns + rows
    shown = [float(number) for number in table.cells[:columns]]
    np.testing.assert_allclose(shown, m.matrix[0, :columns], atol=6e-3 * np.abs(m.matrix).max())
    first = table.scopes.count("row")
    assert first == rows + 1 and table.scopes.count("colgroup") == 3
    assert ("answer few" in page) == (rows + columns <= FEW)
    assert "<script" not in page and "http" not in page.replace("http-equiv", "")


def test_a_picture_has_every_number_and_is_no_wider_than_a_page() -> None:
    m = long(5, 30)
    found = figure(m, str)
    shown = [part.text for part in found.parts if isinstance(part, Words)]
    for part in found.parts:
        assert 0 <= part.x <= part.x + part.width <= found.width and 0 < part.y < found.height
    cells = [t for t in shown if re.fullmatch(r"[-+]\d+\.\d+", t)]
    lower = 5 * 30 + 5 * 4 // 2
    assert len(cells) >= lower + 35
    assert m.svg().startswith("<?xml") and all(f">{t}<" in m.svg() for t in cells)


def test_a_picture_as_pdf() -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (the extra 'figures')")
    assert long(2, 3).pdf().startswith(b"%PDF")


def test_hostile_tokens_steer_nothing() -> None:
    bad = '<script>"\x1b[31m\n'
    m = net("llama").explain_answer(PROMPT, ANSWER)
    rows = [
        replace(e, tokens=[bad] * len(e.tokens), target=bad, about=e.about | {"model": bad})
        for e in m
    ]
    hostile = ShownAnswer(bad, rows)
    pages = (hostile.html(), hostile._repr_html_(), hostile.svg())
    for shown in (*pages, text(hostile, 120), repr(hostile)):
        assert "\x1b" not in shown
    for page in pages:
        assert "<script" not in page and "&lt;script&gt;" in page


def test_an_encoder_and_a_decoder_are_told_apart() -> None:
    m = net("t5").explain_answer(READ, ANSWER, decoder=PROMPT)
    for shown, cut in ((text(m, 250), 12), (m.html(), 99)):
        for name in ("read by the encoder", "written by the decoder", "the answer so far"):
            assert name[:cut] in shown
        assert "the prompt" not in shown


def test_scores_that_do_not_add_up_have_no_sums() -> None:
    for method in ("random", "gradient", "grad-cam"):
        m = net("llama").explain_answer(PROMPT, ANSWER, method=method)
        for shown in (text(m, 200), m.html()):
            assert (
                "the whole answer" not in shown.lower()
                and "absorbed" not in shown.split("The m")[0]
            )
        assert "explained" in text(m, 200)


def test_the_views_of_a_span() -> None:
    e = shipped().explain(KEYS, answer=" are on", seed="log-probability", keep=())
    for shown in (str(e), e.html(), e.svg(), e.tex()):
        assert "the prompt" in shown and "the answer itself" in shown
    assert str(e).startswith("log-probability of 'are on', linearized")
    assert "2 tokens, has log-probability" in str(e)
    plain = shipped().explain(KEYS, answer=" are on", keep=())
    assert plain.what == "sum of the logits of 'are on'"
    said = [line.split() for line in str(e).splitlines()]
    heads = next(n for n, line in enumerate(said) if line[:4] == ["token", "of", "the", "answer"])
    assert [line[0] for line in said[heads + 1 : heads + 3]] == ["are", "on"]
    t5 = net("t5").explain(READ, answer=ANSWER, decoder=PROMPT, keep=())
    assert "read by the encoder" in str(t5) and "written by the decoder" in str(t5)
    sums = sum(float(r.sum()) for r in (t5.relevance, t5.decoder_relevance))
    assert_close(t5.ledger.tokens, sums, 10)


# -- what is written -------------------------------------------------------------------------------


def test_json_says_everything() -> None:
    m = net("t5").explain_answer(READ, ANSWER, decoder=PROMPT, seed="log-probability")
    said = json.loads(json.dumps(m.as_dict(), allow_nan=False))
    assert said["answer_ids"] == ANSWER and said["decoder_ids"] == PROMPT
    matrix = np.asarray([row["relevance"] for row in said["rows"]])
    np.testing.assert_array_equal(matrix, m.matrix)
    assert len(said["columns"]) == matrix.shape[1] == said["parts"]["answer"][1]
    for row in said["rows"]:
        on_it = sum(row["sums"].values()) + sum(row["absorbed"].values())
        assert abs(on_it + row["conservation_error"] - row["explained"]) <= 1e-12
    without = net("llama").explain_answer(PROMPT, ANSWER, method="random").as_dict()
    assert without["rows"][0]["absorbed"] is None and "decoder_ids" not in without


def test_a_file_for_anyone(tmp_path: Path) -> None:
    m = net("t5").explain_answer(READ, ANSWER, decoder=PROMPT)
    m.save(tmp_path / "answer.safetensors")
    arrays, facts = read_safetensors(tmp_path / "answer.safetensors")
    np.testing.assert_array_equal(arrays["matrix"], m.matrix)
    joined = [arrays[name] for name in ("relevance", "decoder_relevance", "before")]
    np.testing.assert_array_equal(np.concatenate(joined, axis=1), m.matrix)
    np.testing.assert_array_equal(arrays["explained"], m.explained)
    assert arrays["answer_ids"].tolist() == ANSWER
    assert json.loads(facts["answer_tokens"]) == m.answer_tokens


def test_an_oracle_file_knows_the_answer(tmp_path: Path) -> None:
    model, file = net("llama"), tmp_path / "e.safetensors"
    model.explain(PROMPT, answer=ANSWER, keep=()).save(file)
    e = refl.Explanation.load(file)
    assert e.answer is not None and [token.id for token in e.answer] == ANSWER
    assert "the answer itself" in str(e)
    other = tmp_path / "one.safetensors"
    model.explain([*PROMPT, *ANSWER], target=ANSWER[0], keep=()).save(other)
    assert "tokens of an answer: 4 in A, 0 in B" in str(compare(file, other))


def test_an_oracle_file_with_another_answer_is_refused(tmp_path: Path) -> None:
    e = net("llama").explain(PROMPT, answer=ANSWER, keep=())
    e.answer = e.answer[:2]
    e.save(tmp_path / "e.safetensors")
    with pytest.raises(ReflError, match="the tokens of the answer are not the last of the text"):
        refl.Explanation.load(tmp_path / "e.safetensors")
