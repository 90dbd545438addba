"""The words of deleted public documents stay in the embedder: after delete and compact a key still finds out that a word was in a text that is
gone (a known word finds neighbours, an unknown one none), and embedder/terms.json spells it."""
from common import *
from server import *
from whet import DataSpace
from whet.space.store.manifest import Labels
d=scratch("23"); p=d/"docs.whet"
DataSpace.build([{"id":f"public:{i}","text":t,"label":"public"} for i,t in enumerate(texts(40))]+[{"id":"public:leak","text":"honey takeover of xyzzycorp","label":"public"}],p,labels=Labels(field="label",public="public")).store.close()
run([WHET,"space","delete",p,"public:leak"]); run([WHET,"space","compact",p])
run([WHET,"space","refit",p])  # docs/space.md, "Words of deleted documents"
K=run([WHET,"keys","create",d/"keys.toml","n"]).stdout.strip()
with serving(p,keys=d/"keys.toml") as sv:
    ask=lambda w: len(sv.req(K).post("/v1/search",{"prompt":w,"k":5}).json()["data"])
    a,b=ask("xyzzycorp"),ask("abcdecorp")
    (fault if a and not b else ok)(f"found for the deleted word {a}, for a word that never was {b}; in terms.json: {'xyzzycorp' in next(p.glob('embedder*/terms.json')).read_text()}")
