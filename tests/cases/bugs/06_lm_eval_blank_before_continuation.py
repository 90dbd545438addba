"""A context that ends in white space. Right: as lm-eval's own models have it, that white space belongs to the continuation:
("A: ", "Paris") and ("A:", " Paris") are the same request."""
from _tiny import folder, told
from lm_eval.api.instance import Instance
from whet import DataSpace
from whet.integrations.lm_eval import WhetLM

path, faults = folder() / "s", []
DataSpace.build(["Bees dance to tell where food is.", "Honey keeps for years."], path)
model = WhetLM(str(path), model="whet-nano", n=1, k=2, adapter="head", lr=1e-12)  # as good as not sharpened

def scored(context, text):
    return model.loglikelihood([Instance("loglikelihood", {}, (context, text), 0)], disable_tqdm=True)[0][0]

for context, blank, text in (("Bees:", " ", "food"), ("def f(x):\n    return", " ", "x + 1"), ("Question?", "\n", "Answer"), ("Honey", "\n\n", "keeps"), ("one,", "  ", "two")):
    one, other = scored(context + blank, text), scored(context, blank + text)
    if abs(one - other) > 0.05:
        faults.append(f"({context + blank!r}, {text!r}) {one:.2f} nats, ({context!r}, {blank + text!r}) {other:.2f}")
told(faults)
