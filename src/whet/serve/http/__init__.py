"""Connections, request bodies and headers, below the routes."""

from whet.errors import require

require("fastapi", "serve")
