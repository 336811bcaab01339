"""How to install what only some need, from wherever refl itself came."""

from __future__ import annotations

import json
import shlex
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

DISTRIBUTION = "refl-lrp"
ROOT = Path(__file__).parents[1]


def install(extra: str) -> str:
    """The command for one of the extras of pyproject.toml."""
    said = _direct_url()
    clone = _folder(said) or (ROOT if (ROOT / "pyproject.toml").is_file() else None)
    if clone is not None:
        editable = said is None or said.get("dir_info", {}).get("editable", False)
        return f"pip install {'-e ' if editable else ''}{shlex.quote(f'{clone}[{extra}]')}"
    if said is not None and isinstance(said.get("url"), str):
        vcs = said.get("vcs_info", {}).get("vcs")
        url = f"{vcs}+{said['url']}" if vcs else said["url"]
        return f"pip install {shlex.quote(f'{DISTRIBUTION}[{extra}] @ {url}')}"
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def _direct_url() -> dict[str, Any] | None:
    """What pip wrote down of an installation that came from no index (PEP 610)."""
    try:
        text = distribution(DISTRIBUTION).read_text("direct_url.json")
        said = None if text is None else json.loads(text)
    except (PackageNotFoundError, OSError, ValueError):
        return None
    return said if isinstance(said, dict) else None


def _folder(said: dict[str, Any] | None) -> Path | None:
    """The folder that it was installed from, where it is still there."""
    if said is None or "dir_info" not in said:
        return None
    folder = Path(unquote(urlsplit(str(said.get("url"))).path))
    return folder if (folder / "pyproject.toml").is_file() else None
