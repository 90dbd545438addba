"""Remake every number and snapshot: look at the difference before it is committed."""

from . import made, shown

made.make()
shown.make()
