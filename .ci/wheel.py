"""Only refl reaches site-packages: with its model, its vectors and what users verify with, without
what only its makers need:  python .ci/wheel.py FOLDER
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

NEEDED = (
    "refl/py.typed",
    "refl/cli/__init__.py",
    "refl/guide/index.md",
    "refl/guide/pictures/keys.svg",
    "refl/io/quantized/gptq.py",
    "refl/io/safetensors.py",
    "refl/latent/card.py",
    "refl/lessons/01_a_share_of_z.md",
    "refl/lessons/pictures/a_share_of_z.svg",
    "refl/show/__init__.py",
    "refl/nets/llama.py",
    "refl/rules/linear.py",
    "refl/shipped/model.safetensors",
    "refl/verification/compare/compare.py",
    "refl/verification/conformance/adapters/engine.py",
    "refl/verification/conformance/runner.py",
    "refl/verification/definitions/exact.py",
    "refl/verification/identities/catalogue.py",
    "refl/verification/peers/dump_torch.py",
    "refl/verification/vectors/mistakes.toml",
    "refl/verification/vectors/models/llama/expected.safetensors",
    "refl/verification/vectors/rules/linear_epsilon.json",
)
UNWANTED = ("refl/verification/quality", "refl/verification/training")

(wheel,) = Path(sys.argv[1]).glob("refl_lrp-*.whl")
names = zipfile.ZipFile(wheel).namelist()
complaints = [
    *(f"holds {name}" for name in names if not name.startswith(("refl/", "refl_lrp-"))),
    *(f"holds {name}" for name in names if name.startswith(UNWANTED)),
    *(f"lacks {name}" for name in NEEDED if name not in names),
]
if complaints:
    sys.exit("\n".join(f"{wheel.name} {each}" for each in complaints))
print(f"{wheel.name}: {len(names)} files, all under refl")
