"""What a page of a walk must show: the engine's rules on the numbers that stand in the page, and
mistakes written out from their definitions. Nothing here is JavaScript, and no batch axis comes in
or goes out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from walk_pages import Told

from refl.rules import operations

GIVEN = {"movement", "source", "learned"}
"""Operations that compute nothing."""
STABILIZED = {"epsilon", "uniform", "second"}


@dataclass(frozen=True)
class PassedOn:
    """What one stop does with what it received."""

    inputs: list[Any]
    """For each operand R or g, None for what receives nothing."""
    absorbed: dict[str, float]
    relevance: list[Any]
    """The same as relevance."""
    received: Any
    """R or g of the output, as the page has it."""
    received_relevance: Any

    @property
    def passed(self) -> list[float | None]:
        return [None if r is None else float(r.sum()) for r in self.relevance]


@dataclass(frozen=True)
class Site:
    """One stop of a page under one method, with its numbers at hand."""

    told: Told
    stop: dict[str, Any]
    m: int

    @property
    def rule(self) -> dict[str, Any]:
        found: dict[str, Any] = self.stop["rules"][self.m]
        return found

    @property
    def name(self) -> str:
        return f"{self.stop['operation']}.{self.rule['function']}"

    @property
    def in_gradients(self) -> bool:
        form = self.told.data["methods"][self.m]["formulation"]
        return bool(form == "gradient_x_input")

    @property
    def operands(self) -> list[Any]:
        return [self.told.operand(o) for o in self.stop["operands"]]

    @property
    def received(self) -> Any:
        value = self.told.data["values"][self.stop["output"]]
        return self.told.arrays.propagated(value, self.m)

    @property
    def is_value(self) -> list[bool]:
        return [o is not None and "value" in o for o in self.stop["operands"]]

    @property
    def attributes(self) -> dict[str, Any]:
        """As the rules take them."""
        said = dict(self.stop["attributes"])
        said.pop("from", None)
        value = self.told.data["values"][self.stop["output"]]
        for name in ("mask", "cos", "sin"):
            if name in said:
                said[name] = self.told.arrays.array(said[name], value["shape"])[None]
        if "mask" in said:
            said["mask"] = said["mask"] == 1
        if "ids" in said:
            said["ids"] = np.array([said["ids"]])
        if "constant" in said:
            said["constant"] = tuple(said["constant"])
        known = operations.OPERATIONS[self.stop["operation"]].attributes
        return {name: value for name, value in said.items() if name in known}

    @property
    def batched(self) -> list[Any]:
        pairs = zip(self.operands, self.is_value, strict=True)
        return [x[None] if value else x for x, value in pairs]

    @property
    def z(self) -> Any:
        if self.stop["operation"] in GIVEN:
            return self.told.arrays.value(self.told.data["values"][self.stop["output"]])
        forward = operations.OPERATIONS[self.stop["operation"]].forward
        return forward(*self.batched, **self.attributes)[0]

    def applied(self, rule: str = "", form: str = "", **changed: Any) -> PassedOn:
        """By the method's rule, by it with other options, or by another rule of the operation."""
        if self.stop["operation"] == "movement":
            return self._moved()
        if self.stop["operation"] == "source":
            return self._ended()
        own = operations.OPERATIONS[self.stop["operation"]]
        form = form or ("gradient_x_input" if self.in_gradients else "relevance")
        function = own.rules_in(form)[rule or self.rule["rule"]]
        options = {} if rule else self.rule["options"]
        options = {k: v for k, v in (options | changed).items() if k in own.options(function)}
        received = self.received
        out = function(*self.batched, self.z[None], received[None], **self.attributes, **options)
        inputs = [None if r is None else r[0] for r in out.inputs]
        return self.passed(inputs, {k: float(v[0]) for k, v in out.absorbed.items()})

    def passed(self, inputs: list[Any], absorbed: dict[str, float]) -> PassedOn:
        values = [r if value else None for r, value in zip(inputs, self.is_value, strict=True)]
        relevance = values
        received = self.received
        if self.in_gradients:
            received = self.z * received
            pairs = zip(values, self.operands, strict=True)
            relevance = [None if g is None else g * x for g, x in pairs]
        return PassedOn(values, absorbed, relevance, self.received, received)

    def _ended(self) -> PassedOn:
        """The input itself: what arrived stays."""
        ended = self.passed([], {})
        return replace(ended, absorbed={"pixels": float(ended.received_relevance.sum())})

    @property
    def from_where(self) -> Any:
        return self.told.arrays.array(self.stop["attributes"]["from"]).astype(np.int64)

    def _moved(self) -> PassedOn:
        """Every number goes back where it came from; several meet as a sum."""
        places, received = self.from_where, self.received.reshape(-1)
        back = np.zeros(sum(x.size for x in self.operands))
        np.add.at(back, places[places >= 0], received[places >= 0])
        edges = np.cumsum([x.size for x in self.operands])[:-1]
        parts = np.split(back, edges)
        inputs = [r.reshape(x.shape) for r, x in zip(parts, self.operands, strict=True)]
        return self.passed(inputs, {})


