"""Texts of files: each format becomes readable text with sections."""
