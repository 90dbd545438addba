"""Ids that begin with a key's label but carry another label (added by an operator or a `*` key): the key learns by 409 or `known` that they
exist, and can confirm a guessed text; the 409 of a busy or read-only space tells the server's paths."""
from common import *
from server import *
from whet import DataSpace
from whet.space.store.manifest import Labels
import fcntl
d=scratch("22"); p=d/"docs.whet"; DataSpace.build([{"id":f"public:{i}","text":t,"label":"public"} for i,t in enumerate(texts(40))]+[{"id":"legal:7","text":"merger with honey corp","label":"board"},{"id":"legal:1","text":"own honey","label":"legal"}],p,labels=Labels(field="label",public="public")).store.close()
K={n:run([WHET,"keys","create",d/"keys.toml",n,"--label",n,"--role","write","--role","read"]).stdout.strip() for n in ("legal",)}
with serving(p,keys=d/"keys.toml") as sv:
    add=lambda i,t: sv.req(K["legal"]).post("/v1/data_spaces/docs/documents",{"documents":[{"id":i,"text":t,"label":"legal"}]})
    a=add("legal:7","x"); b=add("legal:7","merger with honey corp"); c=add("legal:8","x")
    fd=os.open(p,os.O_RDONLY); fcntl.flock(fd,fcntl.LOCK_EX); e=add("legal:9","x"); os.close(fd)
    (fault if a.status==409 or b.json().get("known") else ok)("guess:",a.json().get("error",{}).get("message"),"| right text:",b.json(),"| busy:",e.json().get("error",{}).get("message"))
