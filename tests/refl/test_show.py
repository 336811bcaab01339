"""What is drawn: sums that add up as printed, colors that can be read,
and nothing hostile that gets through.
"""

from __future__ import annotations

import argparse
import math
import re
import time
from dataclasses import replace
from decimal import Decimal
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refl
from refl.cli.output import print_lines
from refl.explanation import Candidate, Explanation, MethodFacts
from refl.ledger import Entry, Ledger
from refl.show import colors, numbers, terminal
from refl.show.account import DIGITS, account, account_of, joiner
from refl.show.explanation import Batch
from refl.show.lines import plain
from refl.show.notebook import fragment, ledger_fragment
from refl.show.page import html
from refl.show.pairs import pair_lines
from refl.show.tables import ledger_table
from refl.show.text import cells, printable, shorten

HOSTILE = [
    "<script>alert(1)</script>",
    "\x1b[31mred\x07",
    "line\nend",
    "quo\"te's",
    "\u202eback",
    "[bold]x[/bold]",
    ":smile:",
    "\ud800",
]


@pytest.fixture(scope="module")
def model() -> Any:
    return refl.load()


@pytest.fixture(scope="module")
def keys(model: Any) -> refl.Explanation:
    e: refl.Explanation = model.explain("the keys to the cabinet", keep=())
    return e


@pytest.fixture(scope="module")
def hostile(model: Any) -> Explanation:
    e: Explanation = model.explain([2, *range(10, 9 + len(HOSTILE))], keep=())
    about = e.about | {"model": "<img src=x>\x1b[2J"}
    composite = replace(
        e.composite, name="<b>mine</b>\x1b[1m", summary="<i>s</i>\x07", source="\x9b31m"
    )
    candidates = [replace(e.candidates[0], token=HOSTILE[1]), *e.candidates[1:]]
    return replace(
        e,
        tokens=HOSTILE,
        target=HOSTILE[0],
        about=about,
        method=composite,
        candidates=candidates,
    )


@pytest.fixture(scope="module")
def long(model: Any) -> Explanation:
    e: Explanation = model.explain(
        "mary has the ball . john has the cup . anna has the key . " * 6,
        method="input-x-gradient",
        keep=(),
    )
    return e


def controls(text: str) -> set[str]:
    return {c for c in text if not c.isprintable() and c != "\n"}


# -- what a user holds -----------------------------------------------------------------------------


def test_an_explanation_shows_itself(keys: refl.Explanation) -> None:
    assert str(keys) == terminal.text(keys)
    assert keys.html() == html(keys)
    assert keys._repr_html_() == fragment(keys)
    assert str(keys.ledger) == str(keys.ledger.example(0)) == ledger_table(keys.ledger)


def test_what_is_shown_knows_nothing_of_drawing(keys: Explanation) -> None:
    """The data alone prints as data; the views take it all the same."""
    data = Explanation(**vars(keys))
    assert str(data).startswith("<Explanation: ")
    assert not hasattr(data, "html")
    assert terminal.text(data) == str(keys)


# -- text ------------------------------------------------------------------------------------------


@given(st.text())
def test_printable_leaves_nothing_that_steers_a_terminal(text: str) -> None:
    assert printable(text).isprintable()


@pytest.mark.parametrize("harmless", ["keys", " the", "naïve", "東京", "🙂", "a\\b", "e\u0301"])
def test_printable_leaves_text_alone(harmless: str) -> None:
    assert printable(harmless) == harmless


def test_cells_counts_columns() -> None:
    assert [cells(t) for t in ("", "key", "東京", "e\u0301")] == [0, 3, 4, 1]


@given(st.text(alphabet="ab東🙂", max_size=40), st.integers(2, 30))
def test_shorten_fits_and_marks_what_it_left_out(text: str, most: int) -> None:
    short = shorten(text, most)
    assert cells(short) <= most
    assert short == text or short.endswith("…")


# -- numbers ---------------------------------------------------------------------------------------

AMOUNTS = st.floats(-1e6, 1e6, allow_nan=False).map(lambda v: float(f"{v:.9g}"))


