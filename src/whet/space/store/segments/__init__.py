"""The files of a segment: vectors, records, metadata columns and index, each with checksums."""
