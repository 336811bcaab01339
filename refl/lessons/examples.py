"""The >>> examples of a lesson, executed as doctest would, one namespace for all."""

from __future__ import annotations

import doctest
import io
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

Namespace = dict[str, Any]
_RAISED = "Traceback (most recent call last):\n    ...\n"


@dataclass(frozen=True)
class Outcome:
    """What came out of an example."""

    source: str
    want: str
    """What the lesson says."""
    printed: str
    value: str
    """As Python shows it, "" where there is none."""
    raised: str
    """Kind and words of an exception, "" where there was none."""
    as_said: bool

    @property
    def text(self) -> str:
        """All that a session shows."""
        shown = self.printed + (f"{self.value}\n" if self.value else "")
        return shown + (_RAISED + self.raised if self.raised else "")


def parsed(block: str) -> list[doctest.Example]:
    return doctest.DocTestParser().get_examples(block + "\n")


def run(example: doctest.Example, namespace: Namespace) -> Outcome:
    """Executes one example. What interrupts a process passes through; any other exception is an
    outcome.
    """
    printed, values, raised = io.StringIO(), list[str](), ""
    with redirect_stdout(printed), _shown_to(values):
        try:
            compiled = compile(example.source, "<lesson>", "single", dont_inherit=True)
            exec(compiled, namespace)  # noqa: S102 - the project's own text
        except Exception as error:  # noqa: BLE001 - an example may show one
            raised = traceback.format_exception_only(error)[-1]
    value = "\n".join(values)
    found = Outcome(example.source, example.want, printed.getvalue(), value, raised, False)
    return Outcome(**vars(found) | {"as_said": _as_said(example, found)})


@contextmanager
def _shown_to(values: list[str]) -> Iterator[None]:
    """Values of expressions go to a list, and no `_` is left behind."""

    def show(value: object) -> None:
        if value is not None:
            values.append(repr(value))

    before, sys.displayhook = sys.displayhook, show
    try:
        yield
    finally:
        sys.displayhook = before


def _as_said(example: doctest.Example, found: Outcome) -> bool:
    agrees = doctest.OutputChecker().check_output
    flags = sum(flag for flag, on in example.options.items() if on)
    if found.raised or example.exc_msg is not None:
        return agrees(example.exc_msg or "", found.raised, flags)
    return agrees(example.want, found.text, flags)
