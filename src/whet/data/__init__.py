"""Documents: sources, chunking and filters."""
