"""What every view of an explanation says, whatever it is drawn on.

The conservation ledger in sum, `account`, adds up as computed and as printed:

    explained = relevance on the input + absorbed on the way, by cause + conservation error
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from refl.explanation import Candidate, Explanation, MethodFacts
from refl.ledger import CAUSES, Ledger
from refl.rules import operations
from refl.rules.composites import Composite
from refl.show.numbers import adding_up, decimals, each, percent, strongest, total
from refl.show.text import one_line, printable, shorten, visible

ERROR = "conservation error"
"""The part of the account that is rounding, and nothing else."""

REST = "not recorded"
"""The part of the account that no ledger tells."""

APART = (
    "Scores are in a unit of their own and no parts of what is explained: they say what counts "
    "more and what less"
)
RISES = "Scores are rises of the cross-entropy, in nats: they do not add up to what is explained"

LENGTHS = "Scores are lengths of the propagated gradient: they have no sign and do not add up"
LEDGER = "conservation ledger"
CANCELS = 4
"""Parts whose sizes add up to more than so many times the whole cancel: hundredths of what little
is left would say nothing.
"""
NOTABLE = 0.05
"""Of all parts by size: what absorbs as much is explained in a sentence."""
OFFSET = (
    "softmax_offset is no error and no loss: AttnLRP takes softmax by its Taylor expansion, whose "
    "constant part comes from no token, so no token is given it; cp-lrp, which holds attention "
    "weights constant, has none."
)
DIGITS = 5
"""Of the strongest token's score."""
COMPACT = 40
"""More tokens than this are shown in columns, and without numbers under the colored text."""


# -- the account -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One line of the account: a part of what is explained, or, last, the whole."""

    name: str
    amount: float
    shown: str
    percent: str
    note: str


def account(ledger: Ledger) -> list[Row]:
    """On tokens, absorbed by each cause, conservation error, and what they add up to. Sums over the
    examples of a batch.
    """
    reached = ledger.reached or {ledger.destination: ledger.tokens}
    parts = (
        {where: total(amount) for where, amount in reached.items()}
        | {cause: total(a) for cause, a in ledger.absorbed.items()}
        | {ERROR: total(ledger.conservation_error)}
    )
    notes = (
        CAUSES
        | operations.CAUSES
        | {where: f"what reached the {where}" for where in reached}
        | {ERROR: f"{parts[ERROR]:.1e}, {_judged(ledger, parts)}"}
    )
    return _rows(parts, total(ledger.explained), notes)


UNAUDITED = 1e4
"""Roundoffs of the largest sum that an error may have and still be called rounding, where no audit
has bounded it.
"""


def _judged(ledger: Ledger, parts: dict[str, float]) -> str:
    """What a conservation error is: rounding within its bound where the sweep was audited, else
    where it is of the size of roundoff. A ledger that lacks operations has none.
    """
    size, u = abs(parts[ERROR]), ledger.roundoff
    if not ledger.entries:
        return "the ledger has no operation: what became of it is not recorded"
    if ledger.rounding_bound is not None:
        bound = total(ledger.rounding_bound)
        return f"rounding (bound {bound:.0e})" if size <= bound else f"above the bound {bound:.0e}"
    amounts = (*parts.values(), *(float(v) for entry in ledger for v in each(entry.received)))
    if size <= UNAUDITED * u * strongest(amounts):
        return f"rounding (unit {u:.0e})"
    return f"more than rounding in units of {u:.0e} accounts for: audit=True bounds it"


def account_of(e: Explanation) -> list[Row]:
    """Of an explanation; where the method keeps no ledger, what reached the input, and the rest;
    where its scores are in another unit, what is explained alone.
    """
    if e.recorded is not None:
        return account(e.recorded)
    if unit(e) in ("own", "nat"):
        shown = f"{e.explained:.{decimals(abs(e.explained), 7)}f}"
        return [Row("explained", e.explained, shown, "", "")]
    where = "tokens" if e.picture is None else "pixels"
    where = "pixels and tokens" if row_of_decoder(e) is not None else where
    on_input = sum(float(r.sum()) for r in (e.relevance, e.decoder_relevance) if r is not None)
    reached = f"what reached the {where}"
    words = "absorbed on the way, and rounding: this method keeps no ledger to tell them apart"
    if e.method.formulation == "attribution":
        reached = f"the scores of the {where}, summed"
        words = "what the scores do not add up to: this method keeps no ledger to say why"
    notes = {where: reached, REST: words}
    return _rows({where: on_input, REST: e.explained - on_input}, e.explained, notes)


