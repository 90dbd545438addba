"""What is added to a data space, and how: `Addition`."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from pathlib import Path

from whet.data.chunking import AUTO, PASSAGES, get_chunker, passage_rule
from whet.data.documents import Document, DocumentLike, iter_documents, to_documents
from whet.data.files import iter_files
from whet.data.walk import FileOptions, LeftOut
from whet.embed.embedder import Embedder
from whet.errors import SourceError, SpaceError
from whet.space.indexing.records import read_sources
from whet.space.indexing.sync import Scan, is_within, scan
from whet.space.store.manifest import Manifest

LOGGER = logging.getLogger(__name__)
Documents = Iterable[DocumentLike] | str | Path
"""What can be added: documents, texts or mappings; or a source that `read_documents` reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Addition:
    """Documents to add and how to add them."""

    docs: Documents
    text_field: str = "text"
    chunks: str = AUTO
    resume_key: str = ""
    progress: bool = False
    ray: str | None = None
    files: FileOptions | None = None
    on_left_out: Callable[[LeftOut], None] | None = None
    keep_missing: bool = False
    within: str = ""
    """Only this file or folder of the source `docs`, by its path there; empty for all."""

    def __post_init__(self) -> None:
        if self.chunks != AUTO:
            get_chunker(self.chunks)
        iterable = any(hasattr(self.docs, name) for name in ("__iter__", "__getitem__"))
        single = isinstance(self.docs, Mapping | Document | bytes)
        if single or not (iterable or isinstance(self.docs, Path)):
            raise ValueError(
                f"docs is {str(self.docs)[:40]}: expected a list of texts, mappings or documents, or "
                "a source"
            )

    @property
    def source(self) -> str:
        """What identifies these documents, read in the same way; empty if nothing does."""
        key = self.resume_key
        if not key and isinstance(self.docs, str | Path) and str(self.docs) != "-":
            key = str(Path(self.docs).resolve()) if Path(self.docs).exists() else str(self.docs)
        if not key:
            return ""
        field = "" if self.text_field == "text" else f" by {self.text_field}"
        usual = self.chunks == "whole" or self.chunks.startswith(PASSAGES)
        return key + field + ("" if usual else f" in {self.chunks}")

    def scan(self, path: Path, manifest: Manifest) -> Scan | None:
        """The files of the source next to those in the data space; None if it is not of files."""
        if self.resume_key or not isinstance(self.docs, str | Path) or str(self.docs) == "-":
            return None
        source = Path(self.docs)
        if not (source.is_dir() or source.is_file()):
            return None
        return scan(
            source.resolve(), path, manifest, self.source, text_field=self.text_field,
            chunks=self.chunks, keep_missing=self.keep_missing, options=self.files,
            on_left_out=self.on_left_out, within=self.within,
        )  # fmt: skip

    def in_known_folder(self, path: Path, manifest: Manifest) -> "Addition":
        """For a part of a folder that the data space has, that part of the folder.

        So its documents keep their ids, and none is added a second time. A part that the folder
        leaves out, such as a hidden file, is a source of its own.
        """
        if self.within or self.resume_key or not isinstance(self.docs, str | Path):
            return self
        part = Path(self.docs).resolve()
        known = read_sources(path, manifest)
        if not part.exists() or self.source in known:
            return self
        for folder in part.parents:
            whole = replace(self, docs=folder, within=part.relative_to(folder).as_posix())
            if whole.source not in known:
                continue
            files = (f.path for f in iter_files(folder, self.files) if f.problem is None)
            if any(is_within(file, whole.within) for file in chain(known[whole.source], files)):
                _report_part(self.docs, folder)
                return whole
        return self

    def for_embedder(self, embedder: Embedder | None) -> "Addition":
        """With the rule for passages that `embedder` reads entirely in place of `auto`."""
        if self.chunks != AUTO:
            return self
        return replace(self, chunks=passage_rule(getattr(embedder, "max_tokens", None)))

    def for_space(self, manifest: Manifest, path: Path) -> "Addition":
        """With the rule of the data space in place of `auto`.

        Raises:
            SpaceError: If another rule is chosen.
        """
        stored = manifest.chunking
        if not (manifest.chunks or manifest.source):  # an older version was given documents
            return replace(self, chunks="whole") if self.chunks == AUTO else self
        if self.chunks not in (AUTO, stored):
            raise SpaceError(
                f"data space {path} has texts cut by chunks {stored}, not {self.chunks}: add to it "
                f"without --chunks, or build a new data space with {self.chunks}"
            )
        return replace(self, chunks=stored)

    def documents(self, first: int) -> Iterator[Document | SourceError]:
        """The documents; those without an id are numbered from `first`."""
        if isinstance(self.docs, str | Path):
            return iter_documents(
                self.docs,
                text_field=self.text_field,
                chunks=self.chunks,
                files=self.files,
                on_left_out=self.on_left_out,
            )
        return to_documents(self.docs, first, text_field=self.text_field, chunks=self.chunks)


@cache
def _report_part(part: str | Path, folder: Path) -> None:
    """Log once that `part` belongs to a folder that the data space has."""
    LOGGER.warning(
        "%s is a part of %s, which the data space has: its documents there are brought in step, and "
        "none is added twice", part, folder,
    )  # fmt: skip
