"""What a key may not read does not change one bit of what it is told."""

import pytest
from support import label_escape, serving, tiny_models

from whet.space.space import DataSpace
from whet.space.store.manifest import Labels

SELECT = {"prompt": "honey sting", "n": 3, "k": 20}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_models.save(tmp_path_factory.mktemp("tiny"), "llama")


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    place = serving.space(tmp_path_factory.mktemp("space") / "docs.whet")
    with serving.running(serving.app(model, place)) as client:
        yield client


def ids(reply):
    return [found["id"] for found in reply.json()["data"]]


def test_random_requests_never_tell_of_what_is_not_the_key_s(server):
    names = list(label_escape.READS)
    for seed in range(60):
        assert not label_escape.leaks(server, names[seed % len(names)], seed)


def test_each_key_sees_its_own_and_what_is_public(server):
    for name, labels in label_escape.READS.items():
        found = server.of(name).post("/v1/search", {"prompt": "bee honey", "k": 40})
        assert {one.partition(":")[0] for one in ids(found)} == labels
    assert server.of("legal").get("/v1/data_spaces").json()["data"][0]["documents"] == 27


@pytest.mark.parametrize("prompt", ["honey sting", "queen hive wax", "legal bee"])
def test_answers_are_the_same_where_the_others_documents_never_were(
    server, model, tmp_path_factory, prompt
):
    place = tmp_path_factory.mktemp("without") / "docs.whet"
    own = [one for one in serving.documents() if not one.id.startswith("medical")]
    DataSpace.build(own, place, labels=Labels(field="label", public="public"))
    asked = {
        "model": "tiny", "prompt": prompt, "max_tokens": 8, "temperature": 0,
        "adapt": {"n": 4, "k": 27, "cache": "off", "include": ["selection", "trace", "texts"]},
    }  # fmt: skip

    def told(client):
        reply = client.of("legal").post("/v1/completions", asked).json()
        del reply["adapt"]["seconds"]
        return reply["choices"], reply["usage"], reply["adapt"]

    with serving.running(serving.app(model, place)) as without:
        assert told(without) == told(server)


def test_adapters_are_not_told_between_keys(server):
    asked = {"model": "tiny", "prompt": "hive pollen", "max_tokens": 1, "adapt": {}}
    first = server.of("medical").post("/v1/completions", asked).json()["adapt"]
    name = first["adapter_id"]
    assert not server.of("chief").post("/v1/completions", asked).json()["adapt"]["cached"]
    for key in ("legal", "chief"):
        reply = server.of(key).post("/v1/completions", asked | {"model": f"tiny@{name}"})
        assert reply.status == 404
        assert name not in [one["id"] for one in server.of(key).get("/v1/adapters").json()["data"]]
        assert server.of(key).send("DELETE", f"/v1/adapters/{name}").status == 404


@pytest.mark.parametrize(
    "document, status",
    [
        ({"id": "legal:new", "text": "honey law", "label": "legal"}, 200),
        ({"id": "legal:new", "text": "honey law", "label": "medical"}, 403),
        ({"id": "legal:new", "text": "honey law", "label": "public"}, 403),
        ({"id": "legal:new", "text": "honey law"}, 403),
        ({"id": "medical:1", "text": "honey law", "label": "legal"}, 400),
        ({"id": "new", "text": "x", "label": "legal", "meta": {"label": "medical"}}, 400),
        ({"id": "legal:1", "text": "another text", "label": "legal"}, 409),
    ],
)
def test_a_key_writes_under_its_own_label_alone(server, document, status):
    path = "/v1/data_spaces/docs/documents"
    assert server.of("legal").post(path, {"documents": [document]}).status == status
    server.of("legal").post(f"{path}/delete", {"ids": ["legal:new"]})


def test_a_key_deletes_what_it_sees_alone(server):
    path = "/v1/data_spaces/docs/documents/delete"
    told = server.of("legal").post(path, {"ids": ["medical:2", "no such"]}).json()
    assert told["deleted"] == 0
    assert "medical:2" in ids(server.of("medical").post("/v1/search", {"prompt": "bee", "k": 40}))


def test_a_key_deletes_only_what_it_could_have_written(server):
    path = "/v1/data_spaces/docs/documents/delete"
    reply = server.of("legal").post(path, {"ids": ["legal:1", "public:0"]})
    assert reply.status == 403 and "'public:0'" in reply.error["message"]
    found = ids(server.of("chief").post("/v1/search", {"prompt": "bee", "k": 40}))
    assert {"legal:1", "public:0"} <= set(found)


@pytest.mark.parametrize("call", ["select", "search"])
@pytest.mark.parametrize("retriever", ["dense", "bm25", "hybrid"])
def test_no_filter_widens_what_a_key_sees(server, call, retriever):
    for where in ('label == "medical"', 'not label == "x"', 'id == "medical:2"', 'label >= ""'):
        asked = {"prompt": "medical honey", "where": where, "retriever": retriever}
        reply = server.of("legal").post(f"/v1/{call}", asked)
        assert reply.status == 200 and not any(i.startswith("medical") for i in ids(reply))
        assert "medical" not in {one["meta"]["label"] for one in reply.json()["data"]}


def test_role_use_is_needed_to_ask(model, tmp_path):
    place = serving.space(tmp_path / "docs.whet")
    keys = [serving.key("monitor", "*", roles=("metrics", "write"))]
    with serving.running(serving.app(model, place, keys=keys)) as client:
        asked = {"model": "tiny@base", "prompt": "bee", "max_tokens": 1}
        for call in ("completions", "adapters", "select", "search", "score"):
            body = {"prompt": "bee"} if call in ("select", "search") else asked
            body = {"model": "tiny", "prompt": "bee"} if call == "adapters" else body
            body = {"model": "tiny", "prompt": "bee", "text": "x"} if call == "score" else body
            reply = client.of("monitor").post(f"/v1/{call}", body)
            assert reply.status == 403 and reply.error["code"] == "role_missing"


def test_roles_are_needed(server):
    path = "/v1/data_spaces/docs/documents"
    document = {"id": "medical:x", "text": "bee", "label": "medical"}
    assert server.of("medical").post(path, {"documents": [document]}).status == 403
    assert server.of("legal").get("/metrics").status == 403
    assert server.of("chief").get("/metrics").status == 200


@pytest.mark.parametrize("authorization", ["", "Bearer ", "Bearer whet_x", "Basic YTpi", "Bearer "
                                           + serving.token("legal")[:-1] + "t"])  # fmt: skip
def test_without_a_right_key_nothing_is_told(server, authorization):
    for path in ("models", "adapters", "data_spaces"):
        reply = server.get(f"/v1/{path}", **{"authorization": authorization})
        assert reply.status == 401 and reply.error["code"] == "invalid_api_key"
    assert server.post("/v1/select", SELECT).status == 401
    assert server.get("/metrics").status == 401


def test_a_space_without_labels_is_for_keys_that_read_everything(model, tmp_path):
    DataSpace.build(list(serving.documents()), tmp_path / "docs.whet")
    with serving.running(serving.app(model, tmp_path / "docs.whet")) as client:
        assert client.of("legal").post("/v1/select", SELECT).status == 404
        assert client.of("chief").post("/v1/select", SELECT).status == 200
