"""Embeddings and tokens over HTTP, by OpenAI's client and as vLLM has them."""

import base64

import numpy as np
import pytest
from openai import BadRequestError, NotFoundError, OpenAI
from support import serving

from whet.adapt.model import LanguageModel
from whet.embed.registry import get_embedder
from whet.space.space import DataSpace


@pytest.fixture(scope="module")
def openai(server):
    key = serving.token("legal")
    with OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as client:
        yield client


def test_embeddings_are_the_data_spaces_own_in_both_formats(openai, labeled_space):
    texts = ["bee honey dance", "wax", "zzz"]
    expected = DataSpace.open(labeled_space).embedder.encode(texts)
    numbers = openai.embeddings.create(model="docs", input=texts, encoding_format="float")
    packed = openai.embeddings.create(model="docs", input=texts)  # the client asks for base64
    for created in (numbers, packed):
        np.testing.assert_array_equal(np.array([d.embedding for d in created.data], "f4"), expected)
        assert [d.index for d in created.data] == [0, 1, 2]
        assert created.usage.total_tokens == created.usage.prompt_tokens > 0
    assert not expected[2].any()  # a text without a known term


def test_a_data_space_can_be_the_embedder_of_another(server, labeled_space, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", serving.token("legal"))
    texts = ["bee honey dance", " ", "wax"]
    remote = get_embedder(f"openai:{server.url}/v1#docs")
    expected = DataSpace.open(labeled_space).embedder.encode(texts)
    np.testing.assert_allclose(remote.encode(texts), expected, atol=1e-6)


def test_embedding_of_a_text_is_that_of_a_list_of_one(server):
    body = {"model": "docs", "encoding_format": "base64"}
    one, many = (
        server.of("chief").post("/v1/embeddings", body | {"input": given}).json()["data"]
        for given in ("bee", ["bee"])
    )
    assert one == many and len(base64.b64decode(one[0]["embedding"])) % 4 == 0


@pytest.mark.parametrize(
    "values, message",
    [
        ({"input": [1, 2]}, "token ids, which belong to another tokenizer"),
        ({"input": [[1, 2]]}, "check_embedding_ctx_length=False"),
        ({"input": []}, "at least 1 item"),
        ({"input": ["bee", ""]}, "input.1 is .* at least 1"),
        ({"input": "bee", "dimensions": 3}, "dimensions is 3: the vectors of lsa"),
        ({"input": "bee", "encoding_format": "int8"}, "expected 'float' or 'base64'"),
        ({"input": ["bee"] * 2049}, "at most 2048 items"),
    ],
)
def test_embeddings_that_would_not_be_the_embedders_are_refused(openai, values, message):
    with pytest.raises(BadRequestError, match=message):
        openai.embeddings.create(**{"model": "docs", "encoding_format": "float"} | values)


def test_fields_of_other_servers_are_ignored_and_listed(openai):
    reply = openai.embeddings.with_raw_response.create(
        model="docs", input="bee", user="u", extra_body={"input_type": "query", "truncate": "END"}
    )
    assert reply.headers["x-whet-ignored"] == "input_type, truncate, user"


def test_embedder_of_an_unreadable_or_unknown_data_space_does_not_exist(server, openai):
    with pytest.raises(NotFoundError, match="/v1/data_spaces") as caught:
        openai.embeddings.create(model="tiny", input="bee")
    assert caught.value.param == "model"
    assert server.post("/v1/embeddings", {"model": "docs", "input": "bee"}).status == 401


def test_tokens_are_those_that_the_model_reads(server, llama_folder):
    model, client = LanguageModel.from_pretrained(llama_folder), server.of("chief")
    asked = {"model": "tiny", "prompt": "bee honey", "return_token_strs": True}
    reply = client.post("/tokenize", asked).json()
    assert reply["tokens"] == [model.bos_token_id, *model.encode("bee honey").tolist()]
    assert reply["count"] == len(reply["token_strs"]) and reply["max_model_len"] == model.max_length
    bare = client.post("/tokenize", {"prompt": "bee honey", "add_special_tokens": False}).json()
    assert bare["tokens"] == reply["tokens"][1:] and bare["token_strs"] is None
    assert client.post("/detokenize", {"tokens": bare["tokens"]}).json() == {"prompt": "bee honey"}


def test_tokens_of_a_chat_are_as_many_as_its_usage(server):
    client, chat = server.of("chief"), [{"role": "user", "content": "bee"}]
    count = client.post("/tokenize", {"messages": chat}).json()["count"]
    body = {"model": "tiny@base", "messages": chat, "max_tokens": 1}
    usage = client.post("/v1/chat/completions", body).json()["usage"]
    assert count == usage["prompt_tokens"]


@pytest.mark.parametrize(
    "path, body, message",
    [
        ("/tokenize", {}, "expected either prompt or messages"),
        ("/tokenize", {"prompt": "a", "model": "gpt-4o"}, "'gpt-4o' does not exist"),
        ("/detokenize", {"tokens": [10**6]}, "has token ids 0 to"),
        ("/detokenize", {"tokens": [-1]}, "greater than or equal to 0"),
        ("/detokenize", {"tokens": [True]}, "expected a valid integer"),
    ],
)
def test_invalid_tokens_and_models_are_refused(server, path, body, message):
    reply = server.of("chief").post(path, body)
    assert reply.status in (400, 404) and message in reply.error["message"]
    assert server.post(path, body).status == 401
