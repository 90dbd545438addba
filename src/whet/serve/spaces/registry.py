"""The data spaces of a server by name, and what a key may read of each.

A request uses one version of a data space to its end. When a data space has a newer version,
written by this server or by another process, later requests use that one.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from whet.data.documents import Document
from whet.data.filters import In
from whet.errors import SpaceError
from whet.select.config import ResolvedSelection, SelectionConfig
from whet.serve.access.auth import APIKey
from whet.serve.errors import APIError
from whet.space.retrieve import resolve_lam
from whet.space.space import DEFAULT_K, DataSpace
from whet.space.store.manifest import SEGMENTS, Manifest, read_manifest
from whet.space.tuning import resolve

log = logging.getLogger("whet.serve")
MAX_FAILURES = 5
"""Failed reloads in a row after which a data space is unavailable."""
MAX_TUNED = 32
"""Choices of λ' and α that are remembered for each view of a version."""


class TunedValues:
    """What `auto` was resolved to in one view of a data space. Thread-safe."""

    def __init__(self) -> None:
        self._values: OrderedDict[SelectionConfig, ResolvedSelection] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, space: DataSpace, config: SelectionConfig) -> ResolvedSelection:
        """`config` resolved on `space`, computed once for each of the last `MAX_TUNED` configs."""
        with self._lock:
            if config not in self._values:
                self._values[config] = resolve(space, config)
                if len(self._values) > MAX_TUNED:
                    self._values.popitem(last=False)
            return self._values[config]


@dataclass(frozen=True, slots=True, eq=False)
class SpaceView:
    """One version of a data space that contains only what a key may read."""

    name: str
    space: DataSpace
    build_id: str = ""
    """Changes when the data space is rebuilt in place: see `build_id`."""
    default: SelectionConfig = field(default_factory=SelectionConfig)
    """The server's selection, whose `n` and `k` are those for which `auto` is resolved."""
    _tuned: TunedValues = field(default_factory=TunedValues, repr=False)

    @property
    def version(self) -> str:
        """Version of the data space."""
        return str(self.space.manifest.version)

    def label(self, document: Document) -> str | None:
        """The access label of `document`."""
        labels = self.space.manifest.labels
        value = document.meta.get(labels.field) if labels else None
        return None if value is None else str(value)

    def resolve(self, config: SelectionConfig) -> ResolvedSelection:
        """`config` with numbers in place of words.

        They come from all documents of this view, without the filter of `config`; those for `auto`
        are chosen for the server's `n` and `k`, once per version of the data space.

        Raises:
            ValueError: If the view has too few documents to choose.
        """
        if not config.has_auto:
            return resolve_lam(self.space, config)
        k = max(1, min(self.default.k or DEFAULT_K, len(self.space) - 1))
        general = replace(config, n=max(1, self.default.n), k=k, where=None, retriever="dense")
        tuned = self._tuned.get(self.space, general)
        return ResolvedSelection.of(config, lam=tuned.lam, stop_alpha=tuned.stop_alpha)


@dataclass(frozen=True, slots=True, eq=False)
class _Version:
    space: DataSpace
    build_id: str
    views: dict[tuple[str, ...], SpaceView | None] = field(default_factory=dict)


