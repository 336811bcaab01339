"""What comes from disk and goes to it: checkpoints, tokenizers, pictures, oracle files."""

ORACLE_FORMAT = 1
"""Version of the oracle file."""
