"""The results of an evaluation as tables: for the terminal, as CSV by input, as JSON, in LaTeX."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from refl.evaluation.judging import metric
from refl.evaluation.results import DRAWS, LEVEL, Key, Results, has_curve
from refl.evaluation.statistics import Summary, fewest
from refl.show.lines import Line, Span, grid, paragraph
from refl.show.numbers import decimals, finite, strongest
from refl.show.text import printable

DIGITS = 3
"""Of the largest mean, where there is no standard error."""

MOST = 6
"""Decimals, or digits before the point."""

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""What a formula of a spreadsheet begins with."""

ARROWS = {True: "↑", False: "↓", None: ""}


def title(r: Results, key: Key) -> str:
    """A number's name, of which metric where several have one of that name."""
    several = sum(name == key[1] for _, name in r.values) > 1
    return f"{key[1]} ({key[0]})" if several else key[1]


def by_metric(r: Results) -> list[tuple[str, list[Key]]]:
    """Each metric with its numbers."""
    names = dict.fromkeys(name for name, _ in r.values)
    return [(name, [key for key in r.values if key[0] == name]) for name in names]


class Form(NamedTuple):
    """How the numbers of a column are printed: in units of 10^power, with so many decimals."""

    decimals: int
    power: int = 0

    def number(self, value: float, sign: str = "") -> str:
        """In these units."""
        inside = Decimal(value).scaleb(-self.power) if self.power else value
        return f"{inside:{sign}z.{self.decimals}f}"

    @property
    def unit(self) -> str:
        return f"e{self.power:+03}" if self.power else ""


def form(r: Results, key: Key) -> Form:
    """Two digits of the largest standard error of a column; powers of ten where the numbers have
    more than MOST decimals, or digits before the point.
    """
    found = [r.mean(key, m) for m in range(len(r.methods))]
    error = strongest(one.standard_error for one in found)
    largest = max(error, strongest(one.mean for one in found))
    power = math.floor(math.log10(largest)) if largest else 0
    if largest < 10**MOST and decimals(largest, DIGITS) <= MOST:
        power = 0
    counted, digits = (error, 2) if error else (largest or 1.0, DIGITS)
    return Form(min(decimals(float(Decimal(counted).scaleb(-power)), digits), MOST), power)


def shown(one: Summary, how: Form) -> str:
    """Mean and standard error."""
    if not one.count:
        return "-"
    if not math.isfinite(one.standard_error):
        return f"{how.number(one.mean)}{how.unit}"
    both = f"{how.number(one.mean)} ± {how.number(one.standard_error)}"
    return f"({both}){how.unit}" if how.unit else both


def protocol(r: Results, metrics: Sequence[str] | None = None) -> str:
    """What was done, in sentences; of some of the metrics."""
    options, model, data = r.said["options"], r.said["model"], r.said["data"]
    summaries = "; ".join(
        f"{name}: {metric(name).summary}" for name in metrics or options["metrics"]
    )
    contrasts = (
        ", of contrasts the difference"
        if options["contrast"]
        else ", of contrasts the target alone"
    )
    notes = "".join(f" {name}: {what}." for name, what in options["notes"].items())
    few = "".join(f" {words}." for words in fewer(r, metrics or options["metrics"]))
    one = data["inputs"] == 1
    several = f"Mean and standard error over {data['inputs']} inputs"
    return (
        f"{'The value of one input' if one else several} (data {data['hash'][:12]}) of "
        f"{model['name']} ({model['fingerprint'][:12]}, {model['dtype']}, refl {r.said['refl']}); "
        f"{'no standard error; ' if one else ''}"
        f"explained: {options['seed']}{contrasts}. {summaries}.{few}{notes} Bold: better than "
        f"every other method: on {fewest(LEVEL)} or more inputs of which both have a number, the "
        f"{LEVEL:.0%} BCa bootstrap interval ({DRAWS} draws of the inputs) of the paired "
        "differences lies on the better side of 0."
    )


def axes(r: Results, key: Key) -> tuple[str, str]:
    """Of a curve: what goes on from left to right, and what goes up and down."""
    across, up = getattr(metric(key[0]), "axes", ("from the first state to the last", None))
    explained = str(r.said["options"]["seed"])
    return across, up or (explained if explained != "logit" else "logit, or difference of two")


def inputs(r: Results, key: Key) -> str:
    """How many have a curve."""
    counts = {int(has_curve(r.curves[key][:, m]).sum()) for m in range(len(r.methods))} - {0}
    if len(counts) > 1:
        return f"{min(counts)} or more inputs"
    return counted(max(counts, default=0))


def counted(inputs: int) -> str:
    return "1 input" if inputs == 1 else f"{inputs} inputs"


def fewer(r: Results, metrics: Sequence[str]) -> Iterator[str]:
    """Which numbers are means over fewer inputs: of the others nothing can be said."""
    for key in r.values:
        counts = [r.mean(key, m).count for m in range(len(r.methods))]
        if key[0] in metrics and min(counts) < len(r.names):
            some = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} or more"
            yield f"{title(r, key)}: over {some} of these inputs"


# -- for the terminal ------------------------------------------------------------------------------


