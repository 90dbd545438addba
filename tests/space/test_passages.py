"""The document that repeats a prompt: overlap of words, passages, filters."""

import numpy as np
import pytest

from whet.data.documents import Document
from whet.select.config import SelectionConfig
from whet.space.passages import by_parent, find_copy, overlap
from whet.space.retrieve import Retriever
from whet.space.space import DataSpace

WORDS = np.array([f"{a}{b}" for a in "bcdfglmnprst" for b in ("arn", "olt", "ime", "ut", "est")])


def words(seed, count):
    return " ".join(np.random.default_rng(seed).choice(WORDS, count))


def passages(name, text, size, **meta):
    """`text` in passages of `size` words."""
    parts, documents, start = text.split(), [], 0
    for number, first in enumerate(range(0, len(parts), size)):
        piece = " ".join(parts[first : first + size]) + " "
        span = [start, start + len(piece)]
        start += len(piece)
        documents.append(
            Document(f"{name}#{number}", piece, {"parent": name, "span": span, **meta})
        )
    return documents


def slow_overlap(text, others):
    tokens, shared = text.lower().split(), 0
    size = min(13, len(tokens))
    grams = {" ".join(tokens[i : i + size]) for i in range(len(tokens) - size + 1)}
    for gram in grams:
        shared += any(f" {gram} " in f" {' '.join(other.lower().split())} " for other in others)
    return shared / len(grams)


@pytest.mark.parametrize("seed", range(20))
def test_overlap_equals_a_search_for_every_gram(seed):
    rng = np.random.default_rng(seed)
    text = words(seed, int(rng.integers(5, 60)))
    pieces = text.split()
    others = [words(seed + 100, 20)]
    for _ in range(3):
        start = int(rng.integers(len(pieces)))
        others.append(" ".join([words(int(rng.integers(99)), 3), *pieces[start : start + 20]]))
    assert overlap(text, others) == pytest.approx(slow_overlap(text, others), abs=1e-12)


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    documents = passages("copied", words(1, 200), 40)
    for seed in range(2, 12):
        documents += passages(f"other{seed}", words(seed, 200), 40)
    return DataSpace.build(documents, tmp_path_factory.mktemp("passages") / "space")


def copied(prompt, space, **config):
    retrieval = Retriever(space, SelectionConfig(n=5, **config)).select(prompt, for_training=True)
    return [document.id for document in retrieval.copy.values()], retrieval


def test_the_passages_that_repeat_the_prompt_and_the_next_are_the_copy(space):
    prompt = " ".join(words(1, 200).split()[50:115])
    ids, retrieval = copied(prompt, space)
    assert ids == ["copied#1", "copied#2", "copied#3"]
    texts = [document.id for document in retrieval.training_documents()]
    pairs = retrieval.training_texts()
    assert space.documents([row for row, _ in pairs]) == [document for _, document in pairs]
    assert texts == ["copied#1", "copied#2", "copied#3", "copied#1", "copied#2"]


def test_at_the_end_of_a_document_no_other_follows(space):
    assert copied(" ".join(words(1, 200).split()[-60:]), space)[0] == ["copied#3", "copied#4"]


def test_other_prompts_short_ones_and_switched_off_have_no_copy(space):
    half = " ".join([*words(1, 200).split()[:40], *words(77, 60).split()])
    short = " ".join(words(1, 200).split()[:25])
    for prompt in (words(78, 60), half, short):
        ids, retrieval = copied(prompt, space)
        assert ids == []
        assert retrieval.training_documents()[:5] == list(retrieval.documents)
    assert copied(half, space, copy_overlap=0.2)[0] == ["copied#0", "copied#1"]
    assert copied(" ".join(words(1, 200).split()[:60]), space, copy_overlap=0)[0] == []


def test_a_filter_hides_the_passage_that_follows(tmp_path):
    copied_passages = enumerate(passages("a", words(1, 200), 40))
    documents = [Document(d.id, d.text, d.meta | {"year": i}) for i, d in copied_passages]
    documents += passages("b", words(2, 200), 40, year=0)
    space = DataSpace.build(documents, tmp_path / "space")
    prompt = " ".join(words(1, 200).split()[:80])
    assert copied(prompt, space)[0] == ["a#0", "a#1", "a#2"]
    assert copied(prompt, space, where="year < 2")[0] == ["a#0", "a#1"]
    assert copied(prompt, space.filter("year < 2"))[0] == ["a#0", "a#1"]


@pytest.mark.parametrize(("sharing", "is_copy"), [(5, True), (6, False), (9, False)])
def test_standard_wording_of_many_documents_is_no_copy(tmp_path, sharing, is_copy):
    notice = words(50, 60)
    texts = [notice + " " + words(i, 60) for i in range(sharing)]
    space = DataSpace.build([*texts, *(words(i, 60) for i in range(20, 30))], tmp_path / "space")
    ids = list(find_copy(space, notice + " " + words(90, 30), space.rows, 0.5))
    assert len(ids) == is_copy
    after_the_notice = notice + " " + " ".join(words(3, 60).split()[:40])
    assert list(find_copy(space, after_the_notice, space.rows, 0.5)) == [3]


def test_documents_that_are_whole_can_be_copies(tmp_path):
    space = DataSpace.build([words(i, 50) for i in range(12)], tmp_path / "space")
    prompt = words(4, 50)
    assert find_copy(space, prompt, space.rows, 0.5) == {4: space.documents([4])[0]}
    assert [group.places for group in by_parent(space.documents([0, 1]))] == [[0], [1]]


def test_a_share_out_of_bounds_is_an_error():
    with pytest.raises(ValueError, match=r"copy_overlap is 1.5: expected 0 to 1"):
        SelectionConfig(copy_overlap=1.5)


def test_the_id_of_a_document_deletes_its_passages(tmp_path):
    own = Document("own", words(3, 20), {"parent": "a"})  # a field of the user's
    documents = [*passages("a", words(1, 60), 20), *passages("b", words(2, 60), 20), own]
    space = DataSpace.build(documents, tmp_path / "space").delete(ids=["a", "b#1", "c"])
    assert set(space.ids) == {"b#0", "b#2", "own"}
