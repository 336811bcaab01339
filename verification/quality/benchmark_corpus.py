"""Explanations per second of a corpus: refl with 1 and 2 workers beside LXT in a plain loop and in
batches, on the same checkpoint and texts, in one run.

    python -m refl.verification.quality.benchmark_corpus [--model FOLDER] [--sentences 500]

Texts are as long as sentences are, each explained at its own most likely next token. Sides take
turns, `--repeat` times; the median counts. refl's time is that of `refl explain --file`: reading
the file, checking it, explaining and writing every row to the disk; its workers, one thread each,
have started and have opened the model (`first run` has that, too). LXT's is of the relevance alone:
forward and backward passes, nothing read or written; in batches, those of a number of tokens with
which it is fastest. `--threads` says how many torch has: on a machine with other work to do several
wait for each other.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median

from refl.evaluation.corpus import explain_corpus
from refl.evaluation.workers import Processes
from refl.model import Model, load
from refl.verification.quality.benchmark import devices, machine, workload
from refl.verification.quality.benchmark.rounds import timed
from refl.verification.quality.benchmark.sides import Torch
from refl.verification.quality.benchmark.spec import Spec
from refl.verification.quality.benchmark.workload import Sizes

METHOD = "attnlrp-gradient"
"""The form that LXT computes."""
WORKERS = (1, 2)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    args = _parser().parse_args(arguments)
    with _checkpoint(args) as folder:
        spec = Spec("llama", str(folder), "LXT", METHOD, sentences=args.sentences)
        texts = workload.texts_of(spec)
        found = rounds(spec, texts, args.repeat, args.threads)
    print(f"{len(texts)} texts, {sum(map(len, texts))} tokens; {machine.words(machine.about(1))}")
    print(f"{'':28}{'explanations/s':>16}{'seconds':>10}   each round")
    for name, seconds in found.items():
        each = ", ".join(f"{s:.2f}" for s in seconds)
        middle = median(seconds)
        print(f"{name:28}{len(texts) / middle:16.0f}{middle:10.2f}   {each}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", help="a Llama (default: one of random weights, --hidden and --layers)"
    )
    for name, default in (("sentences", 500), ("repeat", 3), ("hidden", 384), ("layers", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument(
        "--threads", type=int, nargs="*", default=[1], help="of LXT (default: 1); none: refl alone"
    )
    return parser


@contextmanager
def _checkpoint(args: argparse.Namespace) -> Iterator[Path]:
    if args.model:
        yield Path(args.model)
        return
    longest = max(workload.sentence_lengths(args.sentences))
    sizes = Sizes(
        hidden=args.hidden,
        layers=args.layers,
        heads=max(args.hidden // 64, 1),
        intermediate=args.hidden * 8 // 3,
    )
    with tempfile.TemporaryDirectory() as folder:
        workload.write_llama(Path(folder), sizes, args.layers, longest)
        yield Path(folder)


def rounds(
    spec: Spec, texts: list[list[int]], repeat: int, threads: Sequence[int] = (1,)
) -> dict[str, list[float]]:
    """Seconds of every side in every round."""
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (work / "corpus.jsonl").write_text("".join(json.dumps({"ids": t}) + "\n" for t in texts))
        model, first, ways = load(spec.folder), dict[str, list[float]](), dict[str, Way]()
        for n in WORKERS:
            pool = stack.enter_context(Processes(n))
            ways[f"refl, {n} workers"] = partial(_refl, model, work, pool)
            first[f"refl, {n} workers, first run"] = [timed(ways[f"refl, {n} workers"])[1]]
        if threads:
            side = Torch(spec, devices.CPU)
            bound = _best_bound(side, texts)
            for n in threads:
                ways[f"LXT, a loop, {n} threads"] = partial(_lxt, side, texts, 1, n)
                ways[f"LXT, batches, {n} threads"] = partial(_lxt, side, texts, bound, n)
        return first | _alternated(ways, repeat)


Way = Callable[[], None]


def _alternated(ways: Mapping[str, Way], repeat: int) -> dict[str, list[float]]:
    """The odd rounds in reverse."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(repeat):
        for name in list(ways)[::-1] if number % 2 else list(ways):
            found[name].append(timed(ways[name])[1])
            print(f"{name}: {found[name][-1]:.2f} s", file=sys.stderr, flush=True)
    return found


def _refl(model: Model, work: Path, pool: Processes) -> None:
    folder = tempfile.mkdtemp(dir=work)
    explain_corpus(model, work / "corpus.jsonl", folder, METHOD, pool=pool)


def _best_bound(side: Torch, texts: list[list[int]]) -> int:
    """The number of tokens in a batch that is fastest on a quarter of the texts."""
    few, seconds = texts[::4], {}
    for bound in Sizes().bounds:
        seconds[bound] = timed(partial(_lxt, side, few, bound, 1))[1]
    return min(seconds, key=seconds.__getitem__)


def _lxt(side: Torch, texts: list[list[int]], bound: int, threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    side.bound = bound
    with side.patched():
        side.batch(texts)


if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    sys.exit(main())
