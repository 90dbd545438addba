"""A server with a tiny Llama and a data space whose documents have access labels."""

import pytest
from support import serving


@pytest.fixture(scope="module")
def server(llama_folder, labeled_space):
    """A client of the running server."""
    with serving.running(serving.app(llama_folder, labeled_space)) as client:
        yield client
