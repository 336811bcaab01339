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
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from refl.verification.quality import benchmark as machine

METHODS = ("attnlrp", "attnlrp-gradient", "attnlrp-vit", "attnlrp-vit-box", "cp-lrp-vit")
RUNS = (("attnlrp", True), *((method, False) for method in METHODS))
"""Method, and whether blocks are recomputed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns 1 where the conservation ledger of a run do not close."""
    o = _parser().parse_args(arguments)
    machine._limit_threads(o.threads)
    if o.one:
        print(json.dumps(one(Path(o.folder), o.one, o.recompute, o.repeat)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        parameters = write_vit(Path(folder), o)
        sizes = (
            f"hidden {o.hidden}, {o.layers} layers, {o.heads} heads, intermediate "
            f"{o.intermediate}; {parameters / 1e6:.1f} M parameters"
        )
        print(
            f"ViT, {o.image} x {o.image} pixels in patches of {o.patch} x {o.patch}, "
            f"{sizes}, float32"
        )
        print(
            f"{machine._processor()}, {machine._cores()} cores available, {o.threads} "
            f"threads; load {machine._load()}"
        )
        print(
            f"\n{'method':28} {'median s':>9} {'min s':>7} {'peak MiB':>9} {'rise MiB':>9} "
            f"{'conservation_error / explained':>16}"
        )
        return max(report(folder, method, recompute, o) for method, recompute in RUNS)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m refl.verification.quality.benchmark_vision",
        description=(__doc__ or "").partition("\n\n")[0],
    )
    for name, default in {
        "image": 224, "patch": 16, "hidden": 768, "layers": 12, "heads": 12, "intermediate": 3072, "threads": 2, "repeat": 3,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--recompute", action="store_true", help=argparse.SUPPRESS)
    return parser


def report(folder: str, method: str, recompute: bool, o: argparse.Namespace) -> int:
    """One line of the table."""
    command = [
        sys.executable,
        "-m",
        "refl.verification.quality.benchmark_vision",
        "--one",
        method,
        "--folder",
        folder,
    ]
    command += [
        "--threads",
        str(o.threads),
        "--repeat",
        str(o.repeat),
        *(["--recompute"] if recompute else []),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    name = method + (", recompute" if recompute else "")
    if done.returncode:
        print(f"{name:28} failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
        return 1
    found = json.loads(done.stdout)
    times = found["seconds"]
    print(
        f"{name:28} {median(times):9.2f} {min(times):7.2f} {found['peak']:9.0f} "
        f"{found['rise']:9.0f} {found['conservation_error']:16.1e}",
        flush=True,
    )
    return int(abs(found["conservation_error"]) > 1e-3)


def one(folder: Path, method: str, recompute: bool, repeat: int) -> dict[str, Any]:
    """Seconds of each run, the peak of resident memory and its rise above what the process held
    before, and the conservation error of the conservation ledger.
    """
    import numpy as np

    import refl

    model = refl.load(folder)
    size = (model.config.num_channels, *model.config.image)
    picture = np.random.default_rng(1).uniform(-1, 1, size).astype(np.float32)
    model.explain(picture, method, keep=(), recompute=True)
    before, times = machine._forget_peak(), []
    for _ in range(repeat):
        e, seconds = machine._timed(
            lambda: model.explain(picture, method, keep=(), recompute=recompute)
        )
        times.append(seconds)
    peak = machine._resident("VmHWM")
    return {
        "seconds": times,
        "peak": peak,
        "rise": peak - before,
        "conservation_error": float(e.ledger.conservation_error[0]) / e.explained,
    }


def write_vit(folder: Path, o: argparse.Namespace) -> int:
    """A checkpoint of these sizes, a thousand classes, pixels from -1 to 1; how many parameters it
    has.
    """
    import numpy as np

    from refl.io.safetensors import write_safetensors
    from refl.nets import vit
    from refl.nets.config import parse

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
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"size": o.image}), encoding="utf-8"
    )
    draw = np.random.default_rng(0)

    def tensor(shape: tuple[int, ...]) -> Any:
        noise = draw.standard_normal(shape, dtype=np.float32)
        return 1 + noise / 10 if len(shape) == 1 else noise * np.float32(np.prod(shape[1:]) ** -0.5)

    tensors = {name: tensor(shape) for name, shape, _ in vit.shapes(parse(vit.Config, raw))}
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    return int(sum(t.size for t in tensors.values()))


if __name__ == "__main__":
    sys.exit(main())
