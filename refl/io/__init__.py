"""What comes from disk and goes to it: checkpoints, tokenizers, pictures, oracle files."""

ORACLE_FORMAT = 2
"""Format of the oracle files that are written; files of format 1 are read too."""
