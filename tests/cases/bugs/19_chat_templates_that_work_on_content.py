"""Chat templates that change what is said: `| trim` (Llama 3, Gemma), thoughts of earlier answers cut out (DeepSeek R1, Qwen 3). Right:
the tokens of `apply_chat_template`, with special tokens in messages still mere letters."""
from _tiny import folder, told
from whet import LanguageModel
from whet.adapt.chat.template import apply_chat_template, template_tokenizer

HEAD = "{% for m in messages %}{% set c = m['content'] %}"
TAIL = "{{ '<|endoftext|>' + m['role'] + ' ' + c + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|endoftext|>assistant ' }}{% endif %}"
cases = {
    "trim": (HEAD + "{% set c = c | trim %}" + TAIL, [("user", "  Bees dance \n")]),
    "thoughts": (HEAD + "{% if m['role'] == 'assistant' %}{% set c = c.split('</think>')[-1] %}{% endif %}" + TAIL, [("user", "q"), ("assistant", "<think>a long thought</think>Short."), ("user", "r")]),
    "upper": (HEAD + "{% set c = c | upper %}" + TAIL, [("user", "bees")]),
    "if content": (HEAD + "{% if not c %}{% set c = 'nothing' %}{% endif %}" + TAIL, [("user", "")]),
    "first line": (HEAD + "{% set c = c.split('\n')[0] %}" + TAIL, [("user", "one\ntwo")]),
}
model, faults = LanguageModel.from_pretrained("whet-pico"), []
for name, (template, said) in cases.items():
    model.tokenizer.chat_template = template
    right = model.tokenizer.apply_chat_template([{"role": r, "content": c} for r, c in said], tokenize=False, add_generation_prompt=True)
    ours = model.tokenizer.decode([model.bos_token_id, *apply_chat_template(model.tokenizer, template_tokenizer(model.tokenizer), [{"role": r, "content": c} for r, c in said])])
    if ours != right:
        faults.append(f"{name}: {ours[:60]!r} in place of {right[:40]!r}")
told(faults)
