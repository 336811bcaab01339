"""How to install an extra, from wherever refl came: a command that works there."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from refl import extras


class Installed:
    """A distribution with pip's own note on where it came from."""

    def __init__(self, said: str | None) -> None:
        self.said = said

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return self.said


def hint(monkeypatch: pytest.MonkeyPatch, said: Any, root: Path | None = None) -> str:
    text = said if isinstance(said, str | None) else json.dumps(said)
    monkeypatch.setattr(extras, "distribution", lambda name: Installed(text))
    monkeypatch.setattr(extras, "ROOT", root or Path("/nowhere"))
    return extras.install("image")


def test_from_an_index(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hint(monkeypatch, None) == "pip install 'refl-lrp[image]'"
    for strange in ("{", "[]", "3", ""):
        assert hint(monkeypatch, strange) == "pip install 'refl-lrp[image]'"


def test_from_a_clone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clone = tmp_path / "my clone"
    clone.mkdir()
    (clone / "pyproject.toml").touch()
    said: dict[str, Any] = {"url": clone.as_uri(), "dir_info": {"editable": True}}
    assert hint(monkeypatch, said) == f"pip install -e '{clone}[image]'"
    assert hint(monkeypatch, said | {"dir_info": {}}) == f"pip install '{clone}[image]'"
    (clone / "pyproject.toml").unlink()  # it has gone since
    assert "my%20clone" in hint(monkeypatch, said)


def test_from_a_file_or_a_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "https://example.org/refl_lrp-1-py3-none-any.whl"
    assert hint(monkeypatch, {"url": url, "archive_info": {}}) == (
        f"pip install 'refl-lrp[image] @ {url}'"
    )
    said = {"url": "https://example.org/refl", "vcs_info": {"vcs": "git", "commit_id": "0"}}
    assert hint(monkeypatch, said) == (
        "pip install 'refl-lrp[image] @ git+https://example.org/refl'"
    )


def test_from_a_checkout_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def none(name: str) -> None:
        raise PackageNotFoundError(name)

    (tmp_path / "pyproject.toml").touch()
    monkeypatch.setattr(extras, "distribution", none)
    monkeypatch.setattr(extras, "ROOT", tmp_path)
    assert extras.install("peers") == f"pip install -e '{tmp_path}[peers]'"
