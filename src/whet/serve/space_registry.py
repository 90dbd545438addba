"""The data spaces of a server by name, each as much of it as a key may read.

A request works to its end on the version that it began with. When a data space has a newer version,
by this server's hand or another's, requests that begin later get that one.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from whet.data.documents import Document
from whet.data.filters import In
from whet.errors import SpaceError
from whet.serve.auth import Key
from whet.serve.errors import APIError
from whet.space.space import DataSpace
from whet.space.store.manifest import SEGMENTS, Manifest, read_manifest


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """A version of a data space, of which nothing can be seen but what a key may read."""

    name: str
    space: DataSpace
    built: str = ""
    """Which building of the data space: see `building`."""

    @property
    def version(self) -> str:
        return str(self.space.manifest.version)

    def label(self, document: Document) -> str | None:
        labels = self.space.manifest.labels
        found = document.meta.get(labels.field) if labels else None
        return None if found is None else str(found)


@dataclass(frozen=True, slots=True, eq=False)
class _Version:
    space: DataSpace
    built: str
    views: dict[tuple[str, ...], View | None] = field(default_factory=dict)


class Catalogue:
    """Opened data spaces by name. Safe in threads."""

    def __init__(self, places: Mapping[str, Path], opened: Callable[[str], None]) -> None:
        """Open them all.

        Args:
            places: Their folders.
            opened: Called with the name of a data space that has a newer version.

        Raises:
            SpaceError: If one cannot be opened.
        """
        self._places, self._opened = dict(places), opened
        self._versions = {name: _newest(place) for name, place in places.items()}
        self._writing = {name: threading.Lock() for name in places}
        self._looking = threading.Lock()

    def view(self, name: str | None, key: Key) -> View:
        """What `key` may read of a data space; of the first, if none is named.

        Raises:
            APIError: 404 if there is none of that name, or nothing of it for this key.
        """
        name = next(iter(self._places)) if name is None else name
        view = self._seen(name, key) if name in self._places else None
        if view is None:
            raise _missing(name)
        return view

    def views(self, key: Key) -> list[View]:
        """Every data space of which `key` may read something."""
        return [view for name in self._places if (view := self._seen(name, key))]

    def whole(self, name: str) -> DataSpace:
        """The newest version, with what no key but the operator's may read."""
        return self._versions[name].space

    def built(self, name: str) -> str:
        """Which building of the data space the newest version is of."""
        return self._versions[name].built

    def is_newest(self, view: View) -> bool:
        """Whether there is no newer version than the one that `view` is of."""
        return self.whole(view.name).manifest is view.space.manifest

    def version(self, name: str) -> str:
        return str(self.whole(name).manifest.version)

    def refresh(self) -> None:
        """Look at every data space once, and open what has a newer version."""
        with self._looking:  # of two that look at once, the slower would put an older version back
            for name, place in self._places.items():
                old, new = self._versions[name], read_manifest(place)
                if (new, building(place, new)) != (old.space.manifest, old.built):
                    self._versions[name] = _newest(place, old.space)
                    self._opened(name)

    @contextmanager
    def writing(self, name: str) -> Iterator[DataSpace]:
        """The newest version, to be written to by one request of this server at a time.

        Raises:
            APIError: 404 if there is none of that name, 409 if another process is writing, or the
                data space cannot be written.
        """
        if name not in self._places:
            raise _missing(name)
        with self._writing[name]:
            self.refresh()
            try:
                yield self.whole(name)
            except SpaceError as error:
                raise APIError(
                    409, f"data space {name!r} cannot be written now: {error}", retry_after_s=1
                ) from error
            finally:
                self.refresh()

    def _seen(self, name: str, key: Key) -> View | None:
        version = self._versions[name]
        if key.labels not in version.views:
            version.views[key.labels] = _view(name, version, key)
        return version.views[key.labels]


def building(place: Path, manifest: Manifest) -> str:
    """What tells a data space from another that is built in its place, whose rows are others.

    Its embedder, and its first segment, which is written once: compacting writes another.
    """
    first = ""
    with suppress(FileNotFoundError):  # it is being replaced: then what is opened next differs
        for name in manifest.segments[:1]:
            told = (place / SEGMENTS / name).stat()
            first = f" {told.st_ino} {told.st_mtime_ns}"
    return manifest.fingerprint + first


def _newest(place: Path, old: DataSpace | None = None) -> _Version:
    """The version that is there now, with the embedder of `old` if that made it, too.

    Raises:
        SpaceError: If it cannot be opened.
    """
    manifest = read_manifest(place)
    built = building(place, manifest)  # first: what is replaced meanwhile then shows
    if old is not None and old.manifest.fingerprint == manifest.fingerprint:
        return _Version(DataSpace.open(place, old.embedder), built)
    return _Version(DataSpace.open(place), built)


def _missing(name: str) -> APIError:
    return APIError(
        404, f"there is no data space {name!r} for this key", param="data_space",
        code="data_space_not_found",
    )  # fmt: skip


def _view(name: str, version: _Version, key: Key) -> View | None:
    """An unlabelled data space is for keys that read everything; public documents are for all."""
    space, built = version.space, version.built
    if key.reads_all:
        return View(name, space, built)
    labels = space.manifest.labels
    if labels is None:
        return None
    public = () if labels.public is None else (labels.public,)
    try:
        seen = space.filter(In(labels.field, (*key.labels, *public)))
    except ValueError:  # no document has a label of this kind
        return None
    return View(name, seen, built) if len(seen) else None
