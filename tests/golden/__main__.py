"""Remake every number: look at the difference before it is committed."""

from . import made

made.make()
