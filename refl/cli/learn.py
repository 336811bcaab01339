"""`refl learn`: eleven lessons on LRP, listed, shown, stepped through, or as notebooks."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refl.cli.command import FAILED, INTERRUPTED, add_command
from refl.cli.files import PACKAGE, folder, write
from refl.cli.output import print_json, print_lines, print_text, wants_color, width, wrote
from refl.errors import ReflError, shown
from refl.show.lines import Line, paragraph

if TYPE_CHECKING:
    from refl.lessons.examples import Outcome
    from refl.lessons.lesson import Lesson

_ABOUT = """\
Learn layer-wise relevance propagation: eleven lessons with numbers to compute by hand, each with a
prediction to make, a misconception that it ends, and a mistake to find. The first seven take an
hour, for a reader who knows backpropagation.
"""

_MORE = """\
examples:
  refl learn                              # the list
  refl learn 1                            # read the first lesson
  refl learn 1 --run                      # step through it: predict first, examples are executed
  refl learn --notebooks lessons          # all of them as Jupyter notebooks, outputs filled in
  refl learn 3 --notebooks lessons        # one of them

--run ends with exit code 1 where an example gave something else than the lesson says.

"""


def add(commands: Any) -> None:
    """The command and its options."""
    summary = "lessons on LRP, to read or to step through"
    p = add_command(commands, "learn", summary, run, description=_ABOUT, more=lambda: _MORE)
    p.add_argument("number", nargs="?", metavar="N", help="the lesson to show (default: the list)")
    p.add_argument(
        "--run",
        action="store_true",
        dest="live",
        help="step through it: section by section, with its question, examples executed",
    )
    p.add_argument(
        "--notebooks",
        type=folder,
        metavar="FOLDER",
        help="write each lesson, or lesson N, as a Jupyter notebook to this folder",
    )


def run(args: argparse.Namespace) -> int:
    from refl.lessons.lesson import lesson, lessons

    _refuse_strange(args)
    asked = lessons() if args.number is None else [lesson(args.number)]
    if args.notebooks is not None:
        return _notebooks(asked, args)
    if args.live:
        return _live(asked[0], args)
    if args.json:
        said = [one.as_dict() for one in asked]
        print_json(said if args.number is None else said[0] | {"text": asked[0].text})
    elif args.number is None:
        print_lines(list(_listed(asked)), args)
    else:
        _print_lesson(asked[0], args)
    return 0


def _refuse_strange(args: argparse.Namespace) -> None:
    if args.live and args.number is None:
        args.parser.error("--run steps through one lesson: give its number, refl learn 1 --run")
    for other in ("json", "notebooks"):
        if args.live and getattr(args, other):
            args.parser.error(f"--run is a conversation: give it without --{other}")


# -- the list --------------------------------------------------------------------------------------


def _listed(every: Sequence[Lesson]) -> Iterator[Line]:
    from refl.lessons.lesson import GROUPS

    for group, numbers in GROUPS.items():
        some = [one for one in every if one.number in numbers]
        if some:
            minutes = sum(one.minutes for one in some)
            yield [(group, "bold"), (f"  about {minutes} minutes", "dim")]
        for one in some:
            yield [
                (f"  {one.number:2}  ", "cyan"),
                (one.title, ""),
                (f"  {one.minutes} min", "dim"),
            ]
            yield from paragraph(one.claim, min(width(), 100), "dim", indent=" " * 6)
        if some:
            yield []
    for command, what in (
        ("refl learn 1", "read a lesson"),
        ("refl learn 1 --run", "step through it"),
        ("refl learn --notebooks FOLDER", "write them as Jupyter notebooks"),
    ):
        yield [(f"{command:31}", "bold"), (what, "dim")]


# -- one lesson ------------------------------------------------------------------------------------


def _print_lesson(one: Lesson, args: argparse.Namespace) -> None:
    from refl.lessons.reading import text

    _print_markdown(text(one), args)


def _print_markdown(markdown: str, args: argparse.Namespace) -> None:
    from refl.lessons.reading import drawn

    print_text(drawn(markdown, width(), wants_color(sys.stdout, args.no_color)))


# -- step by step ----------------------------------------------------------------------------------


def _live(one: Lesson, args: argparse.Namespace) -> int:
    from refl.lessons.live import step_through

    terminal = _Terminal(one, args)
    try:
        step_through(one, terminal)
        terminal.say(f"That was lesson {one.number}.")
    except EOFError:
        terminal.say(f"Nobody answers, so lesson {one.number} ends here.")
    except KeyboardInterrupt:
        print()
        terminal.say(f"Stopped. `refl learn {one.number} --run` begins again.")
        return INTERRUPTED
    return FAILED if terminal.differed else 0


class _Terminal:
    """Standard output and standard input, which may be a pipe."""

    def __init__(self, one: Lesson, args: argparse.Namespace) -> None:
        self.lesson, self.args, self.differed = one, args, 0

    def say(self, markdown: str) -> None:
        print()
        if markdown:
            _print_markdown(markdown, self.args)

    def show(self, outcome: Outcome) -> None:
        source = outcome.source.rstrip("\n").split("\n")
        session = [f"{'... ' if i else '>>> '}{line}" for i, line in enumerate(source)]
        lines: list[Line] = [[(f" {line}", "cyan")] for line in session]
        lines += [[(f" {line}", "bold")] for line in outcome.text.splitlines()]
        print_lines(lines, self.args)
        if not outcome.as_said:
            self.differed += 1
            want = shown(outcome.want.strip()) or "nothing"
            said = f" That differs: lesson {self.lesson.number} says {want} here."
            print_lines([[(said, "red")]], self.args)

    def ask(self, prompt: str) -> str:
        """A line of standard input. Raises EOFError at its end, or where it is closed."""
        print()
        print_text(prompt)
        sys.stdout.flush()
        try:
            line = sys.stdin.readline() if sys.stdin is not None else ""
        except (OSError, ValueError):  # closed; no text
            line = ""
        if not line or not sys.stdin.isatty():
            print()
        if not line:
            raise EOFError
        return line


# -- notebooks -------------------------------------------------------------------------------------


def _notebooks(asked: Sequence[Lesson], args: argparse.Namespace) -> int:
    """All are refused before one is written."""
    from refl.lessons.notebooks import notebook, place

    where = Path(_made(args.notebooks))
    places = [(one, place(where, one)) for one in asked]
    for one, path in places:
        write(str(path), partial(notebook, one))
    names = [str(path) for _, path in places]
    if args.json:
        print_json(names)
    else:
        print_lines(wrote(*names), args)
    return 0


def _made(name: str) -> str:
    """The folder, made where there is none. Raises ReflError where it cannot be, or is refl's."""
    path = Path(name)
    try:
        path.mkdir(parents=True, exist_ok=True)
        inside = path.resolve().is_relative_to(PACKAGE.resolve())
    except FileExistsError:
        raise ReflError(
            f"{shown(name)} is no folder: it is a file, or a link to nothing; choose another"
        ) from None
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise ReflError(f"{shown(name)} cannot be a folder of notebooks: {said}") from None
    if inside:
        raise ReflError(f"{shown(name)} is a folder of refl itself: choose another")
    return name
