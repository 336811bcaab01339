"""Numbers as they are printed: so many digits of the largest, and sums that add up as printed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any


def strongest(values: Iterable[float]) -> float:
    """The largest amount among the finite values."""
    return max((abs(v) for v in values if math.isfinite(v)), default=0.0)


def decimals(largest: float, digits: int) -> int:
    """Decimals for so many significant digits of the largest number."""
    if not 0 < largest < math.inf:
        return digits - 1
    return min(max(digits - 1 - math.floor(math.log10(largest)), 0), 30)


def total(sums: Any) -> float:  # (B,), or a float -> the sum over the examples of a batch
    return float(sum(each(sums)))


def each(sums: Any) -> list[float]:  # (B,), or a float -> of every example
    return [sums] if isinstance(sums, float) else [float(v) for v in sums]


def adding_up(parts: Sequence[float], whole: float, places: int) -> list[str]:
    """The parts and then the whole, so rounded that the parts as printed add up to the whole as
    printed.

    Where plain rounding misses, the parts nearest to the other side go there: each number is still
    right to a unit of its last place. The last part, the conservation error, is left as it is.
    """
    if not all(map(math.isfinite, (*parts, whole))):
        return [f"{v:.{places}f}" for v in (*parts, whole)]
    exact = [Decimal(v).scaleb(places) for v in (*parts, whole)]
    units = [int(v.to_integral_value()) for v in exact]
    missing = units[-1] - sum(units[:-1])
    step = 1 if missing > 0 else -1
    candidates = sorted(range(max(len(parts) - 1, 1)), key=lambda i: step * (units[i] - exact[i]))
    for i in candidates[: abs(missing)]:
        units[i] += step
    return [f"{Decimal(v).scaleb(-places):.{places}f}" for v in units]


def amount(value: float, places: int) -> str:
    """So many decimals; a number that would show none of its digits there in powers of ten."""
    return f"{value:.1e}" if 0 < abs(value) < 10.0 ** (1 - places) else f"{value:z.{places}f}"


def error(value: float) -> str:
    """A conservation error: its size is what counts."""
    return f"{value:.1e}" if value else "0"


def finite(value: Any) -> Any:
    """For JSON, which has no NaN and no infinity: null in place of both, however deep."""
    if isinstance(value, dict):
        return {key: finite(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def percent(part: float, whole: float) -> str:
    """The part in hundredths of the whole; nothing where that is no number."""
    hundredths = 100 * part / whole if whole else math.nan
    return f"{hundredths:z.1f}%" if math.isfinite(hundredths) else ""
