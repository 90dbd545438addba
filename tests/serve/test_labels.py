"""Documents that a key may not read do not change a single bit of its responses."""

from operator import itemgetter

import pytest
from support import label_escape, serving

from whet.data.documents import Document
from whet.space.maintenance.inspection import verify
from whet.space.space import DataSpace
from whet.space.store.manifest import Labels
from whet.space.store.writer import DiskWriter

SELECT = {"prompt": "honey sting", "n": 3, "k": 20}


def ids(reply):
    return [found["id"] for found in reply.json()["data"]]


def test_random_requests_reveal_no_forbidden_document(server):
    names = list(label_escape.READS)
    for seed in range(60):
        assert not label_escape.leaks(server, names[seed % len(names)], seed)


def test_each_key_sees_its_labels_and_public_documents(server):
    for name, labels in label_escape.READS.items():
        found = server.of(name).post("/v1/search", {"prompt": "bee honey", "k": 40})
        assert {item.partition(":")[0] for item in ids(found)} == labels
    assert server.of("legal").get("/v1/data_spaces").json()["data"][0]["documents"] == 27


@pytest.mark.parametrize("lam", [0.01, "auto"])
@pytest.mark.parametrize("prompt", ["honey sting", "queen hive wax", "legal bee"])
def test_answers_equal_those_without_the_other_documents(
    server, llama_folder, tmp_path_factory, prompt, lam
):
    place = tmp_path_factory.mktemp("without") / "docs.whet"
    own_documents = [item for item in serving.documents() if not item.id.startswith("medical")]
    DataSpace.build(own_documents, place, labels=Labels(field="label", public="public"))
    payload = {
        "model": "tiny", "prompt": prompt, "max_tokens": 8, "temperature": 0,
        "adapt": {
            "n": 4, "k": 27, "lam": lam, "cache": "off",
            "include": ["selection", "trace", "texts"],
        },
    }  # fmt: skip

    def response(client):
        reply = client.of("legal").post("/v1/completions", payload).json()
        del reply["adapt"]["seconds"], reply["adapt"]["evidence"]["line"]  # with seconds
        return reply["choices"], reply["usage"], reply["adapt"]

    with serving.running(serving.app(llama_folder, place)) as without:
        assert response(without) == response(server)


def test_adapters_are_not_shared_between_keys(server):
    payload = {"model": "tiny", "prompt": "hive pollen", "max_tokens": 1, "adapt": {}}
    first = server.of("medical").post("/v1/completions", payload).json()["adapt"]
    name = first["adapter_id"]
    assert not server.of("chief").post("/v1/completions", payload).json()["adapt"]["cached"]
    for key in ("legal", "chief"):
        reply = server.of(key).post("/v1/completions", payload | {"model": f"tiny@{name}"})
        assert reply.status == 404
        assert name not in [
            item["id"] for item in server.of(key).get("/v1/adapters").json()["data"]
        ]
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
def test_key_writes_only_its_own_labels(server, document, status):
    path = "/v1/data_spaces/docs/documents"
    assert server.of("legal").post(path, {"documents": [document]}).status == status
    server.of("legal").post(f"{path}/delete", {"ids": ["legal:new"]})


def test_documents_are_cut_into_passages_and_deleted_by_their_own_id(server):
    path, legal = "/v1/data_spaces/docs/documents", server.of("legal")
    words = (serving.WORDS * 80)[:700]
    new = {"id": "legal:long", "text": " ".join(words), "label": "legal"}

    def stored():
        query = {"prompt": "bee honey", "k": 60, "where": 'label == "legal"'}
        return [i for i in ids(legal.post("/v1/search", query)) if "long" in i]

    assert legal.post(path, {"documents": [new]}).json()["added"] == 1
    assert set(stored()) == {f"legal:long#{i}" for i in range(3)}
    again = legal.post(path, {"documents": [new]}).json()
    assert (again["added"], again["existing"]) == (0, 1)
    for other in (new | {"text": "bee"}, new | {"id": "legal:long#1", "text": "bee"}):
        reply = legal.post(path, {"documents": [other]})
        assert reply.status == 409 and reply.error["code"] == "id_taken"
    delete = {"ids": ["legal:long"]}
    assert server.of("chief").post(f"{path}/delete", delete).json()["deleted"] == 1
    assert not stored()


