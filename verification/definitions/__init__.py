"""What is right, worked out without the engine: rules message by message in exact arithmetic, whole
models in 60 digits, blocks swept by hand.
"""

if __name__ != "refl.verification.definitions":
    raise ImportError(
        "this folder is the package refl.verification.definitions; install the project and "
        "import that name"
    )
