"""The identities relevance obeys, measured on a checkpoint."""

if __name__ != "refl.verification.identities":
    raise ImportError(
        "this folder is the package refl.verification.identities; install the project and "
        "import that name"
    )
