"""Who checks the checks: faults planted in the engine and in adapters, mutation testing, false
alarms, the engine's error, benchmarks; the hard cases that rules are tried on (cases); and what
looks at the sources alone: the import graph, retired words, the API reference. Not in the wheel.
"""

if __name__ != "refl.verification.quality":
    raise ImportError(
        "this folder is the package refl.verification.quality; install the project and "
        "import that name"
    )
