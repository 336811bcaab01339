"""The API reference: a page per module, built from the docstrings with pdoc (the extra `docs`).

    python -m refl.verification.quality.api_reference [FOLDER]     (default: build/api)

What needs torch, and what is not in the wheel, is left out.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import refl
from refl.verification.quality.import_graph import PROJECT, modules

LEFT_OUT = r"!refl\.(__main__|verification\.(peers|quality|training)|.*\.adapters)"
"""As pdoc is told what has no page."""


def main(folder: str = "build/api") -> int:
    import pdoc

    # annotations that pdoc cannot resolve are shown as they are written
    warnings.filterwarnings("ignore", message="Error parsing type annotation")
    # every module is named, those of a package once more by the package
    warnings.filterwarnings("ignore", message="The module specification")
    for name in refl.__all__:  # the face is imported when it is first used: pdoc must find it there
        setattr(refl, name, getattr(refl, name))
    out = Path(folder)
    pdoc.pdoc(*modules(PROJECT), LEFT_OUT, output_directory=out)
    print(f"{out / 'refl.html'} is the first of {len(list(out.rglob('*.html')))} pages")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
