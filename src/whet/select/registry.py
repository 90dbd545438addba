"""Every selector by the name that `--selector` takes; docs/method.md says when to use which."""

from whet.select.selection import Selector
from whet.select.selectors.active_learning import ctl, information_density, itl, undirected_vtl
from whet.select.selectors.baselines import nearest, nearest_repeated, random, uncertainty
from whet.select.selectors.diversity import facility_location, farthest_first, kmeanspp, mmr
from whet.select.selectors.hull import hull
from whet.select.selectors.lazy import sift_lazy
from whet.select.sift import sift

SELECTORS: dict[str, Selector] = {
    "sift": sift,
    "sift-lazy": sift_lazy,
    "nearest": nearest,
    "nearest-repeated": nearest_repeated,
    "uncertainty": uncertainty,
    "random": random,
    "mmr": mmr,
    "kmeanspp": kmeanspp,
    "farthest-first": farthest_first,
    "facility": facility_location,
    "hull": hull,
    "itl": itl,
    "ctl": ctl,
    "vtl-undirected": undirected_vtl,
    "information-density": information_density,
}


def selector(name: str) -> Selector:
    """The selector called `name`.

    Raises:
        ValueError: If no selector is called so; the message lists those there are.
    """
    try:
        return SELECTORS[name]
    except KeyError:
        raise ValueError(f"selector is {name!r}: expected one of {', '.join(SELECTORS)}") from None
