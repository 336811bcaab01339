"""Who checks the checker: definitions, surrogates and peers that the engine is held against."""

if __name__ != "refl.verification":
    raise ImportError("this folder is the package refl.verification; install the project and import that name")
