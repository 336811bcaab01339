"""The page of a walk, driven in a headless Chromium without a network: every stop, every number,
every planted mistake, keys, addresses, questions, colors, sizes and hostile words.

What it must show is worked out in Python: engine numbers (an Explanation that keeps every site),
the engine's rules on the numbers that stand in the page (tests/support/walk_rules.py), mistakes
from their definitions. A number is right if it is Python's format(x, ".5g").
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsers import Watched, browser, watched
from checkpoints import checkpoint
from walk_pages import ATTACKS, METHODS, Told, hostile_folder, random_walk
from walk_rules import MISTAKES, Site, red

import refl
from refl.verification.random_models import LLAMA, random_model
from refl.walk import walk

pytestmark = pytest.mark.needs("playwright")

TEXT = "the keys to the cabinet"
FORWARD = 2.0**-36
"""Of an activation in a page."""
SWEEP = 2.0**-28
"""Of what is propagated there."""
WORKS = {
    *("linear", "add", "multiply", "matmul", "softmax", "rms_norm", "layer_norm", "activation"),
    *("scale", "rotary", "movement", "embedding", "learned", "source", "pooling"),
}
"""Operations that a page works out by itself."""
WORKED = 2.0**-36
"""Of a sum of relevance that both sides form of the same numbers: 2^17 roundings, for a rule
divides by sums that may cancel."""


# -- pages -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Opened:
    """A walk, the file of its page, and who opens it."""

    told: Told
    file: Path
    window: Watched

    def open(self, address: str = "") -> Opened:
        self.window.open(self.file, address)
        return self

    @property
    def page(self) -> Any:
        return self.window.page

    @property
    def count(self) -> int:
        return len(self.told.stops)

    def evaluate(self, script: str, *argument: Any) -> Any:
        return self.window.evaluate(script, *argument)

    def go(self, index: int, direction: str = "sweep", method: str = "") -> Opened:
        self.evaluate(
            "([index, direction, method]) => { if (method) walk.setMethod(method);"
            " walk.go(index, direction); }",
            [index, direction, method],
        )
        return self

    def shown(self) -> dict[str, Any]:
        found: dict[str, Any] = self.evaluate(f"() => ({COLLECT})()")
        return found

    def walked(self, positions: list[int], method: str) -> list[dict[str, Any]]:
        """What is shown at each of these positions."""
        found: list[dict[str, Any]] = self.evaluate(
            "([positions, method]) => { walk.setMethod(method); const n = walk.data.stops.length;"
            " return positions.map((p) => {"
            "  walk.go(p < n ? p : 2 * n - 1 - p, p < n ? 'forward' : 'sweep');"
            f"  return ({COLLECT})(); }}); }}",
            [positions, method],
        )
        return found

    def first(self, operation: str, function: str = "", m: int = 0) -> int:
        """The sweep's first stop of an operation, by a rule's function where it is said."""
        for stop in reversed(self.told.stops):
            rule = stop["rules"][m]
            if stop["operation"] == operation and rule and function in ("", rule["function"]):
                return int(stop["index"])
        raise LookupError(operation)


COLLECT = """() => {
  const all = (query, node = document) => [...node.querySelectorAll(query)];
  const text = (query, node = document) => node.querySelector(query)?.textContent ?? null;
  const stop = document.getElementById("stop");
  return {
    stop: Number(stop.dataset.stop), direction: stop.dataset.direction,
    method: stop.dataset.method, operation: stop.dataset.operation, address: location.hash,
    current: all('#spine a[aria-current="step"]').map((a) => Number(a.dataset.stop)),
    said: text("#said"), count: text(".count", stop),
    grids: Object.fromEntries(all("[data-grid]", stop).map((grid) => [grid.dataset.grid, {
      scale: all(".scale > .num", grid).map((node) => node.textContent),
      sum: text(".total .num", grid), chosen: text(".readout .num", grid),
    }])),
    ledger: all("[data-part]", stop).map((cell) => ({...cell.dataset, text: cell.textContent})),
    closing: stop.querySelector(".closing")?.classList[1] ?? null,
    closing_text: text(".closing", stop),
    total: text('[data-worked="total"]', stop), engine: text('[data-worked="engine"]', stop),
    head: all(".worked thead th", stop).map((cell) => cell.textContent),
    rows: all(".worked table.terms tbody tr", stop).map((row) => ({
      kind: row.className, at: row.firstElementChild.textContent,
      cells: [...row.children].slice(1).map((cell) => cell.textContent)})),
    fan: all(".fan-in td", stop).map((cell) => cell.textContent),
    bar: all("[data-bar]").map((node) => [node.dataset.bar, text(".num", node)]),
    explained: text("#bar .whole .num"),
    methods: all(".methods tbody tr", stop).map((row) =>
      all("td.num", row).map((cell) => cell.textContent)),
    rule: stop.querySelector("[data-rule]")?.dataset.rule ?? null,
    equations: all("[data-equation] math", stop).length,
    element: stop.dataset.element ?? null,
  };
}"""


@pytest.fixture(scope="module")
def chrome() -> Iterator[Any]:
    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def window(chrome: Any) -> Watched:
    return watched(chrome, viewport={"width": 1200, "height": 800})


@pytest.fixture(autouse=True)
def nothing_to_complain_of(window: Watched) -> Iterator[None]:
    """After every test: no error in the console, no request, no dialog."""
    yield
    window.quiet()


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory, window: Watched) -> Callable[[str], Opened]:
    """By name: shipped, or a random model of an architecture."""
    known: dict[str, Opened] = {}
    folder = tmp_path_factory.mktemp("walks")

    def open_one(name: str) -> Opened:
        if name not in known:
            file = folder / f"{name}.html"
            told = MADE[name]() if name in MADE else Told(*random_walk(name))
            file.write_text(told.html, encoding="utf-8")
            known[name] = Opened(told, file, window)
        return known[name].open()

    return open_one


def shipped() -> Told:
    model = refl.load(dtype="float64")
    return Told(model, walk(model, TEXT), TEXT)


def small() -> Told:
    """One block, three tokens, few enough stops to press a key at each."""
    model = random_model(LLAMA | {"num_hidden_layers": 1}, 1)
    return Told(model, walk(model, [3, 1, 8]), [3, 1, 8])


MADE = {"shipped": shipped, "small": small}


Open = Callable[[str], Opened]
At = dict[str, Any]
"""What is shown at a stop."""


# -- numbers as they are shown ---------------------------------------------------------------------


def shown(x: float) -> str:
    return format(float(x), ".5g")


def shows(text: str | None, x: float, slack: float = 0.0) -> bool:
    """A number in five digits that is x, or as far from it as `slack` allows."""
    if text is None:
        return False
    if text in (shown(x), shown(x - slack), shown(x + slack)):
        return True
    low, high = float(shown(x - slack)), float(shown(x + slack))
    return shown(float(text)) == text and low <= float(text) <= high


def last_place(text: str) -> float:
    """Half a unit of the fifth digit."""
    x = abs(float(text))
    return 0.5 * 10.0 ** (math.floor(math.log10(x)) - 4) if x else 0.0


@pytest.mark.parametrize("seed", [0, 1])
def test_digits_are_pythons(opened: Open, seed: int) -> None:
    """Exact ties in the fifth digit go to the even one."""
    random = np.random.default_rng(seed)
    bits = random.integers(0, 2**64, 400, dtype=np.uint64).view(np.float64)
    ties = [
        (2 * n + 1) / 2**k * 10**p for n in (0, 1, 50000, 61728) for k in (1, 3) for p in (0, 4)
    ]
    plain = [0.0, -0.0, 1.0, -1.0, 99999.5, 100000.0, 0.0001, 0.00001, 123456.0, 5e-324, 1e308]
    odd = [12344.5, 12345.5, 0.999995, 9.99995, 1e-5, 99999.49999, -2.5e-5, 1 / 3, 1e21, 1e22]
    spread = random.standard_normal(400) * 10.0 ** random.integers(-12, 12, 400)
    numbers = [x for x in [*bits, *ties, *plain, *odd, *spread] if math.isfinite(x)]
    found = opened("llama").evaluate("(numbers) => numbers.map(walk.digits)", numbers)
    assert found == [shown(x) for x in numbers]


# -- every stop, by keys ---------------------------------------------------------------------------


def positions_of(count: int) -> list[tuple[int, str]]:
    """Forward through the net, then back down in the sweep's order."""
    return [(n, "forward") for n in range(count)] + [(n, "sweep") for n in reversed(range(count))]


