"""The command line: what is asked for, read and checked; the answer, drawn by show.py.

Nothing heavy is imported before it is needed: `refl --help` reads this file and no array library.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn, Self

from refl import ReflError, __version__
from refl.cli import checks

if TYPE_CHECKING:
    from refl.explanation import Explanation
    from refl.model import Model
    from refl.rules.composites import Composite
    from refl.show import Line

SEEDS = ("logit", "log-probability", "probability")
STABILIZERS = ("sign", "plain", "none")
DTYPES = ("float32", "float64")
DEVICES = ("cpu", "cuda")

BAD_INPUT, INTERRUPTED, NOBODY_READS = 2, 130, 141
PATIENCE = 2.0
"""Seconds of work before a progress bar appears."""


# -- the commands and their options ----------------------------------------------------------------

_TOP = """\
Layer-wise relevance propagation (LRP) on transformers: how much each token of an input
contributed to what the model says next, with an account of every bit that did not reach a token.

examples:
  refl explain "the keys to the cabinet"
  refl explain "the keys to the cabinet" --contrast are is --method cp-lrp
  refl explain "the keys to the cabinet" --model path/to/checkpoint --html why.html
  refl trace "the keys to the cabinet"
  refl methods attnlrp
"""

_EXITS = """\
exit codes:
  0  done
  1  a check (verify, compare, conform) found something
  2  the input, an option or a file is not usable; one sentence on standard error says why
  130 interrupted;  141 whoever read the output went away
"""

_EXPLAIN = """\
Explain the token a model gives next: the relevance of every token of the text, the model's
next candidates, and the account, in which

  explained  =  relevance on the tokens  +  absorbed on the way, by cause  +  conservation error
"""

_EXPLAIN_MORE = """\
methods (refl methods says more, and refl methods NAME shows the table of rules):
  attnlrp            AttnLRP to the letter; the default
  attnlrp-gradient   the same in gradient x input form: no eps, the limit eps -> 0
  cp-lrp             attention weights and gates are constants
  lrp-0              AttnLRP without any stabilizer
  gradient           length of the plain gradient at each token
  input-x-gradient   input times gradient
  attnlrp-vit        AttnLRP as the paper tunes it for vision transformers: gamma and z+
  attnlrp-vit-box    the same with the z-box rule on pixels
  cp-lrp-vit         the same with attention weights as constants
  lxt-explicit       AttnLRP as LXT's relevance form codes it
  FILE.toml          a table of your own: name, base = "attnlrp", and [[rule]] lines on top

seeds, which say what is explained:
  logit              the logit of the target; with --contrast the difference of two
  log-probability    the target's logit less the mean logit under the model's own distribution
  probability        softmax-weighted: the target against every other token; adds up to 0

examples:
  refl explain "the keys to the cabinet"                       # the most likely next token
  refl explain "the keys to the cabinet" --target were
  refl explain "the keys to the cabinet" --contrast are is     # why are rather than is
  echo "the keys to the cabinet" | refl explain - --json
  refl explain --ids 2 150 87 --dtype float64 --save oracle.safetensors
  refl explain "the [MASK] sat" --model path/to/bert           # the masked token
  refl explain "a fine film" --model path/to/classifier --target positive
  refl explain "the keys" --at model.layers.1.mlp 2 17         # a neuron
  refl explain cat.png --model path/to/vit --method attnlrp-vit --png why.png --html why.html
  refl explain "the keys" --keep "*.mlp" "*.self_attn" --save blocks.safetensors