def test_key_deletes_only_what_it_can_read(server):
    path = "/v1/data_spaces/docs/documents/delete"
    response = server.of("legal").post(path, {"ids": ["medical:2", "no such"]}).json()
    assert response["deleted"] == 0
    assert "medical:2" in ids(server.of("medical").post("/v1/search", {"prompt": "bee", "k": 40}))


def test_key_deletes_only_what_it_can_write(server):
    path = "/v1/data_spaces/docs/documents/delete"
    reply = server.of("legal").post(path, {"ids": ["legal:1", "public:0"]})
    assert reply.status == 403 and "'public:0'" in reply.error["message"]
    found = ids(server.of("chief").post("/v1/search", {"prompt": "bee", "k": 40}))
    assert {"legal:1", "public:0"} <= set(found)


@pytest.mark.parametrize("call", ["select", "search"])
@pytest.mark.parametrize("retriever", ["dense", "bm25", "hybrid"])
def test_no_filter_widens_what_a_key_sees(server, call, retriever):
    for where in ('label == "medical"', 'not label == "x"', 'id == "medical:2"', 'label >= ""'):
        payload = {"prompt": "medical honey", "where": where, "retriever": retriever}
        reply = server.of("legal").post(f"/v1/{call}", payload)
        assert reply.status == 200 and not any(i.startswith("medical") for i in ids(reply))
        assert "medical" not in {item["meta"]["label"] for item in reply.json()["data"]}


def test_role_read_is_required_for_requests(llama_folder, tmp_path):
    place = serving.space(tmp_path / "docs.whet")
    keys = [serving.key("monitor", "*", roles=("metrics", "write"))]
    with serving.running(serving.app(llama_folder, place, keys=keys)) as client:
        payload = {"model": "tiny@base", "prompt": "bee", "max_tokens": 1}
        for call in ("completions", "adapters", "select", "search", "score"):
            body = {"prompt": "bee"} if call in ("select", "search") else payload
            body = {"model": "tiny", "prompt": "bee"} if call == "adapters" else body
            body = {"model": "tiny", "prompt": "bee", "text": "x"} if call == "score" else body
            reply = client.of("monitor").post(f"/v1/{call}", body)
            assert reply.status == 403 and reply.error["code"] == "role_missing"


def test_routes_require_their_roles(server):
    path = "/v1/data_spaces/docs/documents"
    document = {"id": "medical:x", "text": "bee", "label": "medical"}
    assert server.of("medical").post(path, {"documents": [document]}).status == 403
    assert server.of("legal").get("/metrics").status == 403
    assert server.of("chief").get("/metrics").status == 200


@pytest.mark.parametrize("authorization", ["", "Bearer ", "Bearer whet_x", "Basic YTpi", "Bearer "
                                           + serving.token("legal")[:-1] + "t"])  # fmt: skip
def test_invalid_keys_are_rejected(server, authorization):
    for path in ("models", "adapters", "data_spaces"):
        reply = server.get(f"/v1/{path}", **{"authorization": authorization})
        assert reply.status == 401 and reply.error["code"] == "invalid_api_key"
    assert server.post("/v1/select", SELECT).status == 401
    assert server.get("/metrics").status == 401


def test_space_without_labels_needs_a_key_for_all(llama_folder, tmp_path):
    DataSpace.build(list(serving.documents()), tmp_path / "docs.whet")
    with serving.running(serving.app(llama_folder, tmp_path / "docs.whet")) as client:
        assert client.of("legal").post("/v1/select", SELECT).status == 404
        assert client.of("chief").post("/v1/select", SELECT).status == 200


