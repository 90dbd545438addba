"""Looking after a data space: describe, verify, export, refit, diagnose."""
