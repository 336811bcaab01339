"""The results as text: a line for a terminal, and the table for the guide
(refl/guide/speed.md), written between its markers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from refl.errors import ReflError
from refl.verification.markdown import table
from refl.verification.quality.benchmark import machine, results
from refl.verification.quality.benchmark.rounds import quotients, spread
from refl.verification.quality.benchmark.spec import PARTS

Row = dict[str, Any]
START, END = "<!-- benchmark -->", "<!-- /benchmark -->"
EVERY = ", every token"
COMMAND = "python -m refl.verification.quality.benchmark"


# -- one row ---------------------------------------------------------------------------------------


def line(row: Row) -> str:
    """For a terminal."""
    said = [f"{title(row)}, {method(row)}:", seconds_cell(row), quotient_cell(row)]
    said += [f"sweep / forward {sweep_cell(row)}", f"MiB {memory_cell(row)}", extra(row)]
    if "others" in row:
        said.append(f"others {row['others']:.1f} cores")
    if "deviation" in row:
        said.append(f"deviation {row['deviation']:.1e}")
    if "from float64" in row:
        said.append(f"from refl in float64: {_apart(row)}")
    left_out = [f"{side} left out: {why}" for side, why in row["left out"].items()]
    return "  ".join(filter(None, [*said, *left_out]))


def _apart(row: Row) -> str:
    found = row["from float64"]
    return f"refl {found['refl']:.1e}, {row['peer']} {found['peer']:.1e}"


def title(row: Row) -> str:
    """What ran."""
    part, model = row["part"], row["model"]
    if "text" in row:
        return f"explain({row['text']!r}), {model}"
    if part == "depth":
        return f"{row['layers']} layers, {row['tokens']:,} tokens"
    if part == "batch":
        return f"{row['sentences']} sentences, {row['tokens']:,} tokens"
    if part == "vision":
        return f"{model}, {row['pixels']} x {row['pixels']} pixels"
    if part == "t5":
        return f"{model}, {row['tokens']} + {row['prefix']} tokens"
    length = f"{row['tokens']:,} tokens" if "tokens" in row else ""
    return ", ".join(filter(None, [model, length]))


def method(row: Row) -> str:
    return str(row["method"]) + (", recompute" if row.get("recompute") else "")


def whole(row: Row) -> str:
    """The name of refl's whole run among the seconds."""
    return "refl explain" if "text" in row else "refl"


def seconds_cell(row: Row, suffix: str = "") -> str:
    """Medians: refl's, then the peer's."""
    names = (whole(row), f"{row['peer']}{suffix}")
    found = [median(row["seconds"][name]) for name in names if name in row.get("seconds", {})]
    busy = ", busy" if machine.is_busy(row) else ""
    return (" / ".join(map(duration, found)) or "-") + busy


def duration(seconds: float) -> str:
    if seconds < 0.1:
        return f"{1000 * seconds:.3g} ms"
    return f"{seconds:.2f} s" if seconds < 100 else f"{seconds:.0f} s"


def quotient_cell(row: Row, suffix: str = "") -> str:
    """refl over the peer: the median of the rounds' quotients, and their quartiles."""
    peer = f"{row['peer']}{suffix}"
    if peer not in row.get("seconds", {}):
        return "-"
    middle, lower, upper = spread(quotients(row["seconds"], whole(row), peer))
    return f"**{middle:.2f}** ({lower:.2f} to {upper:.2f})"


def sweep_cell(row: Row) -> str:
    seconds = row.get("seconds", {})
    if "refl sweep" not in seconds:
        return "-"
    return f"{median(quotients(seconds, 'refl sweep', 'refl forward')):.2f}"


def memory_cell(row: Row) -> str:
    """MiB above the weights: refl's, then the peer's."""
    found = row.get("memory", {})
    sides = (side for side in ("refl", row["peer"]) if side in found)
    return " / ".join(f"{found[side]['rise']:,.0f}" for side in sides) or "-"


def extra(row: Row) -> str:
    """What some parts say in words of their own."""
    seconds = row.get("seconds", {})
    if "bare products" in seconds:
        return overhead(row)
    return throughput(row) if row["part"] == "batch" and seconds else ""


def overhead(row: Row) -> str:
    bare, all_of_it = (median(row["seconds"][name]) for name in ("bare products", "refl"))
    each = 1e6 * (all_of_it - bare) / row["operations"]
    return (
        f"{row['operations']} operations, {each:.1f} µs each in forward and sweep above the bare "
        f"matrix products, which take {duration(bare)} of {duration(all_of_it)}"
    )


def throughput(row: Row) -> str:
    sides = [side for side in ("refl", row["peer"]) if side in row["seconds"]]
    each = (
        f"{side} {row['tokens'] / median(row['seconds'][side]):,.0f} tokens and "
        f"{row['sentences'] / median(row['seconds'][side]):,.0f} sentences a second"
        for side in sides
    )
    return "; ".join(each)


# -- the table -------------------------------------------------------------------------------------

Key = tuple[str, ...]
HEAD = ("seconds: refl / peer", "refl / peer", "sweep / forward", "MiB: refl / peer")


