"""Every selector by the name that `--selector` takes; docs/selectors.md says when to use which."""

from whet.select.own import check_own, is_own, own_selector
from whet.select.selection import Selector
from whet.select.selectors.baselines import (
    mmr,
    nearest,
    nearest_product,
    nearest_repeated,
    random_selection,
    sift_lazy,
    uncertainty,
)
from whet.select.selectors.hull import hull
from whet.select.sift import sift

SELECTORS: dict[str, Selector] = {
    "sift": sift,
    "sift-lazy": sift_lazy,
    "nearest": nearest,
    "nearest-product": nearest_product,
    "nearest-repeated": nearest_repeated,
    "uncertainty": uncertainty,
    "random": random_selection,
    "mmr": mmr,
    "hull": hull,
}
"""Every selector by name."""
WITHOUT_REPEATS = frozenset({"nearest", "nearest-product", "random", "mmr"})
"""Those that pick each candidate at most once, so that n is at most the number of candidates."""

REMOVED = {
    "kmeanspp": "random or mmr",
    "farthest-first": "mmr",
    "facility": "uncertainty",
    "itl": "sift, which makes the same picks for a single query",
    "ctl": "sift",
    "vtl-undirected": "uncertainty",
    "information-density": "mmr",
}
"""Selectors of earlier versions, and what to use instead."""


def check_name(name: str) -> None:
    """Check that there is a selector called `name`; of `module:function` only the form is checked.

    Raises:
        ValueError: As `selector`.
    """
    if is_own(name):
        check_own(name)
    elif name in REMOVED:
        raise ValueError(f"selector {name!r} was removed: use {REMOVED[name]}")
    elif name not in SELECTORS:
        raise ValueError(f"selector is {name!r}: expected one of {', '.join(SELECTORS)}")


def selector(name: str) -> Selector:
    """Return the selector called `name`, or import the function that `module:function` refers to.

    Raises:
        ValueError: If it does not exist; the message lists the names, names the replacement of a
            selector that was removed, or says why the function cannot be imported.
    """
    check_name(name)
    return own_selector(name) if is_own(name) else SELECTORS[name]
