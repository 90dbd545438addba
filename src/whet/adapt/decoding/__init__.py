"""Generating text: which token comes next, for many sequences at once."""
