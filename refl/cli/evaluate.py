"""`refl evaluate`: methods judged on the same model and the same inputs."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refl.cli import corpus, options
from refl.cli.command import add_command
from refl.cli.files import Source, folder, labeled
from refl.cli.output import print_json, print_lines, width, wrote
from refl.cli.progress import Progress
from refl.errors import ReflError, shown
from refl.show import plots

if TYPE_CHECKING:
    from refl.evaluation.held_out import Chosen
    from refl.evaluation.results import Results
    from refl.model import Model

SHARD = 16
"""Of refl.evaluation.run, which nothing imports before it is needed."""

_ABOUT = """\
Judge methods on every input of a file: what the model does when the input is changed, or what is
known to decide, held against what each method says. Random scores stand beside them all.
"""

_MORE = """\
metrics (options after colons, flip:baseline=mask:steps=20 say; a text that reads as a number in
quotes, "flip:baseline='5'"):
  flip             the explained number while units are replaced in the order of their scores
  insert           the same while they are brought back
  evidence         do the largest scores stand where the evidence is known to be
  leave-one-out    do the scores agree with what the model does without each token
  sanity           does the explanation change when the weights are randomized

DATA has a JSON object on each line: text (or input, prefix, ids, image), and what is known of it:
target, foil, evidence (numbers of tokens, words, or [from, to] in characters), decoder, pair, ...

The folder of --out has the shards (a row for each input, method and metric), and
  results.json  means, standard errors, paired differences with bootstrap intervals, the protocol
  inputs.csv    every number of every input
  table.tex     for LaTeX with booktabs
  report.html   all of it on one page, curves with bands; needs no network
  <metric>-<curve>.svg, .pdf, .png    with --figures
What is finished there is not computed again. A run with other options needs another folder.

examples:
  refl evaluate --data data.jsonl --methods attnlrp,cp-lrp --metrics flip,evidence
  refl evaluate --data data.jsonl --model path/to/checkpoint --methods attnlrp,gradient \\
    --metrics flip:baseline=mask --out folder --workers 4 --figures pdf
  refl evaluate --data data.jsonl --methods attnlrp --scores theirs=scores.npz --metrics flip

"""


def add(commands: Any) -> None:
    """The command and its options."""
    summary = "which method can be believed: all judged on the same inputs"
    p = add_command(commands, "evaluate", summary, run, description=_ABOUT, more=lambda: _MORE)
    p.add_argument(
        "--data", type=Source, required=True, metavar="FILE.jsonl", help="the inputs, one a line"
    )
    p.add_argument(
        "--methods",
        type=named,
        nargs="+",
        default=[],
        metavar="NAME[:OPTION=VALUE]",
        help="methods (refl methods lists them), or .toml files",
    )
    p.add_argument("--metrics", type=named, nargs="+", required=True, metavar="NAME[:OPTION=VALUE]")
    p.add_argument(
        "--scores",
        type=labeled,
        nargs="+",
        default=[],
        metavar="NAME=FILE",
        help="scores from elsewhere, judged as a method of that name: .npz, .npy, .jsonl, oracle "
        "files",
    )
    p.add_argument(
        "--tune",
        type=int,
        metavar="N",
        help="hold N inputs out and choose on them, of each method's OPTION=A/B/C, the value whose "
        "first metric is best; they are not judged",
    )
    p.add_argument("--out", type=folder, metavar="FOLDER", help="where to write all of it")
    p.add_argument(
        "--figures",
        nargs="+",
        choices=("svg", "pdf", "png"),
        default=[],
        help="curves as figures too (needs matplotlib)",
    )
    options.seed(p)
    p.add_argument(
        "--no-contrast",
        action="store_true",
        help="explain the target alone, not its difference to the foil",
    )
    options.edits(options.of_model(p))
    corpus.spread(p.add_argument_group("the work"), SHARD)


def named(said: str) -> list[str]:
    """Names between commas."""
    found = [one.strip() for one in said.split(",")]
    if not all(found):
        raise argparse.ArgumentTypeError(f"expected names between commas, got {shown(said)!r}")
    return found


def run(args: argparse.Namespace) -> int:
    from refl.cli.asked import model_asked
    from refl.evaluation.run import evaluate

    _refuse_contradictions(args)
    typed, metrics = _typed(args), [one for part in args.metrics for one in part]
    with Progress() as progress, _place(args) as place, corpus.pool(args) as pool:
        model: Model = model_asked(args)
        what = _chosen(model, typed, metrics, args, progress)
        found = evaluate(
            model,
            args.data,
            place,
            what.methods,
            metrics,
            kind=args.seed,
            contrast=not args.no_contrast,
            pool=pool,
            workers=args.workers,
            limit=args.limit,
            shard=SHARD if args.shard is None else args.shard,
            progress=progress,
            skip=what.skip,
            notes=what.notes,
        )
        progress("writing", 0, 0)
        files = _write(found, Path(place), args) if args.out else []
    _answer(found, files, args)
    return 0


def _refuse_contradictions(args: argparse.Namespace) -> None:
    from refl import arguments

    options.refuse_both(args, "workers", "dask")
    if args.figures and not args.out:
        args.parser.error("--figures are written into the folder of --out: give one")
    if args.tune is not None:
        arguments.positive("tune", args.tune)
    if args.figures:
        plots.library("matplotlib.figure")


Typed = dict[str, tuple[str, dict[str, list[Any]]]]
"""Label -> the method's name, and the values of its options."""


