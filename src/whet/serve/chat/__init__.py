"""Chats: messages to tokens, and generated text to messages."""
