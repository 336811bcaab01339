"""A conformance case: the numbers a rule is called with, what it must answer, and how far an answer
may be off.

`SIGNATURES` says how each rule is called. A case is data: it is read from JSON and written to it,
and every number returns as it was, in its own format. Arrays are {"shape", "dtype", "data"} with
nested numbers; infinities and NaN, which JSON has no numbers for, are the strings "inf", "-inf" and
"nan". A number is written with the fewest decimals that only it has in its format. bfloat16, which
NumPy does not know, is held as float32, of which it is the upper half, and written as such under
its own name.
"""

from __future__ import annotations

import ast
import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import numpy as np

Formulation: TypeAlias = Literal["relevance", "gradient_x_input"]

UNITS = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Format -> its unit roundoff u: what rounding one number to nearest can change, relative to it."""

UNDERFLOW = {
    "float64": 2.0**-1020,
    "float32": 2.0**-124,
    "float16": 2.0**-22,
    "bfloat16": 2.0**-124,
}
"""What is lost when a number leaves the format at its small end, a few times over; where half
precision is kept between the steps of a rule it is lost there, too."""


def held(a: np.ndarray[Any, Any], dtype: str) -> np.ndarray[Any, Any]:
    """To the nearest number of the format; bfloat16 is held in float32, of which it keeps the upper
    half.
    """
    if dtype != "bfloat16":
        return a.astype(dtype)
    bits = a.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


# -- how each rule is called -----------------------------------------------------------------------


@dataclass(frozen=True)
class Signature:
    """f(*operands, r, **options), g in place of r where gradients are propagated."""

    operands: tuple[str, ...]
    """Positional, in this order, before r. `operands` is a list of arrays."""
    returns: tuple[str, ...]
    """The operands whose relevance (or gradient) is returned, in order."""
    formulation: Formulation
    options: Mapping[str, Any]
    """Keyword options and their defaults; None for one in `required`, and for one that is not
    needed (no mask, no constants).
    """
    required: tuple[str, ...]
    equation: str
    source: str

    @property
    def propagated(self) -> str:
        return "r" if self.formulation == "relevance" else "g"


def _signature(call: str, returns: str, equation: str, source: str) -> Signature:
    """`call` is "operand, operand, ..., r, *, option, option=default", with r or g last."""
    parsed = ast.parse(f"def f({call}): ...").body[0]
    assert isinstance(parsed, ast.FunctionDef)
    *operands, propagated = (a.arg for a in parsed.args.args)
    written = zip(parsed.args.kwonlyargs, parsed.args.kw_defaults, strict=True)
    defaults = {option.arg: default for option, default in written}
    required = tuple(name for name, default in defaults.items() if default is None)
    options = {name: None if d is None else ast.literal_eval(d) for name, d in defaults.items()}
    formulation: Formulation = "relevance" if propagated == "r" else "gradient_x_input"
    return Signature(
        tuple(operands),
        tuple(returns.split(", ")),
        formulation,
        MappingProxyType(options),
        required,
        equation,
        source,
    )


SIGNATURES: Mapping[str, Signature] = MappingProxyType(
    {
        rule: _signature(**said)
        for rule, said in tomllib.loads(
            (Path(__file__).parent / "signatures.toml").read_text(encoding="utf-8")
        ).items()
    }
)
"""Rule -> how it is called (signatures.toml). Small networks are called otherwise: see NETWORK."""

NETWORK = Signature(
    ("layers", "x"),
    ("z", "x"),
    "relevance",
    MappingProxyType({}),
    (),
    "the rules of its layers, last to first",
    "Achtibat et al. 2024 (AttnLRP)",
)
"""Rule `network`: inputs layers, x, seeds (a list); returned are z and the relevance at x for each
seed, x.0, x.1, ...
"""


def signature(rule: str) -> Signature:
    return NETWORK if rule == "network" else SIGNATURES[rule]


# -- a case ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Case:
    id: str
    rule: str
    formulation: Formulation
    dtype: str
    """float64, float32, float16 or bfloat16: the format of the inputs."""
    flags: tuple[str, ...]
    """Ids of the mistakes it is written for."""
    note: str
    """What it is there to show, and what the mistake does here."""
    inputs: Mapping[str, Any]
    """Operand, and r or g -> array, list of arrays or None. bfloat16 is held as float32."""
    options: Mapping[str, Any]
    expected: Mapping[str, Any]
    """What is returned -> float64 array, or None where nothing is passed."""
    absorbed: Mapping[str, Any] = field(default_factory=dict)
    """Cause -> what it absorbs of each example, (B,)."""
    condition: Mapping[str, Any] = field(default_factory=dict)
    """What is returned -> how much one relative rounding of every factor can move each entry."""
    absorbed_condition: Mapping[str, Any] = field(default_factory=dict)
    units: float = 16

    def __str__(self) -> str:
        return self.id

    @property
    def u(self) -> float:
        """The unit roundoff of the case's format."""
        return UNITS[self.dtype]

    def allowed(self, condition: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """How far an answer may be from the expected one."""
        return np.asarray(self.units * self.u * condition + UNDERFLOW[self.dtype])

    @property
    def signature(self) -> Signature:
        return signature(self.rule)

    @property
    def batch(self) -> int:
        """How many examples it holds: an operand may be broadcast over them, what is propagated is
        not.
        """
        return len(self.inputs["x" if self.rule == "network" else self.seed])

    @property
    def arguments(self) -> list[Any]:
        """The positional arguments, r or g last."""
        return [self.inputs[name] for name in self.signature.operands] + [self.inputs[self.seed]]

    @property
    def seed(self) -> str:
        return "seeds" if self.rule == "network" else self.signature.propagated

    @property
    def returns(self) -> tuple[str, ...]:
        """The name of each returned array; the members of a list are name.0, name.1, ..."""
        if self.rule == "network":
            return ("z", *(f"x.{k}" for k in range(len(self.inputs["seeds"]))))
        return tuple(each for name in self.signature.returns for each in self._members(name))

    def _members(self, name: str) -> list[str]:
        held = self.inputs[name]
        return [f"{name}.{k}" for k in range(len(held))] if isinstance(held, list) else [name]

    def at_default(self, option: str) -> bool:
        """Whether leaving the option out is the same call."""
        value = self.options.get(option)
        if option in self.signature.required:
            return False
        if option == "constant":
            return value is None or not any(value)
        if option in ("mask", "counted"):
            return value is None or bool(np.all(value))
        return option not in self.options or bool(value == self.signature.options[option])

    @property
    def required(self) -> bool:
        """Whether an implementation that has the rule, in float64 and float32 and without optional
        arguments, must answer it: the format is one of these two, every option that has a default
        is at it, and something is passed on. What has no default (eps, kind, ...) is part of
        the rule, and so is every shape.
        """
        return (
            self.dtype in ("float64", "float32")
            and all(self.at_default(o) or o in self.signature.required for o in self.options)
            and any(each is not None for each in self.expected.values())
        )

    def identified(self) -> Case:
        """The same case under its own id: the rule and the first eight digits of a digest of all
        the rest. `required` follows from the rest.
        """
        derived = ("id", "required")
        content = {key: value for key, value in self.to_json().items() if key not in derived}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return replace(self, id=f"{self.rule}-{hashlib.sha256(text.encode()).hexdigest()[:8]}")

    def to_json(self) -> dict[str, Any]:
        """All but the rule and its formulation, which the header of its file says."""
        return {
            "id": self.id,
            "dtype": self.dtype,
            "flags": list(self.flags),
            "note": self.note,
            "required": self.required,
            "batch": self.batch,
            "inputs": encode(self.inputs, self.dtype),
            "options": encode(self.options, self.dtype),
            "expected": {"relevance": encode(self.expected), "absorbed": encode(self.absorbed)},
            "tolerance": {
                "units": self.units,
                "relevance": encode(self.condition),
                "absorbed": encode(self.absorbed_condition),
            },
        }

    @staticmethod
    def from_json(data: Mapping[str, Any], rule: str) -> Case:
        expected, tolerance = data["expected"], data["tolerance"]
        return Case(
            data["id"],
            rule,
            signature(rule).formulation,
            data["dtype"],
            tuple(data["flags"]),
            data["note"],
            decode(data["inputs"]),
            decode(data["options"]),
            decode(expected["relevance"]),
            decode(expected["absorbed"]),
            decode(tolerance["relevance"]),
            decode(tolerance["absorbed"]),
            tolerance["units"],
        )


# -- JSON ------------------------------------------------------------------------------------------


def encode(value: Any, dtype: str = "") -> Any:
    """Arrays as {"shape", "dtype", "data"}, within lists and dicts too; a bare number that is not
    finite as a string.
    """
    if isinstance(value, np.ndarray):
        name = "bfloat16" if dtype == "bfloat16" and value.dtype == np.float32 else value.dtype.name
        return {"shape": list(value.shape), "dtype": name, "data": _as_json(value)}
    if isinstance(value, Mapping):
        return {key: encode(each, dtype) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(each, dtype) for each in value]
    if isinstance(value, float):
        return _number(value)
    return value.item() if isinstance(value, np.generic) else value


def decode(value: Any) -> Any:
    if isinstance(value, Mapping) and value.keys() == {"shape", "dtype", "data"}:
        return _read(value["data"], value["dtype"]).reshape(value["shape"])
    if isinstance(value, Mapping):
        return {key: decode(each) for key, each in value.items()}
    if isinstance(value, list):
        return [decode(each) for each in value]
    return float(value) if value in ("inf", "-inf", "nan") else value


def _as_json(a: np.ndarray[Any, Any]) -> Any:
    if a.ndim:
        return [_as_json(each) for each in a]
    return a.item() if a.dtype.kind in "biu" else _number(float(str(a[()])))


def _number(x: float) -> float | str:
    return float(x) if np.isfinite(x) else str(float(x))


def _read(data: Any, dtype: str) -> np.ndarray[Any, Any]:
    """NumPy reads "inf", "-inf" and "nan" as numbers; an array of such strings and numbers has to
    be read one by one.
    """
    held = np.dtype("float32" if dtype == "bfloat16" else dtype)
    return np.array(_parsed(data) if held.kind == "f" else data, dtype=held)


def _parsed(data: Any) -> Any:
    return [_parsed(each) for each in data] if isinstance(data, list) else float(data)
