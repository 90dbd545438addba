from whet.errors import require

require("torch", "adapt")
