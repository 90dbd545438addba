"""Arrays only: what an observation tells about a response, and how sure a measured number is."""