def unit(e: Explanation) -> str:
    """Of the scores (MethodFacts): that of a table is what is explained, linearized."""
    return e.method.unit if isinstance(e.method, MethodFacts) else "linearized"


def sums_name(e: Explanation) -> str:
    """What the account is called."""
    return f"{'No' if e.recorded is None else 'The'} {LEDGER}"


def _rows(parts: dict[str, float], explained: float, notes: dict[str, str]) -> list[Row]:
    shown = adding_up(
        list(parts.values()), explained, decimals(strongest([*parts.values(), explained]), 7)
    )
    whole = explained if _times(parts.values(), explained) <= CANCELS else math.nan
    return [
        Row(name, value, text, percent(value, whole), note)
        for (name, value), text, note in zip(
            (parts | {"explained": explained}).items(),
            shown,
            [*(notes.get(name, "absorbed") for name in parts), ""],
            strict=True,
        )
    ]


def _times(parts: Iterable[float], explained: float) -> float:
    """How many times the whole the parts have together, by size."""
    size = math.fsum(abs(v) for v in parts if math.isfinite(v))
    return size / abs(explained) if explained else math.inf


def remarks(rows: Sequence[Row]) -> list[str]:
    """What a reader of the account would ask, in a sentence each."""
    parts = {row.name: row.amount for row in rows[:-1]}
    size = math.fsum(abs(v) for v in parts.values() if math.isfinite(v))
    offset, times = abs(parts.get("softmax_offset", 0.0)), _times(parts.values(), rows[-1].amount)
    said = [OFFSET] if offset > NOTABLE * size else []
    if times > CANCELS and size:
        much = f"{times:.0f} times the sum" if times < 1e6 else "far more than the sum"
        said.append(
            f"Amounts, and no percentages: the parts have both signs and cancel. By size they are "
            f"{much}, so hundredths of it would say nothing."
        )
    return said


def quantity(e: Explanation) -> str:
    """What the account adds up to, in words. A method without rules explains the number itself,
    but for those that linearize it as rules do.
    """
    if e.method.formulation == "attribution" and unit(e) != "linearized":
        return printable(e.what)
    if e.seed == "log-probability" or (e.seed == "cosine" and _differentiates(e)):
        return printable(f"{e.what}, linearized")
    if e.seed == "probability":
        of = repr(e.target) if e.span is None else f"the {e.what}"
        return printable(f"softmax-weighted relevance of {of}")
    return printable(e.what)


def _differentiates(e: Explanation) -> bool:
    return isinstance(e.method, Composite) and e.method.differentiates


def is_number(e: Explanation) -> bool:
    """Whether what is explained is a number without rivals: of a neuron, of features."""
    return e.seed in ("activation", "coordinate", "cosine")


def of_lengths(e: Explanation) -> str:
    """What scores are that have no sign, or are no parts of what is explained; else nothing."""
    if e.method.score != "norm":
        return _apart(e)
    ledger = f"; the {LEDGER} below is that of x times gradient" if e.recorded is not None else ""
    return f"{LENGTHS}{ledger}."


def _apart(e: Explanation) -> str:
    """What scores in another unit are."""
    if unit(e) == "nat":
        return f"{RISES}."
    return f"{APART}." if unit(e) == "own" else ""


def facts(e: Explanation) -> str:
    """What the model gives the target."""
    if e.seed == "activation":
        return printable(f"{e.target} is {e.logit:.4f}")
    if is_number(e):
        return printable(f"{e.what} is {e.logit:.4f}")
    if e.answer is not None:
        said = f"{e.target!r}, {len(e.answer)} token{'s' * (len(e.answer) > 1)}, has"
        return printable(f"{said} log-probability {in_all(e.answer):.4f} ({e.probability:.3g})")
    both = e.span is not None and None not in e.span
    said = f"{e.target!r} has {'start + end ' if both else ''}logit {e.logit:.4f}"
    if not math.isnan(e.probability):
        said += f" and probability {e.probability:.2%}"
    if e.against is not None:
        said += f", {e.against!r} has logit {_against_logit(e):.4f}"
    return printable(said)


