"""Kill writers of a data space at random times and check what they leave behind.

    PYTHONPATH=tests python -m support.crash --kills 200 --seed 0

A child process runs one operation after another (build, append, delete, compact) and records the
number that completed. After it is killed, the data space must be in the state after these operations
or after one more.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import faiss  # noqa: F401  # once, not in every child
import numpy as np
from support.hashing_embedder import HashingEmbedder

from whet.data.documents import Document
from whet.data.filters import Compare
from whet.space import build
from whet.space.space import DataSpace
from whet.space.store.manifest import MANIFEST_FILE, SEGMENTS
from whet.space.store.reader import DiskReader
from whet.space.store.segments import ann_index, segment
from whet.space.store.writer import DiskWriter

EMBEDDER = HashingEmbedder()


def document(i):
    return Document(f"d{i}", f"text {i} of {i % 7}", {"i": i, "seventh": i % 7})


def operation(seed, number):
    """The kind of the n-th operation and its two parameters."""
    rng = random.Random(seed * 100_003 + number)
    kind = "append" if number == 0 else rng.choice(["append", "append", "delete", "compact"])
    return kind, number * 60, rng.randrange(7)


def expected(seed, operations):
    """The document numbers that the data space contains after the first operations."""
    documents = set()
    for number in range(operations):
        kind, start, seventh = operation(seed, number)
        if kind == "append":
            documents |= set(range(start, start + 60))
        elif kind == "delete":
            documents = {i for i in documents if i % 7 != seventh}
    return documents


def perform(path, seed, number):
    kind, start, seventh = operation(seed, number)
    if kind == "append":
        documents = [document(i) for i in range(start, start + 60)]
        if (path / MANIFEST_FILE).exists():
            DataSpace.open(path, EMBEDDER).add(documents, resume_key=f"from {start}")
        else:
            DataSpace.build(documents, path, EMBEDDER, resume_key=f"from {start}")
        return
    with DiskWriter(path) as writer:
        if kind == "delete":
            now = writer.snapshot()
            if len(now) and seventh in {i % 7 for i in expected(seed, number)}:
                writer.delete(where=Compare("seventh", "==", seventh))
        else:
            writer.compact()


def write(path, count_file, seed):
    number = read_count(count_file)
    while True:
        perform(path, seed, number)
        number += 1
        write_count(count_file, number)


def write_count(count_file, number):
    new = count_file.with_suffix(".new")
    new.write_text(str(number))
    new.replace(count_file)


def read_count(count_file):
    return int(count_file.read_text())


def run_and_kill(path, count_file, seed, after_s):
    child = os.fork()
    if child == 0:
        write(path, count_file, seed)
    time.sleep(after_s)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"the writer ended by itself: {status}"


def check(path, count_file, seed):
    """Check the data space; returns the number of completed operations."""
    number = read_count(count_file)
    if not (path / MANIFEST_FILE).exists():
        assert number == 0, "a completed build is lost"
        return 0
    space = DataSpace.open(path, EMBEDDER)
    assert not [fault for s in space.store.segments for fault in s.verify()]
    documents = {int(name[1:]) for name in space.ids}
    possible = [n for n in (number, number + 1) if expected(seed, n) == documents]
    assert possible, (
        f"the state is neither that after {number} operations nor one more: {sorted(documents)[:9]}…"
    )
    assert space.documents(space.rows) == [document(int(name[1:])) for name in space.ids]
    texts = space.texts(space.rows)
    if texts:
        stored = space.vectors(space.rows)
        np.testing.assert_allclose(stored, EMBEDDER.encode(texts), atol=2e-3)
    space.store.close()
    return number


def check_no_leak(path):
    with DiskWriter(path) as writer:
        writer.compact()
        manifest = writer.manifest
    kept = {MANIFEST_FILE, SEGMENTS, "failed.jsonl"} | (
        {manifest.deleted} if manifest.deleted else set()
    )
    assert {entry.name for entry in path.iterdir()} <= kept
    assert {entry.name for entry in (path / SEGMENTS).iterdir()} == set(manifest.segments)
    DiskReader.open(path).close()


def duration(path):
    """Duration of an operation in seconds."""
    perform(path, 0, 0)
    start = time.monotonic()
    DataSpace.open(path, EMBEDDER).add([document(i) for i in range(9000, 9060)])
    return time.monotonic() - start


def sweep(folder, kills, seed):
    """Kill writers; returns the number of operations completed between the kills."""
    build.PART_DOCUMENTS, ann_index.MIN_ROWS, segment.MAX_ROWS = 16, 100, 150
    rng, done, duration_s = random.Random(seed), 0, duration(folder / "duration")
    for round_ in range(kills):
        if round_ % 12 == 0:  # sometimes with a new data space
            path, count_file, number = folder / f"s{round_}", folder / f"n{round_}", 0
            write_count(count_file, 0)
        run_and_kill(path, count_file, seed + round_ // 12, rng.random() * 4 * duration_s)
        now = check(path, count_file, seed + round_ // 12)
        if now == number:  # not enough time, at the current load of the machine
            duration_s *= 1.5
        elif now > number + 6:  # the load has gone; without this, sleeps would only grow
            duration_s /= 1.5
        done, number = done + now - number, now
        if round_ % 12 == 11 and (path / MANIFEST_FILE).exists():
            check_no_leak(path)
            shutil.rmtree(path)
    return done


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        done = sweep(Path(folder), arguments.kills, arguments.seed)
    print(f"{arguments.kills} kills, {done} operations acknowledged, all consistent")
    sys.exit(0)
