"""From embeddings to an order of candidates. Knows nothing of text."""
