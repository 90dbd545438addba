"""A data space: documents on disk, their vectors, and the embedder that made them."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Int

from whet.errors import EmbedderMismatch, SpaceError
from whet.maths.arrays import Array
from whet.space import build
from whet.space.documents import Document
from whet.space.embed import LSA, Embedder, SentenceEncoder
from whet.space.meta import Meta, read_meta
from whet.space.rows import Rows
from whet.space.vectors import Candidates, Sign, Vectors


class DataSpace:
    """An opened data space. It stays as it was when opened, whoever extends it meanwhile."""

    def __init__(
        self, path: Path, meta: Meta, embedder: Embedder, rows: Rows, vectors: Vectors
    ) -> None:
        self.path, self.meta, self.embedder = path, meta, embedder
        self.rows, self.vectors = rows, vectors

    @classmethod
    def build(
        cls,
        documents: Iterable[Document],
        path: str | Path,
        embedder: Embedder | None = None,
        progress: bool = False,
        *,
        source: str = "",
    ) -> "DataSpace":
        """Make a data space at `path`, which must not exist; on any error none is there.

        Args:
            documents: Read once; their ids must differ.
            path: A new folder.
            embedder: None fits `lsa` on the documents and keeps it in the folder.
            progress: Draw bars on stderr.
            source: Where the documents come from, in words, for `meta.json`.

        Raises:
            SourceError: If there are no documents or an id is given twice.
            SpaceError: If `path` exists or cannot be written, or a vector is not of length 1 or 0.
        """
        build.build(documents, Path(path), embedder, source, progress)
        return cls.open(path, embedder)

    @classmethod
    def open(cls, path: str | Path, embedder: Embedder | None = None) -> "DataSpace":
        """Open the data space at `path`; nothing is read but what is needed to check it.

        Its embedder comes along where it is `lsa` or `st:…`; an `hf:…` one must be given.

        Raises:
            SpaceError: If it is missing, of a newer format, or its files are broken or disagree.
            EmbedderMismatch: If another embedder made it.
        """
        path = Path(path)
        meta = read_meta(path)
        rows, vectors = Rows(path / meta.rows), Vectors(path / meta.vectors)
        if not meta.count == len(rows) == len(vectors) or meta.dimension != vectors.dimension:
            raise SpaceError(
                f"{path} is broken: meta.json says {meta.count} documents of dimension "
                f"{meta.dimension}, but there are {len(rows)} rows and {len(vectors)} vectors of "
                f"dimension {vectors.dimension}"
            )
        embedder = _own_embedder(path, meta) if embedder is None else embedder
        if embedder.dimension != meta.dimension or embedder.fingerprint != meta.fingerprint:
            raise EmbedderMismatch(
                f"data space {path} holds vectors of dimension {meta.dimension} by {meta.embedder},"
                f" but another {embedder.name} makes {embedder.dimension}: rebuild it with "
                f"`whet index --embedder {embedder.name}`"
            )
        return cls(path, meta, embedder, rows, vectors)

    def extend(self, documents: Iterable[Document], progress: bool = False) -> "DataSpace":
        """Add the documents that are not there yet, all or none, and open the data space again.

        A document of the same id and text is skipped, so doing it twice is doing it once. The
        embedder is kept as it is. Costs a copy of the data space.

        Raises:
            SourceError: If an id is given twice, or is there with another text.
            SpaceError: As `build`, or if another process is writing.
        """
        with build.locked(self.path):
            DataSpace.open(self.path, self.embedder)  # what another process made of it may differ
            build.extend(documents, self.path, self.embedder, progress)
        return DataSpace.open(self.path, self.embedder)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def dimension(self) -> int:
        return self.meta.dimension

    @property
    def ids(self) -> Sequence[str]:
        return self.rows.ids

    def text(self, row: int) -> str:
        return self.rows.text(row)

    def texts(self, rows: Iterable[int] | Int[Array, " n"]) -> list[str]:
        return [self.rows.text(int(row)) for row in rows]

    def documents(self, rows: Iterable[int] | Int[Array, " n"]) -> list[Document]:
        return [self.rows.document(int(row)) for row in rows]

    def search(self, queries: Any, k: int, *, sign: Sign = "both") -> list[Candidates]:
        """For each query the `k` documents of largest |cosine|, or of largest cosine (`positive`).

        Exact, and the same on any thread count and in any batch; of equals the lowest rows. One
        pass over the vectors for all queries, O(b n d).

        Raises:
            ValueError: If k < 1 or k > len(self); if a query is zero, not finite or of another
                dimension.
        """
        return self.vectors.nearest(queries, k, sign)


def _own_embedder(path: Path, meta: Meta) -> Embedder:
    if meta.embedder == LSA.name:
        return LSA.load(path / "embedder")
    kind, _, model = meta.embedder.partition(":")
    if kind == "st":
        return SentenceEncoder(model)
    raise SpaceError(
        f"data space {path} was made by embedder {meta.embedder}, which it cannot load by itself: "
        "give that embedder when opening it"
    )
