"""Bodies are read whole before the key is looked at, and nothing bounds how many at once: memory for everybody who can connect."""
from common import *
from server import *
from whet import DataSpace
d=scratch("26"); p=d/"docs.whet"; DataSpace.build([{"id":f"d{i}","text":t} for i,t in enumerate(texts(30))],p).store.close()
run([WHET,"keys","create",d/"keys.toml","x"])
with serving(p,keys=d/"keys.toml") as sv:
    before=sv.rss(); held=[]
    for i in range(400):
        s=socket.create_connection(("127.0.0.1",sv.port)); s.sendall(b"POST /v1/search HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1048576\r\n\r\n"+b"x"*1_040_000); held.append(s)
    time.sleep(1); during=sv.rss(); time.sleep(12); after=sv.rss()
    told=held[0].recv(200).split(b"\r\n")[0]
    for s in held: s.close()
    (fault if during-before>300 else ok)(f"400 connections without a key: {before} MB -> {during} MB (after their 10 s: {after} MB, {told})")
