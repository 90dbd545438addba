"""One training set for many targets at once.

Source: SIFT, arXiv 2410.08020, Section 2 (targeted instruction tuning): minimizes the sum of the
targets' variances instead of the variance of one prompt.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int

from whet.data.documents import Document, reject_str
from whet.embed.embedder import encode_queries
from whet.errors import require
from whet.io import as_json, atomic_write, progress_bar, translate_disk_errors
from whet.maths.arrays import Array, as_count, as_positive
from whet.select.selection import Selection
from whet.select.sift import SIFT
from whet.space.space import DataSpace
from whet.space.store.segments.vectors import cosines

PARQUET = (".parquet", ".pq")
OTHER_FORMATS = (".csv", ".tsv", ".xlsx", ".arrow", ".feather", ".gz", ".bz2", ".xz", ".zst")
STEPS = 64  # picks between two updates of the progress bar
BATCH = 64  # targets searched for in one pass, which holds 64 k rows of candidates


@dataclass(frozen=True, slots=True, eq=False)
class TrainingSet:
    """The documents selected for a set of targets, the most useful first."""

    documents: tuple[Document, ...]
    """Each once, in the order in which they were first picked."""
    counts: Int[Array, " m"]
    """How often each was picked: its number of gradient steps, or its weight in a loss."""
    first_picked_at: Int[Array, " m"]
    """The step at which each was first picked, from 1."""
    gain_shares: Float[Array, " m"]
    """Share of the targets' prior variance that all picks of a document removed."""
    selection: Selection
    """Every pick in order, as indices into `candidates`."""
    candidates: Int[Array, " k"]
    """Rows of the data space that were selected from, ascending."""

    def __len__(self) -> int:
        return len(self.documents)

    def records(self) -> Iterator[dict[str, Any]]:
        """One JSON object per document: id, text, meta, count, first_picked_at, gain_share."""
        for document, count, first, share in zip(
            self.documents, self.counts, self.first_picked_at, self.gain_shares, strict=True
        ):
            yield {
                "id": document.id,
                "text": document.text,
                "meta": document.meta,
                "count": int(count),
                "first_picked_at": int(first),
                "gain_share": float(share),
            }

    def lines(self) -> Iterator[str]:
        """The records as JSON lines."""
        return (as_json(record) + "\n" for record in self.records())

    def write(self, path: str | Path) -> None:
        """Write the records to the file `path`, atomically.

        A name that ends in `.parquet` or `.pq` makes it a table, with `meta` as a column of JSON;
        any other, JSON lines.

        Raises:
            ValueError: If the name is that of another format: see `check_output`.
        """
        path = Path(path)
        check_output(path)
        with translate_disk_errors(path), atomic_write(path) as new:
            if path.suffix.lower() in PARQUET:
                table = pa.Table.from_pylist([_flat(record) for record in self.records()])
                pq.write_table(table, new)
                return
            with new.open("w", encoding="utf-8") as file:
                file.writelines(self.lines())

    def to_dataset(self) -> Any:
        """The records as a Hugging Face `datasets.Dataset`, with `meta` as a column of JSON.

        Metadata of different documents may differ, while the columns of a Dataset must not.

        Raises:
            MissingDependencyError: If `datasets` is not installed.
        """
        datasets = require("datasets", "data")
        return datasets.Dataset.from_list([_flat(record) for record in self.records()])


def check_output(path: Path) -> None:
    """Check that a training set can be written in the format that the name of a file states.

    Raises:
        ValueError: If it is that of another table, or of a compressed file.
    """
    if path.suffix.lower() in OTHER_FORMATS:
        raise ValueError(f"{path}: expected a name that ends in .jsonl or .parquet")


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    """A record whose metadata is JSON: that of different documents may differ in its fields."""
    return record | {"meta": as_json(record["meta"])}


