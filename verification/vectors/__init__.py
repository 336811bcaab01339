"""The conformance vectors: data for whoever implements LRP, and how it is made and checked."""

if __name__ != "refl.verification.vectors":
    raise ImportError(
        "this folder is the package refl.verification.vectors; install the project and "
        "import that name"
    )

FORMAT = 2
"""Version of the files: goes up when a name in them changes, or what a number means."""
