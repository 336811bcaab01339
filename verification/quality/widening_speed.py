"""How long a matrix takes from the file to the dtype of the computation: each format beside
bfloat16.

    python -m refl.verification.quality.widening_speed [--size 4096]

The best of seven runs, by the two threads that large matrices have; random bits, mapped already.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from refl.io.safetensors import write_safetensors
from refl.io.weights import Weights
from refl.verification.quality.fuzz_checkpoints import QUANTIZED

Folder = tuple[str, dict[str, Any], dict[str, Any], dict[str, str]]
"""Name, quantization_config, arrays, and the dtype that some of them are to have in the header."""


def folders(size: int) -> Iterator[Folder]:
    draw = np.random.default_rng(0)
    bits = draw.integers(0, 127, (size, size), dtype=np.uint8)
    yield "bfloat16", {}, {"m.weight": bits.astype(np.uint16) << 4}, {"m.weight": "BF16"}
    scales = draw.uniform(0.01, 0.1, (-(-size // 128),) * 2).astype(np.float32)
    blocks = {"m.weight": bits, "m.weight_scale_inv": scales}
    yield "fp8", {"quant_method": "fp8"}, blocks, {"m.weight": "F8_E4M3"}
    for method, (options, parts_of) in QUANTIZED.items():
        config = {"quant_method": method.partition("-4")[0]} | options
        parts = parts_of(draw, size, size)
        yield method, config, {f"m.{part}": a for part, a in parts.items()}, {}


def save(
    folder: Path, config: dict[str, Any], arrays: dict[str, Any], tags: dict[str, str]
) -> None:
    path = folder / "model.safetensors"
    write_safetensors(path, arrays, {})
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    for name, tag in tags.items():
        header[name]["dtype"] = tag
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
    said = {"quantization_config": config} if config else {}
    (folder / "config.json").write_text(json.dumps(said))


def seconds(folder: Path, dtype: str) -> float:
    weights = Weights(folder, dtype=dtype, place=lambda array: array, cache_bytes=0)
    found = []
    for _ in range(7):
        begin = time.perf_counter()
        array = weights["m.weight"]
        found.append(time.perf_counter() - begin)
        del array
    return min(found)


def main() -> None:
    parser = argparse.ArgumentParser(description="How long widening a matrix takes.")
    parser.add_argument("--size", type=int, default=4096, help="rows and columns")
    size = parser.parse_args().size
    print(f"{size} x {size:<14} float32     float64")
    for name, config, arrays, tags in folders(size):
        with tempfile.TemporaryDirectory() as place:
            save(Path(place), config, arrays, tags)
            took = [1000 * seconds(Path(place), dtype) for dtype in ("float32", "float64")]
        print(f"{name:<20}{took[0]:8.1f} ms {took[1]:8.1f} ms")


if __name__ == "__main__":
    main()
