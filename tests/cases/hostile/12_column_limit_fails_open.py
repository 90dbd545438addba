"""Fields beyond the first 128 columns of a segment are silently not filtered by. `not (secret == True)` then passes what is secret,
`delete --where` removes what should stay, and a label field beyond them hides every document from its own key. Compacting changes answers."""
from common import *
from whet import DataSpace
from whet.space.store.writer import DiskWriter
d=scratch("12"); p=d/"s.whet"
wide=[{"id":"wide","text":"honey bee","meta":{f"f{i}":i for i in range(128)}}]
DataSpace.build(wide+[{"id":f"plain{i}","text":t,"secret":False} for i,t in enumerate(texts(3))],p)
s=DataSpace.open(p).add([{"id":"top","text":"honey secret plan","secret":True},{"id":"fine","text":"honey public plan","secret":False}])
before=sorted(s.filter("not (secret == True)").ids)
with DiskWriter(p) as w: w.compact()
try: after=sorted(DataSpace.open(p,where="not (secret == True)").ids)
except ValueError as e: after=repr(e)
s2=DataSpace.open(p)
DataSpace.build([{"id":f"w{i}","text":t,"meta":{f"f{j}":j for j in range(128)},"secret":True} for i,t in enumerate(texts(3))],d/"t.whet")
t=DataSpace.open(d/"t.whet").add([{"id":"x","text":"honey bee dance","secret":False}])
open_=sorted(t.filter("not (secret == True)").ids) if "truth" in t.store.fields.get("secret",()) else None
(ok if before==after and "top" not in before and open_==["x"] else fault)(f"before compact {before}; after compact: {after}; space whose secret ones lie in a wide segment, seen through `not (secret == True)`: {open_}")
