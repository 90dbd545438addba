"""Prompts that a document of the data space repeats, through HTTP."""

import numpy as np
import pytest
from support import serving

from whet.data.documents import Document
from whet.space.space import DataSpace

WORDS = np.array([a + b for a in "bcdfglm" for b in ("ar", "ol", "im")])


def words(seed, count):
    return np.random.default_rng(seed).choice(WORDS, count).tolist()


@pytest.fixture
def place(tmp_path):
    """A document in passages of 30 words, and passages of others."""
    documents = []
    for name in range(8):
        start = 0
        for number in range(3):
            text = " ".join(words(name * 10 + number, 30)) + " "
            meta = {"parent": f"d{name}", "span": [start, start + len(text)]}
            documents.append(Document(f"d{name}#{number}", text, meta))
            start += len(text)
    return DataSpace.build(documents, tmp_path / "docs.whet").path


def test_the_passage_that_follows_a_copy_is_trained_on_cached_and_forgotten(llama_folder, place):
    ask = {"model": "tiny", "prompt": " ".join(words(10, 30)), "adapt": {"n": 4}}
    ask["adapt"] |= {"include": ["selection", "trace"]}
    with serving.running(serving.app(llama_folder, place, keys=None)) as client:
        scored = {"text": "bar ol"}
        first = client.post("/v1/score", ask | scored)
        assert first.status == 200, first.body
        adapt = first.json()["adapt"]
        assert adapt["steps"] > 0 and [each["id"] for each in adapt["selection"]] == [
            "d1#0",
            "d1#1",
        ]
        again = client.post("/v1/score", ask | scored).json()["adapt"]
        assert again["cached"] and again["adapter_id"] == adapt["adapter_id"]
        path = "/v1/data_spaces/docs/documents/delete"
        assert client.post(path, {"ids": ["d1#1"]}).status == 200
        assert client.get(f"/v1/adapters/{adapt['adapter_id']}").status == 404