@pytest.mark.parametrize("words", [5, 700], ids=["whole", "cut into passages"])
def test_writing_confirms_no_hidden_document(llama_folder, tmp_path, words):
    hidden = " ".join((serving.WORDS * 80)[:words])
    guess = " ".join((serving.WORDS[::-1] * 80)[:words])
    board = {"id": "legal:7", "text": hidden, "meta": {"label": "board"}}
    documents = [item for item in serving.documents() if item.id != "legal:7"]
    labels = Labels(field="label", public="public")
    records = [{"id": d.id, "text": d.text, "meta": d.meta} for d in documents]
    DataSpace.build([*records, board], tmp_path / "with.whet", labels=labels, chunks="auto")
    DataSpace.build(records, tmp_path / "without.whet", labels=labels, chunks="auto")
    path = "/v1/data_spaces/docs/documents"
    answers = []
    for place in (tmp_path / "with.whet", tmp_path / "without.whet"):
        with serving.running(serving.app(llama_folder, place)) as client:
            legal, chief = client.of("legal"), client.of("chief")
            seen = []

            def found(key, text):
                reply = key.post("/v1/search", {"prompt": text, "k": 60}).json()
                return [item for item in reply["data"] if item["id"].startswith("legal:7")]

            for text in (guess, guess, hidden, guess):
                new = {"id": "legal:7", "text": text, "label": "legal"}
                seen += [legal.post(path, {"documents": [new]}), found(legal, guess)]
            taken = {"id": "legal:7#1", "text": "bee", "label": "legal"}
            seen.append(legal.post(path, {"documents": [taken]}))
            for name in ("legal:7", "legal:7", "legal:7#1"):
                seen.append(legal.post(f"{path}/delete", {"ids": [name]}))
            new = {"id": "legal:7", "text": hidden, "label": "legal"}
            seen.append(legal.post(path, {"documents": [new]}))
            answers.append([(s.status, s.body) if hasattr(s, "status") else s for s in seen])
            legal.post(f"{path}/delete", {"ids": ["legal:7"]})
            kept = "".join(
                item["text"] for item in sorted(found(chief, hidden), key=itemgetter("id"))
            )
            assert kept == (hidden if "with." in str(place) else "")
    assert answers[0] == answers[1]


def test_busy_space_does_not_tell_its_path(llama_folder, tmp_path):
    place = serving.space(tmp_path / "docs.whet")
    with serving.running(serving.app(llama_folder, place)) as client, DiskWriter(place):
        new = {"id": "legal:9", "text": "x", "label": "legal"}
        for path, body in (("", {"documents": [new]}), ("/delete", {"ids": ["legal:1"]})):
            reply = client.of("legal").post(f"/v1/data_spaces/docs/documents{path}", body)
            assert reply.status == 409 and str(tmp_path) not in reply.error["message"]


def test_a_key_does_not_learn_of_adapters_of_another(llama_folder, tmp_path):
    place = serving.space(tmp_path / "docs.whet")
    with serving.running(serving.app(llama_folder, place, cache_mib=1)) as client:

        def adapters(name):
            return [item["id"] for item in client.of(name).get("/v1/adapters").json()["data"]]

        for name, count in (("legal", 1), ("medical", 30)):
            for i in range(count):
                prompt = f"{serving.WORDS[i % 11]} {serving.WORDS[(3 * i) % 11]}"
                payload = {"model": "tiny", "prompt": prompt, "adapt": {"n": 1 + i % 5}}
                assert client.of(name).post("/v1/adapters", payload).status == 200
            if name == "legal":
                own = adapters("legal")
        assert adapters("legal") == own


def test_an_id_that_two_readers_use_survives_compaction_and_indexing(llama_folder, tmp_path):
    place = tmp_path / "docs.whet"
    labels = Labels(field="label", public="public")
    source = [
        *serving.documents(),
        Document("legal:shared", "honey law of another reader", {"label": "medical"}),
    ]
    DataSpace.build(source, place, labels=labels)
    added = {"id": "legal:shared", "text": "the lawyer's own honey", "label": "legal"}
    with serving.running(serving.app(llama_folder, place)) as client:
        reply = client.of("legal").post("/v1/data_spaces/docs/documents", {"documents": [added]})
    assert reply.status == 200
    with DiskWriter(place) as writer:
        writer.compact()
    space = DataSpace.build(source, place, labels=labels)
    texts = [d.text for d in space.documents(space.rows) if d.id == "legal:shared"]
    assert sorted(texts) == ["honey law of another reader", "the lawyer's own honey"]
    assert not (place / "failed.jsonl").exists() and not list(verify(place))
