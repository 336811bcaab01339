"""`refl explain --file corpus.jsonl --out FOLDER`: a corpus in shards, on as many cores or machines
as there are; and the options that such runs have in common.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from refl.cli import options
from refl.cli.files import Source, folder
from refl.cli.output import print_json, print_lines, wrote
from refl.cli.progress import Progress
from refl.errors import ReflError, shown
from refl.extras import install

if TYPE_CHECKING:
    from refl.evaluation.corpus import Done

SHARD = 64
"""Of refl.evaluation.corpus, which nothing imports before it is needed."""

ONE_INPUT = (
    ("text", "ids", "types", "pair", "decoder", "decoder_ids")
    + ("target", "contrast", "position", "at", "through", "coordinate", "cosine", "mean")
    + ("answer", "answer_ids")
    + ("keep", "save", "png", "html", "svg", "pdf", "tex", "beside", "scale")
)
"""Options of `refl explain` for one input: in a corpus each line has its own, or none."""


def add(p: Any) -> None:
    """The options of `refl explain` for a corpus."""
    g = p.add_argument_group("a corpus in place of one input")
    g.add_argument(
        "--file",
        type=Source,
        metavar="FILE.jsonl",
        help="a JSON object on each line: text (or ids, or image), and what else is known of it: "
        "target, foil, decoder, pair, types, position, name",
    )
    g.add_argument(
        "--out", type=folder, metavar="FOLDER", help="where to write the shards, a row per input"
    )
    g.add_argument("--format", choices=("jsonl", "parquet"), help="of the shards (default: jsonl)")
    spread(g, SHARD)


def spread(g: Any, shard: int) -> None:
    """Who does the work, and in what pieces."""
    g.add_argument("--shard", type=int, metavar="N", help=f"inputs of a shard (default: {shard})")
    g.add_argument("--limit", type=int, metavar="N", help="only the first N inputs")
    g.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="so many processes, one BLAS thread each (default: this process alone)",
    )
    g.add_argument(
        "--dask",
        type=str.strip,
        metavar="ADDRESS",
        help="the workers of a dask cluster, tcp://host:8786 say",
    )


def is_asked(args: argparse.Namespace) -> bool:
    """Whether a corpus is to be explained. Refuses options of a corpus without one."""
    if args.file is not None:
        return True
    for name in ("out", "format", "shard", "limit", "workers", "dask"):
        if getattr(args, name) is not None:
            args.parser.error(f"--{name} is for a corpus: give it with --file")
    return False


def run(args: argparse.Namespace) -> int:
    """Explains a corpus."""
    from refl.cli.asked import model_asked, said_how
    from refl.evaluation.corpus import explain_corpus

    _refuse_contradictions(args)
    method = said_how(args)
    with Progress() as progress, pool(args) as workers:
        done = explain_corpus(
            model_asked(args),
            args.file,
            args.out,
            method,
            seed=args.seed,
            format=args.format or "jsonl",
            pool=workers,
            progress=progress,
            **{name: getattr(args, name) for name in ("limit", "workers")},
            **({} if args.shard is None else {"shard": args.shard}),
        )
    if args.json:
        print_json(done.as_dict())
        return 0
    print_lines(wrote(done.folder, what=held(done)), args)
    return 0


def held(done: Done) -> str:
    """What a run has left in its folder."""
    before = done.shards - done.made
    there = f", {before} of them finished before" if before else ""
    return f"{done.inputs} inputs in {done.shards} shards{there}"


def _refuse_contradictions(args: argparse.Namespace) -> None:
    for name in ONE_INPUT:
        if getattr(args, name, None) not in (None, []):
            option = "TEXT" if name == "text" else f"--{name.replace('_', '-')}"
            args.parser.error(f"{option} is for one input: leave it out with --file")
    if args.out is None:
        args.parser.error("give --out FOLDER with --file")
    options.refuse_both(args, "workers", "dask")


@contextmanager
def pool(args: argparse.Namespace) -> Iterator[Any]:
    """A client of a dask cluster where one is asked for; else nothing."""
    if args.dask is None:
        yield None
        return
    client = _client(args.dask)
    try:
        yield client
    finally:
        client.close()


def _client(address: str) -> Any:
    try:
        distributed = import_module("distributed")
    except ImportError:
        raise ReflError(f"--dask needs dask: {install('dask')}, or take --workers") from None
    try:
        return distributed.Client(address, timeout=5, set_as_default=False)
    except (OSError, ValueError) as reason:
        raise ReflError(
            f"no dask scheduler answers at {shown(address)}: {reason or type(reason).__name__}"
        ) from None
