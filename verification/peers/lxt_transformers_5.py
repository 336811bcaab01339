"""LXT 2.1 beside transformers 5, which its README names:

    python -m refl.verification.peers.lxt_transformers_5 [VERSION ...]

refl's own checks run LXT beside transformers 4.52.4. This script makes an environment of its own
for each version asked for (5.9.0 and the newest there is), sees whether LXT's modules import, and
runs its gradient x input form on the small models of the vectors: as it comes, and with an empty
stand-in for the one helper that transformers has removed. It writes the dated page
reports/lxt-2.1-transformers-5.md. The environments are thrown away.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import logging
import os
import subprocess
import tempfile
import venv
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from refl.io.files import atomic_write

ROOT = Path(__file__).resolve().parents[2]
PAGE = Path(__file__).parents[1] / "reports" / "lxt-2.1-transformers-5.md"
MODULES = ("lxt.explicit.functional", "lxt.explicit.rules", "lxt.explicit.core", "lxt.efficient")
MODULE = "refl.verification.peers.lxt_transformers_5"
REMOVED = "find_pruneable_heads_and_indices"
METHODS = ("attnlrp-gradient", "cp-lrp")

ABOUT = (
    "LXT's README names transformers 5; its module for BERT imports "
    f"`transformers.pytorch_utils.{REMOVED}`, which transformers 5 no longer has, and its "
    "package imports all of its models. The tables say what comes of it, and what would come of it "
    "if that name were there (as nothing: no model below calls it). torchvision, which has no "
    "build for this torch, is stood in for as in refl's other checks. Where LXT then runs, x times "
    "gradient at the output of every module is held against exact arithmetic, in float64."
)
ABOUT_THE_ERROR = (
    "`'dict' object has no attribute 'get_interface'`: LXT's AttnLRP patch puts a plain dict in "
    "the place of transformers' `ALL_ATTENTION_FUNCTIONS`, which was one in all but name under "
    "transformers 4 and has a method of its own now. Its CP-LRP patch writes into the object that "
    "is there."
)

# -- inside such an environment --------------------------------------------------------------------


def findings() -> dict[str, Any]:
    """What comes of LXT here, as it comes and with the stand-in."""
    import transformers

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    pruning: Any = importlib.import_module("transformers.pytorch_utils")
    modules = {name: _import(name) for name in MODULES}
    if not hasattr(pruning, REMOVED):
        setattr(pruning, REMOVED, None)
    return {
        "transformers": transformers.__version__,
        "modules": modules,
        "with stand-in": {name: _import(name) for name in MODULES},
        "models": list(_models()),
    }


def _import(name: str) -> str:
    from refl.verification.peers.lxt import stand_in_for_torchvision

    try:
        with stand_in_for_torchvision():
            importlib.import_module(name)
    except Exception as reason:  # noqa: BLE001 (whatever it is, it is what a user meets)
        return _said(reason)
    return "imports"


def _said(reason: BaseException) -> str:
    return f"{type(reason).__name__}: {str(reason).partition(' (/')[0]}"


def _models() -> Any:
    from refl.verification.peers import lxt_gradient
    from refl.verification.peers.lxt import BLOCKS
    from refl.verification.peers.peer_reports import model_row
    from refl.verification.vectors import model_vectors

    for architecture in BLOCKS:
        for method in METHODS:
            cases = model_vectors.load(architecture, [method])
            try:
                row = model_row(lxt_gradient, architecture, method, cases)
            except Exception as reason:  # noqa: BLE001
                yield architecture, method, "", _said(reason)
            else:
                found = f"{row.parting} part" + (f" ({row.because})" if row.because else "")
                yield architecture, method, str(row.compared), found if row.parting else "all agree"


# -- outside ---------------------------------------------------------------------------------------


def in_an_environment(version: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / "bin" / "python"
        beside = ["tabulate", "safetensors", "tokenizers", "rich"]
        for wanted in (
            ["torch==2.13.0"],
            [f"transformers=={version}" if version else "transformers>=5", *beside],
            ["--no-deps", "lxt==2.1", "zennit==0.5.1"],
        ):
            subprocess.run([python, "-m", "pip", "install", "-q", *wanted], check=True)
        ran = subprocess.run(
            [python, "-W", "ignore", "-m", MODULE, "--inside"],
            env={**os.environ, "PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1"},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    if ran.returncode:
        raise SystemExit(f"the run beside transformers {version} ended with:\n{ran.stderr}")
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


def page(runs: Sequence[dict[str, Any]], date: str) -> str:
    parts = [
        "# LXT 2.1 beside transformers 5",
        f"Seen on {date}. Generated by `python -m {MODULE}`, not written by hand.",
        ABOUT,
    ]
    for run in runs:
        parts += [f"## transformers {run['transformers']}", _modules(run), _table_of_models(run)]
    parts += [ABOUT_THE_ERROR]
    return "\n\n".join(parts) + "\n"


def _modules(run: dict[str, Any]) -> str:
    rows = [
        f"| `{name}` | {run['modules'][name]} | {run['with stand-in'][name]} |" for name in MODULES
    ]
    return "\n".join(["| module | as it comes | with the stand-in |", "|---|---|---|", *rows])


def _table_of_models(run: dict[str, Any]) -> str:
    rows = [f"| {' | '.join(row)} |" for row in run["models"]]
    head = "| model | method | sites compared | with the stand-in |"
    return "\n".join([head, "|---|---|---|---|", *rows])


def main() -> None:
    parser = argparse.ArgumentParser(
        description="LXT 2.1 beside transformers 5, each version in a fresh environment."
    )
    parser.add_argument("versions", nargs="*", default=["5.9.0", ""], metavar="VERSION")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.inside:
        print(json.dumps(findings()))
        return
    text = page([in_an_environment(v) for v in asked.versions], datetime.date.today().isoformat())
    atomic_write(PAGE, text.encode())
    print(PAGE)


if __name__ == "__main__":
    main()