def where(o: Opened) -> tuple[int, str]:
    stop, direction = o.evaluate(
        "() => [document.getElementById('stop').dataset.stop,"
        " document.getElementById('stop').dataset.direction]"
    )
    return int(stop), direction


def test_the_arrow_keys_alone_lead_there_and_back(opened: Open) -> None:
    """Keys are pressed, one by one, through the whole walk; one more at either end does nothing."""
    o = opened("small")
    expected = positions_of(o.count)
    found = [where(o)]
    for _ in expected:
        o.page.keyboard.press("ArrowRight")
        found.append(where(o))
    assert found == [*expected, expected[-1]]
    back = []
    for _ in expected:
        back.append(where(o))
        o.page.keyboard.press("ArrowLeft")
    assert back == expected[::-1] and where(o) == expected[0]


def test_every_stop_of_the_shipped_model_by_keys(opened: Open) -> None:
    """The same event, sent in the page: 216 positions, each with its address and its mark in the
    spine.
    """
    o = opened("shipped")
    assert o.count == 108
    found = o.evaluate("""() => {
      const press = (key) => document.body.dispatchEvent(
        new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true}));
      const here = () => {
        const {stop, direction} = document.getElementById("stop").dataset;
        const current = [...document.querySelectorAll('#spine a[aria-current="step"]')];
        return [Number(stop), direction, location.hash, current.map((a) => a.dataset.stop).join()];
      };
      const there = [here()];
      for (let n = 1; n < 2 * walk.data.stops.length; n++) {
        press("ArrowDown");
        there.push(here());
      }
      return there;
    }""")
    expected = [[n, way, f"#{way}/{n}", str(n)] for n, way in positions_of(o.count)]
    assert found == expected


def test_other_keys(opened: Open) -> None:
    o = opened("llama")
    press = o.page.keyboard.press
    last = o.count - 1
    press("End")
    assert where(o) == (0, "sweep")
    press("Home")
    assert where(o) == (0, "forward")
    blocks = o.told.data["blocks"]
    press("PageDown")
    assert where(o) == (blocks[0]["first"], "forward")
    press("Shift+ArrowRight")
    assert where(o) == (blocks[1]["first"], "forward")
    press("PageUp")
    assert where(o) == (blocks[0]["first"], "forward")
    for _ in range(3):
        press("PageDown")
    assert where(o) == (last, "sweep")
    press("PageDown")
    assert where(o) == (blocks[1]["last"], "sweep")
    for method in (*METHODS[1:], METHODS[0]):
        press("m")
        assert o.evaluate("() => document.getElementById('stop').dataset.method") == method
    press("?")
    assert o.evaluate("() => document.getElementById('help').open")
    press("Escape")
    assert not o.evaluate("() => document.getElementById('help').open")
    o.page.wait_for_function("() => !document.activeElement.closest('dialog')")
    press("p")
    assert o.evaluate("() => walk.state.predict")
    press("p")
    assert not o.evaluate("() => walk.state.predict")


def test_keys_that_are_anothers(opened: Open) -> None:
    """In a select, a slider or a grid an arrow key is theirs; Escape leaves a grid."""
    o = opened("llama")
    o.go(o.first("linear", "epsilon"))
    before = where(o)
    for query in ("#mistake", "#eps", '[data-grid="passed-0"] .panes'):
        o.page.focus(query)
        o.page.keyboard.press("ArrowDown" if query == "#mistake" else "ArrowRight")
        assert where(o) == before, query
    chosen = o.evaluate("() => walk.state.element")
    assert chosen is not None
    o.page.keyboard.press("Escape")
    o.page.keyboard.press("ArrowRight")
    assert where(o) == (before[0] - 1, "sweep")
    o.evaluate("() => walk.plant(null)")


def test_all_that_can_be_used_is_reached_with_tab(opened: Open) -> None:
    """Every button, select, slider, link and grid of a sweep stop, each grid as one stop."""
    o = opened("llama")
    o.go(o.first("linear", "epsilon"))
    query = "button, select, input, a[href], summary, .panes"
    wanted = o.evaluate(
        f"""() => [...document.querySelectorAll('{query}')].filter((node) =>
          !node.disabled && node.checkVisibility()).map((node, n) => {{ node.dataset.seen = n;
          return n; }})"""
    )
    met = set()
    for _ in range(len(wanted) + 40):
        o.page.keyboard.press("Tab")
        met.add(o.evaluate("() => Number(document.activeElement?.dataset.seen ?? -1)"))
    assert set(wanted) <= met


# -- every number ----------------------------------------------------------------------------------


