"""The data space: texts, their vectors, and the way from a prompt to its candidates."""
