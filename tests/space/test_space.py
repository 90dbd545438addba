import threading

import numpy as np
import pytest
from support.hashing_embedder import HashingEmbedder

from whet.data.documents import Document
from whet.errors import EmbedderMismatchError, SourceError, SpaceError
from whet.locks import exclusive_lock
from whet.space.space import DataSpace
from whet.space.store.segments.records import BATCH_ROWS

WORDS = "one two three four five six seven eight nine ten eleven twelve".split()


def documents(n, start=0):
    return [Document(f"d{i}", f"{WORDS[i % 12]} {WORDS[i * 5 % 7]} {i}", {"i": i}) for i in
            range(start, start + n)]  # fmt: skip


@pytest.fixture
def space(tmp_path):
    return DataSpace.build(documents(40), tmp_path / "space", HashingEmbedder())


def test_duplicates_are_both_found_and_of_equals_the_first(tmp_path):
    copies = [Document(name, "same text here", {}) for name in "abcd"]
    space = DataSpace.build([*copies, *documents(5)], tmp_path / "s", HashingEmbedder())
    query = space.embedder.encode(["same text here"])
    assert space.search(query, 3)[0].rows.tolist() == [0, 1, 2]
    assert space.search(-query, 4, metric="abs_cosine")[0].rows.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(space.search(-query, 4)[0].scores, -1, atol=1e-3)
    assert space.search(-query, 4, metric="cosine")[0].rows.tolist() != [0, 1, 2, 3]


@pytest.mark.parametrize(
    "queries, k, message",
    [
        (np.ones((1, 16)), 41, "k is 41, but the data space holds 40 documents"),
        (np.ones((1, 16)), 0, "k is 0"),
        (np.ones((1, 16)), -3, "k is -3"),
        (np.ones((1, 5)), 3, "queries have 5 dimensions, but the data space has 16"),
        (np.ones(16), 3, "expected a matrix"),
        (np.stack([np.ones(16), np.zeros(16)]), 3, "query 1 is the zero vector"),
        (np.full((1, 16), np.nan), 3, "queries contains nan"),
    ],
)
def test_a_search_that_cannot_be_is_refused(space, queries, k, message):
    with pytest.raises(ValueError, match=message):
        space.search(queries, k)


def test_texts_are_searched_by_their_vectors(space):
    texts = ["two three", "one"]
    vectors = space.embedder.encode(texts)
    for queries in (texts, tuple(texts), "two three"):
        for one, two in zip(space.search(queries, 5), space.search(vectors, 5), strict=False):
            assert one.rows.tolist() == two.rows.tolist()
    assert len(space.search(texts, 5)) == 2 and len(space.search("one", 5)) == 1
    with pytest.raises(ValueError, match="query 1 is the zero vector"):
        space.search(["one", ""], 5)


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
    space = DataSpace.build(documents(40), tmp_path / "s", resume_key="numbers")
    again = DataSpace.open(tmp_path / "s")
    assert again.embedder.name == "lsa" and again.manifest.source == "numbers"
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


def test_rows_are_found_across_batches(tmp_path):
    space = DataSpace.build(documents(1100), tmp_path / "s", HashingEmbedder())
    assert len(space.documents(range(1100))) == 1100 > BATCH_ROWS
    assert space.documents([1099, 0, 1024]) == [documents(1100)[i] for i in (1099, 0, 1024)]
    with pytest.raises(IndexError):
        space.text(1100)


def test_extending_adds_what_is_new_and_twice_is_once(space):
    path = space.path
    for _ in range(2):
        space = space.add(documents(50, start=20))
        assert list(space.ids) == [document.id for document in documents(70)]
    whole = DataSpace.build(documents(70), path.with_name("whole"), HashingEmbedder())
    query = HashingEmbedder().encode(["two three"])
    np.testing.assert_array_equal(space.vectors(space.rows), whole.vectors(whole.rows))
    assert space.search(query, 9)[0].rows.tolist() == whole.search(query, 9)[0].rows.tolist()
    assert space.documents(range(70)) == documents(70)


def test_extending_keeps_the_fitted_lsa(tmp_path):
    before = DataSpace.build(documents(30), tmp_path / "s")
    after = before.add(documents(35))
    assert after.embedder.fingerprint == before.embedder.fingerprint and len(after) == 35
    np.testing.assert_array_equal(after.vectors(range(30)), before.vectors(before.rows))
    assert len(before) == 30 and before.text(29) == documents(30)[29].text


def test_two_writers_are_told_apart(space):
    with exclusive_lock(space.path), pytest.raises(SpaceError, match="being written by another"):
        space.add(documents(50))
    assert len(space.add(documents(50))) == 50


def test_no_documents_and_a_taken_place_are_refused(space, tmp_path):
    with pytest.raises(SourceError, match="no documents"):
        DataSpace.build([], tmp_path / "empty", HashingEmbedder())
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "own.txt").write_text("mine")
    with pytest.raises(SpaceError, match="exists"):
        DataSpace.build(documents(3), tmp_path / "taken", HashingEmbedder())
    (tmp_path / "file").write_text("")
    with pytest.raises(SpaceError, match="cannot be created .Not a directory"):
        DataSpace.build(documents(3), tmp_path / "file" / "s", HashingEmbedder())


def test_another_embedder_is_refused_with_both_named(space):
    for other in (HashingEmbedder(dimension=8), HashingEmbedder(seed=1)):
        with pytest.raises(
            EmbedderMismatchError, match=r"of dimension 16 by hashing, .* or other weights"
        ):
            DataSpace.open(space.path, other)
    with pytest.raises(
        SpaceError, match="was made by the Python embedder 'hashing': open it in Python"
    ):
        DataSpace.open(space.path)


def test_a_missing_space_and_a_broken_lsa_are_refused(tmp_path):
    with pytest.raises(SpaceError, match="does not exist"):
        DataSpace.open(tmp_path / "none")
    DataSpace.build(documents(9), tmp_path / "s")
    np.save(tmp_path / "s/embedder/weights.npy", np.zeros((2, 2)))
    with pytest.raises(SpaceError, match="weights.npy is broken"):
        DataSpace.open(tmp_path / "s")


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
