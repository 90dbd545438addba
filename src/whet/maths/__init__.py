"""Mathematics on arrays: validation, the posterior of SIFT, and bootstrap statistics."""
