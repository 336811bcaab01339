"""How the shipped model and its data were made. Not in the wheel."""

if __name__ != "refl.verification.training":
    raise ImportError(
        "this folder is the package refl.verification.training; install the project and "
        "import that name"
    )
