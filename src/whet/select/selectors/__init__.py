"""Selectors that SIFT is compared with; all have the signature `whet.select.selection.Selector`."""
