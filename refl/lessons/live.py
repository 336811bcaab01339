"""A lesson, step by step: a section, a key; a question before its answer; every example executed
before the reader's eyes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from refl.lessons.examples import Namespace, Outcome, parsed, run
from refl.lessons.lesson import Lesson, Piece, Section, pieces
from refl.lessons.reading import markdown

GO_ON = "[enter] to go on "
CHOOSE = "a, b or c? (enter alone: no prediction) "
UNFOLD = "[enter] for the answer "
TRIES = 5


class Session(Protocol):
    """Who is asked, and where it is shown."""

    def say(self, markdown: str) -> None: ...

    def show(self, outcome: Outcome) -> None: ...

    def ask(self, prompt: str) -> str:
        """A line. Raises EOFError where none is left."""
        ...


def step_through(lesson: Lesson, session: Session) -> None:
    """The whole lesson."""
    lecture = _Lecture(lesson, session)
    session.say(lesson.text.partition("\n")[0])
    for section in lesson.sections:
        lecture.section(section)


class _Lecture:
    def __init__(self, lesson: Lesson, session: Session) -> None:
        self.lesson, self.session = lesson, session
        self.namespace: Namespace = {"__name__": "__main__"}
        self.predicted = ""

    def section(self, section: Section) -> None:
        if section.title:
            self.session.say(f"## {section.title}")
        if section.title == "Answer" and self.predicted:
            self.session.say(self._judged())
        for piece in pieces(section.text):
            self._piece(piece)
        if section.title == "Predict":
            self.predicted = chosen(self.session.ask)
        elif section.title != "Read on":
            self.session.ask(GO_ON)

    def _judged(self) -> str:
        right = self.lesson.letter
        verb = "is right" if self.predicted == right else f"is not it: the answer is {right}"
        return f"Your prediction, {self.predicted}, {verb}."

    def _piece(self, piece: Piece) -> None:
        if piece.kind == "prose":
            self.session.say(markdown(piece))
            return
        if piece.kind == "code":
            self.session.say("")
            for example in parsed(piece.text):
                self.session.show(run(example, self.namespace))
            return
        self.session.ask(UNFOLD)
        for inside in pieces(piece.text):
            self._piece(inside)


def chosen(ask: Callable[[str], str]) -> str:
    """a, b or c; "" where nothing is chosen, in so many tries: a pipe may say anything for ever."""
    for _ in range(TRIES):
        said = ask(CHOOSE).strip().lower().strip("().")
        if said in ("a", "b", "c"):
            return said
        if not said:
            break
    return ""
