"""The page of a walk: the data, the arrays, the style and the scripts in one document.

Nothing is loaded, and nothing but the page's own script runs: the policy names its hash, so that no
text of a token or of a checkpoint can become a script.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from refl.explanation import Explanation
from refl.show.heatmap import encoded
from refl.show.markup import bare_document
from refl.show.numbers import finite

PAGE = Path(__file__).parent / "page"
SCRIPTS = (
    *("rules.js", "elements.js", "words.js", "grids.js", "worked.js", "ledger.js", "bar.js"),
    *("spine.js", "questions.js", "views.js", "keys.js", "page.js"),
)
"""In the order in which they stand in the page."""
EQUATIONS = Path(__file__).with_name("equations.json")


def document(data: dict[str, Any], arrays: str) -> str:
    """The whole page."""
    script, style = _script(), _read("walk.css")
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    title = f"refl: a walk through the {data['what']}"
    whole = data | {"equations": {name: equations().get(name) for name in data["equations"]}}
    body = (
        '<main id="app"><noscript>This page is worked out in the browser: '
        "allow its script, which loads nothing.</noscript></main>\n"
        f'<script type="text/plain" id="walk-data">{_deflated(whole)}</script>\n'
        f'<script type="text/plain" id="walk-arrays">{arrays}</script>\n'
        f"<script>{script}</script>"
    )
    return bare_document(title, body, style, policy, "walk")


@cache
def equations() -> dict[str, Any]:
    """Name of a function, as operation.function -> its equation as MathML, and in words."""
    found: dict[str, Any] = json.loads(EQUATIONS.read_text(encoding="utf-8"))
    return found


def picture(e: Explanation) -> dict[str, Any] | None:
    """What a net was shown, where that is a picture."""
    if e.picture is None or e.patch is None:
        return None
    (height, width), (h, w) = e.picture.shape[:2], e.patch
    uri = "data:image/png;base64," + base64.b64encode(_png(e.picture)).decode("ascii")
    return {"uri": uri, "rows": height // h, "columns": width // w, "size": [height, width]}


def _png(pixels: Any) -> bytes:  # uint8 (H, W, C)
    return encoded(pixels if pixels.shape[-1] == 3 else np.repeat(pixels[..., :1], 3, axis=-1))


@cache
def _read(name: str) -> str:
    return "\n" + (PAGE / name).read_text(encoding="utf-8")


@cache
def _script() -> str:
    return "".join(map(_read, SCRIPTS))


def _hash(text: str) -> str:
    """As a policy names what may stand in the page."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"


def _deflated(data: Any) -> str:
    """JSON, deflated, in letters among which there is no `<`: no text in it can end the block."""
    text = json.dumps(finite(data), separators=(",", ":"), allow_nan=False)
    return base64.b64encode(zlib.compress(text.encode("utf-8"), 9)).decode("ascii")
