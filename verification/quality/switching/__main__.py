"""Runs every experiment, one after the other, and writes the page and its figure."""

from __future__ import annotations

import argparse
import datetime

import numpy as np

from refl.io.files import atomic_write
from refl.latent.switching.figure import figure
from refl.verification.quality.faithfulness.__main__ import REPORTS
from refl.verification.quality.switching import page
from refl.verification.quality.switching.experiments import EXPERIMENTS
from refl.version import __version__


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, help="of each experiment at most")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", choices=EXPERIMENTS, help="these, and no page"
    )
    args = parser.parse_args()
    found = {}
    for name in args.only or EXPERIMENTS:
        found[name] = EXPERIMENTS[name].run(args.inputs)
        print(found[name][0], flush=True)
    if args.only:
        return
    said = f"refl {__version__}, NumPy {np.__version__}, float32, {datetime.date.today()}."
    titled = [(page.title(name, one), one) for name, (one, _) in found.items()]
    drawn = figure(titled, letters="none")
    atomic_write(REPORTS / "switching.md", page.page(found, said).encode())
    atomic_write(REPORTS / "switching.svg", drawn)


if __name__ == "__main__":
    main()
