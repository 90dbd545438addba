"""The stores on disk and in memory follow the rules of `whet.space.store.protocol`."""

import pytest
from support.store_conformance import *  # noqa: F403  # its tests, and the fixture they share
from support.store_conformance import STORES


@pytest.fixture(params=STORES)
def make(request):
    return STORES[request.param]
