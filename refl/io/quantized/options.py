"""The options of `quantization_config`: each is read, known to change nothing that is stored, or
refused by name.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from refl.errors import ReflError, quoted, shown

_MOST = 2**31 - 1


class Options:
    """An object of config.json, whose options are asked for one by one."""

    def __init__(self, raw: Any, where: str = "quantization_config") -> None:
        if not isinstance(raw, dict):
            raise ReflError(f"config.json has {where} = {quoted(raw)}: expected an object")
        self.raw = raw
        self.where = where
        self._known: set[str] = set()

    def get(self, key: str, otherwise: Any = None) -> Any:
        """The value, or `otherwise` where it is null or not there."""
        self._known.add(key)
        found = self.raw.get(key)
        return otherwise if found is None else found

    def one_of(self, key: str, allowed: Iterable[Any], otherwise: Any = None) -> Any:
        """One of the values that are implemented; strings in any case of letters."""
        found = self.get(key, otherwise)
        if isinstance(found, str):
            found = found.lower()
        allowed = tuple(allowed)
        if not any(type(found) is type(one) and found == one for one in allowed):
            said = ", ".join(str(one).lower() if one in (True, False) else str(one)
                             for one in allowed)  # fmt: skip
            raise self.refusal(key, f"implemented: {said}")
        return found

    def whole(self, key: str, otherwise: int | None = None, least: int = 1) -> int:
        found = self.get(key, otherwise)
        if type(found) is not int or not least <= found <= _MOST:
            raise self.refusal(key, f"expected a whole number of at least {least}")
        return found

    def flag(self, key: str, otherwise: bool = False) -> bool:
        found = self.get(key, otherwise)
        if not isinstance(found, bool):
            raise self.refusal(key, "expected true or false")
        return found

    def names(self, key: str) -> tuple[str, ...]:
        found = self.get(key, [])
        if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
            raise self.refusal(key, "expected a list of names")
        return tuple(found)

    def inner(self, key: str) -> Options | None:
        """An object in it; None where it is null or not there."""
        found = self.get(key)
        return None if found is None else Options(found, f"{self.where}.{key}")

    def harmless(self, *keys: str) -> None:
        """Options that say nothing of what is stored."""
        self._known.update(keys)

    def off(self, key: str, why: str) -> None:
        """Raises ReflError where this is on."""
        self._known.add(key)
        if not _is_off(self.raw.get(key)):
            raise self.refusal(key, why)

    def finish(self) -> None:
        """Raises ReflError for an option that nobody has asked for, unless it is off."""
        for key, value in self.raw.items():
            if key not in self._known and not _is_off(value):
                raise self.refusal(key, "refl does not know this option")

    def refusal(self, key: str, why: str) -> ReflError:
        value = f"= {quoted(self.raw[key])[:80]}" if key in self.raw else "missing"
        return ReflError(f"config.json has {self.where}.{shown(key)} {value}: {why}")


def _is_off(value: Any) -> bool:
    return value is None or value is False or value in ({}, [], "")
