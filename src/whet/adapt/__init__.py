"""The language model, what is trained of it for one prompt, and the training loop."""