# -- mistakes, from their definitions --------------------------------------------------------------


def eps_without_sign(site: Site) -> list[Any] | None:
    """z + eps in place of z + eps s(z): the denominators of every rule that has them."""
    if site.in_gradients or site.rule["function"] not in STABILIZED:
        return None
    if site.rule["options"].get("stabilizer") != "sign":
        return None
    return site.applied(stabilizer="plain").inputs


def no_halving(site: Site) -> list[Any] | None:
    """Every operand of a product gets what the uniform rule gives to all of them together."""
    if site.rule["function"] not in ("uniform", "uniform_gxi"):
        return None
    if site.stop["operation"] == "multiply":
        n = site.stop["attributes"]["constant"].count(False)
    else:
        n = 2 if site.stop["operation"] == "matmul" else 1  # rotary has a uniform rule of its own
    return [None if r is None else n * r for r in site.applied().inputs]


def shifted_logits(site: Site) -> list[Any] | None:
    """x - max(x) of each row in place of x, in R = x (R - p sum R)."""
    if site.name != "softmax.taylor":
        return None
    (x,), p, r = site.operands, site.z, site.received
    visible = p > 0
    if "mask" in site.attributes:
        visible = site.attributes["mask"][0]
    top = np.where(visible, x, -np.inf).max(axis=-1, keepdims=True)
    r = np.where(visible, r, 0.0)
    return [np.where(visible, (x - top) * (r - p * r.sum(axis=-1, keepdims=True)), 0.0)]


def layer_norm_constant(site: Site) -> list[Any] | None:
    """w s / std without its mean taken off."""
    if site.name not in ("layer_norm.epsilon", "layer_norm.epsilon_gxi"):
        return None
    x, w, _ = site.operands
    variance = x.var(axis=-1, keepdims=True) + site.stop["attributes"]["norm_eps"]
    if site.in_gradients:
        return [w * site.received / np.sqrt(variance), None, None]
    z, eps = site.z, site.rule["options"]["eps"]
    s = site.received / (z + np.where(z >= 0, eps, -eps))
    return [x * w * s / np.sqrt(variance), None, None]


def norm_differentiated(site: Site) -> list[Any] | None:
    """J^T g of the whole norm, its scale differentiated too, by finite differences in one
    direction at a time: the scale is a function of x.
    """
    named = ("identity", "identity_gxi", "epsilon", "epsilon_gxi")
    if site.stop["operation"] not in ("rms_norm", "layer_norm"):
        return None
    if site.rule["function"] not in named:
        return None
    x, w, *_ = site.operands
    attributes = site.stop["attributes"]
    w = w + attributes.get("offset", 0.0)
    g = site.received
    if not site.in_gradients:
        z = site.z
        eps = site.rule["options"].get("eps", 0.0)
        d = z + np.where(z >= 0, eps, -eps)
        g = np.divide(g, d, out=np.zeros_like(g), where=d != 0)
    mean = x.mean(-1, keepdims=True) if site.stop["operation"] == "layer_norm" else 0.0
    size = ((x - mean) ** 2).mean(-1, keepdims=True) + attributes["norm_eps"]
    unit = (x - mean) / np.sqrt(size)
    c = w * g
    if site.stop["operation"] == "layer_norm":
        c = c - c.mean(-1, keepdims=True)
    g_x = (c - unit * (w * g * unit).mean(-1, keepdims=True)) / np.sqrt(size)
    return [g_x if site.in_gradients else g_x * x, *[None] * (len(site.operands) - 1)]


MISTAKES = {
    f.__name__: f
    for f in (
        eps_without_sign,
        no_halving,
        shifted_logits,
        layer_norm_constant,
        norm_differentiated,
    )
}


def apart(wrong: list[Any], expected: list[Any]) -> float:
    """How far the wrong elements are from the right ones at most, of the largest of these."""
    most = size = 0.0
    for a, b in zip(wrong, expected, strict=True):
        if b is not None and b.size:
            most = max(most, float(np.abs(a - b).max()))
            size = max(size, float(np.abs(b).max()))
    return most / size if size else (1.0 if most else 0.0)


def red(told: Told, mistake: str, m: int) -> tuple[set[int], set[int]]:
    """Stops where a mistake must be found out, and those where rounding alone may say either."""
    wrong, either = set(), set()
    for stop in told.stops:
        if stop["rules"][m] is None:
            continue
        site = Site(told, stop, m)
        inputs = MISTAKES[mistake](site)
        if inputs is None:
            continue
        away = apart(inputs, site.applied().inputs)
        if away > 2.0**-36:
            wrong.add(stop["index"])
        elif away > 2.0**-51:
            either.add(stop["index"])
    return wrong, either
