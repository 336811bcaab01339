"""Pictures of lessons 6 and 7, drawn from the engine's numbers: what of a logit is left below each
block, and one block with what every site hands down.

Bands and bars are as wide as their relevance. `PICTURES` has each by the name of its file;
refl.verification.quality.lesson_pictures writes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain

import refl
from refl.explanation import Explanation
from refl.ledger import Ledger
from refl.show.colors import NEGATIVE, POSITIVE, Color
from refl.show.drawing import Box, Curve, Drawing, Part, Words, svg, width

TEXT = "the keys to the cabinet"
SIZE = 9.0
ABSORBED: Color = (150, 150, 155)
PALE: Color = (215, 215, 220)


@cache
def explanation() -> Explanation:
    """That of lessons 6 and 7."""
    found: Explanation = refl.load(dtype="float64").explain(TEXT)
    return found


# -- lesson 6: the logit, block by block -----------------------------------------------------------

LEFT, TOP, ROW, BAR = 96.0, 34.0, 26.0, 14.0
PER_UNIT = 25.0
"""Points for a relevance of 1."""


@dataclass(frozen=True)
class Step:
    """What is handed on below a block, and what was absorbed in it."""

    name: str
    left: float
    absorbed: float


def steps(ledger: Ledger) -> Iterator[Step]:
    """From the logit down; the stabilizer's part is too small to be drawn."""
    left = float(ledger.explained)
    yield Step("logit", left, 0.0)
    for entry in ledger:
        if entry.operation == "softmax":
            absorbed = float(entry.absorbed["softmax_offset"])
            left -= absorbed
            yield Step("block " + entry.site.split(".")[2], left, absorbed)
    yield Step("tokens", float(ledger.tokens), 0.0)


def softmax_keeps_half() -> str:
    """A bar for each block: what is handed on, and beside it what its softmax kept."""
    every = list(steps(explanation().ledger))
    rows = chain.from_iterable(_row(step, TOP + i * ROW) for i, step in enumerate(every))
    head = (
        Words(6, 14, "relevance handed on", SIZE, POSITIVE[-1], bold=True),
        Words(136, 14, "softmax offset, absorbed in the block", SIZE, (95, 95, 100), bold=True),
    )
    height = TOP + len(every) * ROW
    title = "The logit of 'are', block by block: what is handed on and what softmax keeps"
    return svg(Drawing(468, height, (*head, *rows), title))


def _row(step: Step, y: float) -> Iterator[Part]:
    """A block that hands on more than it received has its offset, less than 0, inside the bar."""
    wide, beside = step.left * PER_UNIT, abs(step.absorbed) * PER_UNIT
    right = wide + max(step.absorbed, 0) * PER_UNIT
    yield Words(6, y + 10, step.name, SIZE)
    yield Box(LEFT, y, wide, BAR, POSITIVE[1])
    yield Box(LEFT + right - beside, y, beside, BAR, ABSORBED if step.absorbed > 0 else NEGATIVE[2])
    yield Words(LEFT + 4, y + 10, f"{step.left:.2f}", SIZE, bold=step.name in ("logit", "tokens"))
    if step.absorbed:
        yield Words(LEFT + right + 4, y + 10, f"{step.absorbed:+.2f}", SIZE)


# -- lesson 7: a block upside down -----------------------------------------------------------------

BLOCK, BELOW = "model.layers.3", "model.layers.2"
SCALE, THICK, SPINE = 5.0, 13.0, 116.0
"""Points for a relevance of 1; height of a bar; left end of what stands on the residual stream."""


@dataclass(frozen=True)
class Site:
    """A site of the block, and the upper left corner of its bar."""

    label: str
    name: str
    x: float
    y: float
    leftward: bool = False
    """Its label stands to the left."""


