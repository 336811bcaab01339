"""A picture and the texts it is compared with: the input of a net whose output is how well they go
together (CLIP).

    ("a photo of a cat", image)                         one text, whose similarity is explained
    (["a photo of a cat", "a photo of a dog"], image)   several: they are classes of the picture
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from refl import arguments
from refl.arguments import received
from refl.errors import ReflError, argument, shown
from refl.io.images import Image, is_one


@dataclass(frozen=True)
class Compared:
    """As a net takes it."""

    image: Image
    texts: list[list[int]]
    """Token ids of each."""
    names: list[str]
    """The texts, as outputs are called."""

    @property
    def ids(self) -> list[int]:
        """Of all texts, one behind the other."""
        return list(chain.from_iterable(self.texts))

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(map(len, self.texts))

    def number(self, name: Any) -> int:
        """Of a text given as it stands, or by its number. Raises ReflError for one that is none."""
        number = arguments.as_whole(name)
        if number is not None and 0 <= number < len(self.names):
            return number
        found = [n for n, one in enumerate(self.names) if isinstance(name, str) and one == name]
        if len(found) > 1:
            raise ReflError(
                f"{received(name)} is {len(found)} of the texts: give one by its number, "
                f"{', '.join(map(str, found[:10]))}"
            )
        if not found:
            few = ", ".join(repr(shown(one)) for one in self.names[:5])
            raise ReflError(
                f"{received(name)} is none of the {len(self.names)} texts that the picture is "
                f"compared with: expected one of {few}{', ...' * (len(self.names) > 5)}, or its "
                "number"
            )
        return found[0]


def is_single(item: Any) -> bool:
    """Whether it is one picture with its texts, not a list of such. Raises ReflError for what is
    neither.
    """
    if isinstance(item, Compared):
        return True
    if not isinstance(item, (tuple, list)) or not item:
        raise _refusal(item)
    return len(item) == 2 and not isinstance(item[1], (tuple, list, Compared)) and is_one(item[1])


def parts(item: Any) -> tuple[list[Any], Any]:
    """The texts, each a text or token ids, and the picture. Raises ReflError for what is none."""
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise _refusal(item)
    texts, image = item
    every = [texts] if arguments.is_single(texts) else arguments.input_members(texts)
    return every, image


def _refusal(item: Any) -> ReflError:
    return ReflError(
        f"the input is {received(item)}: this model compares a picture with texts, so give "
        f"(text, image), ([text, text], image), or the image and {argument('text=')}"
    )


def refuse_uneven(inputs: Sequence[Any]) -> None:
    """Raises ReflError for pictures that are compared with unequal numbers of texts."""
    counts = {len(one.texts) for one in inputs}
    if len(counts) > 1:
        raise ReflError(
            f"the pictures are compared with {', '.join(map(str, sorted(counts)))} texts: expected "
            "as many for each, or give them one by one"
        )
