"""Other libraries' faces on whet: change an import, keep the call."""
