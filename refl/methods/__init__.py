"""Every method of attribution there is, by name.

Tables of rules are in refl/rules/published.py: a table and a sweep are all such a method is. One
that is none (a gradient along a path, attention multiplied through the layers, a part of the input
left out) is a file in this folder, its equation and its source on top, and a line of FURTHER.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from refl.arguments import expected, received
from refl.conditions import Conditions
from refl.errors import ReflError, argument, nearest, shown
from refl.io import composites
from refl.methods.alti_logit import AltiLogit
from refl.methods.atman import AtMan
from refl.methods.base import Attribution, Method, Table
from refl.methods.chefer import Chefer
from refl.methods.decompx import DecompX
from refl.methods.grad_cam import GradCam
from refl.methods.gradient_rollout import GradientRollout
from refl.methods.integrated_gradients import IntegratedGradients
from refl.methods.metagame import Metagame
from refl.methods.occlusion import LeaveOneOut, Occlusion
from refl.methods.pa_lrp import PaLrp
from refl.methods.random import Random
from refl.methods.rollout import AttentionRollout
from refl.methods.smooth_grad import SmoothGrad
from refl.methods.voita import Voita
from refl.rules import published
from refl.rules.composites import Composite

__all__ = ["METHODS", "Attribution", "Method", "Table", "chosen", "method", "under"]

FURTHER: tuple[Attribution, ...] = (
    Random(),
    IntegratedGradients(),
    SmoothGrad(),
    Occlusion(),
    LeaveOneOut(),
    AtMan(),
    GradCam(),
    AttentionRollout(),
    GradientRollout(),
    Chefer(),
    Voita(),
    AltiLogit(),
    DecompX(),
    PaLrp(),
    Metagame(),
)
"""Those that are no tables of rules, with their options at the defaults."""

METHODS: dict[str, Composite | Attribution] = dict(published.METHODS) | {m.name: m for m in FURTHER}


def method(name: str) -> Composite | Attribution:
    """A method by name. Raises ReflError for a name that is none."""
    if isinstance(name, str) and name in METHODS:
        return METHODS[name]
    said = shown(repr(name)) if isinstance(name, str) else f"of type {type(name).__name__}"
    raise ReflError(
        f"unknown method {said}: expected one of {', '.join(METHODS)}, or a .toml file with a "
        "composite"
    )


def chosen(
    which: str | Path | Composite | Method,
    eps: float | None = None,
    stabilizer: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Method:
    """A method by its name, by the path of a .toml composite, or as it is; with these options.
    Raises ReflError for what is none, and for an option that it does not take.
    """
    asked = _mapped(options)
    conditions = which.conditions if isinstance(which, Table) else None
    if isinstance(which, str) and not which.endswith(".toml"):
        which = method(which)
    if isinstance(which, Table):
        which = which.composite
    if not isinstance(which, (str, Path, Composite)):
        if not _is_method(which):
            raise ReflError(
                f"{argument('method')} is {received(which)}: expected the name of a method, a "
                ".toml file, a Composite, or a method of refl.methods (an object, not its class)"
            )
        _refuse_rule_options(which, eps, stabilizer)
        return _with_options(which, asked)
    _refuse_twice(asked, eps, stabilizer)
    table = composites.chosen(which, eps, stabilizer)
    return under(Table(table.with_options(**asked) if asked else table), conditions)


def _is_method(which: Any) -> bool:
    """Whether it has what `Method` asks for."""
    kind = type(which)
    functions = ("explain", "facts", "refuse")
    return isinstance(getattr(which, "name", None), str) and all(
        callable(getattr(kind, name, None)) for name in functions
    )


def _mapped(options: Any) -> dict[str, Any]:
    """Options by their names. Raises ReflError for what is no mapping of names."""
    if options is None:
        return {}
    if not isinstance(options, Mapping) or not all(isinstance(name, str) for name in options):
        raise expected("options", "a mapping of an option's name to its value", options)
    return dict(options)


def _refuse_twice(options: Mapping[str, Any], eps: Any, stabilizer: Any) -> None:
    for name, value in (("eps", eps), ("stabilizer", stabilizer)):
        if value is not None and name in options:
            raise ReflError(
                f"{argument(name)} is given twice: on its own, and among {argument('options')}"
            )


def under(
    which: Method, conditions: Mapping[str, Any] | Sequence[str] | Conditions | None
) -> Method:
    """The method under these conditions (refl.conditions): a mapping of sites, neurons and heads to
    what is chosen there, a list of their names, or Conditions. Raises ReflError for a method that
    is no table of rules.
    """
    if conditions is None:
        return which
    if not isinstance(conditions, Conditions):
        conditions = Conditions(conditions)  # type: ignore[arg-type]  # a list becomes a mapping
    if not isinstance(which, Table):
        raise ReflError(
            f"method {which.name} is no table of rules and has no sweep: leave "
            f"{argument('conditions')} out"
        )
    if which.conditions and conditions:
        raise ReflError(
            f"{argument('conditions')} are given twice: on their own, and with the method "
            f"{which.name}, at {which.conditions.said}"
        )
    return replace(which, conditions=conditions)


def _refuse_rule_options(which: Method, eps: Any, stabilizer: Any) -> None:
    for name, value in (("eps", eps), ("stabilizer", stabilizer)):
        if value is not None:
            raise ReflError(
                f"method {which.name} has no rules with a stabilizer: leave {argument(name)} out"
            )


def _with_options(which: Method, options: Mapping[str, Any]) -> Method:
    if not options:
        return which
    options = dict(options)
    if isinstance(which, Metagame) and not {"inner", "inner_options"}.isdisjoint(options):
        first = options.pop("inner", which.inner)
        options["inner"] = chosen(first, options=options.pop("inner_options", None))
    known = [one.name for one in fields(which)] if isinstance(which, Attribution) else []
    for name in options:
        if name not in known:
            near = ", ".join(nearest(name, known, 3)) or "none"
            raise ReflError(
                f"method {which.name} has no option {shown(name)!r}: it has "
                f"{', '.join(known) or 'none'} (nearest: {near})"
            )
    assert isinstance(which, Attribution)
    return replace(which, **options)
