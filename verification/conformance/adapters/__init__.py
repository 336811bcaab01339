"""Adapters: other implementations behind the one interface that
the conformance vectors are run against.
"""

if __name__ != "refl.verification.conformance.adapters":
    raise ImportError(
        "this folder is the package refl.verification.conformance.adapters; install the "
        "project and import that name"
    )
