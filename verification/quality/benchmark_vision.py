"""How long it takes to explain a picture, and how much memory: a ViT-B/16 of random weights on 224
x 224 pixels.

    python -m refl.verification.quality.benchmark_vision --threads 2 --repeat 3

A checkpoint is written to a temporary folder and explained in float32 with keep=(), each method in
a process of its own, so that its peak of resident memory is its own. The first run of each maps the
weights and is not counted. `recompute` holds one block at a time.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

from refl.verification.quality import measuring

SIZES = {
    "image": 224,
    "patch": 16,
    "hidden": 768,
    "layers": 12,
    "heads": 12,
    "intermediate": 3072,
    "threads": 2,
    "repeat": 3,
}
METHODS = ("attnlrp", "attnlrp-gradient", "attnlrp-vit", "attnlrp-vit-box", "cp-lrp-vit")
RUNS = (("attnlrp", True), *((method, False) for method in METHODS))
"""Method, and whether blocks are recomputed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns 1 where the account of a run does not close."""
    o = _parser().parse_args(arguments)
    measuring.limit_threads(o.threads)
    if o.one:
        print(json.dumps(one(Path(o.folder), o.one, o.recompute, o.repeat)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        print(_head(o, write_vit(Path(folder), o)))
        return max(report(folder, method, recompute, o) for method, recompute in RUNS)


def _parser() -> argparse.ArgumentParser:
    parser = measuring.parser("benchmark_vision", __doc__, SIZES)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--recompute", action="store_true", help=argparse.SUPPRESS)
    return parser


def _head(o: argparse.Namespace, parameters: int) -> str:
    return (
        f"ViT, {o.image} x {o.image} pixels in patches of {o.patch} x {o.patch}, hidden "
        f"{o.hidden}, {o.layers} layers, {o.heads} heads, intermediate {o.intermediate}; "
        f"{parameters / 1e6:.1f} M parameters, float32\n"
        f"{measuring.machine()}, {o.threads} threads; load {measuring.load()}\n\n"
        f"{'method':28} {'median s':>9} {'min s':>7} {'peak MiB':>9} {'rise MiB':>9} "
        f"{'conservation error / explained':>30}"
    )


def report(folder: str, method: str, recompute: bool, o: argparse.Namespace) -> int:
    """One line of the table."""
    asked = ["--one", method, "--folder", folder, "--threads", o.threads, "--repeat", o.repeat]
    asked += ["--recompute"] if recompute else []
    found = measuring.in_a_process("benchmark_vision", *asked)
    name = method + (", recompute" if recompute else "")
    if isinstance(found, str):
        print(f"{name:28} failed: {found}")
        return 1
    times = found["seconds"]
    print(
        f"{name:28} {median(times):9.2f} {min(times):7.2f} {found['peak']:9.0f} "
        f"{found['rise']:9.0f} {found['conservation_error']:30.1e}",
        flush=True,
    )
    return int(not abs(found["conservation_error"]) <= 1e-3)  # nan does not close either


def one(folder: Path, method: str, recompute: bool, repeat: int) -> dict[str, Any]:
    """Seconds of each run, the peak of resident memory and its rise above what the process held
    before, and the conservation error in units of what is explained.
    """
    import numpy as np

    import refl

    model = refl.load(folder)
    size = (model.config.num_channels, *model.config.image)
    picture = np.random.default_rng(1).uniform(-1, 1, size).astype(np.float32)
    model.explain(picture, method, keep=(), recompute=True)

    explain = partial(model.explain, picture, method, keep=(), recompute=recompute)
    (e, times), peak = measuring.peak_of(lambda: _repeated(explain, repeat))
    error = float(e.ledger.conservation_error) / e.explained
    return {"seconds": times, "conservation_error": error, **peak}


def _repeated(run: Callable[[], Any], repeat: int) -> tuple[Any, list[float]]:
    """What the last run returns, and the seconds of each."""
    result, times = None, []
    for _ in range(repeat):
        result, seconds = measuring.timed(run)
        times.append(seconds)
    return result, times


def write_vit(folder: Path, o: argparse.Namespace) -> int:
    """A thousand classes, pixels from -1 to 1; how many parameters it has."""
    from refl.nets import vit

    raw = {
        "model_type": "vit",
        "image_size": o.image,
        "patch_size": o.patch,
        "hidden_size": o.hidden,
        "num_hidden_layers": o.layers,
        "num_attention_heads": o.heads,
        "intermediate_size": o.intermediate,
        "num_labels": 1000,
    }
    preparation = json.dumps({"size": o.image})
    (folder / "preprocessor_config.json").write_text(preparation, encoding="utf-8")
    return measuring.write_checkpoint(folder, vit, raw, lambda name, shape: prod(shape[1:]) ** -0.5)


if __name__ == "__main__":
    sys.exit(main())