@given(st.lists(AMOUNTS, min_size=1, max_size=8), st.floats(-1e-6, 1e-6), st.integers(3, 9))
def test_printed_parts_add_up_to_the_printed_total(
    parts: list[float], conservation_error: float, places: int
) -> None:
    total = math.fsum([*parts, conservation_error])
    shown = [
        Decimal(text) for text in numbers.adding_up([*parts, conservation_error], total, places)
    ]
    unit = Decimal(1).scaleb(-places)
    assert sum(shown[:-1]) == shown[-1]
    assert all(
        abs(text - Decimal(v)) <= unit
        for text, v in zip(shown, [*parts, conservation_error, total], strict=True)
    )


def test_numbers_that_are_not_finite_are_shown_as_they_are() -> None:
    assert numbers.adding_up([math.nan, 1.0], math.inf, 2) == ["nan", "1.00", "inf"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0.000"), (-0.0, "0.000"), (1.5, "1.500"), (-2e-5, "-2.0e-05"), (0.02, "0.020")],
)
def test_small_amounts_are_not_shown_as_nothing(value: float, shown: str) -> None:
    assert numbers.amount(value, 3) == shown


@pytest.mark.parametrize(
    "method", ["attnlrp", "cp-lrp", "gradient", "input-x-gradient", "lxt-explicit"]
)
def test_the_account_in_the_text_adds_up(model: Any, method: str) -> None:
    e = model.explain("mary has the ball .", method=method, keep=())
    lines = terminal.text(e).splitlines()
    rule = next(i for i, line in enumerate(lines) if line.strip() and set(line.strip()) == {"─"})
    rows = dict(
        re.findall(
            r"^  (tokens|\w+|conservation error) +(-?[\d.]+)(?: +-?[\d.]+%)?  ",
            "\n".join(lines[lines.index("  conservation ledger") : rule]),
            re.MULTILINE,
        )
    )
    below = lines[rule + 1].split()
    assert list(rows) == ["tokens", *e.ledger.absorbed, "conservation error"]
    assert below[0] == "explained"
    assert sum(map(Decimal, rows.values())) == Decimal(below[1])
    assert float(below[1]) == pytest.approx(e.explained, rel=1e-6)


# -- colors ----------------------------------------------------------------------------------------

STEPS = [s for s in range(-colors.LEVELS, colors.LEVELS + 1) if s]
PALETTES = [
    (colors.POSITIVE, colors.NEGATIVE),
    (colors.POSITIVE_DARK, colors.NEGATIVE_DARK),
    (colors.POSITIVE_TERMINAL, colors.NEGATIVE_TERMINAL),
]


@pytest.mark.parametrize(("positive", "negative"), PALETTES)
@pytest.mark.parametrize("step", STEPS)
def test_every_background_has_letters_that_stand_out(
    step: int, positive: Any, negative: Any
) -> None:
    back = colors.background(step, positive, negative)
    assert colors.contrast(colors.foreground(back), back) >= 4.5  # WCAG 2, AA


@pytest.mark.parametrize("value", [-1.0, 1.0])
@pytest.mark.parametrize("page", [(0, 0, 0), (255, 255, 255)])
def test_colored_letters_read_on_black_and_on_white(value: float, page: colors.Color) -> None:
    ink = colors.ink(value)
    color = (int(ink[1:3], 16), int(ink[3:5], 16), int(ink[5:], 16))
    assert colors.contrast(color, page) >= 3.9


def test_levels_are_signed_and_bounded() -> None:
    assert [colors.level(v, 2.0) for v in (-2.0, 0.0, 2.0, math.nan)] == [
        -colors.LEVELS,
        0,
        colors.LEVELS,
        0,
    ]
    assert colors.level(0.0, 0.0) == 0


STRENGTHS = np.linspace(0.02, 1.0, 50)


def codes(out: str) -> list[str]:
    """What the terminal was told before each of the words of the running text."""
    text = out[: out.index("are\x1b")]
    return re.findall(r"\x1b\[([\d;]*)mword\d+", text)


