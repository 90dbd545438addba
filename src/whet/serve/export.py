"""A kept adapter as a file that other engines load."""

import io
import tempfile
import zipfile
from pathlib import Path

from whet.serve.adapter_cache import Kept


def archive(kept: Kept) -> bytes:
    """PEFT's two files, zipped, in a folder of the adapter's name, which no other adapter has."""
    packed = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        kept.adapter.save(folder)
        with zipfile.ZipFile(packed, "w") as file:
            for path in sorted(Path(folder).iterdir()):
                file.write(path, f"{kept.id}/{path.name}")
    return packed.getvalue()