def in_all(tokens: Sequence[Candidate]) -> float:
    """The log-probability of tokens behind each other."""
    return math.fsum(math.log(t.probability) if t.probability else -math.inf for t in tokens)


def _against_logit(e: Explanation) -> float:
    """The second logit of a contrast; files of refl 0.2 and before say the difference alone."""
    return e.logit - e.explained if e.against_logit is None else e.against_logit


def in_percent(p: float) -> str:
    """A probability; nothing where there is none."""
    return "" if math.isnan(p) else f"{p:.2%}"


def legend(e: Explanation) -> tuple[str, str]:
    """What the two colors say: red, to the right of the axis, and blue, to its left."""
    if e.method.score == "norm":
        return "red: how much the output depends on it", ""
    if unit(e) == "own":
        return "red: above 0", "blue: below 0"
    if e.against is not None:
        a, b = (shorten(visible(token), 24) for token in (e.target, e.against))
        return f"red: for {a!r} over {b!r}", f"blue: for {b!r} over {a!r}"
    what = "it" if is_number(e) else repr(shorten(visible(e.target), 24))
    return f"red: for {what}", f"blue: against {what}"


def title(e: Explanation) -> str:
    """What a page is called: the input, what it explains, and the method."""
    words = joiner(e.tokens).join(e.tokens) if e.picture is None else e.about.get("model", "")
    names = e.target if e.against is None else f"{e.target} rather than {e.against}"
    return f"{shorten(one_line(words), 80)} → {shorten(one_line(names), 40)} · {e.method.title}"


def form(method: Composite | MethodFacts) -> str:
    """The formulation of a method, as people say it."""
    if method.formulation == "attribution":
        return "no table of rules"
    gradient = method.formulation == "gradient_x_input"
    return "gradient x input form" if gradient else "relevance form"


def described(method: Composite | MethodFacts) -> list[str]:
    """Its summary, and of a table that was made from another one what was changed."""
    words = ""
    if isinstance(method, Composite) and method.changes:
        words = f"{method.base} changed: {'; '.join(method.changes)}"
    return [said for said in dict.fromkeys((words, method.summary)) if said]


# -- rows of tokens --------------------------------------------------------------------------------

ENCODER, DECODER = "read by the encoder", "written by the decoder"
"""Names of the two rows of tokens, where there are two."""
PROMPT, ANSWER = "the prompt", "the answer itself, for those of its tokens that come later"
"""Of the rows of a text whose answer is explained."""


COMPARED = "compared with the picture"
"""Of a text that is."""


def leads_on(e: Explanation, name: str) -> bool:
    """Whether the explained output follows the row of tokens of this name."""
    return name not in (ENCODER, ANSWER) and e.texts is None


def rows_of_tokens(e: Explanation) -> list[tuple[str, Explanation]]:
    """The rows of tokens there are, each as an explanation whose tokens they are,
    and a name where there are two.
    """
    if e.texts is not None:
        # drawn to the scale of all texts; those that nothing reached are not drawn
        rows = [replace(row, decoder_relevance=e.relevance) for row in e.of_texts]
        reached = [row for row in rows if any(row.relevance)] or rows[:1]
        return [(COMPARED, row) for row in reached]
    if e.decoder_tokens is None or e.decoder_ids is None:
        return [("", e)] if e.answer is None else _with_answer(e, PROMPT)
    decoder = replace(
        e,
        tokens=e.decoder_tokens,
        input_ids=e.decoder_ids,
        relevance=e.decoder_relevance,
        decoder_tokens=e.tokens,
        decoder_ids=e.input_ids,
        decoder_relevance=e.relevance,
    )
    return [
        (ENCODER, e),
        *([(DECODER, decoder)] if e.answer is None else _with_answer(decoder, DECODER)),
    ]


def _with_answer(e: Explanation, name: str) -> list[tuple[str, Explanation]]:
    """The row up to the answer, and the answer. What is not in a row is beside it, as the scale of
    its colors is that of all.
    """
    start = len(e.tokens) - len(e.answer or ())
    return [
        (name, _cut(e, slice(0, start), slice(start, None))),
        (ANSWER, _cut(e, slice(start, None), slice(0, start))),
    ]


