"""The rounding scale of a rule that is given as its function and called as the rule is."""

from __future__ import annotations

from typing import Any

from refl.rules.operations import FORMULATIONS, OPERATIONS
from refl.rules.rounding import rounding_scale


def scale_of(rule: Any, *arrays: Any, **how: Any) -> Any:
    *operands, z, r = arrays
    for name, operation in OPERATIONS.items():
        for formulation in FORMULATIONS:
            for called, function in operation.rules_in(formulation).items():
                if function is rule:
                    how = operation.options(rule) | {"mask": None} | how
                    return rounding_scale(name, called, formulation, operands, z, r, how)
    raise AssertionError(f"{rule} stands in no table")
