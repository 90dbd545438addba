"""A folder with a PEFT adapter that is not as its config says: wrong shapes broadcast silently, or a KeyError where ModelError is promised."""
from common import *
import torch
from safetensors.torch import save_file, load_file
from whet import LanguageModel, LoRA
from whet.adapt.adapters import Adapter
from whet.adapt.slots import Slots
m=LanguageModel.from_pretrained("whet-pico"); slots=Slots(m,LoRA(r=8),count=1)
d=scratch("17"); good=d/"good"
with slots.attached():
    slots.step({0:[m.training_tokens("honey bee wax "*20)[:m.max_length]]}); a=Adapter.from_slot(slots,0)
a.save_pretrained(good); W=load_file(good/"adapter_model.safetensors"); C=json.loads((good/"adapter_config.json").read_text())
def attempt(name,weights=None,config=None,**kw):
    f=d/name; f.mkdir()
    save_file(weights if weights is not None else W,f/"adapter_model.safetensors",{"format":"pt"}); (f/"adapter_config.json").write_text(json.dumps(config or C))
    try:
        x=Adapter.from_pretrained(f)
        with slots.attached():
            slots.reset(0); x.load_into(slots,0); v=slots.params.views(slots.params.values[0:1]); same=all(torch.equal(v[n][0],a.weights[n]) for n in v); finite=all(t.isfinite().all() for t in v.values())
        try: x.merge_into(LanguageModel.from_pretrained("whet-pico")); mg="merges"
        except Exception as e: mg="merge: "+type(e).__name__
        return f"taken ({'same' if same else 'OTHER numbers'}{'' if finite else ', NOT FINITE'}; {mg})"
    except Exception as e: return type(e).__name__+": "+str(e)[:90]
cut=lambda t,n: t[:1].clone() if ".lora_A" in n else t[:,:1].clone()
res={
 "good":attempt("good2"),
 "rank 1 tensors, r 8":attempt("r1",{n:cut(t,n) for n,t in W.items()}),
 "A alone":attempt("a",{n:t for n,t in W.items() if "lora_A" in n}),
 "one B missing":attempt("b",dict(list(W.items())[1:])),
 "r '8'":attempt("rs",config=C|{"r":"8"}), "r 8.0":attempt("rf",config=C|{"r":8.0}), "r true":attempt("rt",config=C|{"r":True}), "r 10**12":attempt("rb",config=C|{"r":10**12}), "alpha nan":attempt("an",config=C|{"lora_alpha":float("nan")}), "alpha '16'":attempt("as",config=C|{"lora_alpha":"16"}),
 "nan weights":attempt("nan",{n:t*float("nan") for n,t in W.items()}), "int weights":attempt("int",{n:t.mul(1000).to(torch.int64) for n,t in W.items()}),
 "A is 1-d":attempt("oned",{n:(t[0].clone() if "lora_A" in n else t) for n,t in W.items()}),
 "no tensors":attempt("none",{}), "config a list":attempt("list",config=[1]),
}
for k,v in res.items(): print("  ",k,"->",v)
wrong=[k for k,v in res.items() if k!="good" and (v.startswith("taken") or v.split(":")[0] not in("ModelError","ValueError"))]
(fault if wrong else ok)(wrong)
