import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hashing import HashingEmbedder
from hypothesis import given
from hypothesis import strategies as st

import whet.space.vectors
from whet.errors import EmbedderMismatch, SourceError, SpaceError
from whet.space.build import locked
from whet.space.documents import Document
from whet.space.space import DataSpace
from whet.space.vectors import Vectors

TESTS = Path(__file__).parent
WORDS = "one two three four five six seven eight nine ten eleven twelve".split()


def documents(n, start=0):
    return [Document(f"d{i}", f"{WORDS[i % 12]} {WORDS[i * 5 % 7]} {i}", {"i": i}) for i in
            range(start, start + n)]  # fmt: skip


@pytest.fixture
def space(tmp_path):
    return DataSpace.build(documents(40), tmp_path / "space", HashingEmbedder())


def stored(rows, folder):
    np.save(folder / "v.npy", np.asarray(rows, dtype=np.float16))
    return Vectors(folder / "v.npy")


def by_brute_force(rows, query, k, sign):
    wide = np.asarray(rows, dtype=np.float16).astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1)
    cosines = wide @ query / np.where(lengths > 0, lengths, 1) / np.linalg.norm(query)
    sizes = np.abs(cosines) if sign == "both" else cosines
    return sorted(np.argsort(-sizes.round(9), kind="stable")[:k].tolist())


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 60),
    d=st.integers(1, 8),
    share=st.floats(0, 1),
    sign=st.sampled_from(["both", "positive"]),
    block=st.sampled_from([1, 3, 1024]),
    in_memory=st.sampled_from([0, 2**20]),
)
def test_search_finds_what_brute_force_finds(
    tmp_path_factory, seed, n, d, share, sign, block, in_memory
):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, d)) / np.sqrt(d)
    rows[rng.random(n) < 0.1] = 0
    rows = rows[rng.integers(0, max(1, int(share * n)), n)] * rng.choice([-1, 1], (n, 1))
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    vectors, k = stored(rows, tmp_path_factory.mktemp("v")), int(rng.integers(1, n + 1))
    queries = rng.standard_normal((3, d))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(whet.space.vectors, "BLOCK", block)
        patch.setattr(whet.space.vectors, "IN_MEMORY", in_memory)
        found = vectors.nearest(queries, k, sign)
    for query, candidates in zip(queries, found, strict=True):
        assert candidates.rows.tolist() == by_brute_force(rows, query, k, sign)
        assert len(candidates.vectors) == len(candidates.scores) == k


def test_search_tells_apart_what_float32_products_cannot(tmp_path):
    rng = np.random.default_rng(0)
    centre = rng.standard_normal(96)
    rows = centre + 0.003 * rng.standard_normal((500, 96))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    vectors, query = stored(rows, tmp_path), centre + 0.1 * rng.standard_normal(96)
    assert vectors.nearest(query[None], 50)[0].rows.tolist() == by_brute_force(
        rows, query, 50, "both"
    )


def test_of_rows_equally_near_the_first_are_found(tmp_path):
    rng = np.random.default_rng(0)
    row = rng.standard_normal(60) / 8
    rows = np.stack([rng.permutation(row) for _ in range(300)])  # sums differ by their rounding
    [found] = stored(rows, tmp_path).nearest(np.ones((1, 60)), 40)
    assert len(np.unique(found.scores)) > 1 and found.rows.tolist() == list(range(40))


