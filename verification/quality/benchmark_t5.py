"""How long an encoder-decoder takes to explain, and how much memory: by default one of
Flan-T5-base's shape with random weights.

    python -m refl.verification.quality.benchmark_t5 --tokens 64 --prefix 16 --threads 2 --repeat 3

A random checkpoint is written to a temporary folder and loaded, in float32. Measured are the
forward pass alone, an explanation with nothing kept, the same with blocks run again (`recompute`),
and the same with every site kept; of each the time, and, in a process of its own, the peak of
resident memory, with how far that is above what was held before. The account of the explanation is
printed below.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from refl.verification.quality import measuring

SIZES = {
    "hidden": 768,
    "layers": 12,
    "heads": 12,
    "intermediate": 2048,
    "vocabulary": 32128,
    "tokens": 64,
    "prefix": 16,
    "threads": 2,
    "repeat": 3,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns 1 where the account does not close."""
    options = _parser().parse_args(arguments)
    measuring.limit_threads(options.threads)
    if options.peak:
        print(json.dumps(peak(Path(options.folder), options)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        numbers = write_flan(Path(folder), options)
        return report(Path(folder), numbers, options)


def _parser() -> argparse.ArgumentParser:
    parser = measuring.parser("benchmark_t5", __doc__, SIZES)
    parser.add_argument("--method", default="attnlrp", help="default attnlrp")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    return parser


def write_flan(folder: Path, options: argparse.Namespace) -> int:
    """Queries are small, as trained ones are, since nothing scales their products with keys."""
    from refl.nets import t5

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

    def scale(name: str, shape: tuple[int, ...]) -> float:
        return float((shape[-1] * (width if name.endswith(".q.weight") else 1)) ** -0.5)

    return measuring.write_checkpoint(folder, t5, raw, scale)


def report(folder: Path, numbers: int, options: argparse.Namespace) -> int:
    import refl

    model = refl.load(folder)
    print(
        f"T5: hidden {options.hidden}, {options.layers} + {options.layers} layers, "
        f"{options.heads} heads, intermediate {options.intermediate}, vocabulary "
        f"{options.vocabulary}: {numbers / 1e6:.0f} million random weights, float32; "
        f"{options.method}\n"
        f"{options.tokens} tokens read, {options.prefix} written\n"
        f"{measuring.machine()}, {options.threads} threads asked for; "
        f"load at the start {measuring.load()}"
    )
    run = ways(model, options)
    for way in run.values():  # maps every weight, fills caches
        way()
    print(f"\n{'seconds':26}  median      min   peak memory")
    for name, way in run.items():
        times = [measuring.timed(way)[1] for _ in range(options.repeat)]
        peak = _peak_in_words(name, folder, options)
        print(f"  {name:24} {median(times):7.3f} {min(times):8.3f}   {peak}")
    return _account(run[NOTHING]())


NOTHING = "explain, nothing kept"


def ways(model: Any, options: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    read, written = (
        measuring.ids_of(options.tokens, options.vocabulary),
        [0, *measuring.ids_of(options.prefix - 1, options.vocabulary)],
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
    return measuring.peak_of(ways(model, options)[options.peak])[1]


def _peak_in_words(name: str, folder: Path, options: argparse.Namespace) -> str:
    sizes = ("vocabulary", "tokens", "prefix", "threads", "method")
    asked = [f"--{key}={getattr(options, key)}" for key in sizes]
    found = measuring.in_a_process("benchmark_t5", "--peak", name, "--folder", folder, *asked)
    return measuring.peak_in_words(found, 6, "held with its weights mapped")


def _account(e: Any) -> int:
    parts = ", ".join(f"{cause} {amount:+.4f}" for cause, amount in e.ledger.absorbed.items())
    conservation_error = abs(float(e.ledger.conservation_error))
    print(
        f"\nlogit {e.logit:.4f} = {e.relevance.sum():+.4f} on {len(e.relevance)} tokens "
        f"read, {e.decoder_relevance.sum():+.4f} on "
        f"{len(e.decoder_relevance)} written, {parts}; conservation error {conservation_error:.1e}"
    )
    scale = max(abs(float(amount)) for amount in (e.ledger.explained, *e.ledger.absorbed.values()))
    return 0 if conservation_error <= 1e-4 * scale else 1


if __name__ == "__main__":
    sys.exit(main())
