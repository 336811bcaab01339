"""Every method on real checkpoints, judged in one run: what verification/reports/faithfulness.md is
written by.

    python -m refl.verification.quality.faithfulness [--inputs N] [--only MODEL ...]
"""
