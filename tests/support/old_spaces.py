"""Data spaces as older versions of whet wrote them."""

import json

from whet.space.store.manifest import manifest_checksum

NEW = ("chunks", "kernel", "sources")  # fields of the manifest that they did not have


def as_older_version(path):
    file = path / "meta.json"
    values = {k: v for k, v in json.loads(file.read_text()).items() if k not in NEW}
    file.write_text(json.dumps(values | {"crc32": manifest_checksum(values)}))