class Checker:
    """What a page shows at a stop against what it must show; every difference is written down."""

    def __init__(self, o: Opened) -> None:
        self.told = o.told
        self.wrong: list[str] = []
        self.numbers = 0

    def check(self, what: str, at: At, text: str | None, x: float, slack: float) -> None:
        self.numbers += 1
        if not shows(text, x, slack):
            where = f"{at['direction']}/{at['stop']} ({at['operation']}, {at['method']})"
            self.wrong.append(f"{where} {what}: {text!r}, not {shown(x)} +- {slack:.2g}")

    def grid(self, at: At, hook: str, x: Any, relative: float, more: float = 0) -> None:
        """Sum, scale, and the chosen element: by itself the one of the largest amount. `more`:
        what an element is off by besides.
        """
        found = at["grids"].get(hook)
        if found is None:
            self.wrong.append(f"{at['direction']}/{at['stop']}: no grid {hook}")
            return
        visible = self.visible(at, x, hook)
        most = float(np.abs(visible).max())
        slack = relative * most + more
        self.check(
            f"{hook} sum", at, found["sum"], x.sum(), relative * np.abs(x).sum() + x.size * more
        )
        self.check(f"{hook} scale", at, found["scale"][0], -most, slack)
        self.check(f"{hook} scale", at, found["scale"][1], most, slack)
        chosen = found["chosen"]
        ties = x.reshape(-1)[np.abs(x).reshape(-1) >= most - 4 * slack]
        if chosen != "masked" and not any(shows(chosen, v, slack) for v in ties):
            self.check(f"{hook} chosen", at, chosen, ties[0], slack)

    def visible(self, at: At, x: Any, hook: str) -> Any:
        """What a mask hides has no part in the scale."""
        mask = self.told.stops[at["stop"]]["attributes"].get("mask")
        if mask is None or hook not in ("output", "received"):
            return x
        return np.where(self.told.arrays.array(mask, x.shape) == 1, x, 0.0)

    def forward(self, at: At) -> None:
        stop = self.told.stops[at["stop"]]
        e = self.told.explanations[0]
        for k, operand in enumerate(stop["operands"]):
            if operand is None:
                continue
            x = self.told.operand(operand)
            if "value" in operand:
                x = e.activation(self.told.value(operand)["site"])
            self.grid(at, f"operand-{k}", x, FORWARD)
        z = e.activation(stop["site"])
        self.grid(at, "output", z, FORWARD)
        if at["total"] is None:
            return
        i = int(
            np.abs(self.visible(at, self.told.arrays.value(self.output(stop)), "output")).argmax()
        )
        # of numbers that are each rounded to 36 bits: the engine's own z is exact to that
        self.check("worked, engine", at, at["engine"], z.flat[i], FORWARD * abs(z.flat[i]))
        if stop["operation"] != "movement":
            again = Site(self.told, stop, 0).z
            self.check("worked", at, at["total"], again.flat[i], 2.0**-44 * np.abs(again).max())

    def output(self, stop: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = self.told.data["values"][stop["output"]]
        return found

    def sweep(self, at: At, m: int) -> None:
        stop, e = self.told.stops[at["stop"]], self.told.explanations[m]
        rule = stop["rules"][m]
        self.bar(at, m)
        if rule is None:
            if at["ledger"] or at["closing"]:
                self.wrong.append(f"sweep/{at['stop']}: a ledger where nothing arrives")
            return
        entry = e.ledger[stop["site"]]
        if at["rule"] != entry.rule:
            self.wrong.append(f"sweep/{at['stop']}: rule {at['rule']}, not {entry.rule}")
        received = np.asarray(e[stop["site"]])
        self.grid(at, "received", received, SWEEP)
        self.fan(at, m)
        self.ledger(at, entry, stop, m)
        if at["closing"] != "closes":
            self.wrong.append(f"sweep/{at['stop']}: closing {at['closing']}")
        self.accounts(at)

    def ledger(self, at: At, entry: Any, stop: dict[str, Any], m: int) -> None:
        engine = [cell for cell in at["ledger"] if cell["of"] == "engine"]
        operands = [o for o in stop["operands"] if o and "value" in o]
        sites = [self.told.value(o)["site"] for o in operands]
        said = {"received": [entry.received], "error": [entry.conservation_error],
                "passed": [entry.passed.get(s, 0.0) / sites.count(s) for s in sites],
                "absorbed": [entry.absorbed.get(c["cause"], 0.0) for c in engine
                             if c["part"] == "absorbed"]}  # fmt: skip
        assert set(entry.absorbed) <= {c.get("cause") for c in engine}
        for part, amounts in said.items():
            texts = [cell["text"] for cell in engine if cell["part"] == part]
            assert len(texts) == len(amounts), (part, texts, amounts)
            for text, x in zip(texts, amounts, strict=True):
                self.check(f"ledger {part}", at, text, x, 0.0)
        self.pages_own(at, stop, m)

    def pages_own(self, at: At, stop: dict[str, Any], m: int) -> None:
        """What the page works out by itself, against the engine's rule on the same numbers."""
        own = {(c["part"], c.get("operand", c.get("cause", ""))): c["text"]
               for c in at["ledger"] if c["of"] == "page"}  # fmt: skip
        if not own:
            return
        passed = Site(self.told, stop, m).applied()
        sizes = [
            np.abs(r).sum() for r in (passed.received_relevance, *passed.relevance) if r is not None
        ]
        slack = WORKED * max(sizes)
        self.check(
            "page, received", at, own["received", ""], passed.received_relevance.sum(), slack
        )
        for k, r in enumerate(passed.relevance):
            if r is None:
                continue
            if text := own.get(("passed", str(k))):
                self.check(f"page, passed {k}", at, text, r.sum(), slack)
            self.grid(at, f"passed-{k}", r, WORKED, WORKED * np.abs(r).max())
        for cause, x in passed.absorbed.items():
            self.check(f"page, absorbed {cause}", at, own.get(("absorbed", cause)), x, slack)
        if at["total"] is not None:
            first = next((k for k, r in enumerate(passed.inputs) if r is not None), None)
            values = [k for k, o in enumerate(stop["operands"]) if o and "value" in o]
            if first == values[0]:
                i = int(np.abs(passed.relevance[first]).argmax())
                x = passed.inputs[first].flat[i]
                self.check(
                    "worked", at, at["total"], x, WORKED * np.abs(passed.inputs[first]).max()
                )

    def fan(self, at: At, m: int) -> None:
        stop = self.told.stops[at["stop"]]
        value = self.output(stop)
        if len(value["read_by"]) < 2:
            assert not at["fan"]
            return
        parts = []
        readers = [self.told.stops[n] for n in sorted(value["read_by"], reverse=True)]
        readers = [one for one in readers if one["rules"][m]]
        if not {one["operation"] for one in readers} <= WORKS:  # nothing, or the whole alone
            assert len(at["fan"]) <= 1
            return
        for one in readers:
            relevance = Site(self.told, one, m).applied().relevance
            parts += [relevance[k] for k, o in enumerate(one["operands"])
                      if o == {"value": value["id"]} and relevance[k] is not None]  # fmt: skip
        size = sum(np.abs(r).sum() for r in parts)
        assert len(at["fan"]) == len(parts) + 1
        for text, r in zip(at["fan"], parts, strict=False):
            self.check("fan-in", at, text, r.sum(), WORKED * size)
        self.check("fan-in, all", at, at["fan"][-1], stop["rules"][m]["received"], 0.0)

    def bar(self, at: At, m: int) -> None:
        """On its way + arrived + absorbed by each cause is the explained logit."""
        e = self.told.explanations[m]
        (_, on_its_way), (_, at_the_input), *absorbed = at["bar"]
        found = dict(absorbed)
        walked = [self.told.stops[n]["site"] for n in range(at["stop"], self.told_count)]
        entries = {entry.site: entry for entry in e.ledger}
        causes: dict[str, list[float]] = {}
        for site in walked:
            for cause, amount in (entries[site].absorbed if site in entries else {}).items():
                causes.setdefault(cause, []).append(amount)
        amounts = {cause: math.fsum(parts) for cause, parts in causes.items()}
        arrived = sum(amounts.pop(name, 0.0) for name in ("tokens", "pixels"))
        size = sum(abs(x) for parts in causes.values() for x in parts) + abs(e.explained)
        slack = 2.0**-44 * size
        self.check("bar, explained", at, at["explained"], e.explained, 0.0)
        self.check("bar, arrived", at, at_the_input, arrived, slack)
        way = e.explained - arrived - math.fsum(amounts.values())
        errors = sum(entry.rounding_scale * 2.0**-50 for entry in e.ledger)
        self.check("bar, on its way", at, on_its_way, way, slack + errors)
        for cause, x in amounts.items():
            if cause in found or abs(x) > 0:
                self.check(f"bar, {cause}", at, found.pop(cause, "0"), x, slack)
        assert not found, found
        texts = [text for _, text in at["bar"]]
        total = math.fsum(float(t) for t in texts)
        places = sum(map(last_place, [*texts, at["explained"]]))
        if abs(total - float(at["explained"])) > places + slack + errors:
            self.wrong.append(
                f"sweep/{at['stop']}: the bar is {texts}, explained {at['explained']}"
            )

    @cached_property
    def told_count(self) -> int:
        return len(self.told.stops)

    def accounts(self, at: At) -> None:
        """The same stop under each method."""
        for m, texts in enumerate(at["methods"]):
            rule = self.told.stops[at["stop"]]["rules"][m]
            passed = math.fsum(rule["passed"].values()) if rule else 0.0
            absorbed = math.fsum(rule["absorbed"].values()) if rule else 0.0
            size = (
                sum(map(abs, [*rule["passed"].values(), *rule["absorbed"].values()])) if rule else 0
            )
            for text, x in zip(
                texts, (rule["received"] if rule else 0.0, passed, absorbed), strict=True
            ):
                self.check("methods", at, text, x, 2.0**-48 * size)

    def adds_up(self, at: At) -> None:
        """The digits of the worked element, as a reader would add and multiply them."""
        for words in problems(at):
            self.wrong.append(f"{at['direction']}/{at['stop']} ({at['operation']}): {words}")


def problems(at: At) -> list[str]:
    """What does not add up in the table of a worked element, within the rounding of its digits."""
    if not at["rows"]:
        return []
    texts = [cell for row in at["rows"] for cell in row["cells"]]
    if any(word in text for text in texts for word in ("nan", "inf", "undefined")):
        return [f"no numbers: {texts}"]
    found = []
    plain = [
        row for row in at["rows"] if not row["kind"] and len(row["cells"]) == len(at["head"]) - 1
    ]
    others = [row for row in at["rows"] if row not in plain]
    values = []
    for row in plain:
        *pieces, value = row["cells"]
        values.append(value)
        if len(pieces) > 1 or at["head"][1] != "product":
            found += product_problems(at["head"][1:-1], pieces, value)
    rest = [row["cells"][-1] for row in others if "more, smaller" in row["at"]]
    total = at["total"]
    factor = [row["cells"][-1] for row in others if row["at"].startswith("×")]
    whole = [row["cells"][-1] for row in others if row["at"] == "sum"]
    if factor:
        middle = whole[0] if whole else values[0] if values else "0"
        bound = abs(float(factor[0])) * last_place(middle) + abs(float(middle)) * last_place(
            factor[0]
        )
        if abs(float(factor[0]) * float(middle) - float(total)) > 1.01 * (
            bound + last_place(total)
        ):
            found.append(f"{factor[0]} times {middle} is not {total}")
        if not whole:
            return found
    else:
        middle = total
    terms = [*values, *rest]
    bound = sum(map(last_place, [*terms, middle]))
    if abs(math.fsum(map(float, terms)) - float(middle)) > 1.01 * bound:
        found.append(f"{terms} do not add up to {middle}")
    return found


def product_problems(heads: list[str], pieces: list[str], value: str) -> list[str]:
    x, relative = 1.0, 2e-5
    for head, piece in zip(heads, pieces, strict=True):
        if "÷" in head:
            if not float(piece):
                return []
            x /= float(piece)
        else:
            x *= float(piece)
        relative += last_place(piece) / abs(float(piece)) if float(piece) else 0.0
    away = abs(x - float(value))
    if away > relative * abs(x) + last_place(value):
        return [f"{list(zip(heads, pieces, strict=True))} is {x:.5g}, not {value}"]
    return []


def every_number(o: Opened, methods: tuple[str, ...] = METHODS, step: int = 1) -> Checker:
    """Of all positions, by each of the methods; the forward once. `step`: every so many."""
    checker = Checker(o)
    for m, method in enumerate(METHODS):
        if method not in methods:
            continue
        positions = list(range(0 if method == methods[0] else o.count, 2 * o.count, step))
        for at in o.walked(positions, method):
            if at["direction"] == "forward":
                checker.forward(at)
            else:
                checker.sweep(at, m)
            checker.adds_up(at)
    return checker


@pytest.mark.parametrize("name", ["shipped", "gpt2", "vit"])
def test_every_number_is_the_engines(name: str, opened: Open) -> None:
    """At every stop, by all three methods: sums, scales, chosen and worked elements, the ledger,
    fan-in, the bar, the table of methods.
    """
    checker = every_number(opened(name))
    assert not checker.wrong, (len(checker.wrong), checker.numbers, checker.wrong[:30])
    assert checker.numbers > 30 * checker.told_count


def test_every_number_of_a_decoder_with_an_encoder(opened: Open) -> None:
    """And of experts, whose operations the page does not work out: the engine's are shown."""
    for name in ("t5", "mixtral"):
        checker = every_number(opened(name), METHODS[:1], step=5)
        assert not checker.wrong, (len(checker.wrong), checker.numbers, checker.wrong[:30])


# -- another element -------------------------------------------------------------------------------

CHOOSERS = ["linear", "matmul", "softmax", "rms_norm", "add", "multiply", "activation", "rotary"]


def chosen_is(o: Opened, hook: str, i: int, m: int) -> None:
    """The worked element is number i of the grid, adds up, and stands in the address."""
    at = o.shown()
    stop = o.told.stops[at["stop"]]
    assert not problems(at), problems(at)
    if hook == "output":
        value = o.told.data["values"][stop["output"]]
        numbers = Site(o.told, stop, m).z
        x, slack = numbers.flat[i], 2.0**-44 * np.abs(numbers).max()
    else:
        k = int(hook.partition("-")[2])
        value = o.told.value(stop["operands"][k])
        amounts = Site(o.told, stop, m).applied().inputs[k]
        x, slack = amounts.flat[i], WORKED * np.abs(amounts).max()
    assert shows(at["total"], x, slack), (at["total"], x)
    index = ",".join(map(str, np.unravel_index(i, value["shape"])))
    assert re.search(rf"[?&]e={index}$", at["address"]), (at["address"], index)
    assert at["element"] == index


@pytest.mark.parametrize("operation", CHOOSERS)
def test_a_clicked_element_is_worked_out(operation: str, opened: Open) -> None:
    """And then its neighbor, by a key."""
    o = opened("small")
    for direction, hook in (("forward", "output"), ("sweep", "passed-0"), ("sweep", "passed-1")):
        o.go(o.first(operation), direction, METHODS[0])
        canvas = o.page.query_selector(f'[data-grid="{hook}"] canvas')
        if canvas is None:
            assert hook == "passed-1" and operation not in ("add", "multiply", "matmul")
            continue
        rows, columns = (int(canvas.get_attribute(a)) for a in ("height", "width"))
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        row, column = rows - 1, columns // 2
        o.page.mouse.click(
            box["x"] + (column + 0.5) * box["width"] / columns,
            box["y"] + (row + 0.5) * box["height"] / rows,
        )
        i = row * columns + column
        chosen_is(o, hook, i, 0)
        o.page.focus(f'[data-grid="{hook}"] .panes')
        o.page.keyboard.press("ArrowLeft")
        chosen_is(o, hook, i - 1, 0)
        o.page.keyboard.press("ArrowUp")
        chosen_is(o, hook, i - 1 - columns if row else i - 1, 0)


@pytest.mark.parametrize(("name", "m"), [("shipped", 0), ("gpt2", 1), ("vit", 2), ("small", 1)])
def test_any_element_adds_up(name: str, m: int, opened: Open) -> None:
    """Drawn at random, of every kind of operand, in both directions."""
    o, random, asked = opened(name), np.random.default_rng(m), []
    for stop in o.told.stops:
        if m == 0:
            shape = o.told.data["values"][stop["output"]]["shape"]
            asked.append([stop["index"], "forward", int(random.integers(math.prod(shape))), 0])
        for k, operand in enumerate(stop["operands"]):
            if stop["rules"][m] and operand and "value" in operand:
                size = math.prod(o.told.value(operand)["shape"])
                asked.append([stop["index"], "sweep", int(random.integers(size)), k])
    asked = [asked[n] for n in sorted(random.permutation(len(asked))[:50])]
    found = o.evaluate(
        "([asked, m]) => { walk.setMethod(m); return asked.map(([stop, way, i, k]) => {"
        f" walk.go(stop, way); walk.choose(i, k); return ({COLLECT})(); }}); }}",
        [asked, m],
    )
    wrong = []
    for (index, direction, i, k), at in zip(asked, found, strict=True):
        site = Site(o.told, o.told.stops[index], m)
        if at["total"] is None:
            continue
        numbers = site.z if direction == "forward" else site.applied().inputs[k]
        if numbers is None:  # a constant: it receives nothing
            numbers = np.zeros(o.told.value(site.stop["operands"][k])["shape"])
        slack = (2.0**-44 if direction == "forward" else WORKED) * np.abs(numbers).max()
        words = problems(at)
        if not shows(at["total"], numbers.flat[i], slack):
            words.append(f"{at['total']}, not {numbers.flat[i]:.8g}")
        wrong += [f"{direction}/{index} {site.stop['operation']} {k} {i}: {w}" for w in words]
    assert not wrong, (len(wrong), wrong[:20])


# -- planted mistakes ------------------------------------------------------------------------------

BROKEN = """() => [...document.querySelectorAll("#spine a.broken")].map((a) => [
  Number(a.dataset.stop), a.querySelector(".flags").textContent])"""


@pytest.mark.parametrize("name", ["shipped", "gpt2", "vit"])
def test_a_planted_mistake_is_found_where_it_is_and_nowhere_else(name: str, opened: Open) -> None:
    """By its definition: wherever the wrong rule moves an element, by each of the methods."""
    o = opened(name)
    for mistake in MISTAKES:
        o.page.select_option("#mistake", mistake)
        assert o.evaluate("() => walk.state.mistake") == mistake
        for m in range(len(METHODS)):
            found_out(o, mistake, m)
        o.page.select_option("#mistake", "")
        assert o.evaluate(BROKEN) == []


def found_out(o: Opened, mistake: str, m: int) -> None:
    o.page.click(f'#methods button[data-method="{METHODS[m]}"]')
    wrong, either = red(o.told, mistake, m)
    found = dict(o.evaluate(BROKEN))
    assert wrong <= set(found) <= wrong | either, (mistake, METHODS[m])
    assert all(words.strip() for words in found.values())  # never color alone
    for index in sorted(wrong)[-1:] + sorted(wrong)[:1]:
        closing_is(o.go(index), mistake, m)


def closing_is(o: Opened, mistake: str, m: int) -> None:
    """The ledger of the page: passed by the wrong rule, absorbed as by the right one."""
    at = o.shown()
    site = Site(o.told, o.told.stops[at["stop"]], m)
    correct = site.applied()
    wrong = site.passed(MISTAKES[mistake](site) or [], correct.absorbed)
    sizes = [np.abs(r).sum() for r in (*wrong.relevance, *correct.relevance) if r is not None]
    slack = WORKED * max(sizes)
    passed = math.fsum(p for p in wrong.passed if p is not None)
    absorbed = math.fsum(correct.absorbed.values())
    error = float(correct.received_relevance.sum()) - passed - absorbed
    cells = {(c["part"], c.get("operand", "")): c["text"]
             for c in at["ledger"] if c["of"] == "page"}  # fmt: skip
    assert shows(cells["error", ""], error, slack)
    for k, x in enumerate(wrong.passed):
        assert x is None or shows(cells["passed", str(k)], x, slack)
    if abs(error) > 2 * slack:
        assert at["closing"] == "open"
        said = re.search(r"(\S+) (lost|created)", at["closing_text"])
        assert said and said[2] == ("lost" if error > 0 else "created")
        assert shows(said[1], abs(error), slack)
    elif mistake == "shifted_logits":
        assert at["closing"] == "moved"
    assert at["closing"] in ("open", "moved")


def test_a_mistake_that_nobody_can_make_here_says_so(opened: Open) -> None:
    o = opened("small")
    o.page.select_option("#mistake", "layer_norm_constant")
    assert "no stop of this net" in o.page.inner_text("#planted")
    assert o.evaluate(BROKEN) == []
    o.page.select_option("#mistake", "")
    assert not o.page.is_visible("#planted")


# -- eps -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["linear", "add", "matmul", "rotary", "layer_norm"])
def test_another_eps_is_that_rule_with_that_eps(operation: str, opened: Open) -> None:
    """The rule of refl with that eps on the same numbers: sums, grids and the worked element; and
    back again. The slider moves by keys too.
    """
    o = opened("gpt2" if operation == "layer_norm" else "small")
    o.go(o.first(operation), "sweep", "attnlrp")
    before = o.shown()
    site = Site(o.told, o.told.stops[before["stop"]], 0)
    for power in (-9.0, -3.5, -1.0, 0.0):
        o.evaluate(
            "(power) => { const eps = document.getElementById('eps'); eps.value = power;"
            " eps.dispatchEvent(new Event('input', {bubbles: true})); }",
            power,
        )
        eps_is(o, site, 10.0**power)
    o.page.focus("#eps")
    o.page.keyboard.press("ArrowLeft")
    eps_is(o, site, 10.0**-0.1)
    o.page.click("#eps-reset")
    after = o.shown()
    assert {**after, "address": ""} == {**before, "address": ""}
    o.go(before["stop"] - 1).go(before["stop"])
    assert o.shown() == before


def eps_is(o: Opened, site: Site, eps: float) -> None:
    at, passed = o.shown(), site.applied(eps=eps)
    assert shows(o.page.inner_text("#eps-now"), eps, 1e-12 * eps)
    slack = WORKED * max(np.abs(r).sum() for r in passed.relevance if r is not None)
    own = {(c["part"], c.get("operand", c.get("cause", ""))): c["text"]
           for c in at["ledger"] if c["of"] == "page"}  # fmt: skip
    for k, r in enumerate(passed.relevance):
        assert r is None or shows(own["passed", str(k)], r.sum(), slack)
        assert r is None or shows(at["grids"][f"passed-{k}"]["sum"], r.sum(), slack)
    for cause, x in passed.absorbed.items():
        assert shows(own["absorbed", cause], x, slack)
    i = int(np.abs(passed.relevance[0]).argmax())
    assert shows(at["total"], passed.inputs[0].flat[i], slack)
    assert not problems(at) and at["closing"] == "closes"


def test_no_eps_where_there_is_none(opened: Open) -> None:
    """In gradient x input form it cancels."""
    o = opened("small")
    o.go(o.first("linear"), "sweep", "cp-lrp")
    assert o.page.query_selector("#eps") is None
    o.go(o.first("linear"), "forward", "attnlrp")
    assert o.page.query_selector("#eps") is None


# -- addresses -------------------------------------------------------------------------------------


def test_an_address_leads_back(opened: Open, window: Watched) -> None:
    """To the stop, its direction, the method, the operand and the chosen element."""
    o = opened("shipped")
    for address, state in (
        ("#forward/12", (12, "forward", "attnlrp", None)),
        ("#sweep/97?m=cp-lrp&e=3,17", (97, "sweep", "cp-lrp", "3,17")),
        ("#sweep/0?m=input-x-gradient", (0, "sweep", "input-x-gradient", None)),
        ("#sweep/19?k=1&e=5,63", (19, "sweep", "attnlrp", "5,63")),
    ):
        o.open(address)
        at = o.shown()
        assert (at["stop"], at["direction"], at["method"]) == state[:3]
        assert state[3] is None or at["element"] == state[3]
        assert at["address"] == address
        assert at["current"] == [state[0]]
    o.open("#sweep/97?m=cp-lrp&e=3,17")
    first = o.shown()
    o.page.evaluate("() => { location.hash = '#sweep/96' }")
    o.page.wait_for_selector('#stop[data-stop="96"]')
    o.page.evaluate("() => { location.hash = '#sweep/97?m=cp-lrp&e=3,17' }")
    o.page.wait_for_selector('#stop[data-stop="97"]')
    assert o.shown() == first


ADDRESSES = (
    "#", "#nothing", "#sweep", "#sweep/", "#sweep/99999999999999999999", "#sweep/-1",
    "#forward/1.5", "#forward/3?m=none&e=1", "#sweep/20?e=999,999", "#sweep/20?e=,&k=7",
    "#sweep/20?e=1,2,3,4,5", "#sweep/20?k=-1&e=0,0", "#sweep/20?mistake=__proto__",
    "#sweep/20?m=__proto__&k=constructor", "#%00%ff<script>alert(1)</script>",
    "#sweep/20?e=NaN,NaN", "#sweep/20?e=1e0,0x1", "#forward/20?k=9&e=0,0",
    "#sweep/20?k=1&e=0,0",
)  # fmt: skip


def test_any_other_address_harms_nobody(opened: Open, window: Watched) -> None:
    """A stop is shown, and the page goes on; three are opened with, the others gone to."""
    o = opened("small")
    for number, address in enumerate(ADDRESSES):
        if number % 7:
            o.evaluate("(address) => { location.hash = address; }", address)
            o.page.wait_for_timeout(20)
        else:
            o.open(address)
        at = o.shown()
        assert 0 <= at["stop"] < o.count and at["direction"] in ("forward", "sweep"), address
        o.page.keyboard.press("ArrowRight")
        assert o.shown()["address"].startswith("#"), address
        assert not window.complaints, (address, window.complaints)


# -- predict first ---------------------------------------------------------------------------------

OPEN = """() => {
  const all = (query) => [...document.querySelectorAll(`#stop ${query}`)];
  return {
    options: all("[data-option]").map((node) => node.textContent),
    open: all("[data-option]").some((node) => !node.disabled),
    told: all('[data-part], [data-worked], [data-grid="output"], [data-grid^="passed"],'
      + ' .closing, .methods').length,
    text: document.getElementById("stop").textContent,
    correct: all("[data-option].right").map((node) => Number(node.dataset.option)),
    wrong: all("[data-option].wrong").map((node) => Number(node.dataset.option)),
    answer: document.getElementById("answer")?.textContent ?? null,
    found: document.getElementById("answer")?.dataset.answer ?? null,
  };
}"""


def asking(o: Opened) -> Any:
    return o.evaluate(OPEN)


@pytest.mark.parametrize(("name", "step"), [("small", 1), ("vit", 3)])
def test_nothing_is_told_before_the_answer(name: str, step: int, opened: Open) -> None:
    """At every position, or every third: the result and the answer only after a button or a key."""
    o = opened(name)
    o.page.click("#predict")
    asked = 0
    for number, (index, direction) in enumerate(positions_of(o.count)[::step]):
        o.go(index, direction)
        before = asking(o)
        if not before["options"]:
            stop = o.told.stops[index]
            assert direction == "sweep" and (
                not stop["rules"][0] or "leaf" in str(stop["rules"][0])
            )
            continue
        asked += 1
        assert before["open"] and before["told"] == 0 and before["answer"] is None
        assert 2 <= len(before["options"]) <= 4
        assert len(set(before["options"])) == len(before["options"])
        pick = number % len(before["options"])
        if number % 10:
            o.page.keyboard.press(str(pick + 1))
        else:
            o.page.click(f'[data-option="{pick}"]')
        after = asking(o)
        assert not after["open"] and after["told"] > 0
        (correct,) = after["correct"]
        assert (after["found"] == "wrong") == (correct != pick)
        assert after["wrong"] == ([] if correct == pick else [pick])
        answer = re.search(r"\((.*)\)\.$", after["answer"])
        moved = o.told.stops[index]["operation"] in ("movement", "learned", "add")
        same = "the same" in after["answer"] or moved
        assert answer
        if "." in answer[1] and not same:
            assert answer[1] not in before["text"]
    assert asked > o.count / step
    o.go(0, "forward")
    assert not asking(o)["open"]  # an answer stays
    o.page.click("#predict")
    assert not asking(o)["options"]


def test_answers_are_right(opened: Open) -> None:
    """Of those with operands or amounts: by the engine's numbers."""
    o = opened("gpt2")
    o.page.click("#predict")
    e, met = o.told.explanations[0], set()
    for stop in o.told.stops:
        o.go(stop["index"], "sweep")
        before = asking(o)
        if not before["options"]:
            continue
        o.page.keyboard.press("1")
        (correct,) = asking(o)["correct"]
        rule, entry = stop["rules"][0], e.ledger[stop["site"]]
        operands = [x for x in stop["operands"] if x and "value" in x]
        if "Which operand gets more" in before["text"]:
            amounts = [entry.passed[o.told.value(x)["site"]] for x in operands]
            even = max(amounts) - min(amounts) <= 1e-4 * abs(max(amounts))
            assert correct == (len(amounts) if even else int(np.argmax(amounts)))
        elif "What is passed on will sum to" in before["text"]:
            passed, received = sum(entry.passed.values()), entry.received
            same = abs(passed - received) <= 1e-4 * abs(received)
            assert correct == (1 if same else 0 if passed < received else 2)
        elif "Which token's row will receive the most" in before["text"]:
            amounts = Site(o.told, stop, 0).applied().relevance[0].sum(axis=-1)
            words = before["options"][correct]
            assert f"(token {int(np.argmax(amounts))})" in words
        else:
            assert "has most relevance arrived" in before["text"], rule
        met.add(before["text"][-1])
    o.page.click("#predict")
    assert met


# -- who is shown what -----------------------------------------------------------------------------


def test_a_screen_reader_is_told_each_stop(opened: Open) -> None:
    o = opened("small")
    assert o.page.get_attribute("#said", "aria-live") == "polite"
    for index, direction in positions_of(o.count):
        o.go(index, direction)
        said = o.page.inner_text("#said") or o.evaluate(
            "() => document.getElementById('said').textContent"
        )
        stop = o.told.stops[index]
        assert f"stop {index + 1} of {o.count}" in said and stop["operation"] in said
        if direction == "sweep":
            assert shown(stop["rules"][0]["received"]) in said
    labels = o.evaluate(
        "() => [...document.querySelectorAll('.panes')].map((n) => n.getAttribute('aria-label'))"
    )
    assert labels and all("sum" in label and "largest" in label for label in labels)
    names = o.evaluate("""() => [document.querySelectorAll("main").length,
      document.querySelectorAll("h1").length, document.documentElement.lang, document.title]""")
    assert names[:3] == [1, 1, "en"] and names[3].startswith("refl: a walk through the logit")


def test_the_lines_of_the_rule_are_shown_on_request(opened: Open) -> None:
    o = opened("small")
    o.go(o.first("linear"))
    stop = o.told.stops[o.first("linear")]
    source = o.told.data["sources"][stop["rules"][0]["source"]]
    details = o.page.query_selector_all("#stop details.source")
    assert len(details) == 2 and not details[1].get_attribute("open")
    details[1].query_selector("summary").click()
    words = details[1].inner_text()
    assert f"{source['file']}, lines {source['first']} to {source['last']}" in words
    assert source["text"] in words


def test_equations_are_typeset(opened: Open) -> None:
    """Wherever the page has one for what is done."""
    o = opened("small")
    equations = o.told.data["equations"]
    assert all(equations.values()), [name for name, said in equations.items() if not said]
    for at in o.walked(list(range(2 * o.count)), "attnlrp"):
        assert at["equations"] >= (1 if at["direction"] == "forward" or not at["rule"] else 2)


def test_where_the_methods_part_is_marked(opened: Open) -> None:
    """AttnLRP beside the others: CP-LRP has another rule for products of gates and of attention
    weights, the gradient for these, for scores, norms and activations; the rest is epsilon, whose
    gradient x input form is the gradient.
    """
    o = opened("small").go(0, "forward", "attnlrp")
    marked = o.evaluate("""() => [...document.querySelectorAll("#spine a[data-stop]")]
      .filter((a) => a.querySelector(".parting")).map((a) => Number(a.dataset.stop))""")
    parting = ("multiply", "matmul", "rms_norm", "activation")
    assert marked == [s["index"] for s in o.told.stops if s["operation"] in parting]


def test_nobody_is_moved_who_does_not_want_to_be(opened: Open, chrome: Any, tmp_path: Path) -> None:
    o = opened("small")
    o.page.emulate_media(reduced_motion="reduce")
    o.page.keyboard.press("ArrowRight")
    found = o.evaluate("""() => [document.getAnimations().length,
      [...document.querySelectorAll("*")].filter((node) => {
        const style = getComputedStyle(node);
        const still = (text) => text.split(",").every((one) => parseFloat(one) <= 0.001);
        return !still(style.transitionDuration) || !still(style.animationDuration)
          || style.scrollBehavior === "smooth";
      }).map((node) => node.tagName)]""")
    o.page.emulate_media(reduced_motion="no-preference")
    assert found == [0, []]


WIDE = """() => {
  const n = walk.data.stops.length, wide = [];
  for (let p = 0; p < 2 * n; p++) {
    walk.go(p < n ? p : 2 * n - 1 - p, p < n ? "forward" : "sweep");
    const width = document.scrollingElement.scrollWidth;
    if (width > innerWidth) wide.push([location.hash, width]);
  }
  return wide;
}"""


@pytest.mark.parametrize("name", ["small", "vit"])
def test_no_stop_is_wider_than_a_phone(name: str, opened: Open) -> None:
    o = opened(name)
    o.page.set_viewport_size({"width": 360, "height": 740})
    try:
        o.page.wait_for_timeout(250)
        settings = (
            "walk.plant(null)",
            "walk.plant('eps_without_sign')",
            "walk.setPredict(true)",
        )
        for setting in settings if name == "small" else settings[:1]:
            o.evaluate(f"() => {setting}")
            assert o.evaluate(WIDE) == [], setting
        o.page.keyboard.press("?")
        assert o.evaluate("() => document.scrollingElement.scrollWidth") <= 360
        box = o.page.query_selector("#help").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 360
    finally:
        o.page.set_viewport_size({"width": 1200, "height": 800})


# -- accessibility ---------------------------------------------------------------------------------


def to_be_looked_at(o: Opened) -> list[Callable[[], Any]]:
    """Ten positions, each with something that the others have not."""
    first, press = o.first, o.page.keyboard.press
    plant = partial(o.page.select_option, "#mistake")
    return [
        lambda: o.go(0, "forward", "attnlrp"),
        lambda: o.go(first("softmax"), "forward"),
        lambda: o.go(first("linear"), "forward"),
        lambda: o.go(o.count - 1, "sweep"),
        lambda: o.go(first("add"), "sweep", "cp-lrp"),
        lambda: (plant("eps_without_sign"), o.go(first("matmul"), "sweep", "attnlrp")),
        lambda: (plant("shifted_logits"), o.go(first("softmax"), "sweep")),
        lambda: (plant(""), o.go(0, "sweep")),
        lambda: (press("p"), o.go(first("add"), "forward")),
        lambda: (press("2"), press("p"), press("?")),
    ]  # fmt: skip


ASKED: dict[str, Any] = {"light": {}, "dark": {"runOnly": ["color-contrast"]}}
"""Of the colors alone where nothing else is another."""


@pytest.mark.needs("axe_playwright_python")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("name", "width"), [("small", 1200), ("vit", 360)])
def test_axe_finds_no_violation(scheme: Any, name: str, width: int, opened: Open) -> None:
    from axe_playwright_python.sync_playwright import Axe

    o, axe = opened(name), Axe()
    o.page.emulate_media(color_scheme=scheme)
    o.page.set_viewport_size({"width": width, "height": 800})
    found = []
    try:
        steps = to_be_looked_at(o)
        for number, step in enumerate(steps if width > 360 else steps[:1] + steps[5:6]):
            step()
            context = {"exclude": [["#spine"]]} if number else None  # it is as it was
            answer = axe.run(o.page, context=context, options=ASKED[scheme]).response
            for violation in answer["violations"]:
                nodes = [str(node["html"])[:120] for node in violation["nodes"][:3]]
                found.append((number, violation["id"], violation["impact"], nodes))
    finally:
        o.page.emulate_media(color_scheme="light")
        o.page.set_viewport_size({"width": 1200, "height": 800})
    assert not found, found


