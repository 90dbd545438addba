"""The same tokenizers put a blank in front of whatever they read. Right: `score(text, context=…)` scores the tokens that
context + text has; so bits(context) + bits(text | context) = bits(context + text) where both are cut into the same tokens otherwise."""
from _tiny import folder, llama2, told
from whet import LanguageModel

faults = []
for style in ("prepend", "always"):
    model = LanguageModel.from_pretrained(llama2(folder(), style))
    for context, text in (("the import", " of the value"), ("a value", " in the list"), ("the list of", " the import"), ("the list\n", "of the value"), ("the list\n", "value of")):
        spelled = model.tokenizer.convert_ids_to_tokens
        whole, left = model.encode(context + text).tolist(), model.encode(context).tolist()
        right, read = whole[len(left):], model.encode_after(context, text).tolist()
        gap = model.score(context).bits + model.score(text, context=context).bits - model.score(context + text).bits
        if whole[: len(left)] == left and read != right:
            faults.append(f"{style}, {context!r} + {text!r}: {gap:+.1f} bits, read as {spelled(read)[:2]}, not {spelled(right)[:2]}")
told(faults)
