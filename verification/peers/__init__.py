"""Other libraries beside refl: LXT, what torch computes as an oracle file,
and their conformance reports.
"""

if __name__ != "refl.verification.peers":
    raise ImportError(
        "this folder is the package refl.verification.peers; install the project and "
        "import that name"
    )
