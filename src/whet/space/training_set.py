"""One list of training texts for many targets at once.

Source: SIFT, arXiv 2410.08020, Section 2 (targeted instruction tuning): instead of a prompt's
    variance, the sum of the targets' variances is made small.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Float, Int

from whet.data.documents import Document, reject_str
from whet.errors import require
from whet.io import as_json
from whet.maths.arrays import Array, as_count, as_positive
from whet.select.selection import Selection
from whet.select.sift import sift
from whet.space.space import DataSpace
from whet.space.store.vectors import cosines

BATCH = 64  # targets searched for in one pass: 64 k rows of candidates are held at a time


@dataclass(frozen=True, slots=True, eq=False)
class TrainingSet:
    """The documents chosen for a set of targets, the most useful first."""

    documents: tuple[Document, ...]
    """Each once, in the order of its first pick."""
    counts: Int[Array, " m"]
    """How often each was picked: gradient steps on it, or its weight in a loss."""
    ranks: Int[Array, " m"]
    """The step of each document's first pick, from 1."""
    gains: Float[Array, " m"]
    """By what share of the targets' prior variance all picks of a document lowered it."""
    selection: Selection
    """Every pick in order, as rows of `candidates`."""
    candidates: Int[Array, " k"]
    """Rows of the data space that were chosen from, ascending."""

    def __len__(self) -> int:
        return len(self.documents)

    def records(self) -> Iterator[dict[str, Any]]:
        """A JSON object a document: id, text, meta, count, rank, gain."""
        for document, count, rank, gain in zip(
            self.documents, self.counts, self.ranks, self.gains, strict=True
        ):
            yield {
                "id": document.id,
                "text": document.text,
                "meta": document.meta,
                "count": int(count),
                "rank": int(rank),
                "gain": float(gain),
            }

    def lines(self) -> Iterator[str]:
        """The records as JSON lines."""
        return (as_json(record) + "\n" for record in self.records())

    def write(self, path: str | Path) -> None:
        """Write the records to `path`, whole or not at all; what was there is replaced."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f"{path.name}.partial-{os.getpid()}")
        try:
            with aside.open("w", encoding="utf-8") as out:
                out.writelines(self.lines())
                out.flush()
                os.fsync(out.fileno())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)

    def to_dataset(self) -> Any:
        """The records as a Hugging Face `datasets.Dataset`; `meta` is a column of JSON.

        Metadata of different documents need not agree, as the columns of a Dataset must.

        Raises:
            MissingDependencyError: If `datasets` is not installed.
        """
        datasets = require("datasets", "data")
        rows = [record | {"meta": json.dumps(record["meta"])} for record in self.records()]
        return datasets.Dataset.from_list(rows)


def training_set(
    space: DataSpace,
    targets: Sequence[str],
    n: int,
    *,
    k: int | None = None,
    lam: float = 0.01,
    repeats: bool = True,
    selector: str = "sift",
) -> TrainingSet:
    """Choose `n` texts of `space` that together tell most about all of `targets`.

    The candidates are the `k` documents (without: 200, or all) of largest |cosine| to each target,
    joined; among these exact SIFT lowers the sum of the targets' variances. Every target counts the
    same, so a theme of many targets gets more picks than one of few. With `n` beyond the
    candidates, further picks are second and later steps on documents already picked, wherever these
    pay most; `repeats=False` forbids them, and refuses such an `n`.

    To compare with, `selector` may be `nearest` (by the mean cosine to the targets) or `random`
    (a draw of the same candidates); these pick each text once.

    For m targets, c ≤ m k candidates and vectors of d numbers, with r = min(m, d): the search costs
    O(N m d) for N documents, the selection O(n c (d + r)) time and O(c (d + r)) memory. More than d
    targets cost no more than d do: the sum of variances depends on them through TᵀT alone.

    Raises:
        ValueError: If there are no targets, or one text in their place, one is blank or shares
            nothing with the data space, a number is not positive, `k` exceeds the documents, or
            `n` cannot be had without repeats.
    """
    as_count(n, "n")
    goals = _embed(space, targets)
    rows = _near(space, goals, k)
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
            order = np.argsort(-cosines(goals.mean(axis=0), vectors), kind="stable")[:n]
        selection = _along(order, vectors, _condensed(goals), as_positive(lam, "lam"))
    else:
        selection = sift(_condensed(goals), space.vectors(rows), n, lam=lam, repeats=repeats)
    picked, first, slot = np.unique(selection.indices, return_index=True, return_inverse=True)
    order = np.argsort(first)
    gains = np.bincount(slot, selection.gains / selection.variance[0])
    return TrainingSet(
        documents=tuple(space.documents(rows[picked[order]])),
        counts=np.bincount(slot)[order],
        ranks=first[order] + 1,
        gains=gains[order],
        selection=selection,
        candidates=rows,
    )


def _along(
    order: Int[Array, " n"], rows: Float[Array, "k d"], goals: Float[Array, "r d"], lam: float
) -> Selection:
    """What picks in a given order tell: Eq. (2), one rank at a time, in d × d numbers."""
    left, gains = np.eye(rows.shape[1]), []
    for row in rows[order].astype(np.float64):
        seen = left @ row
        noisy = float(row @ seen) + lam
        gains.append(float(((goals @ seen) ** 2).sum()) / noisy)
        left -= np.outer(seen, seen) / noisy
    told = np.array(gains)
    prior = float((goals**2).sum())
    return Selection(order, told, prior - np.concatenate([[0.0], np.cumsum(told)]))


def _embed(space: DataSpace, targets: Sequence[str]) -> Float[Array, "m d"]:
    reject_str(targets, "targets")
    if not len(targets):
        raise ValueError("targets is empty: expected at least one text")
    for i, text in enumerate(targets):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"target {i} is {text!r}: expected a text")
    goals = space.embedder.encode(targets)
    strange = np.flatnonzero(~goals.any(axis=1))
    if len(strange):
        text = " ".join(targets[strange[0]].split())[:40]
        raise ValueError(
            f"target {strange[0]} ({text!r}) shares no term with the data space, as "
            f"{space.embedder.name} sees them: leave it out ({len(strange)} of {len(targets)} are "
            "such)"
        )
    return goals


def _near(space: DataSpace, goals: Float[Array, "m d"], k: int | None) -> Int[Array, " k"]:
    k, found = space.resolve_k(k), np.empty(0, np.int64)
    for start in range(0, len(goals), BATCH):
        near = space.search(goals[start : start + BATCH], k)
        found = np.unique(np.concatenate([found, *(candidates.rows for candidates in near)]))
    return found


def _condensed(goals: Float[Array, "m d"]) -> Float[Array, "r d"]:
    """At most d vectors in the place of `goals` for which every sum of variances is the same.

    Σ_t xᵀΣ t tᵀΣ x = xᵀΣ (TᵀT) Σ x, and T = QR has TᵀT = RᵀR.
    """
    wide = goals.astype(np.float64)
    if len(wide) <= wide.shape[1]:
        return wide
    return cast(Array, np.linalg.qr(wide, mode="r"))
