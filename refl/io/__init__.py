"""What comes from disk and goes to it: checkpoints, tokenizers, pictures, oracle files."""
