"""Runs every part, each checkpoint in a process of its own, and writes the page. Results are kept
in a folder, so that interrupted work goes on where it was.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from refl.io.files import atomic_write
from refl.verification.quality.faithfulness import claims, page
from refl.verification.quality.faithfulness.checkpoints import PARTS, opened, results
from refl.verification.quality.import_graph import PROJECT
from refl.version import __version__

REPORTS = PROJECT / "verification" / "reports"

EVIDENCE = (
    "random",
    "gradient",
    "input-x-gradient",
    "integrated-gradients",
    "occlusion",
    "gradient-rollout",
    "alti-logit",
    "cp-lrp",
    "attnlrp",
    "attnlrp-flattened",
)


def parts(inputs: int) -> dict[str, Callable[[], Any]]:
    """Name -> what computes it."""
    jobs: dict[str, Callable[[], Any]] = {name: partial(results, name, inputs) for name in PARTS}
    for name in ("babyllama105", "stories260K"):
        jobs[f"agreement {name}"] = partial(_agreement, name, inputs)
        jobs[f"patching {name}"] = partial(_patching, name, inputs // 2)
    for name in ("shipped", "stories260K", "babyllama105", "capp_gpt2"):
        jobs[f"by block {name}"] = partial(_by_block, name, inputs // 4)
    return jobs


def _agreement(name: str, count: int) -> Any:
    return claims.agreement(opened(name), EVIDENCE, count)


def _by_block(name: str, count: int) -> Any:
    return claims.by_block(name, opened(name), count)


def _patching(name: str, count: int) -> Any:
    return claims.patched(opened(name), ("simple_test.json", "nounpp_test.json"), count)


def _kept(folder: Path, name: str, job: Callable[[], Any]) -> Any:
    """What is there already, or computed; of a job that comes in pieces what there is so far lies
    beside.
    """
    path, so_far = folder / f"{name}.json", folder / f"{name}.so-far.json"
    if not path.exists():
        found = job()
        for one in found if isinstance(found, Iterator) else [found]:
            atomic_write(so_far, json.dumps(one, default=float).encode("utf-8"))
        so_far.replace(path)
    return json.loads(path.read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=200, help="of each checkpoint (200)")
    parser.add_argument("--workers", type=int, default=2, help="processes (2)")
    parser.add_argument("--only", nargs="+", metavar="PART", help="these parts, and no page")
    parser.add_argument("--folder", type=Path, default=Path("faithfulness"), help="of results")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    jobs = parts(args.inputs)
    chosen = args.only or list(jobs)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.workers, mp_context=context) as pool:
        running = {name: pool.submit(_kept, args.folder, name, jobs[name]) for name in chosen}
        found = {}
        for name, future in running.items():
            found[name] = future.result()
            print(f"{name}: done", flush=True)
    if not args.only:
        write(found)


def write(found: Mapping[str, Any]) -> None:
    """The page and its figure."""
    results = [found[name] for name in PARTS]
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
