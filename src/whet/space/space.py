"""A data space: documents on disk, their vectors, and the embedder that made them."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int

from whet.data.documents import Document, refuse_one
from whet.data.filters import Filter, as_filter, both
from whet.embed.lsa import LSA, Embedder, SentenceEncoder, check_embedder
from whet.errors import EmbedderMismatchError, SpaceError
from whet.maths.arrays import Array, as_count
from whet.space import build
from whet.space.bm25 import BM25
from whet.space.build import Reading
from whet.space.ray.cluster import SCHEME, Cluster, find
from whet.space.store.manifest import Labels, Manifest
from whet.space.store.protocol import Metric, Neighbors, Reader
from whet.space.store.reader import Segments
from whet.space.store.staging import EMBEDDER
from whet.space.store.vectors import as_aims, cosines
from whet.space.store.writer import delete_documents

DEFAULT_K = 200  # candidates, where there are so many
LOADED = ("st", "hf", "ntk", "influence")  # kinds of embedder that `whet.open_space` loads
EMPTY = "the data space holds no documents: add some"


class DataSpace:
    """An opened data space. It stays as it was when opened, whoever writes to it meanwhile.

    A document has an id, which its source gave, and a row, a whole number that the data space gave
    and never gives again.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        embedder: Embedder,
        store: Reader,
        where: Filter | None = None,
    ) -> None:
        """Use `build` or `open`. With a filter, `store` is restricted to it."""
        self.path, self.manifest, self.embedder, self.store = path, manifest, embedder, store
        self.where = where
        """What bounds this data space for good; None if nothing does."""
        self._count = store.count()
        self._words: dict[Filter | None, tuple[Int[Array, " n"], BM25]] = {}

    @classmethod
    def build(
        cls,
        documents: Reading,
        path: str | Path,
        embedder: Embedder | None = None,
        progress: bool = False,
        *,
        source: str = "",
        labels: Labels | None = None,
        ray: str | None = None,
    ) -> "DataSpace":
        """Make a data space at `path`, or go on with making it where that was killed.

        A document that cannot be added is told in `failed.jsonl`: one that the source could not
        read, whose id comes with another text as well, or that the embedder makes no vector of.

        Args:
            documents: Texts, mappings like records of JSON (`text`, `id`, metadata), or
                `Document`s; without an id they are called "0", "1", … Read once, or once more
                to go on.
            path: A new folder.
            embedder: None fits `lsa` on the documents and keeps it in the folder.
            progress: Draw bars on stderr.
            source: Where the documents come from, in words: a killed addition of the same source
                goes on where it stopped, and one without begins anew.
            labels: What is not for everybody: then nothing is fitted across labels.
            ray: Address of a Ray cluster (HOST:PORT, or `local`) whose workers embed.

        Raises:
            SourceError: If there are no documents, or the source cannot go on.
            SpaceError: If `path` holds anything else, or cannot be written.
            ValueError: If a document or `embedder` is of another kind, or `lsa` would be fitted
                on documents that are not public.
        """
        check_embedder(embedder)
        build.build(documents, Path(path), embedder, source, labels, progress, ray)
        return cls.open(path, embedder)

    @classmethod
    def open(
        cls,
        path: str | Path,
        embedder: Embedder | None = None,
        *,
        where: Filter | str | None = None,
        partial: bool = False,
    ) -> "DataSpace":
        """Open the data space at `path`; nothing is read but what is needed to check it.

        Its embedder comes along where it is `lsa` or `st:…`; another must be given.

        Args:
            path: Its folder; or `ray:HOST:PORT/NAME`, where it is served by a Ray cluster.
            embedder: The one that made it.
            where: Only what passes can be seen, whatever is asked later: a filter, or a text as
                `--where` takes.
            partial: Leave out segments that are broken, or shards that do not answer, instead of
                refusing.

        Raises:
            SpaceError: If it is missing, of another format, or its files are broken.
            EmbedderMismatchError: If another embedder made it.
            ValueError: If the filter cannot be read, or has a field that no document has.
        """
        check_embedder(embedder)
        where = as_filter(where)
        store: Segments | Cluster
        if str(path).startswith(SCHEME):
            store = find(str(path), partial=partial)
            path = store.opening.path
        else:
            path = Path(path)
            store = Segments.open(path, partial=partial)
        manifest = store.manifest
        embedder = _own_embedder(path, store) if embedder is None else embedder
        made_by = (manifest.dimension, manifest.fingerprint)
        if (embedder.dimension, embedder.fingerprint) != made_by:
            raise EmbedderMismatchError(
                f"data space {path} holds vectors of dimension {manifest.dimension} by "
                f"{manifest.embedder}, but another {embedder.name} makes {embedder.dimension}: "
                f"rebuild it with `whet index --embedder {embedder.name}`"
            )
        opened = cls(path, manifest, embedder, store)
        return opened if where is None else opened.filter(where)

    def filter(self, where: Filter | str) -> "DataSpace":
        """The same, of which only what passes `where` can be seen, whatever is asked later.

        Raises:
            ValueError: If the filter cannot be read, or has a field that no document has.
        """
        own = as_filter(where)
        if own is None:  # as a key's labels that were forgotten
            raise ValueError("where is None: expected a filter, or a text as `year >= 2010`")
        store, bound = self.store.filter(own), both(self.where, own)
        return DataSpace(self.path, self.manifest, self.embedder, store, bound)

    def add(
        self,
        documents: Reading,
        progress: bool = False,
        *,
        source: str = "",
        ray: str | None = None,
    ) -> "DataSpace":
        """Add the documents that are not there yet, all or none, and open the data space again.

        They are as in `build`; those without an id are called by the rows that follow. One of the
        same id and text is skipped, so doing it twice is doing it once. The embedder is kept as it
        is. What is there is not touched. A killed addition goes on by its `source`, as with
        `build`.

        Raises:
            SourceError: If the source cannot go on.
            SpaceError: As `build`, or if another process is writing.
        """
        self._assert_whole()
        build.add(documents, self.path, self.embedder, source, progress, ray)
        return DataSpace.open(self.path, self.embedder)

    def delete(self, *, ids: Sequence[str] = (), where: Filter | str | None = None) -> "DataSpace":
        """Delete documents by id, or those that pass a filter, and open the data space again.

        An id that is not there is none to delete. The disk is given back by `compact`.

        Raises:
            ValueError: If neither or both are given, `ids` is one text, or the filter has a field
                of no document.
            SpaceError: If another process is writing.
        """
        self._assert_whole()
        refuse_one(ids, "ids")
        if bool(ids) == (where is not None):
            raise ValueError("delete takes either ids or a filter: give one of them")
        delete_documents(self.path, ids, where)
        return DataSpace.open(self.path, self.embedder)

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        return f"DataSpace({str(self.path)!r}, {counted(self._count)}, {self.embedder.name})"

    @property
    def dimension(self) -> int:
        return self.store.dimension

    @property
    def rows(self) -> Int[Array, " n"]:
        """Every document's row, ascending."""
        return self.store.ids()

    @property
    def ids(self) -> Sequence[str]:
        """Every document's id, by row."""
        names: list[str] = self.store.rows(self.rows, ["id"])["id"].to_pylist()
        return names

    def vectors(self, rows: Any) -> Float[Array, "n d"]:
        """In float32. Raises IndexError for a row that is not there."""
        return self.store.vectors(rows).astype("float32")

    def text(self, row: int) -> str:
        return self.texts([row])[0]

    def texts(self, rows: Iterable[int] | Int[Array, " n"]) -> list[str]:
        """Raises IndexError for a row that is not there."""
        texts: list[str] = self.store.rows(list(rows), ["text"])["text"].to_pylist()
        return texts

    def documents(self, rows: Iterable[int] | Int[Array, " n"]) -> list[Document]:
        """Raises IndexError for a row that is not there."""
        return [
            Document(row["id"], row["text"], json.loads(row["meta"]))
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
        """For each query the `k` documents of largest |cosine|, or of largest cosine.

        The same on any thread count and in any batch; of equals the lowest rows. Exact where a
        segment has no index; otherwise `probe_fraction`, the share of the index that is searched,
        trades recall for time.

        Raises:
            ValueError: If k < 1, or fewer documents pass; if a query is zero, not finite or of
                another dimension; if the filter has a field that no document has.
        """
        where = as_filter(where)
        self.resolve_k(k, where)
        found = self.store.search(
            queries, k, metric=metric, where=where, exact=exact, probe_fraction=probe_fraction
        )
        return [found.of(line) for line in range(len(found.ids))]

    def bm25_search(
        self, prompt: str, k: int, where: Filter | str | None = None
    ) -> Int[Array, " m"]:
        """Rows of the `k` documents that answer best to the prompt's words, ascending (BM25).

        Fewer if fewer share a word with it. The first call with a filter reads all texts that pass,
        and keeps their index of words in memory: see `BM25` for its cost.

        Raises:
            ValueError: If no text holds a word, or the filter has a field that no document has.
        """
        where = as_filter(where)
        if where not in self._words:
            visible = self.store.ids(where)
            self._words[where] = visible, BM25(self.texts(visible))
        rows, words = self._words[where]
        found: Int[Array, " m"] = rows[words.nearest(prompt, k)]
        return found

    def score_rows(self, query: Float[Array, "1 d"], rows: Int[Array, " n"]) -> Neighbors:
        """Documents that something else nominated, by ascending row, as candidates of `query`.

        Raises:
            ValueError: If the query is zero, not finite or of another dimension.
            IndexError: If a row is not there.
        """
        vectors, [aim] = self.vectors(rows), as_aims(query, self.dimension)
        return Neighbors(rows, vectors, cosines(aim, vectors))

    def _assert_whole(self) -> None:
        if self.where is not None:
            raise SpaceError(f"{self.path} is open for a part of it: open it whole to write")

    def resolve_k(self, k: int | None = None, where: Filter | str | None = None) -> int:
        """`k` if so many documents pass; without `k`, 200 or as many as pass.

        Raises:
            ValueError: If k < 1, or fewer documents pass.
        """
        where = as_filter(where)
        passing = self._count if where is None else self.store.count(where)
        asked = min(DEFAULT_K, max(1, passing)) if k is None else as_count(k, "k")
        if asked <= passing:
            return asked
        if not passing:
            filtered = where is not None or self.where is not None
            raise ValueError("no document passes the filter: correct it" if filtered else EMPTY)
        there = counted(passing)
        told = f"the data space holds {there}" if where is None else f"{there} pass the filter"
        raise ValueError(f"k is {asked}, but {told}: lower k")


def counted(count: int) -> str:
    """As a person says it."""
    return f"{count:,} document" + ("s" if count != 1 else "")


def _own_embedder(path: Path, store: Segments | Cluster) -> Embedder:
    name = store.manifest.embedder
    if name == LSA.name:
        return store.lsa() if isinstance(store, Cluster) else LSA.load(path / EMBEDDER)
    kind, _, model = name.partition(":")
    if kind == "st" and "@" not in model:
        return SentenceEncoder(model)
    if kind in LOADED:
        raise SpaceError(
            f"data space {path} was made by embedder {name}: open it with "
            f"`whet.open_space({str(path)!r})`, which loads that"
        )
    raise SpaceError(
        f"data space {path} was made by the Python embedder {name!r}: open it in Python with "
        "`DataSpace.open(path, embedder)`"
    )
