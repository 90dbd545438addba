"""Data spaces copied to Milvus; imported for `milvus:` addresses only."""
