"""Parts of adding documents to a data space: see `whet.space.build`."""
