"""A .jsonl.zst made with `zstd --long=31` (dumps of Reddit are). Right: read, or an error that says that the window is too large and to
pack it again; the file is whole. The frame is written by hand: a window of 2**29 bytes and one raw block."""
from _tiny import folder, told
from whet.data.documents import read_documents

content = b'{"text": "bees"}\n'
path = folder() / "a.jsonl.zst"
path.write_bytes(b"\x28\xb5\x2f\xfd\x00" + bytes([(29 - 10) << 3]) + (1 | len(content) << 3).to_bytes(3, "little") + content)
faults = []
try:
    list(read_documents(path))
except Exception as error:
    if "truncated" in str(error) or "window" not in str(error):
        faults.append(str(error).partition(": ")[2][:90])
told(faults)
