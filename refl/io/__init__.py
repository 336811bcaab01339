"""What comes from disk and goes to it: checkpoints, tokenizers, pictures, oracle files."""

ORACLE_FORMAT = 2
"""Version of the oracle file; version 1 is read too."""
