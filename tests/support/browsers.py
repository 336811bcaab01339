"""A headless Chromium that reaches no network, and whose every complaint is written down."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser")
QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
)  # fmt: skip
"""Nothing that starts by itself, and nothing that a container has not."""


def chromium() -> str | None:
    """Where there is one."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


def why_no_browser() -> str:
    """Why the tests in a browser are left out, or nothing."""
    if find_spec("playwright") is None:
        return "playwright is not installed (the extra 'browser')"
    return "" if chromium() else "there is no chromium on the PATH"


class Watched:
    """One page of a browser: what it complained of, and what it asked for beside itself."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.own = ""
        page.on("console", lambda said: self._heard(said.type, said.text))
        page.on("pageerror", lambda error: self._heard("error", str(error)))
        page.on("dialog", self._dialog)
        page.on("crash", lambda *_: self._heard("error", "crashed"))
        page.on("popup", lambda *_: self._heard("error", "opened a window"))
        page.on("worker", lambda *_: self._heard("error", "started a worker"))
        page.on("download", lambda *_: self._heard("error", "downloaded something"))
        page.on("websocket", lambda *_: self.requests.append("a socket"))
        page.on("request", lambda asked: self._asked(asked.url))

    def _heard(self, kind: str, text: str) -> None:
        if kind in ("error", "warning", "assert"):
            self.complaints.append(f"{kind}: {text}")

    def _dialog(self, dialog: Any) -> None:
        self.complaints.append(f"a dialog: {dialog.message}")
        dialog.dismiss()

    def _asked(self, url: str) -> None:
        """The page itself is asked for, and a picture that stands in it."""
        if url.partition("#")[0] != self.own and not url.startswith("data:image/png;base64,"):
            self.requests.append(url)

    def open(self, file: Path, address: str = "") -> None:
        """A page from a file, until it says that it is ready."""
        self.own = file.as_uri()
        self.page.goto("about:blank")
        self.requests.clear()
        self.page.goto(f"{self.own}{address}")
        self.page.wait_for_selector("#app[data-ready]", state="attached", timeout=20_000)

    def evaluate(self, script: str, *argument: Any) -> Any:
        return self.page.evaluate(script, *argument)

    def quiet(self) -> None:
        """Fails for anything that was complained of or asked for."""
        said, self.complaints = self.complaints, []
        asked, self.requests = self.requests, []
        assert not said and not asked, (said, asked)


@contextmanager
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        started = p.chromium.launch(executable_path=chromium(), args=list(QUIET))
        try:
            yield started
        finally:
            started.close()


def watched(started: Any, **how: Any) -> Watched:
    """A page of a context of its own, without a network; `how`: its size, its colors."""
    context = started.new_context(offline=True, **how)
    context.route("http*://**", lambda route: route.abort())
    return Watched(context.new_page())
