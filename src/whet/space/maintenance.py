"""Looking after a data space, which needs no embedder: what it holds, whether it is whole."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from whet.data.filters import Filter, as_filter
from whet.errors import SpaceError
from whet.io import as_json
from whet.space.store.manifest import SEGMENTS, STAGING, read_manifest
from whet.space.store.reader import DiskReader, deleted_ids
from whet.space.store.segment import Segment

STEP = 1024  # documents read at a time


def describe(path: Path) -> dict[str, Any]:
    """What the data space at `path` holds, by name.

    Raises:
        SpaceError: If it cannot be opened whole.
    """
    store = DiskReader.open(path)
    manifest = store.manifest
    indexes = [s.measured for s in store.segments if s.measured is not None]
    rows = sum(segment.count for segment in store.segments)
    told: dict[str, Any] = {
        "documents": store.count(),
        "deleted": rows - store.count(),
        "failed": manifest.failed,
        "version": manifest.version,
        "embedder": manifest.embedder,
        "dimension": manifest.dimension,
        "source": manifest.source,
        "segments": len(store.segments),
        "bytes": size(path),
        "index": {
            "kind": "IVF,SQ8" if indexes else "flat",
            "segments": len(indexes),
            "recall": min((m.recall for m in indexes), default=1.0),
            "probe_fraction": max((m.probe_fraction for m in indexes), default=1.0),
        },
        "fields": {name: " or ".join(sorted(kinds)) for name, kinds in store.fields.items()},
        "unfinished": (path / STAGING).exists(),
    }
    if manifest.labels is not None:
        told["labels"] = {"field": manifest.labels.field, "public": manifest.labels.public}
    store.close()
    return told


def faults(path: Path) -> list[str]:
    """Every file of the data space at `path` that is not as it was written. Reads them all.

    Raises:
        SpaceError: If there is no data space.
    """
    manifest, found = read_manifest(path), []
    for name in manifest.segments:
        folder = path / SEGMENTS / name
        try:
            segment = Segment(folder)
            found += segment.faults()
            segment.close()
        except FileNotFoundError as error:
            found.append(f"{error.filename} is missing")
        except SpaceError as error:
            found.append(str(error))
    try:
        deleted_ids(path, manifest)
    except SpaceError as error:
        found.append(str(error))
    return found


def size(path: Path) -> int:
    """Bytes of all files."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def documents(path: Path, where: Filter | str | None = None) -> Iterator[str]:
    """The documents as JSON lines, some read at a time.

    Raises:
        SpaceError: If the data space cannot be opened whole.
        ValueError: If the filter has a field that no document has.
    """
    store = DiskReader.open(path)
    ids = store.ids(as_filter(where))
    for start in range(0, len(ids), STEP):
        for row in store.rows(ids[start : start + STEP]).to_pylist():
            yield as_json({**row, "meta": json.loads(row["meta"])}) + "\n"
    store.close()
