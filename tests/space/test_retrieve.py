from pathlib import Path

import numpy as np
import pytest
from support.hashing_embedder import HashingEmbedder

import whet
from whet.data.documents import Document, read_documents
from whet.data.filters import Compare
from whet.errors import NoMatchError
from whet.select.config import SelectionConfig
from whet.space.retrieve import Retriever, retrieve
from whet.space.space import DataSpace

CORPUS = Path(__file__).parents[3] / "shared" / "corpus"
TEXTS = ["red fox", "red fox runs", "blue whale", "blue whale sings", "green frog", " "]


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    documents = [Document(f"d{i}", text, {"i": i}) for i, text in enumerate(TEXTS)]
    return DataSpace.build(documents, tmp_path_factory.mktemp("s") / "s", HashingEmbedder(64))


def test_what_is_retrieved_is_what_the_selector_chose(space):
    retrieval = Retriever(space, SelectionConfig(k=4)).select("red fox and blue whale", 7)
    query = space.embedder.encode(["red fox and blue whale"])
    [candidates] = space.search(query, 4)
    chosen = whet.sift(query[0], candidates.vectors, 7)
    np.testing.assert_array_equal(retrieval.selection.indices, chosen.indices)
    np.testing.assert_array_equal(retrieval.rows, candidates.rows[chosen.indices])
    assert [document.meta["i"] for document in retrieval.documents] == retrieval.rows.tolist()
    assert len(retrieval) == len(retrieval.documents) == 7 > len(set(retrieval.rows.tolist()))


@pytest.mark.parametrize("selector", [whet.nearest, whet.nearest_repeated])
def test_nearest_means_the_highest_signed_cosines_of_the_whole_space(tmp_path, selector):
    class Signed(HashingEmbedder):  # a text that begins with "not" is opposite to the rest of it
        def encode(self, texts):
            rows = super().encode([text.removeprefix("not ") for text in texts])
            signs = [[-1.0 if text.startswith("not ") else 1.0] for text in texts]
            return (rows * np.array(signs)).astype(np.float32)

    texts = ["not red fox", "not red fox jumps", "red hen"]
    documents = [Document(text, text, {}) for text in texts]
    space = DataSpace.build(documents, tmp_path / "s", Signed(64))
    retrieval = Retriever(space, SelectionConfig(k=1), selector=selector).select("red fox", 1)
    assert retrieval.documents[0].id == "red hen"
    assert (
        Retriever(space, SelectionConfig(k=1)).select("red fox", 1).documents[0].id == "not red fox"
    )
    both = Retriever(space, SelectionConfig(k=1, metric="abs_cosine"), selector=selector).select(
        "red fox", 1
    )
    assert both.documents[0].id == "not red fox"


def test_sift_covers_both_facts_that_are_asked(space):
    retrieval = Retriever(space, SelectionConfig(k=5, lam=0.01)).select("red fox blue whale", 2)
    assert {document.text.split()[0] for document in retrieval.documents} == {"red", "blue"}


@pytest.mark.parametrize("prompt", ["", " \n"])
def test_a_blank_prompt_is_refused(space, prompt):
    with pytest.raises(ValueError, match=r"prompt is .*: expected a text"):
        Retriever(space, SelectionConfig(k=2)).select(prompt, 1)


def test_a_prompt_that_shares_nothing_is_refused(tmp_path):
    documents = [Document(text, text, {}) for text in TEXTS]
    space = DataSpace.build(documents, tmp_path / "s")
    with pytest.raises(ValueError, match="shares no term with the data space according to lsa"):
        Retriever(space, SelectionConfig(k=2)).select("жираф", 1)


def test_more_candidates_than_documents_are_refused(space):
    with pytest.raises(ValueError, match="k is 200, but the data space holds 6 documents: lower k"):
        Retriever(space, SelectionConfig(k=200))
    with pytest.raises(ValueError, match="n is 3, but nearest"):
        Retriever(space, SelectionConfig(k=2), selector=whet.nearest).select("red", 3)
    for bad, message in [({"k": 0}, "k is 0"), ({"k": 2, "lam": 0}, "lam is 0")]:
        with pytest.raises(ValueError, match=message):
            Retriever(space, SelectionConfig(**bad))
    with pytest.raises(ValueError, match="n is 0"):
        Retriever(space, SelectionConfig(k=2)).select("red", 0)


