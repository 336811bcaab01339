"""Time and memory of reference inputs: sentences of TinyStories through stories260K, in one pass
for every neuron of a block, and how both grow with the corpus.

    OPENBLAS_NUM_THREADS=1 python -m refl.verification.quality.benchmark_references [--parts L2]

Every figure is of a fresh process: `refl.latent.references.references` on one core, reading the
file, tokenizing, the runs, writing the shards, and merging them in the end. Memory is the most that
the process ever held, Python, NumPy and the model included. Checkpoint and stories lie beside the
project; stories with broken encoding are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from refl.latent.references import references
from refl.model import load
from refl.verification.quality.benchmark import machine
from refl.verification.quality.import_graph import PROJECT

SHARED = PROJECT.parent / "shared"
STORIES = SHARED / "checkpoints" / "stories260K"
TEXTS = SHARED / "data" / "tinystories" / "tinystories_1000.json"
KINDS = {"ActMax": ["activation"], "ActMax and RelMax": ["activation", "relevance"]}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    args = _parser().parse_args(arguments)
    if args.child:
        print(json.dumps(measured(args.child, args.parts, args.by)))
        return 0
    if not TEXTS.exists() or not STORIES.exists():
        print(f"{TEXTS.name} or {STORIES.name} is not beside the project", file=sys.stderr)
        return 2
    found = list(sentences())
    print(f"{len(found)} sentences there are; {machine.words(machine.about(1))}")
    print(f"{args.parts} of stories260K, 10 references each{'':22}disk in MB, peak memory in MiB")
    with tempfile.TemporaryDirectory() as folder:
        for count in args.sentences:
            if count > len(found):
                print(f"there are fewer than {count} sentences: {len(found)} are taken")
            file = Path(folder) / f"{count}.jsonl"
            _write(file, found[:count])
            for kind, by in KINDS.items():
                _print(kind, _in_a_process(file, args.parts, by))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default="L2", help="whose references (default: %(default)s)")
    parser.add_argument("--sentences", type=int, nargs="+", default=[1000, 3000, 10_000])
    parser.add_argument("--by", nargs="+", default=KINDS["ActMax"], help=argparse.SUPPRESS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser


def sentences() -> Iterator[str]:
    """Of more than two words, each once."""
    stories = json.loads(TEXTS.read_text(encoding="utf-8"))
    plain = (" ".join(story.split()) for story in stories if story.isascii())
    every = (one for story in plain for one in re.split(r'(?<=[.!?])["\']?\s+', story))
    return (one for one in dict.fromkeys(every) if len(one.split()) > 2)


def _write(file: Path, texts: Sequence[str]) -> None:
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def _in_a_process(file: Path, parts: str, by: Sequence[str]) -> dict[str, Any]:
    asked = ["--child", str(file), "--parts", parts, "--by", *by]
    run = subprocess.run(
        [sys.executable, "-m", __spec__.name, *asked], capture_output=True, check=True
    )
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def measured(file: str, parts: str, by: Sequence[str]) -> dict[str, Any]:
    """Of this process, which has to be a fresh one."""
    model = load(STORIES)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        found = references(model, file, Path(folder) / "run", parts, by=by)
        seconds = time.perf_counter() - start
        disk = sum(path.stat().st_size for path in found.folder.iterdir())
    histogram = found.of(found.names[0]).histogram
    return {
        "sentences": found.run["data"]["inputs"],
        "neurons": len(found.names),
        "tokens": histogram.count,
        "seconds": seconds,
        "disk": disk / 1e6,
        "memory": peak_memory(),
    }


def peak_memory() -> float:
    """In MiB. maxrss begins with that of the process that started this one; Linux says it apart."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
    assert found is not None
    return int(found[1]) / 1024


def _print(kind: str, said: dict[str, Any]) -> None:
    rate = said["sentences"] / said["seconds"]
    print(
        f"{kind:18}{said['sentences']:7} sentences{said['tokens']:8} tokens{said['neurons']:5} "
        f"neurons{said['seconds']:8.1f} s{rate:7.0f} /s{said['disk']:7.1f} MB"
        f"{said['memory']:7.0f} MiB",
        flush=True,
    )


if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    sys.exit(main())
