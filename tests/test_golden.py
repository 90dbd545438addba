"""Numbers and files of before are those of today; `python -m tests.golden` remakes the numbers."""

import pytest
import torch
from golden import made

# of each number the largest relative and absolute difference; the first name that fits counts
TOLERANCES = {
    "picks": {"": (1e-9, 1e-9)},
    "engine": {"sigma": (0, 1e-6), "": (1e-3, 1e-3)},
    "evaluation": {"sigma": (0, 1e-6), "": (1e-3, 0)},
    "formats": {"cosine": (0, 1e-6), "adapter": (1e-3, 0), "": (1e-9, 1e-9)},
}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def differences(kept, now, tolerances, place=""):
    """Each place at which `now` is not what was kept."""
    if isinstance(kept, dict) and isinstance(now, dict):
        for name in kept.keys() | now.keys():
            yield from differences(kept.get(name), now.get(name), tolerances, f"{place}/{name}")
    elif isinstance(kept, list) and isinstance(now, list) and len(kept) == len(now):
        for i, (one, other) in enumerate(zip(kept, now, strict=True)):
            yield from differences(one, other, tolerances, f"{place}/{i}")
    else:
        within = next(within for name, within in tolerances.items() if name in place)
        number = isinstance(kept, float) and isinstance(now, float)
        if now != (pytest.approx(kept, rel=within[0], abs=within[1]) if number else kept):
            yield f"{place}: {now!r}, but {kept!r} is kept"


@pytest.mark.parametrize("name", made.NUMBERS)
def test_numbers_are_those_of_before(name):
    found = list(differences(made.stored(name), made.NUMBERS[name](), TOLERANCES[name]))
    assert not found, "\n".join(found[:20])


def test_a_kept_adapter_changes_what_the_model_says():
    kept = made.stored("formats")["adapter"]
    assert kept["adapted"] < 0.95 * kept["base"]
