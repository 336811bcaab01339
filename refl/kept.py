"""What was kept of an explanation: at which sites, and which token each row of a site is.

Rows are tokens, of a picture its patches, the class token first; of log-mel features, which have no
such token, an encoder's are their patches. In a padded batch there are more rows than tokens. Rows
of an expert are the tokens that chose it: those whose first choice it is, then the second, and so
on (refl.nets.moe); the router's probabilities tell which.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from typing import Any, Protocol

import numpy as np

from refl.components import Components
from refl.edits import edited_site
from refl.errors import ReflError, argument, shown
from refl.ledger import Ledger, UnknownSite
from refl.rules import top_k

ROUTER = ("probabilities", "chosen")
"""Ends of the sites of a mixture that tell which token chose which expert."""

REGISTERS = 64
"""Learned tokens that a DINOv2 may have in front of its patches; the published ones have five."""

_EXPERT = re.compile(r"(?P<mixture>.*)\.experts\.(?P<number>\d+)\..*")


class Explained(Protocol):
    """What is asked of an explanation (refl.explanation)."""

    tokens: list[str]
    decoder_tokens: list[str] | None
    relevance: Any
    explained: float
    patch: tuple[int, int] | None
    pixels: Any
    about: dict[str, str]
    method: Any
    recorded: Ledger | None
    sites: Any

    @property
    def parts(self) -> Callable[[], Components | None]: ...
    @property
    def components(self) -> Components: ...
    @property
    def ledger(self) -> Ledger: ...
    @property
    def what(self) -> str: ...
    def __getitem__(self, site: str, /) -> Any: ...
    def __iter__(self) -> Iterator[str]: ...
    def activation(self, site: str, /) -> Any: ...


# -- sites -----------------------------------------------------------------------------------------


def is_kept(e: Explained, site: str) -> bool:
    """Whether there is relevance at a site."""
    try:
        e.sites.canonical(site)
    except UnknownSite:
        return False
    return True


def shape(e: Explained, site: str) -> tuple[int, ...]:
    """Of the activation of a kept site."""
    return tuple(map(int, e.sites.activations[e.sites.canonical(site)].shape))


def names(e: Explained) -> dict[str, list[str]]:
    """Every name of each kept site, from the input up as the conservation ledger has them; then
    those without an entry, by their names.
    """
    entries = [] if e.recorded is None else [entry.site for entry in e.recorded]
    order = {site: -number for number, site in enumerate(entries)}
    found = {site: [site] for site in sorted(e, key=lambda site: (order.get(site, 1), site))}
    for name, site in e.sites.aliases.items() if found else ():
        if site in found:
            found[site].append(name)
    return found


def refused(e: Explained, missing: Sequence[str]) -> ReflError:
    """Where sites were not kept: what to keep."""
    if not hasattr(e.method, "rules"):
        return ReflError(
            f"method {shown(e.method.name)} is no table of rules and has no relevance at sites: "
            "explain with one that is, such as attnlrp"
        )
    more = f", nor that of {len(missing) - 1} other sites" if len(missing) > 1 else ""
    return ReflError(
        f"the relevance at {shown(missing[0])} was not kept{more}: explain again without "
        f"{argument('keep')}, or with keep=[{', '.join(map(repr, alike(missing)))}]"
    )


def alike(sites: Iterable[str]) -> list[str]:
    """Patterns of sites: * stands for the number of a block or an expert, and for the digits of one
    at the end, ? for each, for * would name all that is below.
    """
    ends = (re.sub(r"\d+$", lambda n: "?" * len(n[0]), site) for site in sites)
    return list(dict.fromkeys(re.sub(r"\.\d+(?=\.)", ".*", site) for site in ends))


def inside_expert(site: str) -> tuple[str, int] | None:
    """Of a site inside an expert the mixture's path and the expert's number."""
    found = _EXPERT.fullmatch(site)
    return None if found is None else (found["mixture"], int(found["number"]))


# -- rows ------------------------------------------------------------------------------------------


class Positions:
    """Which tokens the rows of the sites of one explanation are."""

    def __init__(self, e: Explained) -> None:
        self.e = e
        self.known: dict[str, list[int] | None] = {}
        self.chosen: dict[str, dict[int, list[int]] | None] = {}
        self.rows: dict[bool, set[int]] = {}
        self.crossing = () if e.decoder_tokens is None else self._crossing()

    def tokens(self, site: str) -> list[int] | None:
        """The token of each row, rows of padding left out; None where rows are no tokens, or it was
        not kept which.
        """
        if site not in self.known:
            self.known[site] = self._tokens(site)
        return self.known[site]

    def length(self, site: str) -> int:
        """How many tokens there are where a site is: an encoder's, or a decoder's."""
        if not self._in_picture(site):
            return len((self.e.decoder_tokens if self._in_decoder(site) else self.e.tokens) or ())
        return len(self.tokens(site) or ())

    def text(self, site: str, token: int | None) -> str | None:
        """Of a token; of a picture "class token", or the row and the column of a patch."""
        if token is None:
            return None
        if self._in_picture(site):
            return self._patch(self.length(site), token)
        return ((self.e.decoder_tokens if self._in_decoder(site) else self.e.tokens) or [])[token]

    def _patch(self, length: int, token: int) -> str:
        rows, columns = self._patches()
        first = length - rows * columns
        if token < first:
            second = "distillation token" if self.e.about.get("architecture") == "deit" else ""
            return ("class token", *[second or f"register {n}" for n in range(first - 1)])[token]
        row, column = divmod(token - first, columns)
        return f"patch {row}, {column}"

    def _patches(self) -> tuple[int, int]:
        """Of a picture: how many below each other, and side by side."""
        pixels = self.e.relevance if self.e.pixels is None else self.e.pixels
        (height, width), (h, w) = np.shape(pixels), self.e.patch or (1, 1)
        return height // h, width // w

    def _in_picture(self, site: str) -> bool:
        """Whether rows are patches: of a picture, of an encoder's log-mel features; beside texts
        those of the picture's tower are.
        """
        if self.e.patch is None or self._in_decoder(site):
            return False
        return self.e.pixels is None or site.startswith("vision_model.")

    def _tokens(self, site: str) -> list[int] | None:
        if inside := inside_expert(site):
            mixture, number = inside
            if mixture not in self.chosen:
                self.chosen[mixture] = self._found_choice(mixture)
            chose = self.chosen[mixture]
            return None if chose is None else chose.get(number, [])
        of = shape(self.e, site)
        rows = of[-2] if len(of) > 1 else 0
        if self._in_picture(site):
            # class token, distillation token, registers; log-mel features have none
            learned = rows - math.prod(self._patches())
            most = REGISTERS if self.e.about.get("architecture") == "dinov2" else 2
            least, most = (1, most) if self.e.decoder_tokens is None else (0, 0)
            fits = least <= learned <= most and site != "pixel_values"
            return list(range(rows)) if fits else None
        length = self.length(site)
        return list(range(length)) if rows in (length, *self._padded(site)) else None

    def _padded(self, site: str) -> set[int]:
        """How many rows blocks have, padding counted."""
        decoder = self._in_decoder(site)
        if decoder not in self.rows:
            alike = (one for one in self._of_blocks() if self._in_decoder(one) is decoder)
            self.rows[decoder] = {shape(self.e, one)[-2] for one in alike if is_kept(self.e, one)}
        return self.rows[decoder]

    def _of_blocks(self) -> list[str]:
        """Sites of blocks and attentions, whose rows are all tokens."""
        components = self.e.parts()
        if components is None:
            return []
        contexts = [attention.context for attention in components.attentions]
        return [block.site for block in components.blocks] + contexts

    def _in_decoder(self, site: str) -> bool:
        """Whether rows are tokens of a decoder: those of its cross-attention's keys and values are
        the encoder's.
        """
        stack = site.removeprefix("model.").partition(".")[0]
        if self.e.decoder_tokens is None or stack != "decoder":
            return False
        return not site.startswith(self.crossing)

    def _crossing(self) -> tuple[str, ...]:
        """How sites of keys and values of cross-attention begin."""
        components = self.e.parts()
        crosses = [] if components is None else [a for a in components.attentions if a.cross]
        paths = [a.context.removesuffix("context") for a in crosses]
        made = [site for a in crosses for site in (a.key, a.value)]
        return (*made, *(f"{path}{name}" for path in paths for name in ("key", "value")))

    def _found_choice(self, mixture: str) -> dict[int, list[int]] | None:
        """Expert -> the tokens that chose it, in the order of its rows; None where what the router
        found was not kept.
        """
        p, chosen = (f"{mixture}.{end}" for end in ROUTER)
        p = edited_site(p) if is_kept(self.e, edited_site(p)) else p
        if not is_kept(self.e, p) or not is_kept(self.e, chosen):
            return None
        rows, k = self.e.activation(p)[: self.length(mixture)], shape(self.e, chosen)[-1]
        (choice,) = top_k.choose(rows[None], k)
        found: dict[int, list[int]] = {}
        for j, t in product(range(k), range(len(rows))):
            found.setdefault(choice[t][j], []).append(t)
        return found
