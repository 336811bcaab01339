"""Composites: which rule, with which parameters, for which operation.

A composite is a table. Its lines are read from the top, and the first that fits an operation gives
the rule: by the operation's name, by its role in the architecture (`attention.query`, `mlp.up`,
`patch_embedding`, ...), and by the names of the site. The formulation says what the sweep hands
down: `relevance`, or `gradient_x_input`, the g of R = x g, in which every stabilizer cancels.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

from refl.errors import ReflError, argument, shown
from refl.rules import changes, matmul
from refl.rules.conservation import STABILIZERS, RuleOutput
from refl.rules.operations import FORMULATIONS, OPERATIONS, Operation

SCORES = ("sum", "norm")
"""How a token's features become one number."""


@dataclass(frozen=True)
class Rule:
    """One line of a composite's table: what it is for (patterns with * and ?), and the rule with
    its options.

    operation   the operation's name
    site        any of the names of the value that the operation made
    role        what the operation is in the architecture; every operation has one, if only ""
    """

    operation: str
    rule: str
    site: str = "*"
    options: tuple[tuple[str, Any], ...] = ()
    role: str = "*"

    def __post_init__(self) -> None:
        for what in ("operation", "rule", "site", "role"):
            _check_text(f"the {what} of a rule", getattr(self, what))
        if not isinstance(self.options, tuple) or not all(map(_is_option, self.options)):
            raise ReflError(
                f"the options of a rule are {_said(self.options)}: expected a tuple of pairs, "
                "such as (('eps', 1e-6),)"
            )

    def fits(self, operation: str, names: Sequence[str], role: str = "") -> bool:
        return fnmatchcase(operation, self.operation) and self.fits_value(names, role)

    def fits_value(self, names: Sequence[str], role: str) -> bool:
        """Whatever operation made it."""
        return (self.role == "*" or fnmatchcase(role, self.role)) and (
            self.site == "*" or any(fnmatchcase(name, self.site) for name in names)
        )


@dataclass(frozen=True)
class Chosen:
    """A rule ready to be applied."""

    name: str
    function: Callable[..., RuleOutput]
    options: dict[str, Any]


