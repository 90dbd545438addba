"""A data space: documents on disk, their vectors, and the embedder that made them."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int

from whet.config import Renamed
from whet.data.chunking import AUTO
from whet.data.documents import Document, reject_str
from whet.data.filters import Filter, as_filter, both
from whet.data.values import read_meta
from whet.data.walk import FileOptions, LeftOut
from whet.embed.embedder import Embedder, check_embedder, encode_queries
from whet.embed.registry import get_embedder
from whet.errors import SpaceError
from whet.io import count_of
from whet.maths.arrays import Array, as_count
from whet.space import build
from whet.space.bm25 import BM25
from whet.space.indexing.addition import Addition, Documents
from whet.space.indexing.sync import Changes
from whet.space.maintenance.refit import refit
from whet.space.opening import embedder_for_adding, is_folder, open_with_embedder
from whet.space.store.kernel import KernelScale, measure_kernel
from whet.space.store.manifest import MANIFEST_FILE, Labels, Manifest
from whet.space.store.protocol import Metric, Neighbors, Reader
from whet.space.store.writer import delete_documents

DEFAULT_K = 200  # candidates; all documents if there are fewer
EMPTY = "the data space holds no documents: add some"


class DataSpace:
    """Documents with their vectors, opened for search; create one with `build` or `open`.

    An opened data space is a snapshot: it does not change while others write to the folder. `add`
    and `delete` return the new state. Every document has an id, given by its source, and a row, a
    number that the data space assigns once and never reuses.

    >>> space = DataSpace.build(["bees dance", "ants walk", "bees sting"], "insects.whet")
    >>> [neighbors] = space.search("dancing bees", k=2)
    >>> space.texts(neighbors.rows)
    ['bees dance', 'bees sting']
    >>> len(DataSpace.open("insects.whet"))
    3
    """

    updated = Renamed("changes.updated")

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        embedder: Embedder,
        store: Reader,
        where: Filter | None = None,
    ) -> None:
        """Use `build` or `open` instead. With `where`, `store` must be filtered by it."""
        self.path, self.manifest, self.embedder, self.store = path, manifest, embedder, store
        self.where = where
        """The filter that every operation of this data space is subject to, if any."""
        self.changes = Changes()
        """After `build` or `add`: what was added, replaced and deleted."""
        self._count = store.count()
        self._kernel = None if where is not None else KernelScale.of_record(manifest.kernel)
        self._bm25: dict[Filter | None, tuple[Int[Array, " n"], BM25]] = {}

    @classmethod
    def build(
        cls,
        docs: Documents,
        path: str | Path,
        embedder: str | Embedder | None = None,
        *,
        text_field: str = "text",
        chunks: str = AUTO,
        labels: Labels | None = None,
        progress: bool = False,
        resume_key: str = "",
        ray: str | None = None,
        files: FileOptions | None = None,
        on_left_out: Callable[[LeftOut], None] | None = None,
        keep_missing: bool = False,
    ) -> "DataSpace":
        """Create the data space at `path`, or add the documents that are new to an existing one.

        Running it again after an interruption resumes, if the documents come from a source or have
        a `resume_key`. A folder or file that was added before is kept in step: documents of changed
        files are replaced, and those that are no longer there are deleted. Documents that cannot be
        added (unreadable records, an id that comes with two texts, texts that cannot be embedded)
        are listed in `failed.jsonl`.

        >>> docs = [{"id": "bee", "text": "Bees dance.", "year": 2020}, "Ants walk."]
        >>> DataSpace.build(docs, "bugs.whet").ids
        ['bee', '1']
        >>> len(DataSpace.build(["Wasps sting."], "bugs.whet"))
        3

        Args:
            docs: Texts, mappings (`text`, `id`, metadata) or `Document`s; those without an id are
                numbered. Or a source: a file, a folder, `hf:NAME` or `-`, see `read_documents`.
            path: A new folder, or that of a data space.
            embedder: `lsa`, which is fitted on the documents and stored in the folder;
                `st:NAME`, `hf:NAME@layer=6` or another specification of docs/embedders.md; or an
                object that implements `Embedder`. By default that of an existing data space,
                otherwise `lsa`.
            text_field: Field of a record that holds the text.
            chunks: How texts are cut: see `whet.data.chunking`. `auto` is the rule of the existing
                data space, and passages that the embedder reads entirely for a new one.
            labels: Access labels of the documents; nothing is then fitted across labels.
            progress: Draw progress bars on stderr.
            resume_key: Identifies `docs` when an interrupted call is resumed; by default the
                source's path. Without it, an interrupted addition starts again.
            ray: Address of a Ray cluster (HOST:PORT, or `local`) whose workers embed.
            files: Which files of a folder are read, and up to which size.
            on_left_out: Called with each file or folder of a source that is left out by rule.
            keep_missing: Keep documents that a folder or file no longer contains.

        Returns:
            The data space, opened.

        Raises:
            SourceError: If there are no documents, or the source fails.
            SpaceError: If `path` holds anything else, cannot be written, has other labels or
                another rule of `chunks`, or another process is writing.
            EmbedderMismatchError: If the existing data space was made by another embedder.
            ValueError: If an argument is invalid, or `lsa` would be fitted on documents that are
                not public.
        """
        if embedder is not None:
            check_embedder(embedder)
        if not is_folder(path):
            raise ValueError(f"path is {str(path)!r}: expected a folder")
        path = Path(path)
        addition = Addition(
            docs=docs, text_field=text_field, chunks=chunks, resume_key=resume_key,
            progress=progress, ray=ray, files=files, on_left_out=on_left_out,
            keep_missing=keep_missing,
        )  # fmt: skip
        if (path / MANIFEST_FILE).exists():
            return cls.open(path, embedder_for_adding(path, embedder, labels))._add(addition)
        loaded = get_embedder(embedder) if isinstance(embedder, str) else embedder  # None: lsa
        changes = build.create(addition, path, loaded, labels)
        opened = cls.open(path, loaded)
        opened.changes = changes
        return opened

    @classmethod
    def open(
        cls,
        path: str | Path,
        embedder: str | Embedder | None = None,
        *,
        where: Filter | str | None = None,
        partial: bool = False,
    ) -> "DataSpace":
        """Open the data space at `path`, with the embedder that made it.

        Reads no more than needed to check the files; vectors and texts stay on disk.

        Args:
            path: A folder; `ray:HOST:PORT/NAME` for one that a Ray cluster serves; or
                `milvus:URI#COLLECTION` for a copy in Milvus (`whet space copy`).
            embedder: By default loaded by the name that the data space stores. Required if the
                data space was made by a Python object.
            where: Filter that every operation is subject to, such as `year >= 2010`.
            partial: Skip broken segments, or shards that do not answer, instead of raising.

        Returns:
            The data space as it is now; later changes are not seen.

        Raises:
            SpaceError: If the data space is missing, of another format, or its files are broken.
            EmbedderMismatchError: If another embedder made it.
            ModelError: If the embedder's model cannot be loaded.
            ValueError: If the filter cannot be parsed, or has a field that no document has.
        """
        where = as_filter(where)
        store, embedder = open_with_embedder(path, embedder, partial=partial)
        space = cls(store.path, store.manifest, embedder, store)
        return space if where is None else space.filter(where)

    def filter(self, where: Filter | str) -> "DataSpace":
        """The documents that pass `where`, as a data space whose operations see no others.

        Raises:
            ValueError: If the filter cannot be parsed, or has a field that no document has.
        """
        condition = as_filter(where)
        if condition is None:  # such as the labels of a key that were forgotten
            raise ValueError("where is None: expected a filter, or a text as `year >= 2010`")
        store, combined = self.store.filter(condition), both(self.where, condition)
        return DataSpace(self.path, self.manifest, self.embedder, store, combined)

    def add(
        self,
        docs: Documents,
        *,
        text_field: str = "text",
        chunks: str = AUTO,
        progress: bool = False,
        resume_key: str = "",
        ray: str | None = None,
    ) -> "DataSpace":
        """Add the documents that are new, all or none; returns the data space opened again.

        Arguments are as for `build`. A document of the same id and text as before has no effect, or
        with other metadata replaces these, under a new row; one of the same id with another text is
        listed in `failed.jsonl`. The embedder does not change.

        Raises:
            SourceError, ValueError: As `build`.
            SpaceError: As `build`, or if the data space was opened with a filter.
        """
        self._require_writable()
        addition = Addition(
            docs=docs, text_field=text_field, chunks=chunks, resume_key=resume_key,
            progress=progress, ray=ray,
        )  # fmt: skip
        return self._add(addition)

    def _add(self, addition: Addition) -> "DataSpace":
        changes = build.add(addition, self.path, self.embedder)
        opened = DataSpace.open(self.path, self.embedder)
        opened.changes = changes
        return opened

    def delete(self, *, ids: Sequence[str] = (), where: Filter | str | None = None) -> "DataSpace":
        """Delete documents by id or by filter; returns the data space opened again.

        The id of a document that was cut into passages stands for these. Unknown ids are ignored.
        `whet space compact` frees the disk space.

        Raises:
            ValueError: If both or neither of `ids` and `where` are given, `ids` is a string, or the
                filter has a field that no document has.
            SpaceError: If the data space was opened with a filter, or another process is writing.
        """
        self._require_writable()
        reject_str(ids, "ids")
        if bool(ids) == (where is not None):
            raise ValueError("delete takes either ids or a filter: give one of them")
        delete_documents(self.path, ids, where)
        return DataSpace.open(self.path, self.embedder)

    def refit(self, *, progress: bool = False) -> "DataSpace":
        """Fit the `lsa` embedder again, on the documents that the data space contains now.

        Forgets the words of deleted documents and learns those of added ones; see `whet space
        refit`. Ids and rows do not change, vectors do. Returns the data space opened again.

        Raises:
            SourceError: If it has no (public) document with a word.
            SpaceError: If it was made by another embedder, an addition is unfinished, it cannot be
                written, was opened with a filter, or another process is writing.
        """
        self._require_writable()
        refit(self.path, progress=progress)
        return DataSpace.open(self.path)

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        documents = count_of(self._count, "document")
        return f"DataSpace({str(self.path)!r}, {documents}, {self.embedder.name})"

    @property
    def dimension(self) -> int:
        """Length of the vectors."""
        return self.store.dimension

    @property
    def kernel(self) -> KernelScale:
        """Mean cosine of two documents, and the default λ'. With a filter, of those that pass it."""
        if self._kernel is None:
            self._kernel = measure_kernel(self.store)
        return self._kernel

    @property
    def rows(self) -> Int[Array, " n"]:
        """Rows of all documents, ascending."""
        return self.store.ids()

    @property
    def ids(self) -> Sequence[str]:
        """Ids of all documents, by row."""
        ids: list[str] = self.store.rows(self.rows, ["id"])["id"].to_pylist()
        return ids

    def vectors(self, rows: Any) -> Float[Array, "n d"]:
        """Vectors of the documents in `rows`, in float32. Raises IndexError for an unknown row."""
        return self.store.vectors(rows).astype("float32")

    def text(self, row: int) -> str:
        """Text of one document. Raises IndexError if there is no such row."""
        return self.texts([row])[0]

    def texts(self, rows: Iterable[int] | Int[Array, " n"]) -> list[str]:
        """Texts of the documents in `rows`. Raises IndexError for an unknown row."""
        texts: list[str] = self.store.rows(list(rows), ["text"])["text"].to_pylist()
        return texts

    def documents(self, rows: Iterable[int] | Int[Array, " n"]) -> list[Document]:
        """The documents in `rows`. Raises IndexError for an unknown row."""
        return [
            Document(row["id"], row["text"], read_meta(row["meta"]))
            for row in self.store.rows(list(rows)).to_pylist()
        ]

    def search(
        self,
        queries: Any,
        k: int,
        *,
        metric: Metric = "abs_cosine",
        where: Filter | str | None = None,
        exact: bool = False,
        probe_fraction: float | None = None,
    ) -> list[Neighbors]:
        """Find the `k` documents nearest to each query, by |cosine| or by cosine.

        Results do not depend on the number of threads or on the other queries; ties go to the
        lowest row. Segments without an index are searched exactly, O(N d).

        >>> space = DataSpace.build(["bees dance", "ants walk"], "search.whet")
        >>> [neighbors] = space.search("ants walk", k=1)
        >>> neighbors.rows.tolist(), round(float(neighbors.scores[0]), 2)
        ([1], 1.0)

        Args:
            queries: One vector per query, or texts, which are embedded.
            k: Number of documents.
            metric: `abs_cosine` finds vectors opposite to the query too, as SIFT can use them.
            where: Filter that a document must pass.
            exact: Search every row, without an index.
            probe_fraction: Share of an index that is searched, above 0 and at most 1; by default
                the share that had a recall of 0.95 when the index was built.

        Returns:
            One `Neighbors` per query: rows (ascending), vectors and scores.

        Raises:
            ValueError: If k < 1 or fewer documents pass the filter; if a query is zero, not finite
                or of another dimension; if the filter has a field that no document has.
        """
        where = as_filter(where)
        self.resolve_k(k, where)
        texts = [queries] if isinstance(queries, str) else queries
        if isinstance(texts, list | tuple) and texts and isinstance(texts[0], str):
            queries = encode_queries(self.embedder, texts)
        results = self.store.search(
            queries, k, metric=metric, where=where, exact=exact, probe_fraction=probe_fraction
        )
        return [results[i] for i in range(len(results))]

    def bm25_search(
        self, prompt: str, k: int, where: Filter | str | None = None
    ) -> Int[Array, " m"]:
        """Find the `k` documents that match the words of `prompt` best by BM25.

        The first call with a filter reads all texts that pass it and keeps a word index of them in
        memory; see `BM25` for the cost.

        Returns:
            Rows, ascending; fewer than `k` if fewer documents share a word with the prompt.

        Raises:
            ValueError: If no text contains a word, or the filter has a field that no document has.
        """
        where = as_filter(where)
        if where not in self._bm25:
            rows = self.store.ids(where)
            self._bm25[where] = rows, BM25(self.texts(rows))
        rows, index = self._bm25[where]
        nearest: Int[Array, " m"] = rows[index.top_k(prompt, k)]
        return nearest

    def resolve_k(self, k: int | None = None, where: Filter | str | None = None) -> int:
        """The number of candidates: `k`, or by default 200, or all documents if there are fewer.

        Raises:
            ValueError: If k < 1, or fewer than `k` documents pass the filter.
        """
        where = as_filter(where)
        count = self._count if where is None else self.store.count(where)
        resolved = min(DEFAULT_K, max(1, count)) if k is None else as_count(k, "k")
        if resolved <= count:
            return resolved
        if not count:
            filtered = where is not None or self.where is not None
            raise ValueError("no document passes the filter: correct it" if filtered else EMPTY)
        limit = "the data space holds {}" if where is None else "{} pass the filter"
        limit = limit.format(count_of(count, "document"))
        raise ValueError(f"k is {resolved}, but {limit}: lower k")

    def _require_writable(self) -> None:
        if not is_folder(self.path):
            raise SpaceError(
                f"{self.path} is a copy, which is read-only: change the data space it was copied "
                "from, and copy that again"
            )
        if self.where is not None:
            raise SpaceError(
                f"{self.path} was opened with a filter: open it without `where` to write"
            )
