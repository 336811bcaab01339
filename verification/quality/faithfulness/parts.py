"""What the report is put together from: each part by its name, computed once and kept as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from refl.io.files import atomic_write
from refl.verification.quality.faithfulness import claims
from refl.verification.quality.faithfulness.checkpoints import PARTS, opened, results

EVIDENCE = (
    "random",
    "gradient",
    "input-x-gradient",
    "integrated-gradients",
    "occlusion",
    "gradient-rollout",
    "alti-logit",
    "cp-lrp",
    "attnlrp",
    "attnlrp-flattened",
)


def parts(inputs: int) -> dict[str, Callable[[], Any]]:
    """Name -> what computes it."""
    jobs: dict[str, Callable[[], Any]] = {name: partial(results, name, inputs) for name in PARTS}
    for kind, name in product(claims.SETS, ("babyllama105", "stories260K")):
        jobs[f"{kind} {name}"] = partial(_agreement, kind, name, inputs)
    jobs["patching shipped"] = partial(_patching, "shipped", inputs)
    for name in ("shipped", "stories260K", "babyllama105", "capp_gpt2"):
        jobs[f"by block {name}"] = partial(_by_block, name, inputs // 4)
    return jobs


def _agreement(kind: str, name: str, count: int) -> Any:
    return claims.agreement(opened(name), claims.SETS[kind].path, EVIDENCE, count)


def _by_block(name: str, count: int) -> Any:
    return claims.by_block(name, opened(name), count)


def _patching(name: str, count: int) -> Any:
    return claims.patched(opened(name), ("simple_test.json", "nounpp_test.json"), count)


def kept(folder: Path, name: str, job: Callable[[], Any]) -> Any:
    """What is there already, or computed; of a job that comes in pieces what there is so far lies
    beside.
    """
    path, so_far = folder / f"{name}.json", folder / f"{name}.so-far.json"
    if not path.exists():
        found = job()
        for one in found if isinstance(found, Iterator) else [found]:
            atomic_write(so_far, json.dumps(one, default=float).encode("utf-8"))
        so_far.replace(path)
    return json.loads(path.read_text(encoding="utf-8"))


def held(folder: Path, names: Iterable[str]) -> dict[str, Any]:
    """What the folder holds of these parts, also of those that have not come to their end."""
    found = {}
    for name in names:
        for path in (folder / f"{name}.json", folder / f"{name}.so-far.json"):
            if name not in found and path.exists():
                found[name] = json.loads(path.read_text(encoding="utf-8"))
    return found
