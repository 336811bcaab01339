"""What every view of an explanation says, whatever it is drawn on.

The account adds up, as computed and as printed:

    explained = relevance on the input + absorbed on the way, by cause + conservation error
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from refl.explanation import Explanation, Method
from refl.ledger import Ledger
from refl.rules.composites import Composite
from refl.rules.operations import CAUSES
from refl.show.numbers import adding_up, decimals, percent, strongest, total
from refl.show.text import printable

ERROR = "conservation error"
"""The part of the account that is rounding, and nothing else."""

REST = "not recorded"
"""The part of the account that no ledger tells."""

NORM = (
    "Scores are lengths of the propagated gradient: they have no sign and do not add up; the "
    "account below is that of x times gradient."
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
    parts = (
        {ledger.destination: total(ledger.tokens)}
        | {cause: total(a) for cause, a in ledger.absorbed.items()}
        | {ERROR: total(ledger.conservation_error)}
    )
    notes = CAUSES | {
        ledger.destination: f"what reached the {ledger.destination}",
        ERROR: f"{parts[ERROR]:.1e}, rounding ({_rounding(ledger)})",
    }
    return _rows(parts, total(ledger.explained), notes)


def _rounding(ledger: Ledger) -> str:
    """How much of it is expected: a bound where the sweep was audited, else the unit roundoff."""
    if ledger.rounding_bound is None:
        return f"unit {ledger.roundoff:.0e}"
    return f"bound {total(ledger.rounding_bound):.0e}"


def account_of(e: Explanation) -> list[Row]:
    """Of an explanation; where the method keeps no ledger, what reached the input, and the rest."""
    if e.recorded is not None:
        return account(e.recorded)
    where = "tokens" if e.picture is None else "pixels"
    on_input = sum(float(r.sum()) for r in (e.relevance, e.decoder_relevance) if r is not None)
    notes = {where: f"what reached the {where}", REST: "this method keeps no conservation ledger"}
    return _rows({where: on_input, REST: e.explained - on_input}, e.explained, notes)


def _rows(parts: dict[str, float], explained: float, notes: dict[str, str]) -> list[Row]:
    scale = strongest([*parts.values(), explained])
    shown = adding_up(list(parts.values()), explained, decimals(scale, 7))
    return [
        Row(name, value, text, percent(value, explained, scale), note)
        for (name, value), text, note in zip(
            (parts | {"explained": explained}).items(),
            shown,
            [*(notes.get(name, "absorbed") for name in parts), ""],
            strict=True,
        )
    ]


def quantity(e: Explanation) -> str:
    """What the account adds up to, in words."""
    if e.seed == "log-probability":
        return printable(f"log-probability of {e.target!r}, linearized")
    return printable(
        f"softmax-weighted relevance of {e.target!r}" if e.seed == "probability" else e.what
    )


def facts(e: Explanation) -> str:
    """What the model gives the target."""
    if e.seed == "activation":
        return printable(f"{e.target} is {e.logit:.4f}")
    return printable(f"{e.target!r} has logit {e.logit:.4f} and probability {e.probability:.2%}")


def form(method: Composite | Method) -> str:
    """The formulation of a method, as people say it."""
    gradient = method.formulation == "gradient_x_input"
    return "gradient x input form" if gradient else "relevance form"


def described(method: Composite | Method) -> list[str]:
    """Its summary, and of a table that was made from another one what was changed."""
    words = ""
    if isinstance(method, Composite) and method.changes:
        words = f"{method.base} changed: {'; '.join(method.changes)}"
    return [said for said in dict.fromkeys((words, method.summary)) if said]


# -- rows of tokens --------------------------------------------------------------------------------

ENCODER, DECODER = "read by the encoder", "written by the decoder"
"""Names of the two rows of tokens, where there are two."""


def rows_of_tokens(e: Explanation) -> list[tuple[str, Explanation]]:
    """The rows of tokens there are, each as an explanation whose tokens they are,
    and a name where there are two.
    """
    if e.decoder_tokens is None or e.decoder_ids is None:
        return [("", e)]
    decoder = replace(
        e,
        tokens=e.decoder_tokens,
        input_ids=e.decoder_ids,
        relevance=e.decoder_relevance,
        decoder_tokens=e.tokens,
        decoder_ids=e.input_ids,
        decoder_relevance=e.relevance,
    )
    return [(ENCODER, e), (DECODER, decoder)]


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
    return {"class": "class", "image-class": "class", "masked-token": "masked token"}.get(
        e.about.get("task", ""), "next token"
    )


def considered(e: Explanation) -> list[tuple[str, int, float, float, str]]:
    """Token, id, logit and probability of the candidates, and of the target where it is none of
    them, each with what it is here.
    """
    found = [
        (c.token, c.id, c.logit, c.probability, _part_in(e, c.token, c.id)) for c in e.candidates
    ]
    if all(c.id != e.target_id for c in e.candidates):
        found.append((e.target, e.target_id, e.logit, e.probability, "explained"))
    return found


def _part_in(e: Explanation, token: str, number: int) -> str:
    return "explained" if number == e.target_id else "against" if token == e.against else ""