def test_an_explanation_tells_rows_of_the_data_space(space):
    retrieval = Retriever(space, SelectionConfig(k=2, where="i >= 2")).select(
        "red fox blue whale", 3
    )
    assert [pick.row for pick in retrieval.explain().picks] == retrieval.rows.tolist()
    assert min(retrieval.rows) >= 2 > max(retrieval.selection.indices)


def test_a_selector_and_a_filter_may_be_given_in_words(space):
    named = Retriever(space, SelectionConfig(k=2, selector="nearest", where="i > 1"))
    made = Retriever(space, SelectionConfig(k=2, where=Compare("i", ">", 1)), selector=whet.nearest)
    assert named.metric == made.metric == "cosine"
    assert named.select("red fox", 2).rows.tolist() == made.select("red fox", 2).rows.tolist()
    bound = space.filter("i > 1")
    assert len(bound) == 4 and bound.filter("i < 3").rows.tolist() == [2]
    assert DataSpace.open(space.path, space.embedder, where="i > 1").rows.tolist() == [2, 3, 4, 5]
    with pytest.raises(ValueError, match="filter contains `i`"):
        Retriever(space, SelectionConfig(where="i"))


def test_without_k_the_candidates_are_200_or_all_that_pass(space):
    few = Compare("i", "<", 2)
    assert Retriever(space).k == 6 and Retriever(space, SelectionConfig(where=few)).k == 2
    assert len(Retriever(space).select("red fox", 9).candidates.rows) == 6
    assert len(retrieve(space, "red fox", SelectionConfig(n=3, where="i < 2")).candidates.rows) == 2
    with pytest.raises(ValueError, match="no document passes the filter: correct it"):
        Retriever(space, SelectionConfig(where=Compare("i", ">", 9)))
    with pytest.raises(ValueError, match="k is 2, but 1 document"):
        Retriever(space, SelectionConfig(k=2, where=Compare("i", "<", 1)))


@pytest.mark.skipif(not CORPUS.exists(), reason="needs the benchmark corpus on this machine")
def test_near_documents_are_of_the_prompts_own_set(tmp_path):
    every = list(read_documents(CORPUS / "valid.jsonl.gz"))
    prompts = every[::5]
    space = DataSpace.build([d for d in every if d not in prompts], tmp_path / "s")
    retriever = Retriever(space, SelectionConfig(k=5), selector=whet.nearest)
    same = [
        document.meta["set"] == prompt.meta["set"]
        for prompt in prompts
        for document in retriever.select(prompt.text, 5).documents
    ]
    assert np.mean(same) > 0.7


def test_what_is_retrieved_explains_itself_and_becomes_a_prompt(space):
    retrieval = Retriever(space, SelectionConfig(k=5)).select("red fox blue whale", 2)
    explanation, (first, best) = (
        retrieval.explain(),
        retrieval.documents,
    )  # the second pick is the best
    assert [pick.gain for pick in explanation.picks] == retrieval.selection.gains.tolist()
    assert f"{best.id} {best.text}" in str(explanation)
    assert retrieval._repr_html_() == explanation._repr_html_()
    sigma = retrieval.selection.sigma[-1]
    assert (
        repr(retrieval) == f"Retrieval(2 of 5 candidates: '{first.id}', '{best.id}'; σ {sigma:.3f})"
    )
    assert retrieval.to_context(100).text == f"{first.text}\n\n{best.text}"
    assert retrieval.to_context(3, count_tokens=lambda text: len(text.split())).text == best.text
    assert retrieval.stop_at(1e9).to_context(100).text == ""


@pytest.mark.parametrize("name", ["dense", "bm25", "hybrid"])
def test_search_returns_the_candidates_that_select_picks_from(space, name):
    retriever = Retriever(space, SelectionConfig(k=2, retriever=name))
    retrieval, picked = retriever.search("a red fox"), retriever.select("a red fox", 1).candidates
    np.testing.assert_array_equal(retrieval.rows, picked.rows)
    np.testing.assert_array_equal(retrieval.vectors, picked.vectors)
    with pytest.raises(NoMatchError, match="expected a text"):
        retriever.search(" ")
