"""Data spaces: storage, search, retrieval, tuning and diagnostics."""
