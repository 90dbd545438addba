"""The data spaces of a server, as far as a key may use them."""

from whet.errors import require

require("fastapi", "serve")
