"""Reloading survives every error of a file, and never serves deleted documents for long."""

import time

from support import serving

from whet.space.store.manifest import MANIFEST_FILE
from whet.space.store.writer import delete_documents

SEARCH = {"prompt": "legal bee honey", "k": 99}


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ids(client, space):
    reply = client.post("/v1/search", SEARCH | {"data_space": space})
    return {item["id"] for item in reply.json()["data"]} if reply.status == 200 else reply.status


def test_broken_then_mended_folder(llama_folder, tmp_path):
    place, gone = serving.space(tmp_path / "docs.whet"), tmp_path / "gone.whet"
    app = serving.app(llama_folder, place, keys=None)
    with serving.running(app) as client:
        assert "legal:1" in ids(client, "docs")
        adapter = client.post("/v1/adapters", {"model": "tiny", "prompt": "legal bee"}).json()["id"]
        for break_it in (lambda: None, lambda: place.write_text("a file, not a folder")):
            place.rename(gone)
            break_it()
            wait_for(lambda: ids(client, "docs") == 503)
            assert client.get(f"/v1/adapters/{adapter}").status == 404
            assert client.get("/v1/data_spaces").json()["data"] == []
            new = {"documents": [{"id": "new", "text": "bee"}]}
            assert client.post("/v1/data_spaces/docs/documents", new).status in (409, 503)
            place.unlink(missing_ok=True)
            gone.rename(place)
            wait_for(lambda: ids(client, "docs") != 503)
        delete_documents(place, ["legal:1"])
        wait_for(lambda: "legal:1" not in ids(client, "docs"))


def test_broken_manifest_of_one_space_does_not_stop_another(llama_folder, tmp_path):
    first, second = (serving.space(tmp_path / f"{name}.whet") for name in ("docs", "other"))
    config = serving.config(llama_folder, first, spaces={"docs": first, "other": second})
    with serving.running(serving.app_of(config)) as client:
        manifest = first / MANIFEST_FILE
        intact = manifest.read_bytes()
        for damaged in (b"", b"{", b"[]", b"\xff", b"null"):
            manifest.write_bytes(damaged)
            wait_for(lambda: ids(client, "docs") == 503)
            manifest.write_bytes(intact)
            wait_for(lambda: ids(client, "docs") != 503)
        manifest.write_bytes(b"{")
        delete_documents(second, ["legal:1"])
        wait_for(lambda: "legal:1" not in ids(client, "other"))
        manifest.write_bytes(intact)
