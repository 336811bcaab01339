"""refl: layer-wise relevance propagation (LRP) on transformers, from first principles, with a
conservation ledger that closes.

    import refl

    model = refl.load()  # the small model that ships with refl, or refl.load("path/to/checkpoint")
    e = model.explain("the keys to the cabinet")
    e.tokens, e.relevance, e.target, e.logit
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

# In a checkout refl/rules, nets and verification are links to the folders beside refl. Where git
# makes no links (Windows, core.symlinks=false) they are files, and the folders are found here.
if not (Path(__file__).parent / "rules").is_dir():
    __path__.append(str(Path(__file__).parent.parent))

from refl.errors import ReflError
from refl.version import __version__

if TYPE_CHECKING:
    from refl.edits import Edit, off, scale, value
    from refl.model import Model, load
    from refl.show.explanation import ShownExplanation as Explanation
    from refl.targets import coordinate, cosine

__all__ = [
    "Edit",
    "Explanation",
    "Model",
    "ReflError",
    "__version__",
    "coordinate",
    "cosine",
    "load",
    "off",
    "scale",
    "value",
]

_WHERE = {
    "Edit": ("refl.edits", "Edit"),
    "off": ("refl.edits", "off"),
    "scale": ("refl.edits", "scale"),
    "value": ("refl.edits", "value"),
    "coordinate": ("refl.targets", "coordinate"),
    "cosine": ("refl.targets", "cosine"),
    "load": ("refl.model", "load"),
    "Model": ("refl.model", "Model"),
    "Explanation": ("refl.show.explanation", "ShownExplanation"),
}


def __getattr__(name: str) -> Any:
    """The face is imported when it is first used: `refl --help` and `import refl` stay quick."""
    if name not in _WHERE:
        raise AttributeError(f"module refl has no attribute {name!r}")
    import importlib

    module, inside = _WHERE[name]
    return getattr(importlib.import_module(module), inside)
