"""Describing, verifying and exporting a data space; needs no embedder."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from whet.data.filters import Filter, as_filter
from whet.data.values import read_meta
from whet.errors import SpaceError
from whet.io import as_json
from whet.space.indexing.records import read_sources
from whet.space.store.kernel import KernelScale, measure_kernel
from whet.space.store.manifest import (
    EMBEDDER_FOLDER,
    FAILED_FILE,
    SEGMENTS,
    STAGING,
    Manifest,
    read_manifest,
)
from whet.space.store.opening import load_lsa, open_segment, read_deleted_ids
from whet.space.store.reader import DiskReader
from whet.space.store.segments.segment import Segment
from whet.space.store.staging import is_committed

BATCH = 1024  # documents read at a time


def describe(path: Path) -> dict[str, Any]:
    """Facts about the data space at `path`: counts, embedder, index, fields, size on disk.

    Raises:
        SpaceError: If the data space is missing or broken.
    """
    store = DiskReader.open(path)
    manifest = store.manifest
    indexes = [s.index_stats for s in store.segments if s.index_stats is not None]
    rows = sum(segment.count for segment in store.segments)
    kernel = KernelScale.of_record(manifest.kernel) or measure_kernel(store)
    facts: dict[str, Any] = {
        "documents": store.count(),
        "deleted": rows - store.count(),
        "failed": manifest.failed,
        "version": manifest.version,
        "embedder": manifest.embedder,
        "dimension": manifest.dimension,
        "mean_cosine": round(kernel.mean_cosine, 4),
        "lam": kernel.lam,
        "chunks": manifest.chunking,
        "source": manifest.source,
        "sources": sorted(read_sources(path, manifest)),
        "segments": len(store.segments),
        "bytes": size(path),
        "index": {
            "kind": "IVF,SQ8" if indexes else "flat",
            "segments": len(indexes),
            "recall": min((m.recall for m in indexes), default=1.0),
            "probe_fraction": max((m.probe_fraction for m in indexes), default=1.0),
        },
        "fields": {name: " or ".join(sorted(kinds)) for name, kinds in store.fields.items()},
        "unfinished": (path / STAGING).exists() and not is_committed(path, manifest),
    }
    if manifest.labels is not None:
        facts["labels"] = {"field": manifest.labels.field, "public": manifest.labels.public}
    store.close()
    return facts


def verify(path: Path) -> list[str]:
    """A message for every damaged file of the data space at `path`. Reads every byte.

    Raises:
        SpaceError: If there is no data space.
    """
    manifest, faults = read_manifest(path), []
    for name in manifest.segments:
        folder = path / SEGMENTS / name
        try:
            segment = Segment(folder)
            faults += segment.verify()
            segment.close()
            open_segment(path, name, manifest).close()
        except FileNotFoundError as error:
            faults.append(f"{error.filename} is missing")
        except SpaceError as error:
            faults.append(str(error))
    return faults + _verify_others(path, manifest)


def _verify_others(path: Path, manifest: Manifest) -> list[str]:
    """A message for every damaged file that does not belong to a segment."""
    faults = []
    try:
        read_deleted_ids(path, manifest)
    except SpaceError as error:
        faults.append(str(error))
    names = [name for name in manifest.files if name.startswith(EMBEDDER_FOLDER)]
    names += [manifest.sources] if manifest.sources else []
    faults += [message for name in names if (message := manifest.check_file(path, name))]
    if manifest.embedder == "lsa" and not faults:
        try:
            load_lsa(path, manifest)
        except SpaceError as error:
            faults.append(str(error))
    failed = path / FAILED_FILE
    message = manifest.check_file(path, FAILED_FILE)
    if message is None and manifest.failed and not failed.exists():
        message = f"{failed} is missing: restore it from a copy"
    if message is None and failed.exists():
        try:
            records = [json.loads(line) for line in failed.read_text("utf-8").splitlines()]
            if len(records) < manifest.failed or not all(isinstance(r, dict) for r in records):
                raise ValueError(f"it has {len(records)} records, not {manifest.failed}")
        except (OSError, ValueError) as error:
            message = f"{failed} is broken: {error}"
    return faults + ([message] if message else [])


def size(path: Path) -> int:
    """Bytes of all files of the data space at `path`."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def export(path: Path, where: Filter | str | None = None) -> Iterator[str]:
    """The documents as JSON lines, which `read_documents` reads; holds 1,024 at a time.

    Raises:
        SpaceError: If the data space is missing or broken.
        ValueError: If the filter has a field that no document has.
    """
    store = DiskReader.open(path)
    ids = store.ids(as_filter(where))
    for start in range(0, len(ids), BATCH):
        for row in store.rows(ids[start : start + BATCH]).to_pylist():
            yield as_json({**row, "meta": read_meta(row["meta"])}) + "\n"
    store.close()
