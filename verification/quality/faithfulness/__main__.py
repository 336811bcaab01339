"""Runs every part, each checkpoint in a process of its own, and writes the page. Results are kept
in a folder, so that interrupted work goes on where it was.
"""

from __future__ import annotations

import argparse
import datetime
import multiprocessing
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from refl.io.files import atomic_write
from refl.verification.quality.faithfulness import page
from refl.verification.quality.faithfulness.checkpoints import PARTS
from refl.verification.quality.faithfulness.parts import held, kept, parts
from refl.verification.quality.import_graph import PROJECT
from refl.version import __version__

REPORTS = PROJECT / "verification" / "reports"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=200, help="of each checkpoint (200)")
    parser.add_argument("--workers", type=int, default=2, help="processes (2)")
    parser.add_argument("--only", nargs="+", metavar="PART", help="these parts, and no page")
    parser.add_argument("--folder", type=Path, default=Path("faithfulness"), help="of results")
    parser.add_argument("--page", action="store_true", help="only write what the folder holds")
    args = parser.parse_args()
    if args.page:
        write(held(args.folder, parts(args.inputs)))
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    jobs = parts(args.inputs)
    chosen = args.only or list(jobs)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.workers, mp_context=context) as pool:
        running = {name: pool.submit(kept, args.folder, name, jobs[name]) for name in chosen}
        found = {}
        for name, future in running.items():
            found[name] = future.result()
            print(f"{name}: done", flush=True)
    if not args.only:
        write(found)


def write(found: Mapping[str, Any]) -> None:
    """The page and its figure."""
    results = [found[name] for name in PARTS if name in found]
    asked: dict[str, dict[str, Any]] = {}
    for name, value in found.items():
        kind, _, checkpoint = name.rpartition(" ")
        if kind:
            asked.setdefault(kind, {})[checkpoint] = value
    said = f"refl {__version__}, NumPy {np.__version__}, float32, {datetime.date.today()}."
    text = page.page(results, asked, said)
    atomic_write(REPORTS / "faithfulness.md", text.encode("utf-8"))
    atomic_write(REPORTS / "faithfulness.svg", page.figure(results))


if __name__ == "__main__":
    main()
