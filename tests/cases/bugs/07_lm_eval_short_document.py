"""loglikelihood_rolling of a text of no or one letter. Right: 0 for the empty one, the base model's score for one letter; one such
document must not end a run."""
from _tiny import folder, told
from lm_eval.api.instance import Instance
from whet import DataSpace
from whet.integrations.lm_eval import WhetLM

path, faults = folder() / "s", []
DataSpace.build(["Bees dance to tell where food is.", "Honey keeps for years."], path)
for chunks, text in ((2, ""), (2, "a"), (2, "\n"), (4, "abc"), (2, "é"), (3, "ab")):
    model = WhetLM(str(path), model="whet-pico", n=1, k=2, adapter="head", chunks=chunks)
    try:
        model.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)], disable_tqdm=True)
    except Exception as error:
        faults.append(f"{text!r} in {chunks} chunks: {type(error).__name__}: {error}")
told(faults)
