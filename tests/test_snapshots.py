"""Help, public names, JSON output and the server's description are what they were."""

import pytest
from golden import shown


@pytest.mark.parametrize("name", shown.SNAPSHOTS)
def test_what_users_see_is_what_it_was(name):
    different = shown.difference(name)
    assert not different, f"{different}\n\nif it is meant: {shown.REMAKE}"
