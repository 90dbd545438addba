"""One request to generate or score: check it, run it, report its events."""

from whet.errors import require

require("fastapi", "serve")
