"""JSON lines called .ndjson, .JSONL, or as `whet space export --out` was told. Right: records, or an error; never one document of raw
JSON without a word."""
from _tiny import folder, told
from whet.data.documents import read_documents

faults, where = [], folder()
for name in ("a.ndjson", "a.JSONL", "a.Jsonl", "a.jsonlines", "a.jl", "a.CSV", "a.json.txt"):
    (where / name).write_text("text,x\nbees,1\nhoney,2\n" if name.endswith("CSV") else '{"text": "bees"}\n{"text": "honey"}\n')
    try:
        found = [document.text for document in read_documents(where / name)]
    except Exception as error:
        found = [f"{type(error).__name__}"]
        continue
    if found != ["bees", "honey"]:
        faults.append(f"{name}: {len(found)} document, {found[0][:24]!r}")
told(faults)
