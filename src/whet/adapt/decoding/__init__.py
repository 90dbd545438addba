"""Generating text: which token comes next, for many sequences at once."""

from whet.errors import require

require("torch", "adapt")
