"""The version of whet: the build and every file that whet writes read it here."""

__version__ = "0.1.0"
