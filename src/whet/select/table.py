"""Every selector by the name that `--selector` takes; docs/method.md says when to use which."""

from whet.select.baselines import nearest, nearest_repeated, random, uncertainty
from whet.select.selection import Selector
from whet.select.sift import sift

SELECTORS: dict[str, Selector] = {
    "sift": sift,
    "nearest": nearest,
    "nearest-repeated": nearest_repeated,
    "uncertainty": uncertainty,
    "random": random,
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
