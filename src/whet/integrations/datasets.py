"""Data spaces as data sets of Hugging Face: `pip install 'whet[data]'`.

The other direction needs no function: `whet.DataSpace.build(dataset, "docs.whet")` makes its rows
documents.
"""

import json
from pathlib import Path
from typing import Any

from whet.errors import require
from whet.space.space import DataSpace

BATCH = 1024  # documents that are read at once


def to_dataset(space: DataSpace | str | Path) -> Any:
    """The documents of a data space as a `datasets.Dataset`, in the order of their rows.

    It has the columns `id` and `text`, and one for each field of the metadata, which is null for
    documents without that field. A field whose values have several types becomes JSON texts. Holds
    all documents in memory.

    Args:
        space: A data space, or its path.

    Raises:
        MissingDependencyError: If `datasets` is not installed.
        SpaceError: If the data space cannot be opened.
    """
    datasets = require("datasets", "data")
    import pyarrow as pa

    opened = space if isinstance(space, DataSpace) else DataSpace.open(space)
    rows = opened.rows
    columns: dict[str, list[Any]] = {"id": [], "text": []}
    metadata: list[dict[str, Any]] = []
    for start in range(0, len(rows), BATCH):
        for document in opened.documents(rows[start : start + BATCH]):
            columns["id"].append(document.id)
            columns["text"].append(document.text)
            metadata.append(document.meta)
    for name in dict.fromkeys(name for meta in metadata for name in meta):
        if name not in ("id", "text"):
            columns[name] = [meta.get(name) for meta in metadata]
    arrays = {}
    for name, values in columns.items():
        try:
            arrays[name] = pa.array(values)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            arrays[name] = pa.array([None if v is None else json.dumps(v) for v in values])
    return datasets.Dataset(pa.table(arrays))