# -- hostile text ----------------------------------------------------------------------------------


def test_no_token_runs(window: Watched, tmp_path: Path) -> None:
    """The page of a checkpoint whose every name attacks: at every stop, every question, no element
    and no script that is not the page's own, and the words stand there as words.
    """
    folder = hostile_folder(tmp_path, LLAMA | {"num_hidden_layers": 1})
    model = refl.load(folder, dtype="float64")
    ids = list(range(len(ATTACKS)))
    file = tmp_path / "walk.html"
    file.write_text(walk(model, ids, target=model.tokens([0])[0]).html(), encoding="utf-8")
    window.open(file)
    found = window.evaluate("""() => {
      const tags = new Set();
      const look = () => document.querySelectorAll("*").forEach((node) => tags.add(node.localName));
      const n = walk.data.stops.length;
      for (let p = 0; p < 2 * n; p++) {
        walk.setPredict(p % 2 === 0);
        walk.go(p < n ? p : 2 * n - 1 - p, p < n ? "forward" : "sweep");
        look();
        document.querySelector("[data-option]:not([disabled])")?.click();
        look();
      }
      walk.setPredict(false);
      return [[...tags], document.querySelectorAll("script").length, document.title,
        document.body.innerText, [...document.querySelectorAll("*")].flatMap((node) =>
          [...node.attributes].filter((a) => a.name.startsWith("on")).map((a) => a.name))];
    }""")
    tags, scripts, title, text, handlers = found
    assert not {"iframe", "object", "embed", "link", "base", "img"} & set(tags)
    assert scripts == 3 and handlers == []
    assert "</script><script>alert(1)</script>" in text and "</script>" in title
    assert not any(c in text for c in "\x00\x1b\u202e\u2028")
    assert window.evaluate("() => Object.getPrototypeOf(walk.data) === Object.prototype")