def test_search_does_not_depend_on_batch_or_memory(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((40, 64))
    rows = np.repeat(centres, 100, axis=0) + 1e-4 * rng.standard_normal((4000, 64))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    vectors, queries = stored(rows, tmp_path), rng.standard_normal((5, 64))
    together = vectors.nearest(queries, 150)
    alone = [vectors.nearest(query[None], 150)[0] for query in queries]
    monkeypatch.setattr(whet.space.vectors, "IN_MEMORY", 0)
    blocks = vectors.nearest(queries, 150)
    for one, two, three in zip(together, alone, blocks, strict=True):
        assert one.rows.tolist() == two.rows.tolist() == three.rows.tolist()
        assert (np.diff(one.rows) > 0).all()
        np.testing.assert_allclose(one.scores, two.scores, rtol=1e-12)


def test_search_does_not_depend_on_threads(tmp_path):
    from threadpoolctl import threadpool_limits

    rng = np.random.default_rng(0)
    rows = np.tile(rng.standard_normal((500, 96)), (8, 1))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    vectors, queries, found = stored(rows, tmp_path), rng.standard_normal((6, 96)), []
    for threads in (1, 2):
        with threadpool_limits(threads):
            found.append([c.rows.tolist() for c in vectors.nearest(queries, 203)])
    assert found[0] == found[1]


def test_duplicates_are_both_found_and_of_equals_the_first(tmp_path):
    twins = [Document(name, "same text here", {}) for name in "abcd"]
    space = DataSpace.build([*twins, *documents(5)], tmp_path / "s", HashingEmbedder())
    query = space.embedder.encode(["same text here"])
    assert space.search(query, 3)[0].rows.tolist() == [0, 1, 2]
    assert space.search(-query, 4, sign="both")[0].rows.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(space.search(-query, 4)[0].scores, -1, atol=1e-3)
    assert space.search(-query, 4, sign="positive")[0].rows.tolist() != [0, 1, 2, 3]


@pytest.mark.parametrize(
    "queries, k, message",
    [
        (np.ones((1, 16)), 41, "k is 41, but the data space holds 40 documents"),
        (np.ones((1, 16)), 0, "k is 0"),
        (np.ones((1, 16)), -3, "k is -3"),
        (np.ones((1, 5)), 3, "queries have 5 dimensions, but the data space has 16"),
        (np.ones(16), 3, "expected a matrix"),
        (np.stack([np.ones(16), np.zeros(16)]), 3, "query 1 is the zero vector"),
        (np.full((1, 16), np.nan), 3, "queries holds nan"),
    ],
)
def test_a_search_that_cannot_be_is_refused(space, queries, k, message):
    with pytest.raises(ValueError, match=message):
        space.search(queries, k)


def test_opened_again_it_is_as_it_was_built(space):
    again = DataSpace.open(space.path, HashingEmbedder())
    assert len(again) == 40 and again.dimension == 16
    assert list(again.ids) == [document.id for document in documents(40)]
    assert again.documents([3, 0, 3]) == [documents(40)[i] for i in (3, 0, 3)]
    assert again.texts(np.array([39])) == [documents(40)[39].text] == [again.text(39)]
    query = HashingEmbedder().encode(["two three"])
    for one, two in zip(again.search(query, 7), space.search(query, 7), strict=True):
        np.testing.assert_array_equal(one.rows, two.rows)
        np.testing.assert_array_equal(one.vectors, two.vectors)


def test_lsa_is_fitted_and_kept_in_the_folder(tmp_path):
    space = DataSpace.build(documents(40), tmp_path / "s", source="numbers")
    again = DataSpace.open(tmp_path / "s")
    assert again.embedder.name == "lsa" and again.meta.source == "numbers"
    query = again.embedder.encode([documents(40)[7].text])
    [candidates] = again.search(query, 5)
    assert 7 in candidates.rows and candidates.scores.max() == pytest.approx(1, abs=1e-3)
    np.testing.assert_array_equal(query, space.embedder.encode([documents(40)[7].text]))


def test_one_document_and_any_script_will_do(tmp_path):
    text = "二つ ñandú 😀\0\u2028 ﷽"
    space = DataSpace.build([Document("ü/😀", text, {"ключ": ["é", None]})], tmp_path / "s 二")
    again = DataSpace.open(tmp_path / "s 二")
    assert again.documents([0]) == [Document("ü/😀", text, {"ключ": ["é", None]})]
    assert again.search(space.embedder.encode(["ñandú"]), 1)[0].rows.tolist() == [0]


def test_texts_that_tell_nothing_are_kept_and_never_near(tmp_path):
    blank = [Document(f"blank{i}", " ", {}) for i in range(5)]
    space = DataSpace.build([*blank, *documents(20)], tmp_path / "s", HashingEmbedder())
    [candidates] = space.search(HashingEmbedder().encode(["two"]), 20)
    assert len(space) == 25 and candidates.rows.tolist() == list(range(5, 25))


def test_rows_are_found_across_batches(tmp_path, monkeypatch):
    monkeypatch.setattr("whet.space.rows.ROWS", 7)
    space = DataSpace.build(documents(23), tmp_path / "s", HashingEmbedder())
    assert space.documents(range(23)) == documents(23)
    with pytest.raises(IndexError):
        space.text(23)


def test_extending_adds_what_is_new_and_twice_is_once(space):
    path = space.path
    for _ in range(2):
        space = space.extend(documents(50, start=20))
        assert list(space.ids) == [document.id for document in documents(70)]
    whole = DataSpace.build(documents(70), path.with_name("whole"), HashingEmbedder())
    query = HashingEmbedder().encode(["two three"])
    np.testing.assert_array_equal(space.vectors[:], whole.vectors[:])
    assert space.search(query, 9)[0].rows.tolist() == whole.search(query, 9)[0].rows.tolist()
    assert space.documents(range(70)) == documents(70)
    assert len(list(path.iterdir())) == 3  # meta.json, rows, vectors


def test_extending_keeps_the_fitted_lsa(tmp_path):
    before = DataSpace.build(documents(30), tmp_path / "s")
    after = before.extend(documents(35))
    assert after.embedder.fingerprint == before.embedder.fingerprint and len(after) == 35
    np.testing.assert_array_equal(after.vectors[:30], before.vectors[:])
    assert len(before) == 30 and before.text(29) == documents(30)[29].text


def test_an_id_of_another_text_is_refused_and_nothing_changes(space):
    new = [*documents(3, start=100), Document("d7", "another", {})]
    with pytest.raises(SourceError, match="id 'd7' is in the data space with another text"):
        space.extend(new)
    assert len(DataSpace.open(space.path, HashingEmbedder())) == 40
    assert len(list(space.path.iterdir())) == 3


def test_an_id_given_twice_is_refused_with_both_places(tmp_path):
    twice = [*documents(4), Document("d1", documents(4)[1].text, {})]
    with pytest.raises(SourceError, match="id 'd1' is given twice, to documents 2 and 5"):
        DataSpace.build(twice, tmp_path / "s", HashingEmbedder())
    assert not list(tmp_path.iterdir())


def test_two_writers_are_told_apart(space):
    with locked(space.path), pytest.raises(SpaceError, match="being written by another"):
        space.extend(documents(50))
    assert len(space.extend(documents(50))) == 50


class Faulty(HashingEmbedder):
    def __init__(self, value, at):
        super().__init__()
        self._value, self._at = value, at

    def encode(self, texts):
        rows = super().encode(texts)
        for row, text in zip(rows, texts, strict=True):
            if text == self._at:
                row[:] = self._value
        return rows


@pytest.mark.parametrize("value, length", [(np.nan, "nan"), (np.inf, "inf"), (0.5, "2.0")])
def test_a_vector_not_of_length_one_is_refused_with_its_document(tmp_path, value, length):
    faulty = Faulty(value, documents(9)[5].text)
    with pytest.raises(SpaceError, match=f"of length {length} of document 'd5'"):
        DataSpace.build(documents(9), tmp_path / "s", faulty)
    assert not list(tmp_path.iterdir())


def test_no_documents_and_a_taken_place_are_refused(space, tmp_path):
    with pytest.raises(SourceError, match="no documents"):
        DataSpace.build([], tmp_path / "empty", HashingEmbedder())
    with pytest.raises(SpaceError, match="exists"):
        DataSpace.build(documents(3), space.path, HashingEmbedder())
    (tmp_path / "file").write_text("")
    with pytest.raises(SpaceError, match="cannot be made: Not a directory"):
        DataSpace.build(documents(3), tmp_path / "file" / "s", HashingEmbedder())


def test_another_embedder_is_refused_with_both_named(space):
    for other in (HashingEmbedder(dimension=8), HashingEmbedder(seed=1)):
        with pytest.raises(EmbedderMismatch, match=r"of dimension 16 by hashing, .* rebuild it"):
            DataSpace.open(space.path, other)
    with pytest.raises(SpaceError, match="was made by embedder hashing, which it cannot load"):
        DataSpace.open(space.path)


def changed(meta, **values):
    meta.write_text(json.dumps({**json.loads(meta.read_text()), **values}))


DAMAGE = [
    (lambda path: (path / "meta.json").unlink(), "is not a data space: it holds no meta.json"),
    (lambda path: (path / "meta.json").write_text("{"), "meta.json is broken"),
    (lambda path: (path / "meta.json").write_text("[]"), "meta.json is broken"),
    (lambda path: changed(path / "meta.json", format=2), "has format 2, this whet reads 1"),
    (lambda path: changed(path / "meta.json", count="x"), "is broken: count is missing"),
    (lambda path: changed(path / "meta.json", count=41), "says 41 documents of dimension 16, but"),
    (lambda path: changed(path / "meta.json", dimension=8), "40 vectors of dimension 16"),
    (lambda path: os.truncate(path / "vectors.npy", 500), "vectors.npy cannot be read"),
    (lambda path: os.truncate(path / "vectors.npy", 0), "vectors.npy cannot be read"),
    (lambda path: os.truncate(path / "rows.arrow", 900), "rows.arrow cannot be read"),
    (lambda path: os.truncate(path / "rows.arrow", 0), "rows.arrow cannot be read"),
    (lambda path: (path / "rows.arrow").unlink(), "rows.arrow cannot be read"),
    (lambda path: np.save(path / "vectors.npy", np.ones((40, 16))), "expected float16"),
]


@pytest.mark.parametrize("damage, message", DAMAGE)
def test_a_broken_space_is_refused_in_one_line(space, damage, message):
    damage(space.path)
    with pytest.raises(SpaceError, match=message) as caught:
        DataSpace.open(space.path, HashingEmbedder())
    assert "\n" not in str(caught.value)


def test_a_missing_space_and_a_broken_lsa_are_refused(tmp_path):
    with pytest.raises(SpaceError, match="does not exist"):
        DataSpace.open(tmp_path / "none")
    DataSpace.build(documents(9), tmp_path / "s")
    np.save(tmp_path / "s/embedder/weights.npy", np.zeros((2, 2)))
    with pytest.raises(SpaceError, match="terms, but weights"):
        DataSpace.open(tmp_path / "s")


def python(code, *arguments):
    code = "from whet.space.space import *; from test_space import *\n" + code
    command = [sys.executable, "-c", code, *map(str, arguments)]
    path = os.pathsep.join([str(TESTS), *sys.path])
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    )