"""

_TRACE = """\
Every operation of the forward pass, in its order: site, operation, shape of the output (without
the batch axis), the rule that was applied, and its entry in the ledger: received = passed on + absorbed + conservation error.
"""

_COLOR = (
    "color is used on a terminal; NO_COLOR or --no-color turns it off, FORCE_COLOR turns it on "
    "for a pipe\n\n"
)


class _Parser(argparse.ArgumentParser):
    """Errors are one line."""

    def error(self, message: str) -> NoReturn:
        from refl.show import one_line

        self.exit(BAD_INPUT, f"{self.prog}: {one_line(message)} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        "refl",
        description=_TOP,
        epilog=_EXITS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"refl {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    _explain_options(
        _command(
            commands,
            "explain",
            "why a model says what it says next",
            _EXPLAIN,
            _EXPLAIN_MORE,
            explain,
        )
    )
    _common(
        _command(
            commands, "trace", "every operation with its entry in the ledger", _TRACE, "", trace
        )
    )
    _command(
        commands,
        "models",
        "the architectures there are, and the model that ships with refl",
        "",
        "",
        models,
    )
    methods_ = _command(
        commands, "methods", "the methods there are, each with its source", "", "", methods
    )
    methods_.add_argument(
        "name",
        nargs="?",
        metavar="NAME",
        help="one method, or a FILE.toml: its table of rules with every option",
    )
    checks.add(commands, _command)
    return parser


def _command(
    commands: Any,
    name: str,
    summary: str,
    description: str,
    more: str,
    run: Callable[[argparse.Namespace], int],
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=description or f"{summary[0].upper()}{summary[1:]}.",
        epilog=more + _COLOR + _EXITS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_argument("--json", action="store_true", help="print JSON in place of a table")
    command.add_argument("--no-color", action="store_true", help="no color, whatever the terminal")
    command.set_defaults(run=run, parser=command)
    return command


def _explain_options(p: argparse.ArgumentParser) -> None:
    _common(p)
    out = p.add_argument_group("what to keep and to write")
    out.add_argument(
        "--keep",
        nargs="+",
        metavar="PATTERN",
        help="sites whose activation and relevance to keep, with * and ?: '*.mlp'",
    )
    out.add_argument(
        "--save",
        metavar="FILE",
        help="write everything kept (default: every site) to a safetensors file",
    )
    out.add_argument(
        "--png", metavar="FILE", help="write the heatmap over the picture (for models that see)"
    )
    out.add_argument(
        "--html",
        metavar="FILE",
        help="write the explanation as one HTML page that needs no network",
    )


def _common(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "text",
        nargs="?",
        metavar="TEXT",
        help="the input; - reads it from standard input; for a model that sees, a picture",
    )
    p.add_argument("--ids", nargs="+", type=int, metavar="ID", help="token ids in place of TEXT")
    p.add_argument(
        "--types",
        nargs="+",
        type=int,
        metavar="N",
        help="token type ids, for models that tell two sentences apart (default: all 0)",
    )
    p.add_argument(
        "--decoder",
        metavar="TEXT",
        help="what an encoder-decoder has written so far; its next token is explained",
    )
    p.add_argument(
        "--decoder-ids",
        nargs="+",
        type=int,
        metavar="ID",
        help="token ids in place of that, its start token first",
    )
    _model_options(p.add_argument_group("the model"))
    _method_options(p.add_argument_group("what to explain, and how"))


def _model_options(g: Any) -> None:
    g.add_argument(
        "--model",
        metavar="FOLDER",
        help="a Hugging Face checkpoint: config.json, *.safetensors, tokenizer.json (default: "
        "the small model that ships with refl)",
    )
    g.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="of the computation; float64 for oracles (default: %(default)s)",
    )
    g.add_argument(
        "--device",
        choices=DEVICES,
        default="cpu",
        help="cuda needs CuPy and an NVIDIA GPU (default: %(default)s)",
    )
    g.add_argument(
        "--ignore",
        nargs="+",
        default=[],
        metavar="OPTION",
        help="options of config.json known to change nothing in the forward pass",
    )


def _method_options(g: Any) -> None:
    g.add_argument(
        "--method",
        default="attnlrp",
        metavar="NAME|FILE.toml",
        help="how relevance is handed down (default: %(default)s)",
    )
    g.add_argument(
        "--target",
        metavar="TOKEN",
        help="explain this token; an id where the model has no tokenizer (default: the most "
        "likely next one)",
    )
    g.add_argument(
        "--contrast",
        nargs=2,
        metavar="TOKEN",
        help="explain the logit of the first less that of the second",
    )
    g.add_argument(
        "--position",
        type=int,
        metavar="N",
        help="explain the output at this token, from 0 or from the end (default: the mask, or "
        "the last)",
    )
    g.add_argument(
        "--at",
        nargs="+",
        metavar="SITE N",
        help="explain the activation of a neuron: its site, and its index there",
    )
    g.add_argument(
        "--seed",
        choices=SEEDS,
        default="logit",
        help="what the target is explained by (default: %(default)s)",
    )
    g.add_argument(
        "--eps",
        type=float,
        metavar="E",
        help="the stabilizer's size in every rule that has one, above 0 (default: the method's)",
    )
    g.add_argument(
        "--stabilizer",
        choices=STABILIZERS,
        help="its form: eps with the sign of the denominator, without it, or none (default: the "
        "method's)",
    )


# -- running ---------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    """The command `refl`. Returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = _run(argv)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        _let_go()
        return NOBODY_READS
    except KeyboardInterrupt:
        return INTERRUPTED
    except (ReflError, OSError, MemoryError) as error:
        return _refuse(error)


