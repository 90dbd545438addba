from whet.errors import require

require("pyarrow", "space")
