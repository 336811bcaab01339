"""A bar on standard error, on a terminal only, once the work has taken a while."""

from __future__ import annotations

import sys
import threading
from typing import Any, Self

from refl.cli.output import wants_color

PATIENCE = 2.0
"""Seconds of work before the bar appears."""


class Progress:
    """Told how far the work is, it draws that once `PATIENCE` is over."""

    def __init__(self) -> None:
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
        from rich.progress import Progress as Bar

        with self.lock:
            if self.over:
                return
            console = Console(file=sys.stderr, no_color=not wants_color(sys.stderr))
            bar = Bar(console=console, transient=True)
            bar.add_task(self.state[0], completed=self.state[1], total=self.state[2] or None)
            bar.start()
            self.bar = bar
