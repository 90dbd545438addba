"""A document whose metadata is nested 255 deep, or 900. Right: it is refused with a line of failed.jsonl, or flattened, and every search works."""
from common import *
from whet import DataSpace, Retriever, SelectionConfig
d = scratch("25"); p = d / "docs.whet"; x = "[" * 300 + "]" * 300
(d / "a.jsonl").write_text("".join(json.dumps({"id": f"d{i}", "text": t}) + "\n" for i, t in enumerate(texts(30))) + '{"id":"poison","text":"honey honey honey bee","x":' + x + '}\n')
done = run([WHET, "index", d / "a.jsonl", p, "--quiet"])
failed = (p / "failed.jsonl").read_text() if (p / "failed.jsonl").exists() else ""
found = Retriever(DataSpace.open(p), SelectionConfig(k=5)).select("honey bee", n=3).documents
(ok if done.returncode == 0 and "deep" in failed and len(found) == 3 else fault)(done.returncode, failed[:200])