KILLED = """
class Slow(HashingEmbedder):
    def encode(self, texts):
        Path(sys.argv[2]).touch()
        time.sleep(60)
path = Path(sys.argv[1])
if path.exists():
    DataSpace.open(path, Slow()).extend(documents(50))
DataSpace.build(documents(50), path, Slow())
"""


def test_a_killed_writer_leaves_what_was_there(tmp_path):
    for size in (0, 20):
        path, sign = tmp_path / f"s{size}", tmp_path / f"sign{size}"
        if size:
            DataSpace.build(documents(size), path, HashingEmbedder())
        writer = python(KILLED, path, sign)
        while not sign.exists():
            assert writer.poll() is None, writer.stderr.read()
            time.sleep(0.01)
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        assert path.exists() == bool(size)
    space = DataSpace.open(path, HashingEmbedder())
    assert len(space) == 20
    assert len(space.extend(documents(50))) == 50 and len(list(path.iterdir())) == 3


FULL = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
path = Path(sys.argv[1])
many = (Document(f"m{i}", f"{i} " * 1000, {}) for i in range(3000))
for attempt in (
    lambda: DataSpace.open(path, HashingEmbedder()).extend(many),
    lambda: DataSpace.build(many, path.with_name("new"), HashingEmbedder()),
):
    try:
        attempt()
    except SpaceError as error:
        assert "cannot be written (File too large): nothing was changed" in str(error), error
    else:
        raise AssertionError("written")
"""


def test_a_full_disk_changes_nothing(space):
    writer = python(FULL, space.path)
    _, complaint = writer.communicate()
    assert writer.returncode == 0, complaint
    assert os.listdir(space.path.parent) == [space.path.name]
    assert len(DataSpace.open(space.path, HashingEmbedder())) == 40
    assert len(list(space.path.iterdir())) == 3


def test_one_space_serves_two_threads(space):
    queries, found = HashingEmbedder().encode([d.text for d in documents(40)]), [None, None]

    def look(i):
        found[i] = [c.rows.tolist() for c in space.search(queries, 5)], space.documents(range(40))

    threads = [threading.Thread(target=look, args=(i,)) for i in (0, 1)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert found[0] == found[1] and found[0][1] == documents(40)


def test_progress_is_drawn_on_stderr_or_not_at_all(tmp_path, capfd):
    DataSpace.build(documents(9), tmp_path / "quiet", HashingEmbedder())
    assert capfd.readouterr() == ("", "")
    DataSpace.build(documents(9), tmp_path / "shown", HashingEmbedder(), progress=True)
    out, err = capfd.readouterr()
    assert out == "" and "embedding" in err and "9/9" in err