def lines(r: Results, width: int) -> list[Line]:
    """A row for each method; several tables one below the other where one would be too wide."""
    parts = [grid(_rows(r, keys), "l" + "r" * len(keys)) for keys in _fitting(r, width)]
    tables = [line for part in parts for line in (*part, [])]
    return [*tables, *paragraph(printable(protocol(r)), width, "dim", "")]


def _fitting(r: Results, width: int) -> Iterator[list[Key]]:
    """Columns that stand side by side."""
    room, used, keys = width - max(map(len, r.methods)) - 2, 0, list[Key]()
    for key in r.values:
        need = max(len(cell[0]) for cell in (row[1] for row in _rows(r, [key]))) + 2
        if keys and used + need > room:
            yield keys
            used, keys = 0, []
        used, keys = used + need, [*keys, key]
    if keys:
        yield keys


def _rows(r: Results, keys: list[Key]) -> list[list[Span]]:
    heads = [f"{title(r, key)} {ARROWS[r.larger_is_better(key)]}".strip() for key in keys]
    rows: list[list[Span]] = [[("method", "bold"), *((head, "bold") for head in heads)]]
    for m, name in enumerate(r.methods):
        cells = [
            (shown(r.mean(key, m), form(r, key)), "bold" if r.outstanding(key) == m else "")
            for key in keys
        ]
        rows.append([(name, ""), *cells])
    return rows


# -- as data ---------------------------------------------------------------------------------------


def as_csv(r: Results) -> str:
    """A row for each input and method, a column for each number; empty where there is none. A name
    that a spreadsheet would take for a formula has a ' before it; numbers are as they are.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["line", "name", "method", *(title(r, key) for key in r.values)])
    for n, (line, name) in enumerate(zip(r.lines, r.names, strict=True)):
        for m, method in enumerate(r.methods):
            numbers = [float(values[n, m]) for values in r.values.values()]
            cells = ["" if math.isnan(v) else repr(v) for v in numbers]
            writer.writerow([line, _no_formula(name), _no_formula(method), *cells])
    return out.getvalue()


def _no_formula(text: str) -> str:
    return f"'{text}" if text.startswith(FORMULA) else text


def as_dict(r: Results) -> dict[str, Any]:
    """Means, errors and paired differences, and what was run."""
    return {
        "run": dict(r.said),
        "inputs": len(r.names),
        "protocol": protocol(r),
        "numbers": [_number(r, key) for key in r.values],
    }


def as_json(r: Results) -> str:
    """The same; what is no number is null."""
    return json.dumps(finite(as_dict(r)), indent=1, allow_nan=False) + "\n"


def _number(r: Results, key: Key) -> dict[str, Any]:
    best = r.outstanding(key)
    return {
        "metric": key[0],
        "number": key[1],
        "larger_is_better": r.larger_is_better(key),
        "methods": {name: vars(r.mean(key, m)) for m, name in enumerate(r.methods)},
        "differences": [
            {"method": a, "less": b, **vars(r.difference(key, i, j))}
            for i, a in enumerate(r.methods)
            for j, b in enumerate(r.methods)
            if i < j
        ],
        "outstanding": None if best is None else r.methods[best],
    }


# -- LaTeX -----------------------------------------------------------------------------------------

_TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "%": r"\%", "_": r"\_", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''",
    "[": "{[}", "*": "{*}",  # at the beginning of a row they would belong to the \\ before it
    "±": r"$\pm$", "↑": r"$\uparrow$", "↓": r"$\downarrow$",
}  # fmt: skip


def tex(text: str) -> str:
    """Text that LaTeX prints as it stands; control characters are escaped first."""
    return "".join(_TEX.get(c, c) for c in printable(text))


def as_latex(r: Results) -> str:
    """A table with booktabs for each metric, its caption the protocol."""
    parts = (_table(r, name, keys) for name, keys in by_metric(r))
    return "% needs \\usepackage{booktabs}\n" + "\n".join(parts)


def _table(r: Results, name: str, keys: list[Key]) -> str:
    heads = [tex(f"{key[1]} {ARROWS[r.larger_is_better(key)]}".strip()) for key in keys]
    rows = [
        " & ".join([tex(method), *(_cell(r, key, m) for key in keys)])
        for m, method in enumerate(r.methods)
    ]
    body = " \\\\\n".join(rows)
    return (
        "\\begin{table}\n\\centering\n"
        f"\\begin{{tabular}}{{l{'r' * len(keys)}}}\n\\toprule\n"
        f"{' & '.join(['method', *heads])} \\\\\n\\midrule\n"
        f"{body} \\\\\n\\bottomrule\n\\end{{tabular}}\n"
        f"\\caption{{{tex(protocol(r, [name]))}}}\n\\end{{table}}\n"
    )


def _cell(r: Results, key: Key, m: int) -> str:
    one, how = r.mean(key, m), form(r, key)
    if not one.count:
        return "--"
    number = how.number(one.mean)
    if r.outstanding(key) == m:
        number = f"\\mathbf{{{number}}}"
    if math.isfinite(one.standard_error):
        number += f" \\pm {how.number(one.standard_error)}"
        number = f"({number})" if how.power else number
    return f"${number} \\cdot 10^{{{how.power}}}$" if how.power else f"${number}$"
