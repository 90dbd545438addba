"""Every store keeps the rules of `whet.space.store.protocol`."""

import pytest
from conformance import *  # noqa: F403  # its tests, and the fixture they share
from conformance import STORES


@pytest.fixture(params=STORES)
def make(request):
    return STORES[request.param]