def _run(argv: list[str] | None) -> int:
    parser = _parser()
    try:
        args = parser.parse_args(argv)
        if args.command is not None:
            return int(args.run(args))
    except SystemExit as done:  # --help, --version, or an error that has been said
        return int(done.code or 0)
    parser.print_help()
    return 0


def _let_go() -> None:
    """The reader is gone: what is still buffered must not be flushed into the closed pipe at
    exit.
    """
    with suppress(OSError, ValueError):  # a stream that is no file has nothing to let go of
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refuse(error: BaseException) -> int:
    from refl.show import one_line

    sentence = str(error)
    if isinstance(error, MemoryError):
        sentence = (
            "out of memory: try a shorter text, --dtype float32, or fewer sites with --keep "
            f"({sentence or 'no more is known'})"
        )
    print(f"refl: {one_line(sentence)}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:  # a full disk: what is left would fail once more at exit
        _let_go()
    return BAD_INPUT


# -- explain ---------------------------------------------------------------------------------------


def explain(args: argparse.Namespace) -> int:
    """`refl explain`"""
    from refl.io.files import atomic_write
    from refl.show import html, png

    composite = _checked(args)
    _refuse_outputs(args, "save", "html", "png")
    with _Progress() as progress:
        model = _load(args)
        if args.png and not model.takes_images:
            raise ReflError("--png draws over a picture, and this model reads text: leave it out")
        _refuse_strange_patterns(model, args.keep or [])
        e = _explain(model, args, composite, args.keep or ("*" if args.save else ()), progress)
        if args.save:
            progress("saving", 0, 0)
            e.save(args.save)
        if args.png:
            atomic_write(args.png, png(e))
        if args.html:
            atomic_write(args.html, html(e).encode("utf-8"))
    _answer_explain(args, e)
    return 0


def _checked(args: argparse.Namespace) -> Composite:
    """What can be refused before a model is loaded; the method, ready."""
    if (args.text is None) == (args.ids is None):
        args.parser.error(
            "give a TEXT (or - for standard input) or --ids"
            + ("" if args.text is None else ", not both")
        )
    if args.contrast and args.target is not None:
        args.parser.error("give --target or --contrast, not both")
    if args.decoder is not None and args.decoder_ids is not None:
        args.parser.error("give --decoder or --decoder-ids, not both")
    composite = _method(args.method)
    changed = {
        key: value for key in ("eps", "stabilizer") if (value := getattr(args, key)) is not None
    }
    return composite.with_options(**changed) if changed else composite


def _method(name: str) -> Composite:
    from refl.rules.composites import from_toml, method

    return from_toml(name) if name.endswith(".toml") else method(name)


def _load(args: argparse.Namespace) -> Model:
    from refl.model import load

    return load(args.model, device=args.device, dtype=args.dtype, ignore=args.ignore)


def _explain(
    model: Model, args: argparse.Namespace, composite: Composite, keep: Any, progress: Any
) -> Explanation:
    target = None if args.target is None else _target(model, args.target)
    contrast = (
        None
        if args.contrast is None
        else (_target(model, args.contrast[0]), _target(model, args.contrast[1]))
    )
    decoder = args.decoder if args.decoder_ids is None else list(args.decoder_ids)
    e: Explanation = model.explain(
        _input(args),
        composite,
        target=target,
        contrast=contrast,
        decoder=decoder,
        seed=args.seed,
        keep=keep,
        progress=progress,
        position=args.position,
        at=_neuron(args),
        types=args.types,
    )
    return e


def _target(model: Model, token: str) -> str | int:
    """A token as it was typed; its id where the model has no tokenizer, the number of a class that
    is no label.
    """
    from refl.network import CLASSIFIES

    numbered = (
        model.text is None if model.task not in CLASSIFIES else token not in model.labels.values()
    )
    return int(token) if numbered and token.isdecimal() else token


def _input(args: argparse.Namespace) -> str | list[int]:
    if args.ids is not None:
        return list(args.ids)
    return _standard_input() if args.text == "-" else str(args.text)


def _neuron(args: argparse.Namespace) -> tuple[str, list[int]] | None:
    """--at: a site, and whole numbers."""
    if args.at is None:
        return None
    site, *index = args.at
    if not index or not all(i.lstrip("-").isdecimal() for i in index):
        raise ReflError(
            f"--at is {' '.join(args.at)!r}: expected a site and the neuron's index there, "
            "such as model.layers.1.mlp 2 17"
        )
    return site, [int(i) for i in index]


def _standard_input() -> str:
    """All of standard input, without the line end that echo and editors add."""
    try:
        raw = (
            sys.stdin.buffer.read().decode("utf-8")
            if hasattr(sys.stdin, "buffer")
            else sys.stdin.read()
        )
    except UnicodeDecodeError as reason:
        raise ReflError(f"standard input is not UTF-8: {reason}") from None
    return raw.removesuffix("\n").removesuffix("\r")


def _refuse_outputs(args: argparse.Namespace, *options: str) -> None:
    """Refuse what cannot be written before anything is computed; `options` name files to write."""
    named: dict[str, str] = {}
    for option in options:
        if path := getattr(args, option):
            _refuse_output(Path(path), getattr(args, "model", None))
            other = named.setdefault(os.path.realpath(path), option)
            if other != option:
                raise ReflError(
                    f"--{other} and --{option} both name {path}: give each a file of its own"
                )


def _refuse_output(path: Path, model: str | None) -> None:
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise ReflError(f"{path} cannot be written: there is no folder {target.parent}")
    if target.is_dir():
        raise ReflError(f"{path} cannot be written: it is a folder, expected the name of a file")
    if target.exists() and not target.is_file():
        raise ReflError(
            f"{path} cannot be written: it is a pipe or a device, expected the name of a file"
        )
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise ReflError(f"{path} cannot be written: no permission to write in {target.parent}")
    if target.exists() and target.parent == Path(
        os.path.realpath(model or Path(__file__).parents[1] / "shipped")
    ):
        raise ReflError(f"{path} cannot be written: it is a file of the model's own folder")


def _refuse_strange_patterns(model: Model, patterns: Iterable[str]) -> None:
    """A pattern that names no site of the model is a mistake. The names come from a forward pass of
    one token.
    """
    if not patterns:
        return
    from fnmatch import fnmatchcase

    names = list(model.sites())
    for pattern in patterns:
        if not any(
            fnmatchcase(name, pattern) or fnmatchcase(_any_expert(name), _any_expert(pattern))
            for name in names
        ):
            near = ", ".join(_near(pattern, names)) or "none"
            raise ReflError(
                f"--keep {pattern!r} names no site of this model; nearest: {near} (refl "
                "trace lists all sites)"
            )


def _any_expert(name: str) -> str:
    """Which experts run is decided by the text."""
    return re.sub(r"\.experts\.\d+", ".experts.0", name)


def _near(pattern: str, names: Iterable[str]) -> list[str]:
    """Names, or for a pattern that begins with * ends of names, that are like the pattern."""
    from refl.errors import nearest

    if not pattern.startswith("*"):
        return nearest(pattern, names, 3)
    wanted = pattern.strip("*.?")
    parts = wanted.count(".") + 1
    ends = {".".join(name.split(".")[-parts:]) for name in names}
    return [f"*.{end}" for end in nearest(wanted, sorted(ends), 3)]


def _answer_explain(args: argparse.Namespace, e: Explanation) -> None:
    from refl.show import kept, terminal

    if args.json:
        _print_json(e.as_dict() | ({"sites": kept(e)} if args.keep else {}))
        return
    lines = terminal(e, _width())
    if args.keep and not args.save:
        from refl.show import kept_table

        lines += [[], *kept_table(e, None if not sys.stdout.isatty() else _width())]
    written = [
        [("wrote ", "dim"), (_printable(path), "")]
        for path in (args.save, args.html, args.png)
        if path
    ]
    _print(lines + ([[]] if written else []) + written, args)


# -- trace -----------------------------------------------------------------------------------------


def trace(args: argparse.Namespace) -> int:
    """`refl trace`"""
    from refl.show import operations, terminal_head

    composite = _checked(args)
    with _Progress() as progress:
        model = _load(args)
        e = _explain(
            model, args, composite, "*.scores", progress
        )  # attention in its plain form: every operation has its entry in the ledger
        rows = _operations(model, e, 0 if args.at else args.position)
    if args.json:
        _print_json(e.as_dict() | {"operations": rows})
    else:
        _print(
            [
                *terminal_head(e, _width()),
                [],
                *operations(rows, _width() if sys.stdout.isatty() else None),
            ],
            args,
        )
    return 0


def _operations(model: Model, e: Explanation, position: int | None = None) -> list[dict[str, Any]]:
    """Every operation in forward order with its entry in the ledger; those that no relevance
    reached have none.
    """
    books = {entry["site"]: entry for entry in e.ledger.as_dict()["sites"]}
    empty: dict[str, Any] = {
        "rule": None,
        "received": None,
        "passed": {},
        "absorbed": {},
        "conservation_error": None,
    }
    return [
        {
            "site": r.output.site,
            "operation": r.operation,
            "shape": [int(n) for n in r.output.array.shape[1:]],
        }
        | {key: books.get(r.output.site, empty)[key] for key in empty}
        for r in model.trace(
            [e.input_ids if e.picture is None else model.blank()], position, decoder=e.decoder_ids
        )[0].records
    ]


# -- models and methods ----------------------------------------------------------------------------


def models(args: argparse.Namespace) -> int:
    """`refl models`"""
    from refl.show import paragraph

    nets, shipped = _architectures(), _shipped()
    if args.json:
        _print_json({"architectures": nets, "shipped": shipped})
        return 0
    lines: list[Line] = []
    for net in nets:
        options = ", ".join(
            f"{name}{'' if default is None else f' = {default}'}"
            for name, default in net["options"].items()
        )
        lines += [
            [(net["model_type"], "bold"), (f"  {net['summary']}", "")],
            *paragraph(f"tested: {net['checked']}", _width()),
            *paragraph(f"options of config.json: {options}", _width(), "dim"),
            [],
        ]
    facts = "{architecture}, {parameters:,} parameters, {layers} layers, vocabulary of {vocabulary}".format_map(
        shipped
    )
    lines += [
        [("the model that ships with refl", "bold"), (f"  {facts}", "")],
        *paragraph(shipped["summary"], _width()),
    ]
    lines += [
        [("  ", ""), (f'refl explain "{example}"', "cyan")] for example in shipped["examples"]
    ]
    _print(lines, args)
    return 0


def _architectures() -> list[dict[str, Any]]:
    from refl.nets import NETS

    return [
        {
            "model_type": name,
            "summary": (net.__doc__ or "").splitlines()[0],
            "checked": net.CHECKED,
            "options": _config_options(net.Config),
        }
        for name, net in NETS.items()
    ]


def _config_options(config: Any) -> dict[str, Any]:
    """Option -> its default as text; None where config.json must give it."""
    from dataclasses import MISSING, fields

    return {f.name: None if f.default is MISSING else json.dumps(f.default) for f in fields(config)}


_ABILITIES = """\
A word-level model of a small English whose right explanations are known. It makes verbs agree with their subject across
distracting nouns, and answers who has what among several people and things."""


def _shipped() -> dict[str, Any]:
    from refl.io.config import read_config
    from refl.io.weights import Weights
    from refl.model import SHIPPED

    config, weights = (
        read_config(SHIPPED),
        Weights(SHIPPED, dtype="float32", place=lambda array: array),
    )
    return {
        "architecture": config.get("model_type"),
        "parameters": sum(math.prod(weights.shape(name)) for name in weights),
        "layers": config.get("num_hidden_layers"),
        "vocabulary": config.get("vocab_size"),
        "longest": config.get("max_position_embeddings"),
        "summary": " ".join(_ABILITIES.split()),
        "examples": [
            "the keys to the cabinet",
            "mary has the ball . john has the cup . who has the ball ?",
        ],
    }


def methods(args: argparse.Namespace) -> int:
    """`refl methods [NAME]`"""
    from refl.rules.composites import METHODS

    chosen = list(METHODS.values()) if args.name is None else [_method(args.name)]
    if args.json:
        tables = [c.as_dict() | {"summary": c.summary, "score": c.score} for c in chosen]
        _print_json(tables if args.name is None else tables[0])
        return 0
    _print([line for c in chosen for line in _described(c, table=args.name is not None)], args)
    return 0


def _described(c: Composite, table: bool) -> list[Line]:
    from refl.show import composite_table, method_lines

    width = _width() if sys.stdout.isatty() else None
    return [*method_lines(c, _width()), *([[], *composite_table(c, width)] if table else [[]])]


# -- output ----------------------------------------------------------------------------------------


def _width() -> int:
    return max(shutil.get_terminal_size((100, 24)).columns, 40)


def _printable(text: str) -> str:
    from refl.show import printable

    return printable(text)


def wants_color(stream: IO[str], off: bool = False) -> bool:
    """Whether to color: never with --no-color or NO_COLOR, always with FORCE_COLOR, else on a
    terminal that can.
    """
    if off or os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR", "0") not in ("", "0"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def _print_json(value: Any) -> None:
    print(json.dumps(_finite(value), indent=2, allow_nan=False))


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _print(lines: Sequence[Line], args: argparse.Namespace) -> None:
    if wants_color(sys.stdout, args.no_color):
        _print_colored(lines)
    else:
        from refl.show import plain

        print(_encodable(plain(lines), sys.stdout.encoding))


_PLAINER = str.maketrans(
    {"█": "+", "▒": "-", "│": "|", "─": "-", "→": ">", "·": "-", "×": "x", "…": "~", "␣": "_"}
)


def _encodable(text: str, encoding: str | None) -> str:
    """The text with plain signs in place of those an old terminal's encoding lacks."""
    try:
        text.encode(encoding or "utf-8")
    except UnicodeEncodeError:
        return text.translate(_PLAINER)
    return text


def _print_colored(lines: Sequence[Line]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(file=sys.stdout, force_terminal=True, soft_wrap=True, highlight=False)
    if (
        console.color_system is None
    ):  # forced, and the environment says nothing of what the reader can show
        console = Console(
            file=sys.stdout,
            force_terminal=True,
            soft_wrap=True,
            highlight=False,
            color_system="256",
        )
    for line in lines:
        console.print(
            Text.assemble(*((_encodable(text, sys.stdout.encoding), style) for text, style in line))
        )


class _Progress:
    """A bar on standard error, on a terminal only, once the work has taken `PATIENCE` seconds."""

    def __init__(self) -> None:
        import threading

        self.timer = threading.Timer(PATIENCE, self._show)
        self.timer.daemon = True
        self.lock = threading.Lock()
        self.state: tuple[str, int, int] = ("loading", 0, 0)
        self.bar: Any = None
        self.over = False

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self.timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.timer.cancel()
        with self.lock:
            self.over = True
            if self.bar is not None:
                self.bar.stop()

    def __call__(self, phase: str, done: int, of: int) -> None:
        """How far the work is; `of` 0 where that is not known."""
        self.state = (phase, done, of)
        if self.bar is not None:
            self.bar.update(0, description=phase, completed=done, total=of or None)

    def _show(self) -> None:
        from rich.console import Console
        from rich.progress import Progress

        with self.lock:
            if self.over:
                return
            bar = Progress(
                console=Console(file=sys.stderr, no_color=not wants_color(sys.stderr)),
                transient=True,
            )
            bar.add_task(self.state[0], completed=self.state[1], total=self.state[2] or None)
            bar.start()
            self.bar = bar
