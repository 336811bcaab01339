"""Methods of attribution."""
