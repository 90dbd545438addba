"""A source is indexed again; a document's text is as before, its label (who may read it) or another field is not. Right: the new
metadata is taken, or the document is told in failed.jsonl, as one with another text is; not neither."""
import json
from _tiny import folder, told
from whet import DataSpace
from whet.space.store.manifest import Labels

where = folder()
source, path = where / "a.jsonl", where / "s"
def index(label, year):
    source.write_text(json.dumps({"id": "a", "text": "bees dance", "label": label, "year": year}) + "\n" + '{"id": "b", "text": "honey keeps", "label": "public", "year": 1}\n')
    return DataSpace.build(str(source), path, "lsa", labels=Labels(field="label", public="public"), progress=False)
index("public", 1)
space = index("secret", 2)
meta, faults = space.documents(space.store.find(["a"]))[0].meta, []
if meta != {"label": "secret", "year": 2} and not space.manifest.failed:
    faults.append(f"made secret, but still {meta}, and nothing is told")
told(faults)