@dataclass(frozen=True)
class Composite:
    """A method that is a table of rules: the table, its formulation, where it is published."""

    name: str
    rules: tuple[Rule, ...]
    formulation: str = "relevance"
    source: str = ""
    summary: str = ""
    score: str = "sum"
    """How a token's features become one number: the `sum` of their relevance,
    or the `norm` of what is propagated."""
    base: str = field(default="", compare=False, kw_only=True)
    """The composite whose table was changed to make this one; "" for none."""
    changes: tuple[str, ...] = field(default=(), compare=False, kw_only=True)
    """What was changed, in words."""

    def __post_init__(self) -> None:
        for what in ("name", "formulation", "source", "summary", "score"):
            _check_text(f"the {what} of a composite", getattr(self, what))
        lines = self.rules
        if not isinstance(lines, tuple) or not all(isinstance(line, Rule) for line in lines):
            raise ReflError(
                f"composite {self.name} has the rules {_said(lines)}: expected a tuple of Rule"
            )
        if self.score not in SCORES:
            raise ReflError(
                f"composite {self.name} has the score {self.score!r}: expected "
                f"{' or '.join(map(repr, SCORES))}"
            )
        if self.formulation not in FORMULATIONS:
            raise ReflError(
                f"composite {self.name} has the formulation {self.formulation!r}: expected "
                f"{' or '.join(map(repr, FORMULATIONS))}"
            )
        for line in self.rules:
            _check(line, self)

    def rule(self, operation: str, names: Sequence[str], role: str = "") -> Chosen:
        """The rule for an operation of this role whose output has these names. A line for several
        operations (`*`) is for those that have its rule, and gives each the options it takes.
        Raises ReflError where the table has none.
        """
        for line, options in self._lines[operation]:
            if line.fits_value(names, role):
                function = getattr(OPERATIONS[operation].rules[line.rule], self.formulation)
                return Chosen(line.rule, function, options)
        raise ReflError(
            f"composite {self.name} has no rule for {operation} at {names[0]}: add a line for it "
            "to its table"
        )

    @cached_property
    def _lines(self) -> dict[str, list[tuple[Rule, dict[str, Any]]]]:
        """Operation -> the lines for it, from the top, each with the options that its rule takes
        there.
        """
        found: dict[str, list[tuple[Rule, dict[str, Any]]]] = {name: [] for name in OPERATIONS}
        for line in self.rules:
            for operation, function in _functions(line, self.formulation):
                known = operation.options(function)
                options = {key: value for key, value in line.options if key in known}
                found[operation.name].append((line, options))
        return found

    def __getstate__(self) -> dict[str, Any]:
        """Its fields: what was worked out from them is worked out again."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    def __repr__(self) -> str:
        form = self.formulation.replace("_", " ")
        return f"<Composite {self.title}, {form} form, {len(self.rules)} lines, {self.hash[:12]}>"

    @property
    def differentiates(self) -> bool:
        """Whether what it propagates are derivatives: no rule takes anything for constant."""
        exact = ("gradient", "pass_through", "leaf")
        return self.formulation == "gradient_x_input" and all(
            line.rule in exact for line in self.rules
        )

    @property
    def title(self) -> str:
        """Its name, and what it is a change of where the name does not say so."""
        if not self.base or self.name == self.base or self.name.startswith(f"{self.base} ("):
            return self.name
        return f"{self.name} ({self.base}{' changed' if self.changes else ''})"

    @property
    def hash(self) -> str:
        """SHA-256 of what the table does, 64 hexadecimal digits: equal for equal tables whatever
        they are called.
        """
        return changes.fingerprint(self._table())

    def override(self, *lines: Rule, name: str | None = None) -> Composite:
        """The same composite with further lines on top, where they win. It says what it is a
        change of; `name` is its own.
        """
        if name is not None:
            _check_text("the name of a composite", name)
        changed = replace(self, rules=(*lines, *self.rules))
        return changed.changed_from(self, name or f"{self.name} (changed)")

    def changed_from(self, base: Composite, name: str) -> Composite:
        """The same under a name of its own, saying in which lines and options it is not `base`; a
        summary or a source that is still the base's claims no more than that.
        """
        words = changes.changes(self._table(), base._table())
        root = base.base or base.name
        before = {_subject(word): word for word in base.changes}
        said = tuple((before | {_subject(word): word for word in words}).values())
        if not words:
            return replace(self, name=name, base=root, changes=said)
        borrowed = self.source.removeprefix("base: ") == base.source.removeprefix("base: ")
        return replace(
            self,
            name=name,
            base=root,
            changes=said,
            source=f"base: {base.source.removeprefix('base: ')}"
            if borrowed and base.source
            else self.source,
            summary=f"{root} changed: {'; '.join(said)}"
            if self.summary in ("", base.summary)
            else self.summary,
        )

    def with_options(self, **options: Any) -> Composite:
        """The same composite with options (eps, stabilizer, ...) set
        in every line whose rule takes them; it says so, but for options that are set so already.
        """
        if self.formulation == "gradient_x_input" and "eps" in options:
            raise ReflError(
                f"composite {self.name} is in gradient x input form, in which every eps cancels: "
                f"leave {argument('eps')} out, or take another method"
            )
        known = {key for line in self.rules for key in defaults(line, self.formulation)}
        for key, value in options.items():
            if key in _CHECKS:
                _CHECKS[key](key, value, argument(key))
            if key not in known:
                raise ReflError(
                    f"no rule of composite {self.name} takes the option '{argument(key)}'; it "
                    f"knows {', '.join(sorted(known)) or 'none'}"
                )
        changed = replace(self, rules=tuple(self._with(line, options) for line in self.rules))
        words = changes.changes(changed._table(), self._table())
        if not words:
            return changed
        return changed.changed_from(self, f"{self.name} ({', '.join(words)})")

    def _with(self, line: Rule, options: dict[str, Any]) -> Rule:
        known = defaults(line, self.formulation)
        taken = {key: value for key, value in options.items() if key in known}
        return replace(line, options=tuple((dict(line.options) | taken).items()))

    def as_dict(self) -> dict[str, Any]:
        """The whole table, every option spelled out (defaults too), for the oracle file."""
        return {
            "name": self.name,
            "source": self.source,
            "summary": self.summary,
            "base": self.base,
            "changes": list(self.changes),
            "hash": self.hash,
        } | self._table()

    def _table(self) -> dict[str, Any]:
        """What it does: its score, its formulation, and its lines."""
        return {
            "score": self.score,
            "formulation": self.formulation,
            "rules": [
                {
                    "operation": line.operation,
                    "role": line.role,
                    "site": line.site,
                    "rule": line.rule,
                    "options": _plain(defaults(line, self.formulation) | dict(line.options)),
                }
                for line in self.rules
            ],
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Composite:
        """What `as_dict` wrote down; options at their defaults are left to the rules. What it says
        of its hash is not read: that is of the table.
        """
        rules = tuple(_read(line, content["formulation"]) for line in content["rules"])
        facts = {key: content[key] for key in ("name", "formulation", "source", "summary", "score")}
        base, said = content.get("base", ""), content.get("changes", ())
        return cls(rules=rules, **facts, base=str(base), changes=tuple(map(str, said)))


def _subject(change: str) -> str:
    """What a change is of: a later one of the same option takes its place."""
    return change if ":" in change else change.partition("=")[0]


def _read(said: dict[str, Any], formulation: str) -> Rule:
    line = Rule(said["operation"], said["rule"], said["site"], role=said["role"])
    known = defaults(line, formulation)
    options = {
        key: tuple(value) if isinstance(known.get(key), tuple) else value
        for key, value in said["options"].items()
    }
    changed = ((key, value) for key, value in options.items() if known.get(key) != value)
    return replace(line, options=tuple(changed))


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """As JSON has them."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}


