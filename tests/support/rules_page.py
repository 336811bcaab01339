"""The page's arithmetic run outside of the page, by node or in a headless Chromium; and what it is
compared with: the same operations by the rules in Python, on the very numbers that are packed.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import zlib
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

import refl
from refl.arrays import asnumpy
from refl.rules.operations import OPERATIONS
from refl.walk import METHODS, Walk, Walking
from refl.walk.packed import WIDTHS

RULES = Path(refl.__file__).parent / "walk" / "page" / "rules.js"
DRIVER = Path(__file__).with_suffix(".js")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")

_NODE = """
const [rules, driver, call] = process.argv.slice(1);
const text = require("fs").readFileSync(0, "utf8");
const run = new Function("asked", rules + driver + call);
process.stdout.write(JSON.stringify(run(JSON.parse(text))));
"""
_EVERYTHING = """
const bytes = Uint8Array.from(atob(asked.blob), (letter) => letter.charCodeAt(0));
return everything(Rules, asked.data, bytes.buffer);
"""


def why_no_javascript() -> str:
    """Why nothing can run it; "" where something can."""
    if shutil.which("node") or (find_spec("playwright") and _browser()):
        return ""
    return "neither node nor playwright with a Chromium to run JavaScript"


def _browser() -> str | None:
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def run(call: str, asked: Any) -> Any:
    """What a function with this body returns for `asked`, where `Rules` and `everything` are
    known. Numbers are exact: both sides write as many digits as a float64 needs.
    """
    texts = [RULES.read_text(encoding="utf-8"), DRIVER.read_text(encoding="utf-8"), call]
    node = shutil.which("node")
    if node is None:
        return _in_a_browser("".join(texts), asked)
    command = [node, "-e", _NODE, *texts]
    sent = json.dumps(asked)
    done = subprocess.run(command, input=sent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _in_a_browser(body: str, asked: Any) -> Any:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=_browser(), args=["--no-sandbox"])
        said = browser.new_page().evaluate(
            "([body, asked]) => JSON.stringify(new Function('asked', body)(JSON.parse(asked)))",
            [body, json.dumps(asked)],
        )
        browser.close()
    return json.loads(said)


@dataclass(frozen=True, eq=False)
class Kept(Walking):
    """A walk that keeps the run it is made of."""

    forwards: list[Any] = field(default_factory=list)

    def explain(self, question: Any, readings: Any, *asked: Any, **how: Any) -> list[Any]:
        self.forwards.append(question.forward([readings[0]], plain=True))
        return super().explain(question, readings, *asked, **how)


class Both:
    """One walk by JavaScript (`page`) and by the rules in Python."""

    def __init__(self, model: Any, item: Any, **asked: Any) -> None:
        kept = Kept()
        self.walk: Walk = model.explain(item, kept, **asked)
        self.records = kept.forwards[0].trace.records
        self.data = self.walk.data
        self.blob = zlib.decompress(base64.b64decode(self.walk.arrays))
        sent = {"data": self.data, "blob": base64.b64encode(self.blob).decode("ascii")}
        self.page = run(_EVERYTHING, sent)

    def array(self, number: int, shape: Any) -> Any:
        """The first bytes of all numbers, the second bytes, and so on; zeros for those left out."""
        where = self.data["arrays"][number]
        width, count, kind = WIDTHS[where["kind"]], where["count"], where["kind"]
        planes = np.frombuffer(self.blob, np.uint8, width * count, where["offset"])
        form = {"f4": ">f4", "i4": ">i4", "u1": "u1"}.get(kind, ">f8")
        whole = np.zeros((count, np.dtype(form).itemsize), np.uint8)
        whole[:, :width] = planes.reshape(width, count).T
        return whole.view(form).astype(float).reshape(shape)

    @cached_property
    def values(self) -> list[Any]:
        return [self.array(v["array"], (1, *v["shape"])) for v in self.data["values"]]

    @cached_property
    def weights(self) -> list[Any]:
        return [self.array(w["array"], w["shape"]) for w in self.data["weights"]]

    def propagated(self, value: int, m: int) -> Any:
        one = self.data["values"][value]
        number = one["propagated"][m]
        shape = (1, *one["shape"])
        return np.zeros(shape) if number is None else self.array(number, shape)

    def sites(self) -> list[Site]:
        """Every operation that a method reached and the page works out, with that method."""
        return [
            Site(self, stop, m)
            for stop in self.data["stops"]
            for m in range(len(METHODS))
            if self.page["stops"][stop["index"]] and self.page["stops"][stop["index"]]["rules"][m]
        ]


class Site:
    """One operation with one method: operands as they are packed, z formed anew of them."""

    def __init__(self, both: Both, stop: dict[str, Any], m: int) -> None:
        self.both, self.stop, self.m = both, stop, m
        self.operation, self.said = stop["operation"], stop["rules"][m]
        self.page = both.page["stops"][stop["index"]]["rules"][m]
        record = both.records[stop["index"]]
        self.operands = [self._operand(one) for one in stop["operands"]]
        self.attributes = dict(record.attributes)
        shape = (1, *both.data["values"][stop["output"]]["shape"])
        for name in ("cos", "sin"):
            if name in self.attributes:
                self.attributes[name] = both.array(stop["attributes"][name], shape)
        if "values" in self.attributes:
            self.attributes["values"] = both.values[stop["output"]]
        self.z = OPERATIONS[self.operation].forward(*self.operands, **self.attributes)
        self.r = both.propagated(stop["output"], m)
        composite = both.walk.explanations[m].composite
        self.rule = composite.rule(self.operation, record.output.names, record.role)
        self.gxi = composite.formulation == "gradient_x_input"
        known = OPERATIONS[self.operation].options(self.rule.function)
        self.options = known | self.rule.options
        self.name = f"{self.operation}.{self.said['function']}"

    def _operand(self, one: dict[str, int] | None) -> Any:
        if one is None:
            return None
        return (
            self.both.values[one["value"]] if "value" in one else self.both.weights[one["weight"]]
        )

    def __repr__(self) -> str:
        return f"{self.stop['site']}, {METHODS[self.m]}, {self.name}"

    def apply(self, function: Any = None, z: Any = None, r: Any = None, **options: Any) -> Any:
        """A rule, by its own function and options where no others are named."""
        function = function or self.rule.function
        known = OPERATIONS[self.operation].options(function)
        options = {k: v for k, v in (self.options | options).items() if k in known}
        z, r = self.z if z is None else z, self.r if r is None else r
        return function(*self.operands, z, r, **self.attributes, **options)

    def inputs(self, output: Any) -> list[Any]:
        """Of each operand that is a value what it receives; None else."""
        pairs = zip(self.stop["operands"], output.inputs, strict=True)
        return [
            None if one is None or "value" not in one or r is None else asnumpy(r)
            for one, r in pairs
        ]

    def amount(self, k: int | None, r: Any) -> float:
        """sum R, or sum x g, at operand k or at the output."""
        x = self.z if k is None else self.operands[k]
        return float(np.sum(x * r if self.gxi else r))
