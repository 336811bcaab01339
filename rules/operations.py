"""The table of operations: what a net is made of, and what relevance may do at each.

An operation is a file of this folder with `forward`, `RULES` (a name -> the rule in its two forms)
and, where it absorbs something of its own kind, `CAUSES`. A new operation is its file and its name
here, imported and listed; a new rule is its function and a line in its file's RULES.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType

from refl.arrays import Array
from refl.rules import (
    activation,
    add,
    causal_convolution,
    combine,
    embedding,
    gather,
    layer_norm,
    learned,
    linear,
    matmul,
    movement,
    multiply,
    pooling,
    renormalize,
    rms_norm,
    rotary,
    scale,
    scan,
    softmax,
    source,
    top_k,
)
from refl.rules.conservation import Forms, RuleOutput

FORMULATIONS = ("relevance", "gradient_x_input")
"""What a sweep hands down: relevance R, or the g of R = x g."""


@dataclass(frozen=True)
class Operation:
    """An operation by name, with its forward and its rules."""

    name: str
    forward: Callable[..., Array]
    rules: Mapping[str, Forms]
    causes: Mapping[str, str]
    """What absorbs relevance here and nowhere else, in words."""

    def rules_in(self, formulation: str) -> dict[str, Callable[..., RuleOutput]]:
        """Name -> function of the rules that exist in a formulation."""
        forms = ((name, getattr(rule, formulation)) for name, rule in self.rules.items())
        return {name: function for name, function in forms if function is not None}

    @cached_property
    def attributes(self) -> frozenset[str]:
        """The keyword arguments of the forward: facts of a record, not options of a rule."""
        parameters = inspect.signature(self.forward).parameters.values()
        return frozenset(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)

    def options(self, rule: Callable[..., RuleOutput]) -> dict[str, object]:
        """The options of one of its rules, with their defaults."""
        parameters = inspect.signature(rule).parameters.values()
        keywords = (p for p in parameters if p.kind is p.KEYWORD_ONLY)
        return {p.name: p.default for p in keywords if p.name not in self.attributes}


def _operation(module: ModuleType) -> Operation:
    name = module.__name__.rpartition(".")[2]
    return Operation(name, module.forward, module.RULES, getattr(module, "CAUSES", {}))


OPERATIONS: dict[str, Operation] = {
    operation.name: operation
    for operation in map(
        _operation,
        (
            activation,
            add,
            causal_convolution,
            combine,
            embedding,
            gather,
            layer_norm,
            learned,
            linear,
            matmul,
            movement,
            multiply,
            pooling,
            renormalize,
            rms_norm,
            rotary,
            scale,
            scan,
            softmax,
            source,
            top_k,
        ),
    )
}


def rules_in(formulation: str) -> dict[str, dict[str, Callable[..., RuleOutput]]]:
    """Operation -> name -> function of every rule there is in a formulation."""
    return {name: operation.rules_in(formulation) for name, operation in OPERATIONS.items()}


CAUSES: dict[str, str] = {
    "stabilizer": "the eps in the denominators",
    "condition": "what conditions did not choose",
} | {cause: words for operation in OPERATIONS.values() for cause, words in operation.causes.items()}
"""What absorbed relevance -> the same in words."""
