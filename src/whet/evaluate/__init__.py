"""Evaluation: compare methods on many prompts, with confidence intervals."""