def _typed(args: argparse.Namespace) -> Typed:
    found: Typed = {}
    for label in (one for part in args.methods for one in part):
        if label in found or label in (s.label for s in args.scores):
            raise ReflError(f"the method {shown(label)!r} stands twice: name each once")
        name, *said = label.split(":")
        found[label] = name, _grid(label, said)
    labels = [one.label for one in args.scores]
    for label in labels:
        if labels.count(label) > 1:
            raise ReflError(f"the scores {shown(label)!r} stand twice: name each once")
    if not found and not args.scores:
        args.parser.error("give --methods, or --scores")
    return found


def _chosen(
    model: Model, typed: Typed, metrics: list[str], args: argparse.Namespace, progress: Progress
) -> Chosen:
    """The methods in the order they are typed; scores from elsewhere behind them."""
    from refl.evaluation import scores
    from refl.evaluation.held_out import Chosen, tune
    from refl.methods import chosen

    grids = {label: one for label, one in typed.items() if any(len(v) > 1 for v in one[1].values())}
    _refuse_untuned(grids, args)
    found = Chosen({
        label: chosen(name, options={k: v[0] for k, v in grid.items()})
        for label, (name, grid) in typed.items()
    })  # fmt: skip
    if grids:
        how = {"kind": args.seed, "contrast": not args.no_contrast, "limit": args.limit}
        best = tune(model, args.data, grids, args.tune, metrics[0], progress=progress, **how)
        found = Chosen(found.methods | best.methods, best.skip, best.notes)
    found.methods.update({one.label: scores.read(one.file, one.label) for one in args.scores})
    return found


def _grid(label: str, said: list[str]) -> dict[str, list[Any]]:
    """OPTION=A/B/C each. Raises ReflError for an option that stands twice."""
    from refl.cli.asked import named, typed

    options = named(f"the method {shown(label)!r}", said)
    return {name: [typed(value) for value in values.split("/")] for name, values in options.items()}


def _refuse_untuned(choices: dict[str, Any], args: argparse.Namespace) -> None:
    if choices and args.tune is None:
        label = next(iter(choices))
        args.parser.error(f"{label} has several values of an option: give --tune N to choose one")
    if args.tune is not None and not choices:
        args.parser.error("--tune chooses between values of an option: give NAME:OPTION=A/B")


@contextmanager
def _place(args: argparse.Namespace) -> Iterator[str]:
    """The folder of the shards; one that is gone afterwards where none is asked for."""
    if args.out:
        yield args.out
        return
    with tempfile.TemporaryDirectory(prefix="refl-") as place:
        yield place


def _write(r: Results, place: Path, args: argparse.Namespace) -> list[Path]:
    """The files beside the shards."""
    from refl.evaluation import figures, page, tables
    from refl.io.files import atomic_write

    contents = {
        "results.json": tables.as_json(r),
        "inputs.csv": tables.as_csv(r),
        "table.tex": tables.as_latex(r),
        "report.html": page.html(r),
    }
    found = {name: text.encode() for name, text in contents.items()}
    for kind in args.figures:
        for key in (key for key in r.curves if figures.is_drawn(r, key)):
            found[figures.name(key, kind)] = figures.curves(r, key, kind)
    for name, content in found.items():
        atomic_write(place / name, content)
    return [place / name for name in found]


def _answer(r: Results, files: list[Path], args: argparse.Namespace) -> None:
    from refl.evaluation import tables

    if args.json:
        print_json(tables.as_dict(r))
        return
    print_lines([*tables.lines(r, width()), *wrote(*files)], args)