def _cut(e: Explanation, part: slice, rest: slice) -> Explanation:
    beside = [] if e.decoder_relevance is None else list(e.decoder_relevance)
    return replace(
        e,
        tokens=e.tokens[part],
        input_ids=e.input_ids[part],
        relevance=e.relevance[part],
        decoder_relevance=[*e.relevance[rest], *beside],
    )


def row_of_decoder(e: Explanation) -> Explanation | None:
    """Of a picture about which a decoder has written: what it has, as an explanation of its own."""
    if e.picture is None or e.decoder_tokens is None or e.decoder_ids is None:
        return None
    return replace(
        e,
        tokens=e.decoder_tokens,
        input_ids=e.decoder_ids,
        relevance=e.decoder_relevance,
        word_starts=e.decoder_word_starts,
        picture=None,
        patch=None,
        decoder_tokens=None,
        decoder_ids=None,
        decoder_relevance=None,
        decoder_word_starts=None,
    )


def all_scores(e: Explanation) -> list[float]:
    """The relevance of every token: rows that stand beside each other are drawn to one scale."""
    return [float(r) for row in (e.relevance, e.decoder_relevance) if row is not None for r in row]


def scores(e: Explanation) -> list[str]:
    """The relevance of each token as it is printed."""
    places = decimals(strongest(all_scores(e)), DIGITS)
    sign = "" if e.method.score == "norm" else "+"
    return [f"{float(r):{sign}.{places}f}" for r in e.relevance]


def joiner(tokens: Sequence[str]) -> str:
    """What stands between tokens: nothing where they bring their own blanks, else one."""
    return "" if any(t[:1].isspace() or t[-1:].isspace() for t in tokens) else " "


# -- candidates ------------------------------------------------------------------------------------


def outputs(e: Explanation) -> str:
    """What the candidates are."""
    if e.answer is not None:
        return "token of the answer"
    if e.span is not None:
        return "answer" if None not in e.span else "start" if e.span[1] is None else "end"
    return OUTPUTS.get(e.about.get("task", ""), "next token")


OUTPUTS = {"masked-token": "masked token", "similarity": "text"} | dict.fromkeys(
    ("class", "image-class", "token-class"), "class"
)
"""Task -> what the candidates are; elsewhere next tokens."""


def considered(e: Explanation) -> list[tuple[str, int | str, float, float, str]]:
    """Token, id, logit and probability of the candidates, and of the target and what it is
    contrasted with where they are none of them, each with what it is here.
    """
    if e.answer is not None:
        return [(c.token, c.id, c.logit, c.probability, "") for c in e.answer]
    found: list[tuple[str, int | str, float, float, str]] = [
        (c.token, _numbered(e, c.id), c.logit, c.probability, _part_in(e, c.token, c.id))
        for c in e.candidates
    ]
    if all(c.id != e.target_id for c in e.candidates):
        number = _numbered(e, e.target_id)
        found.append((e.target, number, e.logit, e.probability, "explained"))
    if e.against is not None and all(c.token != e.against for c in e.candidates):
        other = _against_logit(e)
        found.append((e.against, "", other, _against_probability(e, other), "against"))
    return found


def _numbered(e: Explanation, number: int) -> int | str:
    """The id of a candidate; of an answer its tokens, from and to."""
    if e.span is None or None in e.span:
        return number
    start, end = divmod(number, len(e.tokens))
    return f"{start}–{end}"


def _against_probability(e: Explanation, logit: float) -> float:
    """By the softmax that gives the target its own, or by a sigmoid, which asks for no other."""
    if e.about.get("probability") == "sigmoid":
        return 1 / (1 + math.exp(min(-logit, 700.0)))
    return e.probability * math.exp(min(logit - e.logit, 700.0))


def names_of_columns(e: Explanation) -> tuple[str, str, str, str, str]:
    """Of the table of candidates."""
    none = all(math.isnan(p) for _, _, _, p, _ in considered(e))
    return outputs(e), "id" if e.span is None else "at", "logit", "" if none else "probability", ""


def _part_in(e: Explanation, token: str, number: int) -> str:
    return "explained" if number == e.target_id else "against" if token == e.against else ""
