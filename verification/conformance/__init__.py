"""Anyone's implementation against the conformance vectors.

from refl.verification import conformance

test_lrp = conformance.suite("my_adapter")              # in a test file of pytest, this line is all
TestLRP = conformance.suite_unittest("my_adapter")      # in one of unittest
for case in conformance.cases("softmax_taylor"):        # anywhere
    conformance.check(my_adapter, case)
"""

if __name__ != "refl.verification.conformance":
    raise ImportError(
        "this folder is the package refl.verification.conformance; install the project and "
        "import that name"
    )

from refl.verification.conformance.adapter import Adapter, NotCovered
from refl.verification.conformance.report import Report
from refl.verification.conformance.runner import check, run
from refl.verification.conformance.suites import suite, suite_models, suite_unittest
from refl.verification.vectors.rule_vectors import cases, rules, signatures

__all__ = [
    "Adapter",
    "NotCovered",
    "Report",
    "cases",
    "check",
    "rules",
    "run",
    "signatures",
    "suite",
    "suite_models",
    "suite_unittest",
]