class SpaceRegistry:
    """Opened data spaces by name. Thread-safe."""

    def __init__(
        self,
        folders: Mapping[str, Path],
        on_new_version: Callable[[str], None],
        default: SelectionConfig | None = None,
        on_unavailable: Callable[[str], None] = lambda name: None,
    ) -> None:
        """Open all data spaces.

        Args:
            folders: Folder of each data space.
            on_new_version: Called with the name of a data space that has a newer version.
            default: The server's selection: see `SpaceView.default`.
            on_unavailable: Called with the name of a data space that can no longer be read.

        Raises:
            SpaceError: If one cannot be opened.
        """
        self._folders, self._on_new_version = dict(folders), on_new_version
        self._on_unavailable = on_unavailable
        self._default = default or SelectionConfig()
        self._versions = {name: _open_latest(folder) for name, folder in folders.items()}
        self._failures = dict.fromkeys(folders, 0)
        self._write_locks = {name: threading.Lock() for name in folders}
        self._reload_lock = threading.Lock()

    def view(self, name: str | None, key: APIKey, *, param: str = "data_space") -> SpaceView:
        """What `key` may read of the data space `name`; None stands for the first.

        `param` is the request's field that contains the name.

        Raises:
            APIError: 404 if the data space does not exist, or the key may not read any of it; 503 if
                it cannot be read now.
        """
        name = next(iter(self._folders)) if name is None else name
        view = self._view_for(name, key) if name in self._folders else None
        if view is None:
            raise _not_found(name, param)
        if not self.is_available(name):
            raise APIError(
                503, f"data space {name!r} cannot be read now: see the server's log",
                param=param, code="data_space_unavailable", retry_after_s=1,
            )  # fmt: skip
        return view

    def views(self, key: APIKey) -> list[SpaceView]:
        """Every data space of which `key` may read something."""
        available = filter(self.is_available, self._folders)
        return [view for name in available if (view := self._view_for(name, key))]

    def latest(self, name: str) -> DataSpace:
        """The latest version of a data space with all its documents."""
        return self._versions[name].space

    def build_id(self, name: str) -> str:
        """The build id of the latest version: see `build_id`."""
        return self._versions[name].build_id

    def is_latest(self, view: SpaceView) -> bool:
        """Whether `view` is of the latest version."""
        return self.latest(view.name).manifest is view.space.manifest

    def version(self, name: str) -> str:
        """The latest version of a data space."""
        return str(self.latest(name).manifest.version)

    def refresh(self, name: str | None = None) -> None:
        """Open the newer version of the data space `name`, or of each one that has a newer version.

        A data space that cannot be read does not keep the others from being reloaded. It keeps its
        last version for `MAX_FAILURES` calls, because it may be half written; after that it is
        unavailable until it can be read, because its last version may have deleted documents.

        Raises:
            SpaceError: If the data space `name` cannot be read.
        """
        for one in self._folders if name is None else (name,):
            with self._reload_lock:  # otherwise the slower thread could restore an old version
                try:
                    self._refresh_one(one)
                except Exception as error:  # whatever a damaged file can raise
                    self._count_failure(one, error)
                    if name is not None:
                        raise SpaceError(f"{self._folders[one]} cannot be read: {error}") from error
                else:
                    self._failures[one] = 0

    def _refresh_one(self, name: str) -> None:
        folder, old = self._folders[name], self._versions[name]
        manifest = read_manifest(folder)
        is_same = (manifest, build_id(folder, manifest)) == (old.space.manifest, old.build_id)
        if not is_same or self._failures[name]:
            self._versions[name] = old if is_same else _open_latest(folder, old.space)
            self._on_new_version(name)

    def _count_failure(self, name: str, error: Exception) -> None:
        self._failures[name] += 1
        log.warning("data space not reloaded", extra={"space": name, "reason": str(error)})
        if self._failures[name] == MAX_FAILURES:
            log.error("data space unavailable", extra={"space": name, "reason": str(error)})
            self._on_unavailable(name)

    def is_available(self, name: str) -> bool:
        """Whether the latest version of a data space is known to be valid."""
        return self._failures[name] < MAX_FAILURES

    @contextmanager
    def writing(self, name: str) -> Iterator[DataSpace]:
        """The latest version, for one writing request of this server at a time.

        Raises:
            APIError: 404 if the data space does not exist, 409 if another process is writing, or
                the data space cannot be written.
            SpaceError: If the data space cannot be read.
        """
        if name not in self._folders:
            raise _not_found(name)
        with self._write_locks[name]:
            self.refresh(name)
            try:
                yield self.latest(name)
            except (SpaceError, OSError) as error:  # its message has paths of this machine
                log.warning("data space not written", extra={"space": name, "reason": str(error)})
                raise APIError(
                    409,
                    f"data space {name!r} cannot be written now: another process is writing, "
                    "or see the server's log",
                    retry_after_s=1,
                ) from error
            finally:
                self.refresh(name)

    def _view_for(self, name: str, key: APIKey) -> SpaceView | None:
        version = self._versions[name]
        if key.labels not in version.views:
            space = readable_part(version.space, key)
            version.views[key.labels] = (
                None if space is None else SpaceView(name, space, version.build_id, self._default)
            )
        return version.views[key.labels]


def build_id(folder: Path, manifest: Manifest) -> str:
    """A text that changes when a data space is rebuilt in place, so that its rows have changed.

    It consists of the embedder's fingerprint and the id of the data space. Data spaces of older
    versions have no id; of these, the first segment is identified, which is never rewritten in place.
    """
    if manifest.id:
        return f"{manifest.fingerprint} {manifest.id}"
    first = ""
    with suppress(FileNotFoundError):  # being replaced: the version opened next differs
        for name in manifest.segments[:1]:
            stat = (folder / SEGMENTS / name).stat()
            first = f" {stat.st_ino} {stat.st_mtime_ns}"
    return manifest.fingerprint + first


def _open_latest(folder: Path, old: DataSpace | None = None) -> _Version:
    """The current version, with the embedder of `old` if the same embedder made it.

    Raises:
        SpaceError: If it cannot be opened.
    """
    manifest = read_manifest(folder)
    build = build_id(folder, manifest)  # before opening: a replacement in between is then noticed
    if old is not None and old.manifest.fingerprint == manifest.fingerprint:
        return _Version(DataSpace.open(folder, old.embedder), build)
    return _Version(DataSpace.open(folder), build)


def _not_found(name: str, param: str = "data_space") -> APIError:
    return APIError(
        404, f"data space {name!r} does not exist for this key: see /v1/data_spaces", param=param,
        code="data_space_not_found",
    )  # fmt: skip


def readable_part(space: DataSpace, key: APIKey) -> DataSpace | None:
    """What `key` may read: its labels and public documents; without labels only if it reads all."""
    if key.can_read_all:
        return space
    labels = space.manifest.labels
    if labels is None:
        return None
    public = () if labels.public is None else (labels.public,)
    try:
        readable = space.filter(In(labels.field, (*key.labels, *public)))
    except ValueError:  # no document has a label of this type
        return None
    return readable if len(readable) else None
