"""A .jsonl.zst made with `zstd --long=31` (dumps of Reddit are). Right: read, or an error that says that the window is too large and to
pack it again; the file is whole. Needs the package zstandard (pip install --target …)."""
import sys
# needs `pip install zstandard`
import zstandard
from _tiny import folder, told
from whet.data.documents import read_documents

path = folder() / "a.jsonl.zst"
packer = zstandard.ZstdCompressor(compression_params=zstandard.ZstdCompressionParameters(window_log=29)).compressobj()
path.write_bytes(packer.compress(b'{"text": "bees"}\n') + packer.flush())
faults = []
try:
    list(read_documents(path))
except Exception as error:
    if "not whole" in str(error):
        faults.append(str(error).partition(": ")[2][:90])
told(faults)
