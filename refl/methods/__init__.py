"""Every method of attribution there is, by name.

Today all of them are tables of rules, made in refl/rules/published.py: a table and a sweep are all
such a method is. A method that is none (a gradient along a path, attention multiplied through the
layers) is a file in this folder, its equation and its source on top, and one more line of METHODS.
"""

from __future__ import annotations

from refl.rules.published import METHODS, method

__all__ = ["METHODS", "method"]