def test_nothing_but_the_pages_script_may_run(opened: Open, window: Watched) -> None:
    """The policy holds: a script, a handler, a frame, a picture from elsewhere put in by hand."""
    o = opened("small")
    window.quiet()
    ran = o.evaluate("""async () => {
      window.ran = [];
      const script = document.createElement("script");
      script.textContent = "window.ran.push('script')";
      const box = document.createElement("div");
      box.innerHTML = "<img src='x.png' onerror='window.ran.push(1)'>"
        + "<iframe srcdoc='<script>parent.ran.push(2)</script>'></iframe>"
        + "<a id='bad' href='javascript:window.ran.push(3)'>x</a>";
      document.body.append(script, box);
      document.getElementById("bad").click();
      try { await fetch("https://example.com/"); window.ran.push(5); } catch { }
      await new Promise((done) => setTimeout(done, 100));
      return window.ran;
    }""")
    assert ran == []
    assert window.complaints and all("policy" in said.lower() for said in window.complaints)
    assert not [url for url in window.requests if url.startswith("http")]
    window.complaints.clear()
    window.requests.clear()


def test_a_word_of_the_vocabulary_is_shown_as_it_is(opened: Open) -> None:
    text = opened("shipped").page.inner_text("header .input")
    assert text.split() == ["<s>", "the", "keys", "to", "the", "cabinet"]


