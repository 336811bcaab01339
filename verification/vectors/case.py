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

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import numpy as np

Formulation: TypeAlias = Literal["relevance", "gradient_x_input"]

UNITS = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Format -> its unit roundoff u: what rounding one number to nearest can change, relative to it."""


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


def _rule(
    call: str, returns: str, equation: str, source: str, required: str = "", **options: Any
) -> tuple[str, Signature]:
    """`call` is "name operand operand ... r", with r or g last."""
    name, *operands, propagated = call.split()
    needed = tuple(required.split())
    known = dict.fromkeys(needed) | options
    formulation: Formulation = "relevance" if propagated == "r" else "gradient_x_input"
    return name, Signature(
        tuple(operands),
        tuple(returns.split()),
        formulation,
        MappingProxyType(known),
        needed,
        equation,
        source,
    )


_A = "Achtibat et al. 2024 (AttnLRP)"
_B = "Bach et al. 2015"
_C = "Ali et al. 2022"
_M = "Montavon et al. 2017"
_SIGN: dict[str, Any] = {"stabilizer": "sign"}
_TWICE: dict[str, Any] = {"stabilizer": "sign", "denominator": "2z+eps"}
_PROBABILITIES: dict[str, Any] = {"mask": None, "axis": -1}
_SEEN: dict[str, Any] = {"causal": False, "mask": None}

SIGNATURES: Mapping[str, Signature] = MappingProxyType(
    dict(
        (
            _rule(
                "linear_epsilon x w b r",
                "x",
                "R_i = x_i sum_j W_ji R_j / (z_j + eps s(z_j))",
                f"{_A} eq. 8",
                "eps",
                **_SIGN,
            ),
            _rule(
                "linear_gamma x w b r",
                "x",
                "R_i = sum_j (c_ij + gamma c_ij^+) R_j / sum_k (c_kj + gamma c_kj^+) where "
                "z_j > 0, ^- in place of ^+ elsewhere; "
                "c_ij = W_ji x_i",
                f"{_A} eq. 24",
                "gamma",
            ),
            _rule(
                "linear_z_plus x w b r",
                "x",
                "R_i = sum_j c_ij^+ R_j / sum_k c_kj^+",
                f"{_A} eq. 25",
            ),
            _rule(
                "linear_alpha_beta x w b r",
                "x",
                "R_i = sum_j (alpha c_ij^+ / sum_k c_kj^+ - beta c_ij^- / sum_k c_kj^-) R_j",
                f"{_B} eq. 60",
                "alpha beta",
            ),
            _rule("linear_flat x w b r", "x", "R_i = sum_j R_j / I", "Lapuschkin et al. 2019"),
            _rule(
                "linear_w_square x w b r",
                "x",
                "R_i = sum_j W_ji^2 R_j / sum_k W_jk^2",
                f"{_M} eq. 11",
            ),
            _rule(
                "linear_z_box x w b r",
                "x",
                "R_i = sum_j c_ij R_j / sum_k c_kj, c_ij = W_ji x_i - W_ji^+ low - W_ji^- high",
                f"{_M}, z^B rule",
                "low high",
            ),
            _rule(
                "convolution_epsilon x w b r",
                "x",
                "patches (stride = kernel), then linear_epsilon",
                f"{_A} eq. 8",
                "eps",
                **_SIGN,
            ),
            _rule(
                "convolution_z_plus x w b r",
                "x",
                "patches (stride = kernel), then linear_z_plus",
                f"{_A} eq. 25",
            ),
            _rule(
                "add_epsilon a b r",
                "a b",
                "R_a = a R / (z + eps s(z)), R_b = b R / (z + eps s(z))",
                f"{_A} eq. 8",
                "eps",
                **_SIGN,
            ),
            _rule(
                "sum_epsilon operands r",
                "operands",
                "R_n = a_n R / (z + eps s(z)), z = sum_n a_n",
                f"{_A} eq. 8",
                "eps",
                **_SIGN,
            ),
            _rule(
                "multiply_uniform operands r",
                "operands",
                "R_n = R / N over the N operands that are not constant",
                f"{_A} prop. 3.2",
                constant=None,
            ),
            _rule("multiply_second a b r", "b", "R_b = R", f"{_C}"),
            _rule(
                "matmul_uniform a v r",
                "a v",
                "R_a[j,i] = sum_p a_ji v_ip R_jp / (2 O_jp + eps s(O_jp)), R_v[i,p] = "
                "sum_j of the same terms",
                f"{_A} prop. 3.3, eq. 15",
                "eps",
                **_TWICE,
            ),
            _rule(
                "matmul_second a v r",
                "v",
                "R_v[i,p] = sum_j a_ji v_ip R_jp / (O_jp + eps s(O_jp))",
                _C,
                "eps",
                **_SIGN,
            ),
            _rule(
                "softmax_taylor x r",
                "x",
                "R_i = x_i (R_i - p_i sum_j R_j)",
                f"{_A} prop. 3.1",
                **_PROBABILITIES,
            ),
            _rule(
                "softmax_spread x r",
                "x",
                "softmax_taylor plus sum_j R_j (1 - x_j + sum_k p_k x_k) / N for each of "
                "the N visible entries",
                "Voita et al. 2021",
                **_PROBABILITIES,
            ),
            _rule(
                "softmax_z_plus x r",
                "x",
                "R_i = sum_j c_ij^+ R_j / sum_k c_kj^+, c_ij = x_i (delta_ij - p_i)",
                f"{_A} eq. 25",
                **_PROBABILITIES,
            ),
            _rule(
                "softmax_identity x r",
                "x",
                "R_i = R_i, 0 where masked",
                "Ding et al. 2017",
                **_PROBABILITIES,
            ),
            _rule("rms_norm_identity x w r", "x", "R_x = R", f"{_A} prop. 3.4", "norm_eps"),
            _rule(
                "layer_norm_epsilon x w b r",
                "x",
                "R_x = x (c - mean(c)), c = w s / std, s = R / (z + eps s(z)), std constant",
                f"{_A} section 3.3.3",
                "norm_eps eps",
                **_SIGN,
            ),
            _rule("layer_norm_identity x w b r", "x", "R_x = R", f"{_A} prop. 3.4", "norm_eps"),
            _rule("activation_identity x r", "x", "R_x = R", f"{_A} eq. 9", "kind"),
            _rule(
                "rotary_epsilon x cos sin r",
                "x",
                "z = x cos + [-x2, x1] sin = M x, then R_i = x_i sum_j M_ji R_j / (z_j + "
                "eps s(z_j))",
                f"{_A} eq. 8",
                "eps",
                **_SIGN,
            ),
            _rule(
                "pooling_epsilon x r",
                "x",
                "R_t = m_t x_t R / (Z + eps s(Z)), Z = sum_t m_t x_t",
                f"{_A} eq. 8",
                "eps",
                counted=None,
                **_SIGN,
            ),
            _rule("scale_pass_through x r", "x", "R_x = R", f"{_A} eq. 8", "factor"),
            _rule(
                "repeat_heads_pass_through x r",
                "x",
                "R_x = sum of R over the copies of each head, which stand side by side",
                f"{_A} eq. 8",
                "times",
            ),
            _rule(
                "gather_pass_through x r",
                "x",
                "R_x[m] = sum of R[n] over the places n that row m went to",
                f"{_A} eq. 8",
                "index",
            ),
            _rule(
                "top_k_pass_through x r",
                "x",
                "R_x[e] = R[n] for the entry e that is the n-th largest, 0 for the others",
                f"{_A} eq. 8",
                "k",
            ),
            _rule("renormalize_identity x r", "x", "R_x = R", f"{_A} prop. 3.4"),
            _rule(
                "renormalize_epsilon x r",
                "x",
                "R_i = z_i (s_i - sum_j z_j s_j), s = R / (z + eps s(z)), z = x / sum(x)",
                f"{_A} eq. 8",
                "eps",
                **_SIGN,
            ),
            _rule(
                "fan_out_epsilon x w1 w2 r",
                "x",
                "z = W1 x + W2 x: add_epsilon, then linear_epsilon on both sides; what "
                "meets at x is summed",
                f"{_A} eq. 8",
                "eps",
                **_SIGN,
            ),
            _rule(
                "attention_attnlrp q k v r",
                "q k v",
                "softmax((scale q) k^T) v: matmul_uniform, softmax_taylor, matmul_uniform, "
                "scale_pass_through; the copies of k and v summed back",
                f"{_A} section 3.3",
                "scale eps",
                causal=False,
                mask=None,
                **_TWICE,
            ),
            _rule(
                "attention_cp q k v r",
                "q k v",
                "softmax((scale q) k^T) v, probabilities constant: matmul_second, nothing "
                "to q and k",
                _C,
                "scale eps",
                causal=False,
                mask=None,
                **_SIGN,
            ),
            _rule("linear_gradient x w b g", "x", "g_i = sum_j W_ji g_j", f"{_A} eq. 8, eps -> 0"),
            _rule(
                "convolution_gradient x w b g",
                "x",
                "patches (stride = kernel), then linear_gradient",
                f"{_A} eq. 8, eps -> 0",
            ),
            _rule("add_gradient a b g", "a b", "g_a = g_b = g", f"{_A} eq. 8, eps -> 0"),
            _rule(
                "multiply_uniform_gxi operands g",
                "operands",
                "g_n = g prod_(m != n) a_m / N",
                f"{_A} prop. 3.2",
                constant=None,
            ),
            _rule("multiply_second_gxi a b g", "b", "g_b = a g", _C),
            _rule(
                "matmul_uniform_gxi a v g",
                "a v",
                "g_a = g v^T / 2, g_v = a^T g / 2",
                f"{_A} prop. 3.3, eps -> 0",
            ),
            _rule("matmul_second_gxi a v g", "v", "g_v = a^T g", _C),
            _rule(
                "softmax_gradient x g",
                "x",
                "g_i = p_i (g_i - sum_j p_j g_j)",
                f"{_A} prop. 3.1",
                **_PROBABILITIES,
            ),
            _rule(
                "rms_norm_identity_gxi x w g", "x", "g_x = w g / rms", f"{_A} prop. 3.4", "norm_eps"
            ),
            _rule(
                "layer_norm_epsilon_gxi x w b g",
                "x",
                "g_x = c - mean(c), c = w g / std",
                f"{_A} section 3.3.3, eps -> 0",
                "norm_eps",
            ),
            _rule(
                "activation_identity_gxi x g",
                "x",
                "g_x = g f(x) / x, at x = 0 its limit g f'(0)",
                f"{_A} eq. 9",
                "kind",
            ),
            _rule(
                "rotary_gradient x cos sin g",
                "x",
                "g_x = M^T g = g cos + [h2, -h1], h = g sin",
                f"{_A} eq. 8, eps -> 0",
            ),
            _rule(
                "pooling_gradient x g",
                "x",
                "g_t = m_t g / sum_t m_t",
                f"{_A} eq. 8, eps -> 0",
                counted=None,
            ),
            _rule("scale_gradient x g", "x", "g_x = factor g", f"{_A} eq. 8, eps -> 0", "factor"),
            _rule("renormalize_identity_gxi x g", "x", "g_x = g / sum(x)", f"{_A} prop. 3.4"),
            _rule(
                "attention_attnlrp_gxi q k v g",
                "q k v",
                "softmax((scale q) k^T) v: matmul_uniform_gxi, softmax_gradient, "
                "matmul_uniform_gxi, scale_gradient",
                f"{_A} section 3.3, eps -> 0",
                "scale",
                **_SEEN,
            ),
            _rule(
                "attention_cp_gxi q k v g",
                "q k v",
                "g_v = p^T g, summed over the copies; nothing to q and k",
                _C,
                "scale",
                **_SEEN,
            ),
            _rule(
                "multiply_gradient operands g",
                "operands",
                "g_n = g prod_(m != n) a_m",
                "the true derivative",
                constant=None,
            ),
            _rule(
                "matmul_gradient a v g", "a v", "g_a = g v^T, g_v = a^T g", "the true derivative"
            ),
            _rule(
                "rms_norm_gradient x w g",
                "x",
                "g_x = (w g - x mean(w g x) / rms^2) / rms",
                "the true derivative",
                "norm_eps",
            ),
            _rule(
                "layer_norm_gradient x w b g",
                "x",
                "g_x = layer_norm_epsilon_gxi - h mean(w g h) / std, h = (x - mean(x)) / std",
                "the true derivative",
                "norm_eps",
            ),
            _rule(
                "activation_gradient x g",
                "x",
                "g_x = g f'(x); relu's is 0 at 0",
                "the true derivative",
                "kind",
            ),
            _rule(
                "renormalize_gradient x g",
                "x",
                "g_i = (g_i - sum_j z_j g_j) / sum(x), z = x / sum(x)",
                "the true derivative",
            ),
        )
    )
)
"""Rule -> how it is called. Small networks are called otherwise: see NETWORK."""

NETWORK = Signature(
    ("layers", "x"),
    ("z", "x"),
    "relevance",
    MappingProxyType({}),
    (),
    "the rules of its layers, last to first",
    _A,
)
"""Rule `network`: inputs layers, x, seeds (a list); returned are z and the relevance at x for each
seed, x.0, x.1, ...
"""


# -- a case ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Case:
    id: str
    rule: str
    formulation: Formulation
    dtype: str
    """float64, float32, float16 or bfloat16: the format of the inputs."""
    flags: tuple[str, ...]
    """Ids of the mistakes it is aimed at."""
    note: str
    """What it is aimed at and what the mistake does here."""
    inputs: Mapping[str, Any]
    """Operand, and r or g -> array, list of arrays or None. bfloat16 is held as float32."""
    options: Mapping[str, Any]
    expected: Mapping[str, Any]
    """What is returned -> float64 array, or None where nothing is passed."""
    absorbed: Mapping[str, Any] = field(default_factory=dict)
    """Entry -> (B,)."""
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

    @property
    def signature(self) -> Signature:
        return NETWORK if self.rule == "network" else SIGNATURES[self.rule]

    @property
    def batch(self) -> int:
        """How many examples it holds."""
        first = self.inputs["x"] if self.rule == "network" else self.arguments[0]
        return len(first[0] if isinstance(first, list) else first)

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

    def identified(self) -> Case:
        """The same case under its own id: the rule and the first eight digits of a digest of all
        the rest.
        """
        content = {key: value for key, value in self.to_json().items() if key != "id"}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return replace(self, id=f"{self.rule}-{hashlib.sha256(text.encode()).hexdigest()[:8]}")

    def to_json(self) -> dict[str, Any]:
        """All but the rule and what it carries, which the header of its file says."""
        return {
            "id": self.id,
            "dtype": self.dtype,
            "flags": list(self.flags),
            "note": self.note,
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
            (NETWORK if rule == "network" else SIGNATURES[rule]).formulation,
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
        return {"shape": list(value.shape), "dtype": name, "data": _written(value)}
    if isinstance(value, Mapping):
        return {key: encode(each, dtype) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(each, dtype) for each in value]
    return (
        _number(value)
        if isinstance(value, float)
        else value.item()
        if isinstance(value, np.generic)
        else value
    )


def decode(value: Any) -> Any:
    if isinstance(value, Mapping) and value.keys() == {"shape", "dtype", "data"}:
        return _read(value["data"], value["dtype"]).reshape(value["shape"])
    if isinstance(value, Mapping):
        return {key: decode(each) for key, each in value.items()}
    if isinstance(value, list):
        return [decode(each) for each in value]
    return float(value) if value in ("inf", "-inf", "nan") else value


def _written(a: np.ndarray[Any, Any]) -> Any:
    if a.ndim:
        return [_written(each) for each in a]
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
