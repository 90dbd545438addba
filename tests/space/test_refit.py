"""Fitting an lsa embedder again forgets deleted words, keeps everything else, and survives kills."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from support.hashing_embedder import HashingEmbedder

from whet.embed.lsa import LSA
from whet.errors import EmbedderMismatchError, SourceError, SpaceError
from whet.space.maintenance.inspection import verify
from whet.space.maintenance.refit import refit
from whet.space.space import DataSpace
from whet.space.store.manifest import Labels, read_manifest

WORDS = "bee honey dance flower wax queen hive nectar pollen sting smoke river stone".split()
LABELS = Labels(field="label", public="public")


def documents(n):
    rng = random.Random(0)
    return [
        {"id": f"d{i}", "text": " ".join(rng.choices(WORDS, k=9)), "label": "public", "i": i}
        for i in range(n)
    ]


def terms(path):
    folder = path / read_manifest(path).embedder_folder
    return set(json.loads((folder / "terms.json").read_text("utf-8")))


def build(path, labels=None):
    docs = [*documents(40), {"id": "leak", "text": "honey of xyzzycorp", "label": "public"}]
    docs.append({"id": "board", "text": "secret zebra", "label": "board"})
    return DataSpace.build(docs, path, labels=labels)


def test_refit_forgets_deleted_words_and_keeps_the_rest(tmp_path):
    space = build(tmp_path / "s", LABELS).add([{"id": "new", "text": "moth", "label": "public"}])
    deleted = space.delete(ids=["leak", "d3"])
    fitted = deleted.refit()
    assert terms(space.path) >= {"moth", "bee"} and not terms(space.path) & {"xyzzycorp", "zebra"}
    assert (
        not fitted.embedder.encode(["xyzzycorp"]).any() and fitted.embedder.encode(["moth"]).any()
    )
    assert fitted.documents(fitted.rows) == deleted.documents(deleted.rows)
    np.testing.assert_array_equal(fitted.rows, deleted.rows)
    expected = fitted.embedder.encode(fitted.texts(fitted.rows))
    np.testing.assert_allclose(fitted.vectors(fitted.rows), expected, atol=2e-3)
    assert verify(space.path) == [] and fitted.manifest.version == deleted.manifest.version + 1
    files = {entry.name for entry in space.path.iterdir()}
    assert files == {"meta.json", "segments", fitted.manifest.embedder_folder}
    with pytest.raises(
        EmbedderMismatchError
    ):  # opened before: its embedder is not that of the space
        deleted.add(["wasps"])
    again = fitted.add([{"id": "last", "text": "moth wax", "label": "public"}]).refit()
    assert len(again) == len(fitted) + 1 and again.ids[-1] == "last"


def test_what_was_opened_before_stays_readable(tmp_path):
    old = build(tmp_path / "s")
    query = old.embedder.encode(["honey xyzzycorp"])
    before = old.search(query, 3)[0].scores.tolist()
    refit(old.path)
    assert old.search(query, 3)[0].scores.tolist() == before and len(old.texts(old.rows)) == 42


def test_refit_refuses_what_it_cannot_fit(tmp_path):
    other = DataSpace.build(["bees"], tmp_path / "o", HashingEmbedder())
    with pytest.raises(
        SpaceError, match="made by embedder .* which is not fitted on its documents"
    ):
        refit(other.path)
    space = build(tmp_path / "s", LABELS)
    with pytest.raises(SpaceError, match="opened with a filter"):
        space.filter("i > 3").refit()
    space.delete(where='label == "public"')
    before = (space.path / "meta.json").read_bytes()
    with pytest.raises(SourceError, match="has no public document with a word to fit lsa on"):
        refit(space.path)
    (space.path / "staging").mkdir()
    (space.path / "staging" / "plan.json").write_text('{"source": "a.jsonl", "id": "1"}')
    with pytest.raises(SpaceError, match="unfinished addition of a.jsonl: run the same"):
        refit(space.path)
    assert (space.path / "meta.json").read_bytes() == before and len(
        DataSpace.open(space.path)
    ) == 1


def test_a_killed_refit_leaves_the_old_state_or_the_new(tmp_path):
    space = build(tmp_path / "s").delete(ids=["leak"])
    documents_before, versions = space.documents(space.rows), set()
    space.store.close()
    rng, started = random.Random(0), time.monotonic()
    refit(space.path)
    duration = time.monotonic() - started
    for kill in range(60):
        if kill >= 5 and len(versions) > 2:
            break
        child = os.fork()
        if child == 0:
            while True:
                refit(space.path)
        time.sleep(rng.random() * (2 + kill / 2) * duration)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        opened = DataSpace.open(space.path)
        versions.add(opened.manifest.version)
        assert opened.documents(opened.rows) == documents_before and verify(space.path) == []
        stored = opened.vectors(opened.rows)
        np.testing.assert_allclose(
            stored, opened.embedder.encode(opened.texts(opened.rows)), atol=2e-3
        )
        opened.store.close()
    assert len(versions) > 1
    refit(space.path)
    assert (
        len(list(space.path.iterdir())) == 3 and len(list((space.path / "segments").iterdir())) == 1
    )


def test_a_space_can_be_opened_while_it_is_fitted_again(tmp_path):
    space = build(tmp_path / "s")
    command = "from whet.space.maintenance.refit import refit\nfor _ in range(6): refit"
    script = f"{command}({str(space.path)!r})"
    child = subprocess.Popen([sys.executable, "-c", script])
    opened = 0
    while child.poll() is None:
        one = DataSpace.open(space.path)
        assert isinstance(one.embedder, LSA) and one.vectors(one.rows).shape[0] == 42
        one.store.close()
        opened += 1
    assert child.returncode == 0 and opened > 3


def test_a_server_follows_a_space_that_is_fitted_again(tmp_path):
    pytest.importorskip("fastapi", reason="extra serve is missing")
    from whet.serve.spaces.registry import SpaceRegistry

    path, changed = build(tmp_path / "s").path, []
    registry = SpaceRegistry({"s": path}, changed.append)
    old = registry.latest("s")
    refit(path)
    registry.refresh("s")
    new = registry.latest("s")
    assert changed == ["s"] and new.embedder.fingerprint != "" and new.manifest.version == 2
    assert new.manifest.embedder_folder == "embedder-00000002" != old.manifest.embedder_folder
    DataSpace.open(path).delete(ids=["leak"]).refit()
    registry.refresh("s")
    assert not registry.latest("s").embedder.encode(["xyzzycorp"]).any()
