"""BM25 against the library of that name, and as a source of candidates."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.hashing_embedder import HashingEmbedder

from whet.data.documents import Document
from whet.data.filters import parse
from whet.errors import NoMatchError
from whet.select.config import SelectionConfig
from whet.space.bm25 import BM25
from whet.space.retrieve import Retriever
from whet.space.space import DataSpace

WORDS = "alpha beta gamma delta epsilon".split()
texts = st.lists(st.lists(st.sampled_from(WORDS), min_size=1).map(" ".join), min_size=1, max_size=9)


@given(texts=texts, query=st.lists(st.sampled_from([*WORDS, "omega"]), min_size=1, max_size=6))
def test_scores_are_those_of_bm25s(texts, query):
    bm25s = pytest.importorskip("bm25s", reason="bm25s, the oracle, is missing (extra: test)")
    peer = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    peer.index([text.split() for text in texts], show_progress=False)
    known = [word for word in query if any(word in text.split() for text in texts)]
    wanted = peer.get_scores(known) if known else np.zeros(len(texts))
    np.testing.assert_allclose(BM25(texts).scores(" ".join(query)), wanted, atol=1e-5)


def test_the_nearest_are_ascending_share_a_word_and_of_equals_the_lowest():
    index = BM25(["fox", "red fox", "whale", "fox", "", "fox"])
    assert index.top_k("a fox", 2).tolist() == [0, 3]
    assert index.top_k("red fox", 9).tolist() == [0, 1, 3, 5]
    assert index.top_k("bear", 3).tolist() == []


def test_texts_without_a_word_are_refused():
    with pytest.raises(ValueError, match="no text contains a word"):
        BM25(["", " \n"])


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    texts = ["red fox", "red fox runs", "blue whale", "blue whale sings", "green frog", " "]
    documents = [Document(f"d{i}", text, {"i": i}) for i, text in enumerate(texts)]
    return DataSpace.build(documents, tmp_path_factory.mktemp("s") / "s", HashingEmbedder(64))


def test_words_nominate_and_vectors_are_selected_from(space):
    found = Retriever(space, SelectionConfig(k=2, retriever="bm25")).select("whale", 3)
    assert found.candidates.rows.tolist() == [2, 3]
    np.testing.assert_array_equal(found.candidates.vectors, space.vectors([2, 3]))
    query = space.embedder.encode(["whale"])[0]
    np.testing.assert_allclose(found.candidates.scores, space.vectors([2, 3]) @ query, atol=1e-3)


def test_hybrid_is_the_union_of_both(space):
    prompt = "a frog sings"
    vectors, words, both = (
        Retriever(space, SelectionConfig(k=2, retriever=source)).select(prompt, 1).candidates.rows
        for source in ("dense", "bm25", "hybrid")
    )
    assert both.tolist() == sorted({*vectors.tolist(), *words.tolist()})


@pytest.mark.parametrize("source", ["bm25", "hybrid"])
def test_what_fails_a_filter_is_not_nominated_by_its_words(space, source):
    seen = parse("i >= 3")
    asked = Retriever(space, SelectionConfig(k=3, retriever=source, where=seen))
    bound = Retriever(space.filter(seen), SelectionConfig(k=3, retriever=source))
    for retriever in (asked, bound):
        rows = retriever.select("blue whale", 1).candidates.rows.tolist()
        assert 3 in rows and min(rows) >= 3
    with pytest.raises(NoMatchError, match="shares no word"):
        Retriever(space, SelectionConfig(k=1, retriever="bm25", where=seen)).select("fox", 1)


def test_a_prompt_that_shares_no_word_is_refused(space):
    with pytest.raises(NoMatchError, match="shares no word"):
        Retriever(space, SelectionConfig(k=2, retriever="bm25")).select("bears", 1)
