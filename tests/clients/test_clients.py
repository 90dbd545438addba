"""The clients that are installed here work with a server without special settings."""

import pytest
from clients import run
from support import serving, tiny_models


@pytest.fixture(scope="module")
def server(llama_folder, labeled_space, tmp_path_factory):
    folder = tiny_models.with_tools(llama_folder, tmp_path_factory.mktemp("clients") / "model")
    with serving.running(serving.app(folder, labeled_space, keys=None)) as client:
        yield client


@pytest.mark.parametrize("name", run.CLIENTS)
def test_client_works_without_special_settings(server, name):
    for _, version, capability, result in run.run(server.url, "tiny@base", [name]):
        if not version:
            pytest.skip(result)
        assert result.startswith("ok"), f"{capability}: {result}"
