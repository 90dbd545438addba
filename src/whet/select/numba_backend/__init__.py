"""Exact SIFT compiled by numba, for large problems; picks are those of `NumpyGreedy`."""