def loudness(code: str) -> tuple[bool, bool, bool]:
    """By what shows on any terminal of 8 or 16 colors: reversed, bold, underlined."""
    parts = code.split(";")
    return "7" in parts, "1" in parts, "4" in parts


def luminance(code: str) -> float:
    """Of the background that a code asks for, in 256 or in all colors."""
    from rich.color import Color

    full = re.search(r"48;2;(\d+);(\d+);(\d+)", code)
    few = re.search(r"48;5;(\d+)", code)
    if full:
        rgb = tuple(map(int, full.groups()))
    else:
        rgb = tuple(Color.from_ansi(int(few[1])).get_truecolor()) if few else (255, 255, 255)
    return colors.contrast((0, 0, 0), rgb)  # type: ignore[arg-type]


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    "env",
    [
        {"TERM": "xterm"},
        {"TERM": "linux"},
        {"TERM": "xterm-16color"},
        {"TERM": "xterm-256color"},
        {"TERM": "xterm-256color", "COLORTERM": "truecolor"},
    ],
    ids=lambda env: "-".join(env.values()),
)
def test_what_is_stronger_is_louder(
    keys: Explanation,
    env: dict[str, str],
    sign: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On every kind of terminal, in the codes that it gets."""
    for name in ("NO_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"FORCE_COLOR": "1"} | env).items():
        monkeypatch.setenv(name, value)
    words = [f"word{i}" for i in range(len(STRENGTHS))]
    e = replace(keys, tokens=words, input_ids=[1] * len(words), relevance=sign * STRENGTHS)
    print_lines(terminal.terminal(e)[3:], argparse.Namespace(no_color=False))
    said = codes(capsys.readouterr().out)
    assert len(said) >= len(words) - 2
    if "256" in env["TERM"]:
        light = [luminance(code) for code in said]
        assert all(a >= b - 1e-9 for a, b in pairwise(light))
        assert len(set(light)) >= 5
    else:
        grades = [loudness(code) for code in said]
        assert grades == sorted(grades) and len(set(grades)) == 4
        assert all(("31" if sign > 0 else "34") in code.split(";") for code in said)
        assert not any(re.search("[39][0-7];?4[0-7]|48", code) for code in said)


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {}])
def test_no_color_is_no_color(
    keys: Explanation,
    env: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    print_lines(terminal.terminal(keys), argparse.Namespace(no_color=False))
    assert "\x1b" not in capsys.readouterr().out


# -- in a terminal ---------------------------------------------------------------------------------


def test_the_text_shows_tokens_target_candidates_account_and_source(keys: Explanation) -> None:
    text = terminal.text(keys)
    for token in (
        *keys.tokens,
        *(c.token for c in keys.candidates),
        "softmax_offset",
        "conservation error",
        "attnlrp",
        "arXiv",
    ):
        assert token in text
    assert f"{keys.logit:.4f}" in text
    assert f"{keys.probability:.2%}" in text


def test_signs_can_be_read_without_color(long: Explanation) -> None:
    text = terminal.text(long)
    assert all(
        f"{r:+.{numbers.decimals(max(abs(long.relevance)), DIGITS)}f}" in text
        for r in long.relevance
    )
    assert "▒│" in text
    assert "│█" in text


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
@pytest.mark.parametrize("which", ["keys", "long", "hostile"])
def test_no_line_is_wider_than_the_terminal(
    which: str, width: int, request: pytest.FixtureRequest
) -> None:
    """Nor than 56 columns where the terminal is narrower: the tables take as many."""
    e = request.getfixturevalue(which)
    wide = [line for line in terminal.text(e, width).splitlines() if cells(line) > max(width, 56)]
    assert wide == []


def test_no_token_is_left_out_of_a_long_view(long: Explanation) -> None:
    numbered = [
        word
        for line in terminal.text(long, 120).splitlines()
        for word in line.split()
        if word.isdecimal()
    ]
    assert {str(i) for i in range(len(long.tokens))} <= set(numbered)


def test_hostile_tokens_are_escaped(hostile: Explanation) -> None:
    assert controls(terminal.text(hostile)) == set()
    styles = [style for line in terminal.terminal(hostile) for _, style in line]
    assert all("\x1b" not in style for style in styles)


def test_rich_draws_hostile_tokens_as_they_are(hostile: Explanation) -> None:
    from rich.text import Text

    lines = terminal.terminal(hostile)
    assert "\n".join(Text.assemble(*line).plain.rstrip() for line in lines) == plain(lines)


def test_a_norm_says_that_it_is_one(model: Any, keys: Explanation) -> None:
    e = model.explain("the keys", method="gradient", keep=())
    for shown in (terminal.text(e, 400), html(e), fragment(e)):
        assert "lengths of the propagated gradient" in shown
    assert "lengths of the propagated gradient" not in terminal.text(keys, 400)


def test_relevance_that_is_not_finite_is_shown(keys: Explanation) -> None:
    broken = replace(keys, relevance=np.array([np.nan, np.inf, -1.0, 0.0, 1.0, 2.0]))
    assert "nan" in terminal.text(broken)
    assert "inf" in html(broken)


def test_blanks_of_a_target_are_all_shown(keys: Explanation) -> None:
    e = replace(keys, target="   ")
    for shown in (
        terminal.text(e),
        html(e).replace("&#x27;", "'"),
        fragment(e).replace("&#x27;", "'"),
    ):
        assert "logit of '   '" in shown


SHARES = [
    ({"tokens": 3.0, "bias": -1.0}, True),
    ({"tokens": 0.5, "bias": -1.0, "mask": 2.0}, True),  # 2.3 times the whole
    ({"tokens": 10.25, "bias": -9.25}, False),  # 19.5 times
    ({"tokens": 7.14, "bias": -6.74}, False),  # 1785 % of 0.4
    ({"tokens": 1.0, "bias": -1.0}, False),  # of nothing
]


@pytest.mark.parametrize(("parts", "percentages"), SHARES)
@pytest.mark.parametrize("sign", [1, -1])
def test_shares_of_what_cancels_are_amounts(
    parts: dict[str, float], percentages: bool, sign: int
) -> None:
    """A part of 1785 % says nothing: where the parts are many times the whole, amounts stand alone,
    with the reason.
    """
    sums = {name: np.array([sign * v]) for name, v in parts.items()}
    entry = Entry("h", "embedding", "leaf", sum(sums.values()), {}, sums)  # type: ignore[arg-type]
    ledger = Ledger(np.array([sign * math.fsum(parts.values())]), 1e-16, [entry])
    shares = [row.percent for row in account(ledger)]
    assert all(shares) if percentages else not any(shares)
    assert all(float(share[:-1]) <= 400 for share in shares if share)
    for shown in (ledger_table(ledger), ledger_fragment(ledger)):
        assert ("cancel" in shown) is not percentages
        assert "%" in shown or not percentages


def test_what_is_missing_is_rounding_only_where_it_can_be(model: Any) -> None:
    """Not where a ledger lacks an operation, and not where no ledger was kept."""
    for audit in (False, True):
        whole = model.explain("the keys to the cabinet", keep=(), audit=audit).ledger
        assert "rounding (" in account(whole)[-2].note
        for cut in (3, 50, len(whole.entries) - 1):
            torn = replace(whole, entries=whole.entries[:cut])
            assert "rounding (" not in account(torn)[-2].note
    assert "not recorded" in account(Ledger(np.array([3.0]), 1e-16))[-2].note
    e = model.explain("the keys", keep=())
    bare = replace(e, recorded=None, method=MethodFacts("theirs"))
    rest = account_of(bare)[-2]
    assert rest.name == "not recorded" and "keeps no ledger" in rest.note
    assert rest.amount == pytest.approx(e.explained - float(e.relevance.sum()))
    assert "rounding (" not in terminal.text(bare) + html(bare)


def test_a_softmax_offset_is_explained(keys: Explanation, model: Any) -> None:
    none = model.explain("the keys to the cabinet", "cp-lrp", keep=())
    for shown in (terminal.text(keys, 400), html(keys), str(keys.ledger).replace("\n  ", " ")):
        assert "softmax_offset is no error" in shown
    assert "no error" not in terminal.text(none, 400) + html(none)


@pytest.mark.parametrize("explained", [0.0, -1.5e-8, 12.5])
def test_percentages_are_left_out_where_they_mean_nothing(explained: float) -> None:
    rows = account(Ledger(np.array([explained]), 1e-16))
    assert rows[-1].percent == ("" if explained == 0 else "100.0%")


def test_a_conservation_error_comes_with_its_bound_where_that_is_known(model: Any) -> None:
    audited = model.explain("the keys", keep=(), audit=True).ledger
    bound = f"rounding (bound {audited.rounding_bound:.0e})"
    assert account(audited)[-2].note.endswith(bound)
    plainly = model.explain("the keys", keep=()).ledger
    assert account(plainly)[-2].note.endswith("rounding (unit 6e-08)")


def test_tokens_with_their_own_blanks_are_joined_without_more() -> None:
    assert joiner([" the", " keys"]) == ""
    assert joiner(["the", "keys"]) == " "


# -- ledgers ---------------------------------------------------------------------------------------


def test_a_notebook_shows_the_body_of_the_page(keys: Explanation, hostile: Explanation) -> None:
    for e in (keys, hostile):
        inner = re.search(r"<main>\n(.*)\n</main>", html(e), re.DOTALL)
        assert inner and inner[1] in fragment(e)
    assert keys._repr_html_() == fragment(keys)  # type: ignore[attr-defined]


def test_the_style_of_a_notebook_reaches_nothing_else(keys: Explanation) -> None:
    style = fragment(keys).partition("<style>")[2].partition("</style>")[0]
    selectors = [s.strip() for s in re.findall(r"(?:^|[{}])([^{}@]+)\{", style)]
    assert len(selectors) > 40
    for each in (one for s in selectors for one in s.split(",")):
        assert ".refl" in each


def test_a_notebook_shows_batches_and_ledgers(model: Any, keys: Explanation) -> None:
    batch = model.explain(["the keys", "the key to the cabinets"], keep=())
    page = read(batch._repr_html_())
    assert isinstance(batch, list) and len(batch) == 2
    for e in batch:
        assert f"{e.explained:.4f}" in page.text and all(t in page.text for t in e.tokens)
    ledger = read(keys.ledger._repr_html_())  # type: ignore[attr-defined]
    assert all(entry.site in ledger.text for entry in keys.ledger)
    assert all(row.shown in ledger.text for row in account(keys.ledger))
    many = read(Batch([keys] * 60)._repr_html_())
    assert "10 more: batch[50] is the next" in many.text


def test_a_ledger_is_a_table_of_the_account_and_every_site(keys: Explanation) -> None:
    lines = ledger_table(keys.ledger).splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("site "))
    assert any(line.split()[:1] == ["explained"] for line in lines[:head])
    assert [line.split()[0] for line in lines[head + 1 :]] == [entry.site for entry in keys.ledger]


def test_a_batch_says_that_it_is_summed(model: Any) -> None:
    a, b = model.explain(["the keys", "the key"], keep=())
    both = Ledger(np.asarray([a.ledger.explained, b.ledger.explained]), a.ledger.roundoff)
    assert ledger_table(both).startswith("2 examples, sums over all")
    assert account(both)[-1].amount == pytest.approx(a.explained + b.explained)


def test_an_empty_ledger_is_shown_too() -> None:
    assert "explained" in ledger_table(Ledger(np.zeros(1), 1e-16))


# -- the page --------------------------------------------------------------------------------------

VOID = {"meta", "br", "wbr", "rect", "line"}


class Page(HTMLParser):
    """Tags that close in order, every attribute, and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert tag in VOID or self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(markup: str) -> Page:
    page = Page()
    page.feed(markup)
    page.close()
    assert page.open == []
    return page


@pytest.mark.parametrize("which", ["keys", "long", "hostile"])
@pytest.mark.parametrize("form", [html, fragment])
def test_pages_are_well_formed_and_need_nothing_else(
    form: Any, which: str, request: pytest.FixtureRequest
) -> None:
    shown = form(request.getfixturevalue(which))
    page = read(shown)
    assert page.tags.isdisjoint({"script", "link", "img", "iframe", "object", "form"})
    names = {name for name, _ in page.attributes}
    assert names.isdisjoint({"src", "href", "onload", "onclick", "onerror"})
    assert "url(" not in shown
    assert controls(shown) == set()


def test_the_page_has_every_token_the_account_and_the_ledger(keys: Explanation) -> None:
    page = read(html(keys))
    for word in (
        *keys.tokens,
        *(row.shown for row in account(keys.ledger)),
        keys.provenance["fingerprint"],
        *(e.site for e in keys.ledger),
    ):
        assert word in page.text
    tips = [value for name, value in page.attributes if name == "title"]
    assert len([t for t in tips if t and t.startswith("token ")]) == len(keys.tokens)


EVIL = "</td></table><meta http-equiv=refresh content=0;url=//x>\x1b]0;x\x07\u202e"


def test_whatever_a_file_says_is_text(keys: Explanation) -> None:
    """Every word that an oracle file can bring, on the page, in a notebook and on a terminal."""
    entry = Entry(EVIL, EVIL, EVIL, np.ones(1), {EVIL: np.ones(1)}, {EVIL: np.ones(1) / 2})
    candidate = Candidate(EVIL, EVIL, 1.0, 0.5)  # type: ignore[arg-type]
    words = dict.fromkeys(("target", "target_id", "against", "seed"), EVIL)
    e = replace(
        keys,
        **words,  # type: ignore[arg-type]
        tokens=[EVIL] * 6,
        input_ids=[EVIL] * 6,  # type: ignore[list-item]
        decoder_tokens=[EVIL],
        decoder_ids=[EVIL],  # type: ignore[list-item]
        decoder_relevance=np.ones(1),
        about=dict.fromkeys(("refl", "model", "dtype", "architecture", "task", EVIL), EVIL),
        candidates=[candidate],
        method=MethodFacts(EVIL, EVIL, EVIL, EVIL),
        recorded=Ledger(np.ones(1), 1e-7, [entry]),
        fingerprint=lambda: EVIL,
    )
    for page in (html(e), fragment(e), ledger_fragment(e.ledger), Batch([e])._repr_html_()):
        tags = read(page.partition("</head>")[2].replace("</html>", "") or page).tags
        assert tags.isdisjoint({"meta", "script", "img", "iframe"})
        assert controls(page) == set() and "</td></table><meta" not in page
    for shown in (terminal.text(e), ledger_table(e.ledger), str(e)):
        assert controls(shown) == set()


def test_a_page_is_called_by_its_sentence(keys: Explanation, hostile: Explanation) -> None:
    called = re.search("<title>(.*?)</title>", html(keys))
    assert called and called[1] == "refl: &lt;s&gt; the keys to the cabinet → are · attnlrp"
    wild = re.search("<title>(.*?)</title>", html(hostile))
    assert wild and "<" not in wild[1] and "\x1b" not in wild[1] and len(wild[1]) < 400


def test_both_logits_of_a_contrast_are_shown(model: Any) -> None:
    e = model.explain("the keys to the cabinet", contrast=("are", "is"), keep=())
    other = model.explain("the keys to the cabinet", target="is", keep=())
    for shown in (terminal.text(e, 200), html(e).replace("&#x27;", "'")):
        assert f"'is' has logit {other.logit:.4f}" in shown
    rows = [line.split() for line in terminal.text(e).splitlines() if "against" in line]
    assert ["is", f"{other.logit:.4f}", f"{other.probability:.2%}", "against"] in rows


def test_every_picture_has_a_legend(model: Any, keys: Explanation) -> None:
    contrast = model.explain("the keys", contrast=("are", "is"), keep=())
    for shown in (terminal.text(keys), html(keys).replace("&#x27;", "'")):
        assert "red: for 'are'" in shown and "blue: against 'are'" in shown
    assert "red: for 'are' over 'is'" in terminal.text(contrast)
    norm = terminal.text(model.explain("the keys", method="gradient", keep=()))
    assert "red: how much" in norm and "blue" not in norm


def test_the_shipped_model_says_what_it_knows(keys: Explanation) -> None:
    page = read(html(keys)).text
    assert "All 165 words that it knows" in page and " cabinet " in page and "trained" in page
    other = replace(keys, fingerprint=lambda: "another checkpoint in a folder of this name")
    assert "words that it knows" not in read(html(other)).text


def test_hostile_tokens_are_text_on_the_page(hostile: Explanation) -> None:
    page = read(html(hostile))
    for token in HOSTILE:
        assert printable(token) in page.text
    assert "<b>mine</b>" in page.text and "<i>s</i>" in page.text


def test_a_page_can_be_written_as_utf8(hostile: Explanation) -> None:
    html(hostile).encode("utf-8")


def test_a_long_text_is_shortened_once_through() -> None:
    """By hand: wide characters take two columns, marks none."""
    assert shorten("abcdef", 4) == "abc…"
    assert shorten("日本語", 4) == "日…" and shorten("日本語", 6) == "日本語"
    assert shorten("e\u0301" * 3, 3) == "e\u0301" * 3
    assert shorten("e\u0301" * 4, 3) == "e\u0301" * 2 + "…"
    began = time.perf_counter()
    assert len(shorten("x" * 2_000_000, 80)) == 80
    assert time.perf_counter() - began < 5


# -- pairs of a second-order method ----------------------------------------------------------------


def paired(tokens: list[str]) -> Explanation:
    """Token j adds j - 2 i to the relevance of token i."""
    e: Explanation = refl.load().explain([2, *range(10, 9 + len(tokens))], keep=())
    numbers = np.arange(len(tokens), dtype=np.float64)
    return replace(e, tokens=tokens, pairs=numbers[None, :] - 2 * numbers[:, None])


def test_pairs_are_a_table_with_what_adds_in_the_columns() -> None:
    e = paired(["a", "b", "c", "d"])
    lines = str(e).splitlines()
    at = next(n for n, line in enumerate(lines) if "adds to the relevance of each (row)" in line)
    assert lines[at + 1].split() == ["0", "1", "2", "3"]
    assert lines[at + 3].split() == ["1", "b", "-2.00", "-1.00", "+0.00", "+1.00"]
    cells = re.findall(r'<td class="t \w+" title="(\w) to (\w)">([^<]*)</td>', html(e))
    assert len(cells) == 16 and ("d", "b", "+1.00") in cells and ("b", "d", "-5.00") in cells
    assert "pairs" not in str(refl.load().explain("the keys", keep=()))


@pytest.mark.parametrize("width", [40, 80])
def test_pairs_of_many_tokens_are_the_strongest(width: int) -> None:
    """From the largest in size; of equals the first in the text."""
    e = paired([f"w{n}" for n in range(14)])
    lines = plain(pair_lines(e, width)).splitlines()
    assert " ".join(" ".join(lines[:-12]).split()).endswith("the strongest of 196")
    found = [line.split() for line in lines[-12:]]
    assert found[0] == ["0", "w0", "to", "13", "w13", "-26.0"]
    assert found[1] == ["1", "w1", "to", "13", "w13", "-25.0"]
    assert found[2] == ["0", "w0", "to", "12", "w12", "-24.0"]
    assert max(map(len, lines)) <= width


def test_hostile_tokens_of_pairs_are_escaped() -> None:
    for tokens in (HOSTILE, HOSTILE * 6):
        e = paired(tokens)
        assert controls(terminal.text(e)) == set() and "<script" not in html(e).lower()


def test_pairs_that_are_not_finite_are_shown() -> None:
    e = paired([f"w{n}" for n in range(14)])
    e.pairs[3, 4] = math.nan
    assert "nan" not in terminal.text(e) and "+nan" in html(e)
