"""What the package computes and shows today, kept so that a change of its form changes neither.

`python -m tests.golden` remakes the numbers and the snapshots; see `made.py` and `shown.py`.
"""
