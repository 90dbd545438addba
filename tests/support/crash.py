"""Kills writers of a data space at random, and looks at what they leave.

    PYTHONPATH=tests python -m support.crash --kills 200 --seed 0

A child does one operation after another (build, append, delete, compact) and notes each that was
acknowledged. It is killed; what is there must be as after the noted operations, or after one more.
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
from whet.space.store import ann_index as index
from whet.space.store import segment
from whet.space.store.manifest import MANIFEST_FILE, SEGMENTS
from whet.space.store.reader import DiskReader
from whet.space.store.writer import DiskWriter

EMBEDDER = HashingEmbedder()


def document(i):
    return Document(f"d{i}", f"text {i} of {i % 7}", {"i": i, "seventh": i % 7})


def operation(seed, number):
    """What the n-th operation is: its kind and two numbers."""
    rng = random.Random(seed * 100_003 + number)
    kind = "append" if number == 0 else rng.choice(["append", "append", "delete", "compact"])
    return kind, number * 60, rng.randrange(7)


def after(seed, operations):
    """The ids that are there after the first operations."""
    there = set()
    for number in range(operations):
        kind, start, seventh = operation(seed, number)
        if kind == "append":
            there |= set(range(start, start + 60))
        elif kind == "delete":
            there = {i for i in there if i % 7 != seventh}
    return there


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
            if len(now) and seventh in {i % 7 for i in after(seed, number)}:
                writer.delete(where=Compare("seventh", "==", seventh))
        else:
            writer.compact()


def write(path, notes, seed):
    number = noted(notes)
    while True:
        perform(path, seed, number)
        number += 1
        note(notes, number)


def note(notes, number):
    new = notes.with_suffix(".new")
    new.write_text(str(number))
    new.replace(notes)


def noted(notes):
    return int(notes.read_text())


def killed(path, notes, seed, after_s):
    child = os.fork()
    if child == 0:
        write(path, notes, seed)
    time.sleep(after_s)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"the writer ended by itself: {status}"


def check(path, notes, seed):
    """Gives how many operations were acknowledged."""
    number = noted(notes)
    if not (path / MANIFEST_FILE).exists():
        assert number == 0, "an acknowledged build is gone"
        return 0
    space = DataSpace.open(path, EMBEDDER)
    assert not [fault for s in space.store.segments for fault in s.verify()]
    there = {int(name[1:]) for name in space.ids}
    possible = [n for n in (number, number + 1) if after(seed, n) == there]
    assert possible, f"neither as after {number} operations nor one more: {sorted(there)[:9]}…"
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


def pace(path):
    """Seconds of an operation."""
    perform(path, 0, 0)
    start = time.monotonic()
    DataSpace.open(path, EMBEDDER).add([document(i) for i in range(9000, 9060)])
    return time.monotonic() - start


def sweep(folder, kills, seed):
    """Kill so many writers; gives how many operations were acknowledged between them."""
    build.PART_DOCUMENTS, index.MIN_ROWS, segment.MAX_ROWS = 16, 100, 150
    rng, done, pace_s = random.Random(seed), 0, pace(folder / "pace")
    for round_ in range(kills):
        if round_ % 12 == 0:  # now and then a new data space
            path, notes, number = folder / f"s{round_}", folder / f"n{round_}", 0
            note(notes, 0)
        killed(path, notes, seed + round_ // 12, rng.random() * 4 * pace_s)
        now = check(path, notes, seed + round_ // 12)
        if now == number:  # too little time, on this machine, as busy as it is now
            pace_s *= 1.5
        done, number = done + now - number, now
        if round_ % 12 == 11 and (path / MANIFEST_FILE).exists():
            check_no_leak(path)
            shutil.rmtree(path)
    return done


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        done = sweep(Path(folder), asked.kills, asked.seed)
    print(f"{asked.kills} kills, {done} operations acknowledged, all consistent")
    sys.exit(0)
