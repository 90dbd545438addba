"""Shapes in the types are checked in every run; hypothesis is seeded so that CI repeats itself."""

import os

import jaxtyping
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:  # the workers have the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # no test waits for a network
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "t" * 32}  # before Ray is imported

jaxtyping.install_import_hook("whet", "checker.checked")

settings.register_profile("whet", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("whet")
