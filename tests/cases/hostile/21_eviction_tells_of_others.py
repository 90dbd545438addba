"""Kept adapters of all keys share one capacity: a key sees its own adapters vanish when another key works (docs/serving.md: what remains to be
seen are version numbers and waiting alone), and one key can empty every other's cache."""
from common import *
from server import *
from whet import DataSpace
from whet.space.store.manifest import Labels
d=scratch("21"); DataSpace.build([{"id":f"public:{i}","text":t,"label":"public"} for i,t in enumerate(texts(60))],d/"docs.whet",labels=Labels(field="label",public="public")).store.close()
K={n:run([WHET,"keys","create",d/"keys.toml",n,"--label",n]).stdout.strip() for n in ("a","b")}
(d/"c.toml").write_text('api_keys="keys.toml"\ncache_mib=1\n[spaces]\ndocs="docs.whet"\n')
with serving(config=d/"c.toml") as sv:
    mine=lambda: len(sv.req(K["a"]).get("/v1/adapters").json()["data"])
    i=0
    while True:
        i+=1; n=mine(); r=sv.req(K["a"]).post("/v1/adapters",{"model":"whet-pico","prompt":f"{WORDS[i%len(WORDS)]} {WORDS[(3*i)%len(WORDS)]}","adapt":{"n":1+i%5}})
        if mine()==n or i>30: break
    before=mine(); time.sleep(1); idle=mine()
    sv.req(K["b"]).post("/v1/completions",{"model":"whet-pico","prompt":"market tax court","max_tokens":1,"adapt":{"n":2}})
    after=mine()
    (fault if after<before==idle else ok)(f"adapters of key a: {before}, after a second {idle}, after one request of key b {after}")
