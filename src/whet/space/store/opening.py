"""Opening the files that a manifest names: segments, deleted rows, and the `lsa` embedder."""

from pathlib import Path

import numpy as np
from jaxtyping import Int

from whet.embed.lsa import LSA
from whet.errors import SpaceError
from whet.maths.arrays import Array
from whet.space.store.manifest import (
    MANIFEST_FILE,
    SEGMENTS,
    Manifest,
    is_embedder_folder,
    read_manifest,
    segment_record,
)
from whet.space.store.segments import vectors as vector_search
from whet.space.store.segments.checked_file import map_array
from whet.space.store.segments.segment import Segment


class ManifestReplaced(Exception):
    """The manifest was replaced, and its segments removed, while they were being opened."""


def open_segments(path: Path, partial: bool) -> tuple[Manifest, list[Segment], Array, list[str]]:
    """The manifest, its segments, the deleted ids, and descriptions of broken segments."""
    while True:
        manifest = read_manifest(path)
        segments, errors = [], []
        try:
            for name in manifest.segments:
                try:
                    segments.append(open_segment(path, name, manifest))
                except SpaceError as error:
                    if not partial:
                        raise
                    errors.append(str(error))
            deleted = read_deleted_ids(path, manifest)
        except ManifestReplaced:
            continue
        configure_vectors(segments, manifest)
        return manifest, segments, deleted, errors


def configure_vectors(segments: list[Segment], manifest: Manifest) -> None:
    size = sum(segment.count for segment in segments) * manifest.dimension * 4
    for segment in segments:
        segment.vectors.cached = size <= vector_search.CACHE_BYTES
        segment.vectors.normalized = manifest.normalized


def open_segment(path: Path, name: str, manifest: Manifest) -> Segment:
    """Open a segment that `manifest` names.

    Raises:
        SpaceError: If it is missing or broken, or belongs to another data space.
    """
    locked = manifest.segments.index(name) < max_locked_segments()
    file = path / segment_record(name)
    try:
        segment = Segment(path / SEGMENTS / name, locked=locked)
    except (FileNotFoundError, BlockingIOError) as error:
        raise _missing(path, file, manifest.version) from error
    if message := manifest.check_file(path, segment_record(name)):
        raise SpaceError(message)
    if segment.last >= manifest.next or segment.dimension != manifest.dimension:
        raise SpaceError(
            f"{file} has rows up to {segment.last} of dimension {segment.dimension}, but "
            f"{MANIFEST_FILE} expects rows up to {manifest.next - 1} of {manifest.dimension}: one of "
            "them is broken"
        )
    return segment


def max_locked_segments() -> int:
    """Segments of which a reader keeps a file open: a sixteenth of the files it may open."""
    try:
        import resource
    except ImportError:  # Windows
        return 64
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 64 if limit < 0 else min(64, limit // 16)


def load_lsa(path: Path, manifest: Manifest) -> LSA:
    """The `lsa` embedder of the data space at `path`.

    Raises:
        ManifestReplaced: If it was fitted again since `manifest` was read.
        SpaceError: If it is broken.
    """
    try:
        return _load_lsa(path, manifest)
    except SpaceError:
        if read_manifest(path).embedder_folder != manifest.embedder_folder:
            raise ManifestReplaced() from None
        raise


def _load_lsa(path: Path, manifest: Manifest) -> LSA:
    for name in manifest.files:
        if is_embedder_folder(name.partition("/")[0]) and (
            message := manifest.check_file(path, name)
        ):
            raise SpaceError(message)
    embedder = LSA.load(path / manifest.embedder_folder)
    if embedder.fingerprint != manifest.fingerprint:
        raise SpaceError(
            f"{path / manifest.embedder_folder} is broken: its embedder has fingerprint "
            f"{embedder.fingerprint!r}, but {manifest.fingerprint!r} made the vectors"
        )
    return embedder


def read_deleted_ids(path: Path, manifest: Manifest) -> Int[Array, " n"]:
    """Ids of deleted rows that the segments of the store at `path` still contain."""
    if not manifest.deleted:
        return np.empty(0, np.int64)
    file = path / manifest.deleted
    try:
        content = manifest.read_file(path, manifest.deleted)
    except FileNotFoundError as error:
        raise _missing(path, file, manifest.version) from error
    rows = map_array(file, content)
    if rows.dtype != np.int64 or rows.ndim != 1 or not _are_rows(rows, manifest.next):
        raise SpaceError(f"{file} is broken: it does not contain rows of the data space")
    return rows


def _are_rows(rows: Int[Array, " n"], end: int) -> bool:
    return not len(rows) or bool((np.diff(rows) > 0).all() and rows[0] >= 0 and rows[-1] < end)


def _missing(path: Path, file: Path, version: int) -> Exception:
    if read_manifest(path).version != version:
        return ManifestReplaced()
    return SpaceError(f"{file} is missing: restore it, or open the rest with partial")
