"""How long an encoder-decoder takes to explain, and how much memory: by default one of
Flan-T5-base's shape with random weights.

    python -m refl.verification.quality.benchmark_t5 --tokens 64 --written 16 --threads 2 --repeat 3

A random checkpoint is written to a temporary folder and loaded, in float32. Measured are the
forward pass alone, an explanation with nothing kept, the same with blocks run again (`recompute`),
and the same with every site kept; of each the time, and, in a process of its own, the peak of
resident memory, with how far that is above what was held before. The account of the explanation is
printed below.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from refl.verification.quality.benchmark import (
    _cores,
    _forget_peak,
    _limit_threads,
    _load,
    _processor,
    _resident,
    _timed,
    ids_of,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns 1 where the account does not close."""
    options = _parser().parse_args(arguments)
    _limit_threads(options.threads)
    if options.peak:
        print(json.dumps(peak(Path(options.folder), options)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        write_flan(Path(folder), options)
        return report(Path(folder), options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m refl.verification.quality.benchmark_t5",
        description=(__doc__ or "").partition("\n\n")[0],
    )
    for name, default in {
        "hidden": 768, "layers": 12, "heads": 12, "intermediate": 2048, "vocabulary": 32128, "tokens": 64, "written": 16, "threads": 2,
        "repeat": 3,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--method", default="attnlrp", help="default attnlrp")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser


def write_flan(folder: Path, options: argparse.Namespace) -> None:
    """A checkpoint of random numbers; queries are small, as trained ones are, since nothing scales
    their products with keys.
    """
    import numpy as np

    from refl.io.safetensors import write_safetensors
    from refl.nets import t5
    from refl.nets.config import parse

    width = options.hidden // options.heads
    raw = {
        "model_type": "t5",
        "architectures": ["T5ForConditionalGeneration"],
        "is_encoder_decoder": True,
        "decoder_start_token_id": 0,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "vocab_size": options.vocabulary,
        "d_model": options.hidden,
        "d_kv": width,
        "d_ff": options.intermediate,
        "num_layers": options.layers,
        "num_decoder_layers": options.layers,
        "num_heads": options.heads,
    }
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    draw = np.random.default_rng(0)

    def tensor(name: str, shape: tuple[int, ...]) -> Any:
        noise = draw.standard_normal(shape, dtype=np.float32)
        scale = (shape[-1] * (width if name.endswith(".q.weight") else 1)) ** -0.5
        return 1 + noise / 10 if len(shape) == 1 else noise * np.float32(scale)

    shapes = t5.shapes(parse(t5.Config, raw))
    write_safetensors(
        folder / "model.safetensors",
        {name: tensor(name, shape) for name, shape, _ in shapes},
        {"format": "pt"},
    )


def report(folder: Path, options: argparse.Namespace) -> int:
    import refl

    model = refl.load(folder)
    numbers = sum(model.weights[name].size for name in model.weights)
    print(
        f"T5: hidden {options.hidden}, {options.layers} + {options.layers} layers, "
        f"{options.heads} heads, intermediate "
        f"{options.intermediate}, vocabulary {options.vocabulary}: {numbers / 1e6:.0f} "
        f"million random weights, float32; {options.method}\n"
        f"{options.tokens} tokens read, {options.written} written\n"
        f"{_processor()}, {_cores()} cores available, {options.threads} threads asked for; "
        f"load at the start {_load()}"
    )
    run = ways(model, options)
    for way in run.values():  # maps every weight, fills caches
        way()
    print(f"\n{'seconds':26}  median      min   peak memory")
    for name, way in run.items():
        times = [_timed(way)[1] for _ in range(options.repeat)]
        print(
            f"  {name:24} {median(times):7.3f} {min(times):8.3f}   "
            f"{_ask_peak(name, folder, options)}"
        )
    return _account(run[NOTHING]())


NOTHING = "explain, nothing kept"


def ways(model: Any, options: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    read, written = (
        ids_of(options.tokens, options.vocabulary),
        [0, *ids_of(options.written - 1, options.vocabulary)],
    )
    explain = partial(model.explain, read, options.method, decoder=written)
    return {
        "forward alone": partial(model.logits, read, written),
        NOTHING: partial(explain, keep=()),
        "explain, recompute": partial(explain, keep=(), recompute=True),
        "explain, every site kept": explain,
    }


def peak(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """A run on one token each maps every weight, then comes the run that is measured."""
    import refl

    model = refl.load(folder)
    model.explain([1], options.method, keep=())
    before = _forget_peak()
    ways(model, options)[options.peak]()
    most = _resident("VmHWM")
    return {"peak": most, "rise": most - before}


def _ask_peak(name: str, folder: Path, options: argparse.Namespace) -> str:
    sizes = [
        f"--{key}={getattr(options, key)}"
        for key in ("vocabulary", "tokens", "written", "threads", "method")
    ]
    command = [
        sys.executable,
        "-m",
        "refl.verification.quality.benchmark_t5",
        "--peak",
        name,
        "--folder",
        str(folder),
        *sizes,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"not measured: {done.stderr.strip().splitlines()[-1]}"
    found = json.loads(done.stdout)
    return (
        f"{found['peak']:6.0f} MiB, {found['rise']:.0f} MiB above what the process held with "
        "its weights mapped"
    )


def _account(e: Any) -> int:
    parts = ", ".join(f"{cause} {amount[0]:+.4f}" for cause, amount in e.ledger.absorbed.items())
    conservation_error = abs(float(e.ledger.conservation_error[0]))
    print(
        f"\nlogit {e.logit:.4f} = {e.relevance.sum():+.4f} on {len(e.relevance)} tokens "
        f"read, {e.decoder_relevance.sum():+.4f} on "
        f"{len(e.decoder_relevance)} written, {parts}; conservation error {conservation_error:.1e}"
    )
    scale = max(
        abs(float(amount[0])) for amount in (e.ledger.explained, *e.ledger.absorbed.values())
    )
    return 0 if conservation_error <= 1e-4 * scale else 1


if __name__ == "__main__":
    sys.exit(main())
