"""Shapes in the types are checked in every run; hypothesis is seeded so that CI repeats itself."""

import os

import jaxtyping
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"  # no test waits for a network

jaxtyping.install_import_hook("whet", "checker.checked")

settings.register_profile("whet", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("whet")
