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
    reach     a query sees so many keys to either side, and itself
    allowed   bool (B, I), False where a key is padding, or hidden by the caller; or bool (B, J, I),
              which query may look where; None where nothing is hidden
    past      how many keys come before the first query
    segments  int (B, I): a query sees only keys of the same number (texts that stand one behind the
              other); None where all are of one. Of as many queries as keys
    """

    ids: Array
    queries: int
    keys: int
    causal: bool = False
    window: int | None = None
    reach: int | None = None
    allowed: Array | None = None
    past: int = 0
    segments: Array | None = None

    @cached_property
    def array(self) -> Array:  # bool (1|B, 1, J, I)
        """All of it, True where a query may look."""
        return self._formed(slice(0, self.queries), slice(0, self.keys))

    def visible(self, rows: slice) -> slice:
        """The keys among which are all that any of these queries sees."""
        first, last = self._furthest(self.past + rows.start, self.past + rows.stop - 1)
        first, stop = max(first, 0), min(last + 1, self.keys)
        return slice(min(first, stop), stop)

    def part(self, rows: slice, columns: slice) -> Array | None:  # bool (1|B, 1, J, I)
        """Of these queries and keys; None where nothing is hidden."""
        first, last = self.past + rows.start, self.past + rows.stop - 1
        behind, ahead = self._furthest(last, last)[0], self._furthest(first, first)[1]
        hides = columns.start < behind or columns.stop - 1 > ahead
        hides = hides or self.allowed is not None or self.segments is not None
        return self._formed(rows, columns) if hides else None

    def _furthest(self, first: int, last: int) -> tuple[int, int]:
        """The first key that any of these queries sees, and the last, by their positions."""
        start, end = 0, last if self.causal else self.keys - 1
        if self.window is not None:
            start = first - self.window + 1
        if self.reach is not None:
            start, end = max(start, first - self.reach), min(end, last + self.reach)
        return start, end

    def _formed(self, rows: slice, columns: slice) -> Array:
        xp, device = namespace(self.ids), device_of(self.ids)
        j = xp.arange(self.past + rows.start, self.past + rows.stop, **device)[:, None]
        i = xp.arange(columns.start, columns.stop, **device)[None, :]
        visible = i <= j if self.causal else (i >= 0) & (j >= 0)
        if self.window is not None:
            visible = visible & (i > j - self.window)
        if self.reach is not None:
            visible = visible & (i >= j - self.reach) & (i <= j + self.reach)
        visible = visible[None, None, :, :]
        if self.segments is not None:
            own, others = self.segments[:, None, rows, None], self.segments[:, None, None, columns]
            visible = visible & (own == others)
        if self.allowed is None:
            return visible
        where = rows if self.allowed.ndim == 3 else None
        return visible & self.allowed[:, None, where, columns]