# -- checkpoints (marked slow) ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["stories260K", "capp_gpt2", "vit_mnist_012_hf"])
def test_every_number_of_a_checkpoint(name: str, window: Watched, tmp_path: Path) -> None:
    """A walk at each of its positions by AttnLRP, every number the engine's, no stop too wide."""
    model = refl.load(checkpoint(name), dtype="float64")
    item, more = asked_of_checkpoint(name, model)
    told = Told(model, walk(model, item, **more), item, **more)
    file = tmp_path / "walk.html"
    file.write_text(told.html, encoding="utf-8")
    o = Opened(told, file, window).open()
    checker = every_number(o, METHODS[:1])
    assert not checker.wrong, (len(checker.wrong), checker.numbers, checker.wrong[:30])
    for mistake in MISTAKES:
        o.evaluate("(id) => { walk.plant(id); walk.setMethod(0); }", mistake)
        wrong, either = red(told, mistake, 0)
        found = {index for index, _ in o.evaluate(BROKEN)}
        assert wrong <= found <= wrong | either, mistake


def asked_of_checkpoint(name: str, model: Any) -> tuple[Any, dict[str, Any]]:
    if model.takes_images:
        size = (*model.config.image, model.config.num_channels)
        return np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8), {}
    return ("Once upon a time" if name == "stories260K" else [1, 2, 3, 4, 5]), {}
