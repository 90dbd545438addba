"""Reading the files of a model: weights, tokenizers, GGUF files."""

from whet.errors import require

require("torch", "adapt")
