"""Data spaces: storage, search, retrieval, tuning and diagnostics."""

from whet.errors import require

require("pyarrow", "space")  # the first of them that a module here imports
