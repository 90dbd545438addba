"""The paper's tables, figures and claims, computed from evaluation runs.

Run `python -m studies --help` from the root of a checkout; this package is not part of the wheel.
"""
