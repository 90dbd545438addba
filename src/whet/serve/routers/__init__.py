"""The routes of the server: one router per resource."""

from whet.errors import require

require("fastapi", "serve")
