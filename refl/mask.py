"""Which query may look at which key: said in a few numbers, and formed for the part that is asked
for, since for all pairs it is as large as the scores themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from refl.arrays import Array, device_of, namespace


@dataclass(frozen=True)
class Mask:
    """Queries by keys of one batch.

    ids       any array of the batch, (B, ...): the library and the device that masks are formed on
    queries   J
    keys      I
    causal    a query sees itself and what came before
    window    of that only the last so many
    unpadded  bool (B, I), False where a key is padding; None where none is
    past      how many keys come before the first query
    segments  int (B, I): a query sees only keys of the same number (texts that stand one behind the
              other); None where all are of one. Of as many queries as keys
    """

    ids: Array
    queries: int
    keys: int
    causal: bool = False
    window: int | None = None
    unpadded: Array | None = None
    past: int = 0
    segments: Array | None = None

    @cached_property
    def array(self) -> Array:  # bool (1|B, 1, J, I)
        """All of it, True where a query may look."""
        return self._formed(slice(0, self.queries), slice(0, self.keys))

    def visible(self, rows: slice) -> slice:
        """The keys among which are all that any of these queries sees."""
        last = self.keys if not self.causal else min(self.past + rows.stop, self.keys)
        first = 0 if self.window is None else max(self.past + rows.start - self.window + 1, 0)
        return slice(min(first, last), last)

    def part(self, rows: slice, columns: slice) -> Array | None:  # bool (1|B, 1, J, I)
        """Of these queries and keys; None where nothing is hidden."""
        first, last = self.past + rows.start, self.past + rows.stop - 1
        ahead = self.causal and columns.stop - 1 > first
        behind = self.window is not None and columns.start <= last - self.window
        hides = ahead or behind or self.unpadded is not None or self.segments is not None
        return self._formed(rows, columns) if hides else None

    def _formed(self, rows: slice, columns: slice) -> Array:
        xp, device = namespace(self.ids), device_of(self.ids)
        j = xp.arange(self.past + rows.start, self.past + rows.stop, **device)[:, None]
        i = xp.arange(columns.start, columns.stop, **device)[None, :]
        visible = i <= j if self.causal else (i >= 0) & (j >= 0)
        if self.window is not None:
            visible = visible & (i > j - self.window)
        visible = visible[None, None, :, :]
        if self.segments is not None:
            own, others = self.segments[:, None, rows, None], self.segments[:, None, None, columns]
            visible = visible & (own == others)
        return visible if self.unpadded is None else visible & self.unpadded[:, None, None, columns]
