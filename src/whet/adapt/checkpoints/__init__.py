"""Reading the files of a model: weights, tokenizers, GGUF files."""
