"""Conversations as tokens: the chat template of a model, and which of the tokens are responses."""
