"""Whether the Hugging Face hub can be reached: its clients wait most of a minute before giving up."""

import logging
import os
import time
from pathlib import Path

from whet.errors import require

LOGGER = logging.getLogger(__name__)
TIMEOUT_S = 5.0
ATTEMPTS = 2


def is_cut_off(source: str | Path) -> bool:
    """Whether `source` can be loaded from the local cache only: an id while the hub is out of reach.

    False for a folder, and if HF_HUB_OFFLINE already says so. Otherwise sends one request without
    content, through the proxy that the hub's own client uses; logs a warning if nothing responds.

    Args:
        source: A folder, or an id of the hub.

    >>> is_cut_off(".")
    False
    """
    if os.path.exists(source):  # also of a name that cannot be a path
        return False
    hub = require("huggingface_hub", "adapt")
    constants, session = hub.constants, require("huggingface_hub.utils", "adapt").get_session()
    if constants.HF_HUB_OFFLINE:
        return False
    for attempt in range(ATTEMPTS):
        try:
            session.head(constants.ENDPOINT, timeout=TIMEOUT_S)
            return False
        except Exception as error:  # of the HTTP client, which depends on the hub's version
            reason = " ".join(str(error).split())
            time.sleep(0 if attempt else 0.5)
    LOGGER.warning(
        "%s cannot be reached (%s): %s is looked for in the local cache only",
        constants.ENDPOINT, reason, source,
    )  # fmt: skip
    return True
