"""Retrievers of LangChain and LlamaIndex, and data sets, on a data space of MiniLM or lsa."""

import asyncio

import pytest

from whet.errors import WhetError
from whet.integrations.retrieval import DocumentRetriever
from whet.space.space import DataSpace

DOCUMENTS = [
    {"id": "a", "text": "bees dance to show flowers", "lang": "en", "year": 2020},
    {"id": "b", "text": "bees make honey from flowers", "lang": "en", "year": 2021},
    {"id": "c", "text": "honey bees dance on the comb", "lang": "de", "tags": ["x"]},
    {"id": "d", "text": "trains run on rails of steel", "lang": "en"},
]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("retrievers") / "s"
    DataSpace.build(DOCUMENTS, path)
    return path


def test_documents_come_once_with_how_often_they_were_selected(path):
    ranked = DocumentRetriever(path, n=12, selector="nearest-repeated").select("bees dance")
    assert [(each.document.id, each.count) for each in ranked] == [("a", 12)]
    several = DocumentRetriever(path, n=12).select("bees dance")
    assert sum(each.count for each in several) == 12
    assert len({each.document.id for each in several}) == len(several)


def test_langchain_retrieves_with_scores_metadata_and_filters(path):
    module = pytest.importorskip("whet.integrations.langchain")
    retriever = module.WhetRetriever.of(path, n=2, selector="nearest")
    found = retriever.invoke("bees dance")
    assert {document.id for document in found} == {"a", "c"}
    best = found[0]
    assert best.page_content in [document["text"] for document in DOCUMENTS]
    assert best.metadata["lang"] in ("en", "de") and 0 < best.metadata["score"] <= 1.001
    assert found[0].metadata["score"] >= found[1].metadata["score"]
    english = retriever.invoke("bees dance", where='lang == "en"')
    assert {document.metadata["lang"] for document in english} == {"en"}
    assert len(retriever.invoke("bees dance", n=1)) == 1
    fixed = module.WhetRetriever.of(DataSpace.open(path), n=1, where="year > 2020")
    assert [document.id for document in fixed.invoke("bees dance")] == ["b"]
    assert retriever.invoke("zzz qqq") == []
    assert asyncio.run(retriever.ainvoke("bees dance")) == found
    assert retriever.batch(["bees dance"]) == [found]


def test_langchain_chains_take_the_retriever(path):
    module = pytest.importorskip("whet.integrations.langchain")
    runnables = pytest.importorskip("langchain_core.runnables")
    retriever = module.WhetRetriever.of(path, n=1)
    chain = retriever | runnables.RunnableLambda(lambda found: found[0].id)
    assert chain.invoke("trains on rails") == "d"


def test_llama_index_retrieves_with_scores_metadata_and_filters(path):
    module = pytest.importorskip("whet.integrations.llama_index")
    retriever = module.WhetRetriever(path, n=2, selector="nearest", where='lang == "en"')
    found = retriever.retrieve("bees dance")
    assert found[0].node_id == "a"
    assert found[0].score >= found[1].score > 0
    assert found[0].metadata["year"] == 2020 and found[0].text == DOCUMENTS[0]["text"]
    again = asyncio.run(retriever.aretrieve("bees dance"))
    assert [(node.node_id, node.score) for node in again] == [(n.node_id, n.score) for n in found]
    assert retriever.retrieve("zzz qqq") == []


def test_wrong_options_are_named(path, tmp_path):
    with pytest.raises(ValueError, match="n is -1"):
        DocumentRetriever(path, n=-1)
    with pytest.raises(TypeError, match="unknown name 'similarity_top_k': expected selector, n, k"):
        DocumentRetriever(path, similarity_top_k=3)
    with pytest.raises(TypeError, match="unknown name 'wher': expected where"):
        DocumentRetriever(path).select("bees dance", wher="year > 2020")
    with pytest.raises(WhetError, match="none"):
        DocumentRetriever(tmp_path / "none")


def test_data_sets_and_data_spaces_are_made_of_each_other(path, tmp_path):
    pytest.importorskip("datasets")
    from whet.integrations.datasets import to_dataset

    dataset = to_dataset(path)
    assert dataset["id"][:] == ["a", "b", "c", "d"]
    assert dataset[0] == DOCUMENTS[0] | {"tags": None}
    again = DataSpace.build(dataset, tmp_path / "again")
    assert [d.text for d in again.documents(again.rows)] == [d["text"] for d in DOCUMENTS]
    assert again.documents(again.rows)[1].meta["year"] == 2021
    mixed = [{"text": "bees dance", "x": 1}, {"text": "ants walk", "x": "one"}]
    space = DataSpace.build(mixed, tmp_path / "mixed")
    assert to_dataset(space)["x"][:] == ["1", '"one"']
