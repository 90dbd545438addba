"""The language model and what is trained of it for one prompt. Knows nothing of data spaces."""
