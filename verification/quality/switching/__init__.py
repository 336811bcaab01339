"""Neurons switched by rankings on three checkpoints: what verification/reports/switching.md is
written by.

    python -m refl.verification.quality.switching [--inputs N] [--only NAME ...]
"""