def training_set(
    space: DataSpace,
    targets: Sequence[str],
    n: int,
    *,
    k: int | None = None,
    lam: float | None = None,
    repeats: bool = True,
    selector: str = "sift",
    progress: bool = False,
) -> TrainingSet:
    """Select the `n` documents of `space` that are together most informative about all `targets`.

    The candidates are the union of the `k` documents of largest |cosine| to each target; among
    these exact SIFT minimizes the sum of the targets' variances. Every target has the same weight,
    so a topic with many targets gets more picks.

    For m targets, c ≤ m k candidates and vectors of length d, with r = min(m, d): the search costs
    O(N m d) for N documents, the selection O(n c (d + n + r)) time and O(c (d + n + r)) memory. More
    than d targets cost no more than d: the sum of variances depends on them through TᵀT alone.

    >>> space = DataSpace.build(["bees dance", "bees sting", "ants walk"], "targets.whet")
    >>> made = training_set(space, ["how bees dance", "how ants walk"], n=2)
    >>> sorted(document.text for document in made.documents)
    ['ants walk', 'bees dance']

    Args:
        space: Where to select.
        targets: Texts that the model should become better at.
        n: Number of picks. Beyond the number of candidates, further picks repeat documents where
            that helps most.
        k: Candidates per target; by default 200, or all documents if there are fewer.
        lam: λ' of SIFT: small favors diversity; by default that of the data space, `space.kernel`.
        repeats: Whether a document can be picked several times.
        selector: `sift`; or, for comparison, `nearest` (by the mean cosine to the targets) or
            `random` (a draw from the same candidates), which pick each document once.
        progress: Draw a progress bar of the picks of `sift` on stderr.

    Returns:
        The documents, with how often and when each was picked.

    Raises:
        ValueError: If `targets` is empty or a string, a target is blank or has nothing in common
            with the data space, a number is not positive, `k` exceeds the documents, or `n` exceeds
            the candidates without repeats.
    """
    as_count(n, "n")
    lam = space.kernel.lam if lam is None else as_positive(lam, "lam")
    queries = _embed(space, targets)
    rows = _candidates(space, queries, k)
    if selector not in ("sift", "nearest", "random"):
        raise ValueError(f"selector is {selector!r}: expected sift, nearest or random for targets")
    if n > len(rows) and not (repeats and selector == "sift"):
        raise ValueError(
            f"n is {n}, but there are {len(rows)} candidates: lower n, raise k or allow repeats"
        )
    if selector != "sift":
        vectors = space.vectors(rows)
        if selector == "random":
            order = np.random.default_rng(0).permutation(len(rows))[:n]
        else:
            order = np.argsort(-cosines(queries.mean(axis=0), vectors), kind="stable")[:n]
        selection = _with_gains(order, vectors, _condense(queries), lam)
    else:
        greedy = SIFT(_condense(queries), space.vectors(rows), lam=lam, repeats=repeats)
        with progress_bar("selecting", n, show=progress, transient=True) as advance:
            while len(greedy) < n:
                steps = min(STEPS, n - len(greedy))
                selection = greedy.advance(steps)
                advance(steps)
    picked, first, place = np.unique(selection.indices, return_index=True, return_inverse=True)
    order = np.argsort(first)
    shares = np.bincount(place, selection.gains / selection.variance[0])
    return TrainingSet(
        documents=tuple(space.documents(rows[picked[order]])),
        counts=np.bincount(place)[order],
        first_picked_at=first[order] + 1,
        gain_shares=shares[order],
        selection=selection,
        candidates=rows,
    )


def _with_gains(
    order: Int[Array, " n"], rows: Float[Array, "k d"], queries: Float[Array, "r d"], lam: float
) -> Selection:
    """The picks in `order` with their gains: Eq. (2) by rank-one updates of a d × d matrix."""
    covariance, gains = np.eye(rows.shape[1]), []
    for row in rows[order].astype(np.float64):
        direction = covariance @ row
        noisy = float(row @ direction) + lam
        gains.append(float(((queries @ direction) ** 2).sum()) / noisy)
        covariance -= np.outer(direction, direction) / noisy
    prior = float((queries**2).sum())
    variance = prior - np.concatenate([[0.0], np.cumsum(gains)])
    return Selection(order, np.array(gains), variance)


def _embed(space: DataSpace, targets: Sequence[str]) -> Float[Array, "m d"]:
    reject_str(targets, "targets")
    if not len(targets):
        raise ValueError("targets is empty: expected at least one text")
    for i, text in enumerate(targets):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"target {i} is {text!r}: expected a text")
    queries = encode_queries(space.embedder, targets)
    unmatched = np.flatnonzero(~queries.any(axis=1))
    if len(unmatched):
        text = " ".join(targets[unmatched[0]].split())[:40]
        raise ValueError(
            f"target {unmatched[0]} ({text!r}) shares no term with the data space according to "
            f"{space.embedder.name}: remove it ({len(unmatched)} of {len(targets)} are like that)"
        )
    return queries


def _candidates(space: DataSpace, queries: Float[Array, "m d"], k: int | None) -> Int[Array, " k"]:
    k, rows = space.resolve_k(k), np.empty(0, np.int64)
    for start in range(0, len(queries), BATCH):
        results = space.search(queries[start : start + BATCH], k)
        rows = np.unique(np.concatenate([rows, *(neighbors.rows for neighbors in results)]))
    return rows


def _condense(queries: Float[Array, "m d"]) -> Float[Array, "r d"]:
    """At most d vectors for which every sum of variances is the same as for `queries`.

    Σ_t xᵀΣ t tᵀΣ x = xᵀΣ (TᵀT) Σ x, and T = QR has TᵀT = RᵀR.
    """
    wide = queries.astype(np.float64)
    if len(wide) <= wide.shape[1]:
        return wide
    return cast(Array, np.linalg.qr(wide, mode="r"))