def markdown(found: Sequence[results.Results]) -> str:
    """One table, the machines side by side; what stands in no cell; the figures."""
    if not found:
        return f"No results yet: `{COMMAND}` writes them."
    return "\n\n".join([_caption(), _table(found), *(_below(each) for each in found)])


def _caption() -> str:
    return (
        f"`{COMMAND}`: medians of runs that alternate in one process; `refl / peer` is the median "
        "of the rounds' own quotients, with its quartiles; MiB are the peak above the weights, "
        "each side in a process of its own. The peer computes the same relevance, but for "
        "torch beside attnlrp-gradient, which is its plain input x gradient."
    )


def _table(found: Sequence[results.Results]) -> str:
    cells = [dict(_cells(each)) for each in found]
    keys = sorted(
        {key: None for each in cells for key in each}, key=lambda key: PARTS.index(key[0])
    )
    tags = "abcdefgh" if len(found) > 1 else " "
    head = [f"{name} {tag}".strip() for tag, _ in zip(tags, found, strict=False) for name in HEAD]
    rows = [[*key[1:], *(c for each in cells for c in each.get(key, ["-"] * 4))] for key in keys]
    return table(["what", "method", "peer", *head], rows)


def _cells(found: results.Results) -> Iterator[tuple[Key, list[str]]]:
    """(part, what, method, peer) -> the cells of one machine."""
    for part in PARTS:
        for row in results.rows(found, part):
            yield (
                _key(row),
                [
                    seconds_cell(row),
                    quotient_cell(row),
                    sweep_cell(row),
                    memory_cell(row),
                ],
            )
            if f"{row['peer']}{EVERY}" in row.get("seconds", {}):
                both = [seconds_cell(row, EVERY), quotient_cell(row, EVERY)]
                yield _key(row, EVERY), [*both, "-", "-"]


def _key(row: Row, suffix: str = "") -> Key:
    return row["part"], title(row), method(row), f"{row['peer'] or '-'}{suffix}"


# -- below it --------------------------------------------------------------------------------------


def _below(found: results.Results) -> str:
    """The machine in words, once for each way that it was; what was said of single rows; and the
    figure.
    """
    said = [f"**{found['kind']}**. {words}." for words in _machines(found)]
    every = [row for part in PARTS for row in results.rows(found, part)]
    said.append(_quiet(found, every))
    said += [f"{title(row)}: {extra(row)}." for row in every if extra(row)]
    said += [f"{first}: {why}." for why, first in _left_out(every).items()]
    said.append(f"Relevances deviate by at most {_largest(every, 'deviation'):.1e} of the largest.")
    said += [
        f"{title(row)}, {method(row)}: {row['deviation']:.1e}; from refl in float64 {_apart(row)}."
        for row in every
        if "from float64" in row
    ]
    picture = f"../../verification/quality/benchmark/results/{found['kind']}.svg"
    return "\n".join([*(f"- {s}" for s in said), "", f"![{found['kind']}]({picture})"])


def _machines(found: results.Results) -> Iterator[str]:
    by_words: dict[str, list[str]] = {}
    for part in PARTS:
        if part in found["parts"]:
            about = found["parts"][part]["about"]
            by_words.setdefault(machine.words(about), []).append(part)
    for words, parts in by_words.items():
        yield words if len(by_words) == 1 else f"{', '.join(parts)}: {words}"


def _quiet(found: results.Results, rows: Sequence[Row]) -> str:
    """How quiet the machine was."""
    loads = ", ".join(
        f"{part} {each['about']['load']:.1f}" for part, each in found["parts"].items()
    )
    busy = [row["others"] for row in rows if "others" in row]
    others = f"{median(busy):.1f} in the median of rows, {max(busy):.1f} at most" if busy else "-"
    said = f"Load at the start of each part: {loads}; cores that others kept busy: {others}"
    return f"{said}. What says `busy` was measured beside more than {machine.QUIET}."


def _left_out(rows: Sequence[Row]) -> dict[str, str]:
    """Reason -> the first row and the side that it is the reason of."""
    found: dict[str, str] = {}
    for row in rows:
        for side, why in row["left out"].items():
            found.setdefault(f"{side} left out: {why}", title(row))
    return found


def _largest(rows: Sequence[Row], key: str) -> float:
    return max((row[key] for row in rows if key in row), default=0.0)


# -- in the guide ----------------------------------------------------------------------------------


def between(text: str) -> str:
    """What stands between the markers. Raises ReflError where they are not there once each."""
    if text.count(START) != 1 or text.count(END) != 1 or text.index(START) > text.index(END):
        raise ReflError(f"expected {START} once and {END} once behind it")
    return text.partition(START)[2].partition(END)[0].strip("\n")


def write_into(path: Path, page: str) -> None:
    """Raises ReflError where the file has no markers."""
    from refl.io.files import atomic_write

    text = path.read_text(encoding="utf-8")
    between(text)
    head, rest = text.partition(START)[0], text.partition(END)[2]
    atomic_write(path, f"{head}{START}\n\n{page}\n\n{END}{rest}".encode())
