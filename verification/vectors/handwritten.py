"""The conformance cases written by hand: handwritten.toml, read."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refl.verification.vectors.case import Signature, signature

ARRAYS = {"mask": bool, "counted": float}
"""Options that are arrays, and of what; `index` and `constant` stay lists."""


@dataclass(frozen=True)
class Handwritten:
    """A case without its answer."""

    flags: tuple[str, ...]
    """The mistakes it is written for."""
    note: str
    """What they do here."""
    dtype: str
    inputs: Mapping[str, Any]
    options: Mapping[str, Any]


def read(rule: str) -> Iterator[Handwritten]:
    """The cases of a rule, in their order.
    Raises ValueError for a name that the rule's signature does not have.
    """
    called = signature(rule)
    for case in _FILE.get(rule, ()):
        _check_names(rule, called, case)
        dtype = case.get("dtype", "float64")
        options = _absent(called) | case.get("options", {})
        for name, kind in ARRAYS.items():
            if options.get(name) is not None:
                options[name] = np.array(options[name], dtype=kind)
        options = {name: options[name] for name in called.options if name in options}
        flags = tuple(case.get("flags", "").split())
        inputs = _inputs(case, called, dtype)
        yield Handwritten(flags, case["note"], dtype, inputs, options)


def _check_names(rule: str, called: Signature, case: dict[str, Any]) -> None:
    inputs = {*called.operands, called.propagated, "seeds"}
    for group, known in (("inputs", inputs), ("options", {*called.options})):
        if unknown := sorted(set(case.get(group, ())) - known):
            raise ValueError(f"{rule} has no {unknown[0]} among its {group}: {case['note']}")


def _absent(called: Signature) -> dict[str, Any]:
    """The options that need not be there: no mask, no padding, no constants."""
    required, options = called.required, called.options
    return {k: None for k, default in options.items() if default is None and k not in required}


def _inputs(case: dict[str, Any], called: Signature, dtype: str) -> dict[str, Any]:
    given = case["inputs"]
    if "layers" in case:
        layers = [_layer(each, dtype) for each in case["layers"]]
        seeds = [_array(seed, dtype) for seed in given["seeds"]]
        return {"layers": layers, "x": _array(given["x"], dtype), "seeds": seeds}
    return {
        name: [_array(each, dtype) for each in given[name]]
        if name == "operands"
        else _array(given.get(name), dtype)
        for name in (*called.operands, called.propagated)
    }


def _layer(layer: dict[str, Any], dtype: str) -> dict[str, Any]:
    if layer["operation"] != "linear":
        return layer
    weights = {name: _array(layer.get(name), dtype) for name in ("w", "b")}
    return {"operation": "linear"} | weights | layer | weights


def _array(value: Any, dtype: str) -> Any:
    """bfloat16 is held as float32 (case.py)."""
    held = "float32" if dtype == "bfloat16" else dtype
    return None if value is None else np.array(value, dtype=held)


_FILE: dict[str, list[dict[str, Any]]] = tomllib.loads(
    (Path(__file__).parent / "handwritten.toml").read_text(encoding="utf-8")
)
