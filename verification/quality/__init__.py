"""Who checks the checks: faults planted in the engine, mutation testing, false alarms, the engine's
error, benchmarks; and the hard cases that rules are tried on (cases). Not in the wheel.
"""

if __name__ != "refl.verification.quality":
    raise ImportError(
        "this folder is the package refl.verification.quality; install the project and "
        "import that name"
    )
