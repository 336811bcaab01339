"""One file per operation: its forward, its rules, and what each rule absorbs. `composites` names
the published methods.
"""

if __name__ != "refl.rules":
    raise ImportError(
        "this folder is the package refl.rules; install the project (pip install -e .) and "
        "import that name"
    )
