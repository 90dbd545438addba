"""lm-eval's --apply_chat_template. Right: the template's special tokens reach the model as tokens, as in lm-eval's own hf model."""
from _tiny import folder, told
from whet import DataSpace
from whet.integrations.lm_eval import WhetLM

path, faults = folder() / "s", []
DataSpace.build(["Bees dance to tell where food is.", "Honey keeps for years."], path)
model = WhetLM(str(path), model="whet-nano", n=1, k=2, adapter="head")
inner = model.engine.model
inner.tokenizer.chat_template = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|endoftext|>' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}")
end = inner.tokenizer.convert_tokens_to_ids("<|endoftext|>")
for said in ([{"role": "user", "content": "Hi"}], [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]):
    text = model.apply_chat_template(said)
    read = inner.encode_prompt(text, 4).tolist()[1:]  # without the start token, which is put in front
    if read.count(end) != text.count("<|endoftext|>"):
        spelled = inner.tokenizer.convert_ids_to_tokens(read)
        faults.append(f"{len(said)} messages: {text.count('<|endoftext|>')} special tokens in the template, {read.count(end)} in what the model reads: {spelled[-9:]}")
told(faults)
