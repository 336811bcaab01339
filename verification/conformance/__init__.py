"""Anyone's implementation against the conformance vectors.

from refl.verification import conformance
for case in conformance.cases("softmax_taylor"):
    conformance.check(my_adapter, case)
"""

if __name__ != "refl.verification.conformance":
    raise ImportError(
        "this folder is the package refl.verification.conformance; install the project and "
        "import that name"
    )

from refl.verification.conformance.adapter import NotCovered
from refl.verification.conformance.report import Report
from refl.verification.conformance.runner import check, run
from refl.verification.vectors.rule_vectors import cases, rules, signatures

__all__ = ["NotCovered", "Report", "cases", "check", "rules", "run", "signatures"]
