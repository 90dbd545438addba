"""Ids, texts, field names and set names of documents reach the terminal as they are: ESC, BEL, CSI (C1), CR. A document can rewrite the
screen, set the title, or (on some terminals) fill the clipboard (OSC 52) of whoever runs whet."""
from common import *
d=scratch("15"); p=d/"s.whet"
ESC="\x1b]52;c;cHduZWQ=\x07\x1b[2J\x9b31m"
(d/"a.jsonl").write_text("".join(json.dumps({"id":f"{ESC}d{i}","text":f"{ESC} {t}",f"{ESC}f":1,"set":f"{ESC}a{i%2}"})+"\n" for i,t in enumerate(texts(30))))
(d/"p.jsonl").write_text("".join(json.dumps({"id":f"{ESC}p{i}","text":t,"set":f"{ESC}a{i%2}"})+"\n" for i,t in enumerate(texts(4,9,40))))
assert run([WHET,"index",d/"a.jsonl",p,"--quiet"]).returncode==0
raw=lambda r: any(c in (r.stdout+r.stderr) for c in "\x1b\x07\x9b")
bad=[]
for name,args in {"select":["select",p,"honey bee","-n",2],"explain":["explain",p,"honey bee","-n",2],"info":["space","info",p],"generate (stderr)":["generate",p,"honey bee","-n",1,"--max-tokens",1,"--model","whet-pico"],
   "bad field":["select",p,"honey","--where","x == 1"],"select --targets":["select",p,"--targets",d/"p.jsonl","-n",2],
   "eval":["eval",p,"--prompts",d/"p.jsonl","--out",d/"run","--quiet","--set","model=whet-pico","--set","n=1"],"report":["report",d/"run"],"space doctor":["space","doctor",p,"--prompts",d/"p.jsonl"],"space export":["space","export",p],"json":["select",p,"honey","-n",1,"--json"]}.items():
    r=run([WHET,*args]); 
    if raw(r): bad.append(name)
(fault if bad else ok)("raw control characters printed by:",bad)
