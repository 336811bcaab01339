"""The command line of the benchmark."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from refl.errors import ReflError
from refl.verification.quality import benchmark
from refl.verification.quality.benchmark import machine, results
from refl.verification.quality.benchmark.spec import METHODS, PARTS, Spec


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 where the two sides do not agree or a conservation error is more than rounding, 2
    and one sentence where it is asked for what cannot be done.
    """
    o = _parser().parse_args(arguments)
    try:
        return _peak(o.peak) if o.peak else _main(o)
    except ReflError as reason:
        print(f"benchmark: {reason}", file=sys.stderr)
        return 2


def _main(o: argparse.Namespace) -> int:
    agreed = True
    if not o.redraw:
        machine.limit_threads(o.threads)
        agreed = _measured(o)
    if o.out is None and o.quick:
        return 0 if agreed else 1
    _pages(o.out or results.FOLDER, o.page)
    return 0 if agreed else 1


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m refl.verification.quality.benchmark",
        description=benchmark.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "--only", nargs="+", choices=PARTS, default=list(PARTS), help="these parts alone"
    )
    p.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    p.add_argument("--threads", type=int, default=machine.cores(), help="default: every core")
    p.add_argument("--repeat", type=int, default=5, help="rounds that count; default 5")
    p.add_argument(
        "--patience", type=float, default=120, help="seconds of a row's rounds; then 3 do"
    )
    p.add_argument("--tries", type=int, default=3, help="of a row while others are at work")
    p.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    p.add_argument("--quick", action="store_true", help="a smoke test: toy sizes, nothing kept")
    p.add_argument("--alone", action="store_true", help="refl without its peers")
    p.add_argument("--no-memory", action="store_true", help="peak memory is not measured")
    p.add_argument("--out", type=Path, help=f"folder of the results; default {results.FOLDER.name}")
    p.add_argument("--redraw", action="store_true", help="page and figures from stored results")
    p.add_argument("--page", type=Path, help="write the table between this file's markers")
    for name in ("tokens", "depths", "short-tokens"):
        p.add_argument(f"--{name}", type=int, nargs="+")
    for name in ("hidden", "layers", "heads", "intermediate", "vocabulary", "sentences"):
        p.add_argument(f"--{name}", type=int)
    p.add_argument("--peak", help=argparse.SUPPRESS)
    return p


# -- measuring -------------------------------------------------------------------------------------


def _measured(o: argparse.Namespace) -> bool:
    """Every part, written as soon as it is done; whether all sides agree."""
    from refl.verification.quality.benchmark import parts

    b = bench(o)
    with tempfile.TemporaryDirectory() as spare:
        folder = results.ready(o.out or (Path(spare) if o.quick else results.FOLDER))
        agreed = [_part(b, name, parts.MEASURED[name], folder) for name in o.only]
        return all(agreed)


def bench(o: argparse.Namespace) -> Any:
    """Raises ReflError where the device cannot be had."""
    from refl.verification.quality.benchmark import devices, parts, workload

    sizes = (workload.QUICK if o.quick else workload.Sizes()).changed(**vars(o))
    return parts.Bench(
        sizes,
        devices.chosen(o.device),
        threads=o.threads,
        repeat=1 if o.quick else o.repeat,
        patience=o.patience,
        tries=1 if o.quick else o.tries,
        methods=o.methods,
        peers=not o.alone,
        peak=None if o.quick or o.no_memory else devices.peak_in_a_process,
    )


def _part(b: Any, name: str, run: Any, folder: Path) -> bool:
    from refl.verification.quality.benchmark import page, parts

    about, rows = machine.about(b.threads, b.device.name), []
    print(f"\n{name}: {machine.words(about)}; load {about['load']}", flush=True)
    for row in run(b):
        rows.append(row)
        print(f"  {page.line(row)}", flush=True)
    about["load at the end"] = round(machine.load(), 2)
    print(f"  in {results.with_part(folder, machine.kind(about), name, about, rows)}", flush=True)
    return all(map(parts.agrees, rows))


def _peak(text: str) -> int:
    """In a process of its own: the peak of one side, as JSON."""
    spec = Spec.from_json(text)
    machine.limit_threads(spec.threads)
    from refl.verification.quality.benchmark import devices, sides

    print(json.dumps(sides.peak(spec, devices.chosen(spec.device))))
    return 0


# -- page and figures ------------------------------------------------------------------------------


def _pages(folder: Path, guide: Path | None) -> None:
    from refl.verification.quality.benchmark import page, plot

    found = results.every(folder)
    for each in found:
        print(plot.draw(each, folder / f"{each['kind']}.svg"))
    print(page.markdown(found))
    if guide is not None:
        page.write_into(guide, page.markdown(found))


if __name__ == "__main__":
    sys.exit(main())