def defaults(line: Rule, formulation: str) -> dict[str, Any]:
    """The options that a line's rule takes, by their defaults."""
    known: dict[str, Any] = {}
    for operation, function in _functions(line, formulation):
        known |= operation.options(function)
    return known


def _functions(
    line: Rule, formulation: str
) -> Iterator[tuple[Operation, Callable[..., RuleOutput]]]:
    for operation in _operations(line):
        if function := operation.rules_in(formulation).get(line.rule):
            yield operation, function


def _operations(line: Rule) -> list[Operation]:
    return [o for name, o in OPERATIONS.items() if fnmatchcase(name, line.operation)]


# -- what a table may not say ----------------------------------------------------------------------


def _check(line: Rule, composite: Composite) -> None:
    operations, formulation = _operations(line), composite.formulation
    if not operations:
        raise ReflError(
            f"composite {composite.name} names the operation {line.operation!r}; there are "
            f"{', '.join(OPERATIONS)}"
        )
    if not any(_functions(line, formulation)):
        known = ", ".join(sorted({name for o in operations for name in o.rules_in(formulation)}))
        raise ReflError(
            f"composite {composite.name} names the rule {line.rule!r} for {line.operation}; in "
            f"{formulation.replace('_', ' ')} form there are: {known}"
        )
    _check_options(line, formulation)


def _check_options(line: Rule, formulation: str) -> None:
    known = defaults(line, formulation)
    for key, value in line.options:
        if key not in known:
            raise ReflError(
                f"rule {line.rule} for {line.operation} has no option {key!r}; it takes "
                f"{', '.join(known) or 'none'}"
            )
        if key in _CHECKS:
            _CHECKS[key](key, value)
    options = known | dict(line.options)
    if line.operation == "matmul" and len(options.get("factors", (1, 1))) != 2:
        raise ReflError(
            f"factors is {_said(options['factors'])}: a matrix product has two operands, expected "
            "two whole numbers"
        )
    if line.rule == "alpha_beta" and abs(options["alpha"] - options["beta"] - 1) > 1e-12:
        raise ReflError(
            f"alpha_beta needs alpha - beta = 1, got alpha={options['alpha']}, "
            f"beta={options['beta']}"
        )


def _check_name(*known: str) -> Callable[..., None]:
    def check(key: str, value: Any, name: str = "") -> None:
        if not isinstance(value, str) or value not in known:
            raise ReflError(f"{name or key} is {_said(value)}: expected one of {', '.join(known)}")

    return check


def _check_number(key: str, value: Any, name: str = "") -> None:
    if not _is_number(value) or not abs(value) <= _LARGEST:
        raise ReflError(f"{name or key} is {_said(value)}: expected a finite number")
    if key == "eps" and not value > 0:
        raise ReflError(
            f"{name or key} is {value!r}: expected a number above 0; for no stabilizer at all "
            + (f"give {argument('stabilizer')} none" if name else "set stabilizer='none'")
        )
    if value < 0:
        raise ReflError(f"{name or key} is {value!r}: expected a number of at least 0")


def _check_bound(key: str, value: Any, name: str = "") -> None:
    numbers = value if isinstance(value, (list, tuple)) else [value]
    if not numbers or not all(_is_number(n) and abs(n) <= _LARGEST for n in numbers):
        sentence = f"{name or key} is {_said(value)}: expected a finite number, or a list of them"
        raise ReflError(sentence)


def _check_text(what: str, value: Any) -> None:
    if not isinstance(value, str):
        raise ReflError(f"{what} is {_said(value)}: expected a string")


def _is_option(pair: Any) -> bool:
    return isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)


_LARGEST = sys.float_info.max


def _said(value: Any) -> str:
    """A value for a message; an integer of thousands of digits has no repr."""
    try:
        return shown(repr(value))
    except Exception:  # noqa: BLE001 - an object of the caller's, whose repr may do anything
        return f"a value of type {type(value).__name__}"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_factors(key: str, value: Any, name: str = "") -> None:
    numbers = value if isinstance(value, (list, tuple)) else []
    if len(numbers) < 2 or not all(type(n) is int and n > 0 for n in numbers):
        raise ReflError(
            f"{name or key} is {_said(value)}: expected a list of whole numbers above 0, one for "
            "each operand"
        )


_CHECKS: dict[str, Callable[..., None]] = {
    "factors": _check_factors,
    "stabilizer": _check_name(*STABILIZERS),
    "denominator": _check_name(*matmul.DENOMINATORS),
    "low": _check_bound,
    "high": _check_bound,
} | dict.fromkeys(("eps", "gamma", "alpha", "beta"), _check_number)
"""Option -> what refuses a value it cannot have; as the argument of a call under the name it has
there.
"""
