"""What a checkpoint folder holds, and whether refl loads it: `refl models FOLDER`. Of the weights
only headers are read, and what no net would (a table that it makes itself, a second name).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from refl.cli.output import width
from refl.errors import ReflError, shown
from refl.show.lines import Line, paragraph

T = TypeVar("T")


def contents(folder: str) -> dict[str, Any]:
    """For whoever reads JSON. Raises ReflError where there is no such folder."""
    from refl.io.config import read_config
    from refl.io.files import checkpoint_folder, list_folder
    from refl.io.quantized import scheme
    from refl.model import load

    path = checkpoint_folder(folder)
    config = _or_none(lambda: read_config(path)) or {}
    model, why = None, None
    try:
        model = load(path)
    except ReflError as error:
        why = str(error)
    said = _or_none(lambda: scheme(config))
    found = {
        "folder": str(path),
        "model_type": config.get("model_type"),
        "architectures": config.get("architectures"),
        "task": None if model is None else model.task,
        "storage": _storage(path),
        "quantized": None if said is None else {"method": said.method, **said.facts},
        "activations_rounded_elsewhere": said.activations if said else "",
        "tokenizer": "tokenizer.json" in list_folder(path),
        "loads": model is not None,
        "why_not": why,
        "adapter": None,
    }
    if model is None and "adapter_config.json" in list_folder(path):
        return found | _adapter(path)
    return found | (_parameters(path) or {})


def _adapter(path: Path) -> dict[str, Any]:
    """Of a folder that peft saved."""
    from refl.io.adapters import read_adapter

    try:
        lora = read_adapter(path, "float32", lambda array: array, 0)
    except ReflError as error:
        return {"why_not": str(error)}
    ranks = sorted({lora.weights.shape(low.a)[0] for low in lora.lows.values()})
    facts = {"layers": len(lora.lows), "ranks": ranks, "whole_tensors": len(lora.whole)}
    why = "it is a LoRA adapter: load its base, with this folder as adapter= (--adapter)"
    return {"adapter": facts, "task": lora.options.task, "why_not": why}


def _or_none(function: Callable[[], T]) -> T | None:
    try:
        return function()
    except ReflError:
        return None


def _storage(path: Path) -> list[dict[str, Any]]:
    """How many tensors of each dtype, the most bytes first."""
    from refl.io.weights import stored_tensors

    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for entry in (_or_none(lambda: stored_tensors(path)) or {}).values():
        counts[entry.tag][0] += 1
        counts[entry.tag][1] += entry.stop - entry.start
    rows = [{"dtype": tag, "tensors": n, "bytes": size} for tag, (n, size) in counts.items()]
    return sorted(rows, key=lambda row: (-int(row["bytes"]), str(row["dtype"])))


def _parameters(path: Path) -> dict[str, Any] | None:
    """Of all tensors that a net could compute with, a quantized matrix by its own size; None where
    the weights cannot be opened.
    """
    from refl.io.quantized.matrix import Matrix
    from refl.io.weights import Weights

    weights = _or_none(lambda: Weights(path, dtype="float32", place=lambda array: array))
    if weights is None:
        return None
    entries = weights.tensors()
    matrices = [entry for entry in entries if isinstance(entry, Matrix)]
    count = sum(entry.count for entry in entries)
    return {
        "parameters": count,
        "float32_bytes": 4 * count,
        "quantized_matrices": len(matrices),
        "quantized_parameters": sum(matrix.count for matrix in matrices),
    }


# -- in words --------------------------------------------------------------------------------------


def lines(found: Mapping[str, Any]) -> list[Line]:
    """The same for a terminal."""
    rows = {
        "architecture": _architecture(found),
        "adapter": _adapted(found["adapter"]),
        "parameters": _parameters_in_words(found),
        "stored": "" if found["adapter"] else _stored(found["storage"]),
        "quantized": _quantized(found),
        "tokenizer": _tokenizer(found),
        "refl": "loads it" if found["loads"] else f"does not load it: {found['why_not']}",
    }
    name = shown(Path(found["folder"]).resolve().name)
    return [[(name, "bold")], *(line for row in rows.items() if row[1] for line in _row(*row))]


_INDENT = " " * 16


def _row(name: str, words: str) -> list[Line]:
    first, *others = paragraph(words, width(), indent=_INDENT)
    return [[(f"  {name}:".ljust(len(_INDENT)), "dim"), *first[1:]], *others]


def _architecture(found: Mapping[str, Any]) -> str:
    classes = found["architectures"]
    names = classes if isinstance(classes, list) else []
    said = [found["model_type"], *names, found["task"]]
    words = ", ".join(shown(word) for word in said if isinstance(word, str))
    return words or ("" if found["adapter"] else "config.json has none")


def _tokenizer(found: Mapping[str, Any]) -> str:
    if found["tokenizer"]:
        return "tokenizer.json"
    return "" if found["adapter"] else "none: give token ids"


def _adapted(adapter: Mapping[str, Any] | None) -> str:
    if adapter is None:
        return ""
    ranks, whole = ", ".join(map(str, adapter["ranks"])), adapter["whole_tensors"]
    layers = f"{adapter['layers']} layer{'s' * (adapter['layers'] != 1)}"
    said = f"LoRA beside {layers}, of rank {ranks}" if ranks else "LoRA"
    return said + (f"; {whole} whole tensor{'s' * (whole != 1)}" if whole else "")


def _parameters_in_words(found: Mapping[str, Any]) -> str:
    if "parameters" not in found:
        return ""
    return f"{found['parameters']:,}, in float32 {in_words(found['float32_bytes'])}"


def _stored(storage: list[dict[str, Any]]) -> str:
    each = (
        f"{shown(row['dtype'])} {in_words(row['bytes'])} ({row['tensors']} "
        f"tensor{'s' * (row['tensors'] != 1)})"
        for row in storage
    )
    return ", ".join(each) or "no weights that can be read"


def _quantized(found: Mapping[str, Any]) -> str:
    if found["quantized"] is None:
        return ""
    said = ", ".join(filter(None, (_fact(*fact) for fact in found["quantized"].items())))
    words = f"{found['quantized']['method']}: {said}"
    if "quantized_matrices" in found:
        count = found["quantized_matrices"]
        words += (
            f"; {found['quantized_parameters']:,} parameters in {count} "
            f"{'matrix' if count == 1 else 'matrices'}, widened one at a time, exactly as stored"
        )
    if rounded := found["activations_rounded_elsewhere"]:
        words += f". Other libraries also round {rounded}; refl does not"
    return words


def _fact(name: str, value: Any) -> str:
    words = {
        "method": "",
        "bits": f"{value} bits",
        "group_size": f"groups of {value}" if value != -1 else "one group",
        "symmetric": "symmetric" if value else "with zero points",
        "desc_act": "groups in any order" if value else "",
        "double_quantization": "its scales quantized too" if value else "",
        "strategy": f"a scale for each {value}",
    }
    return words.get(name, str(value))


def in_words(size: int) -> str:
    """Bytes, in the largest unit that leaves a number of at least 1."""
    for exponent, unit in ((3, "GB"), (2, "MB"), (1, "kB")):
        if size >= 1000**exponent:
            return f"{size / 1000**exponent:.3g} {unit}"
    return f"{size} bytes"