SITES = {
    "out": Site("out = m + mlp: splits", BLOCK, SPINE, 14),
    "down": Site("down", ".mlp.down_proj", 190, 78),
    "gated": Site("product: halves", ".mlp.gated", 190, 122),
    "gate": Site("gate", ".mlp.gate_proj", 172, 176),
    "up": Site("up", ".mlp.up_proj", 262, 176),
    "norm2": Site("RMSNorm: adds up, identity", ".post_attention_layernorm", 190, 230),
    "m": Site("m = h + attention: adds up, splits", ".residual", SPINE, 294),
    "o": Site("o_proj", ".self_attn.o_proj", 200, 358),
    "context": Site("p v, a product: halves", ".self_attn.context", 200, 402),
    "p": Site("softmax", ".self_attn.probabilities", 316, 458),
    "scores": Site("q k: halves", ".self_attn.scores", 316, 512, leftward=True),
    "v": Site("v", ".self_attn.v_proj", 200, 556),
    "q": Site("q", ".self_attn.q_proj", 276, 556),
    "k": Site("k", ".self_attn.k_proj", 328, 556),
    "norm1": Site("RMSNorm: adds up, identity", ".input_layernorm", 200, 606),
    "h": Site("h, the block's input: adds up", BELOW, SPINE, 660),
}
EDGES = (
    *("out m residual", "out down mlp.down_proj", "down gated mlp.gated"),
    *("gated gate mlp.act_fn", "gated up mlp.up_proj"),
    *("gate norm2 post_attention_layernorm", "up norm2 post_attention_layernorm"),
    *("norm2 m residual", f"m h {BELOW}", "m o self_attn.o_proj"),
    *("o context self_attn.context.merged", "context v self_attn.value.repeated"),
    *("context p self_attn.probabilities", "p scores self_attn.scores"),
    *("scores q self_attn.query.scaled", "scores k self_attn.key.transposed"),
    *("v norm1 input_layernorm", "q norm1 input_layernorm", "k norm1 input_layernorm"),
    f"norm1 h {BELOW}",
)
"""From which site to which, and the name under which the ledger has what was passed on; from left
to right at every site.
"""
OFFSET = 372.0, 526.0
"""Upper left corner of the bar of what softmax keeps."""


def a_block_upside_down() -> str:
    """The block from its output down, bands as wide as what was passed on."""
    ledger = explanation().ledger
    bars = chain.from_iterable(_bar(site, ledger) for site in SITES.values())
    parts = (*_bands(ledger), *_offset(ledger), *_around(ledger), *bars)
    title = "Block 3 upside down: relevance from its output to its input"
    return svg(Drawing(468, 686, parts, title))


def _full(name: str) -> str:
    return name if name in (BLOCK, BELOW) else f"{BLOCK}.{name.removeprefix('.')}"


def _passed(ledger: Ledger, key: str, name: str) -> float:
    return float(ledger[_full(SITES[key].name)].passed[_full(name)])


def _bands(ledger: Ledger) -> Iterator[Part]:
    """Bands leave a bar side by side, and arrive so."""
    leaving = {key: site.x for key, site in SITES.items()}
    arriving = dict(leaving)
    for upper, lower, name in map(str.split, EDGES):
        wide = _passed(ledger, upper, name) * SCALE
        start = leaving[upper] + wide / 2, SITES[upper].y + THICK
        yield Curve(*start, arriving[lower] + wide / 2, SITES[lower].y, wide, POSITIVE[1])
        leaving[upper] += wide
        arriving[lower] += wide


def _bar(site: Site, ledger: Ledger) -> Iterator[Part]:
    received = float(ledger[_full(site.name)].received)
    wide = received * SCALE
    yield Box(site.x, site.y, wide, THICK, POSITIVE[2])
    said = f"{received:.2f} {site.label}"
    x = site.x - 4 - width(said, SIZE) if site.leftward else site.x + wide + 4
    yield Words(x, site.y + 10, said, SIZE)


def _offset(ledger: Ledger) -> Iterator[Part]:
    """What softmax keeps, which goes to the ledger and no farther."""
    softmax, (x, y) = SITES["p"], OFFSET
    absorbed = float(ledger[_full(softmax.name)].absorbed["softmax_offset"])
    wide = absorbed * SCALE
    start = softmax.x + _passed(ledger, "p", ".self_attn.scores") * SCALE + wide / 2
    yield Curve(start, softmax.y + THICK, x + wide / 2, y, wide, PALE)
    yield Box(x, y, wide, THICK, ABSORBED)
    yield Words(x + wide + 4, y + 10, f"{absorbed:.2f} absorbed", SIZE)
    yield Words(x + wide + 4, y + 21, "(offset)", SIZE)


def _around(ledger: Ledger) -> Iterator[Part]:
    """What goes down the residual stream beside the MLP, and beside attention."""
    for key, name, beside, y in (("out", ".residual", "mlp", 150), ("m", BELOW, "attention", 480)):
        for line, said in enumerate((f"{_passed(ledger, key, name):.2f} around", beside)):
            yield Words(SPINE - 6 - width(said, SIZE), y + 11 * line, said, SIZE)


PICTURES: dict[str, Callable[[], str]] = {
    "softmax_keeps_half": softmax_keeps_half,
    "a_block_upside_down": a_block_upside_down,
}
