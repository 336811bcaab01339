"""Pages of walks taken apart again, without refl's own reader: the elements as a parser of HTML has
them, the data, and the arrays byte by byte.
"""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from checkpoint_folders import checkpoint_of

from refl.explanation import Explanation
from refl.io.images import Preparation
from refl.model import Model
from refl.verification.random_models import ARCHITECTURES, LLAMA, random_model
from refl.walk import Walk, walk

FORMATS = {"f4": ">f", "i4": ">i", "u1": ">B"}


def unpacked(blob: bytes, where: dict[str, Any]) -> list[Any]:
    """The numbers of one array, each put together from one byte of every plane."""
    kind, count, start = where["kind"], where["count"], where["offset"]
    width = int(kind[1])
    planes = [blob[start + p * count : start + (p + 1) * count] for p in range(width)]
    form, end = FORMATS.get(kind, ">d"), b"" if kind in FORMATS else bytes(8 - width)
    return [struct.unpack(form, bytes(plane[i] for plane in planes) + end)[0] for i in range(count)]


class Arrays:
    """What the data of a page refer to by number."""

    def __init__(self, data: dict[str, Any], text: str) -> None:
        self.data = data
        self.blob = zlib.decompress(base64.b64decode(text, validate=True))
        self.read: dict[int, Any] = {}

    def array(self, number: int, shape: Sequence[int] = (-1,)) -> Any:
        if number not in self.read:
            self.read[number] = np.array(unpacked(self.blob, self.data["arrays"][number]))
        return self.read[number].reshape(shape)

    def value(self, value: dict[str, Any]) -> Any:
        return self.array(value["array"], value["shape"])

    def propagated(self, value: dict[str, Any], method: int) -> Any:
        """Zeros where nothing arrived."""
        number = value["propagated"][method]
        return np.zeros(value["shape"]) if number is None else self.array(number, value["shape"])


class Page(HTMLParser):
    """The elements of a page, in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.comments: list[str] = []
        self.open = False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        self.texts.append("")
        self.open = True

    def handle_endtag(self, tag: str) -> None:
        self.open = False

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[-1] += data

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    def inside(self, tag: str, **attributes: str) -> str:
        """The text right behind the start of the one element that is meant."""
        (found,) = [
            text
            for (name, said), text in zip(self.elements, self.texts, strict=True)
            if name == tag and said == attributes
        ]
        return found

    @property
    def policy(self) -> str:
        (found,) = [
            said["content"] or ""
            for name, said in self.elements
            if name == "meta" and said.get("http-equiv") == "Content-Security-Policy"
        ]
        return found

    @cached_property
    def data(self) -> dict[str, Any]:
        text = self.inside("script", type="text/plain", id="walk-data")
        found: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(text, validate=True)))
        return found

    @cached_property
    def arrays(self) -> Arrays:
        return Arrays(self.data, self.inside("script", type="text/plain", id="walk-arrays"))


def asked_of(model: Model) -> tuple[Any, dict[str, Any]]:
    """A short input, and what else a model needs."""
    if model.takes_images:
        height, width = model.config.image
        random = np.random.default_rng(5)
        return random.integers(0, 256, (height, width, 3), dtype=np.uint8), {}
    if model.task == "masked-token":
        return [3, 1, 16, 1, 8], {"position": 2}
    more = {"decoder": [0, 4, 7]} if model.task == "sequence-to-sequence" else {}
    return [3, 1, 16, 1, 8], more


def drawn_model(name: str, seed: int = 1) -> Model:
    """One of an architecture; pictures are of levels from 0 to 255."""
    model = random_model(ARCHITECTURES[name], seed)
    return replace(model, preparation=LEVELS) if model.takes_images else model


LEVELS = Preparation(None, 2, None, 1 / 128, (1.0, 1.0, 1.0), (1.0, 1.0, 1.0))


def random_walk(name: str, seed: int = 1) -> tuple[Model, Walk]:
    """Through a random model of an architecture."""
    model = drawn_model(name, seed)
    item, more = asked_of(model)
    return model, walk(model, item, **more)


METHODS = ("attnlrp", "cp-lrp", "input-x-gradient")


class Told:
    """A model, a walk through it, its page read back, and what the engine says of the same."""

    def __init__(self, model: Model, w: Walk, item: Any = None, **more: Any) -> None:
        self.model, self.walk, self.html = model, w, w.html()
        self.page = Page(self.html)
        self.data, self.arrays = self.page.data, self.page.arrays
        if item is None:
            item, more = asked_of(model)
        self.explanations: list[Explanation] = [
            model.explain(item, method, keep="*", audit=True, **more) for method in METHODS
        ]

    @property
    def stops(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.data["stops"]
        return found

    def value(self, operand: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = self.data["values"][operand["value"]]
        return found

    def operand(self, operand: dict[str, Any] | None) -> Any:
        if operand is None:
            return None
        if "value" in operand:
            return self.arrays.value(self.value(operand))
        weight = self.data["weights"][operand["weight"]]
        return self.arrays.array(weight["array"], weight["shape"])


# -- hostile text ----------------------------------------------------------------------------------

ATTACKS = (
    "</script><script>alert(1)</script>",
    "<!--",
    "<script>",
    "\u2028\u2029",
    "\x00\x1b[31m\r\n",
    "]]>&lt;&#60;\"'`${alert(1)}",
    "\u202e\ufeff",
    "{{constructor}}",
    "NaN",
    "__proto__",
)


def hostile_folder(parent: Path, config: dict[str, Any] = LLAMA) -> Path:
    """A checkpoint whose every word attacks whoever shows it, by name too."""
    folder = parent / "<script>alert(2)<!--script>"
    checkpoint_of(folder, config)
    vocabulary = {attack: n for n, attack in enumerate(ATTACKS)}
    vocabulary |= {f"w{n}</script>": n for n in range(len(ATTACKS), LLAMA["vocab_size"])}
    tokenizer = {
        "version": "1.0",
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<script>"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    return folder
