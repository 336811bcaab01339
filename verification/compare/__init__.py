"""Two oracle files: where they first part, by how much, and why."""

if __name__ != "refl.verification.compare":
    raise ImportError(
        "this folder is the package refl.verification.compare; install the project and "
        "import that name"
    )
