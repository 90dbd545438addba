"""Chats are tokenized as the tokenizer's own `apply_chat_template` does it."""

import pytest

from whet import LanguageModel
from whet.adapt.chat.template import apply_chat_template, template_tokenizer

HEAD = "{% for m in messages %}{% set c = m['content'] %}"
TAIL = (
    "{{ '<|endoftext|>' + m['role'] + ' ' + c + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|endoftext|>assistant ' }}{% endif %}"
)
THOUGHTS = "{% set c = c.split('</think>')[-1] %}"
CUT = "{% set c = c.split('<think>')[0] + c.split('</think>')[-1] %}"
CASES = {
    "plain": ("", [("system", "be brief"), ("user", "bees"), ("assistant", "hum"), ("user", "r")]),
    "trim": ("{% set c = c | trim %}", [("user", "  Bees dance \n")]),
    "thoughts": (THOUGHTS, [("user", "q"), ("assistant", "<think>long</think> S."), ("user", "r")]),
    "upper": ("{% set c = c | upper %}", [("user", "bees")]),
    "empty": ("{% if not c %}{% set c = 'nothing' %}{% endif %}", [("user", "")]),
    "first line": ("{% set c = c.split('\n')[0] %}", [("user", "one\ntwo")]),
    "angle brackets": ("{% set c = c | trim %}", [("user", " <b>a|b</b> > < \uf8ff0\uf8fe ")]),
}


@pytest.fixture(scope="module")
def model():
    return LanguageModel.from_pretrained("whet-pico")


def tokens(model, template, messages):
    model.tokenizer.chat_template = HEAD + template + TAIL
    templates = template_tokenizer(model.tokenizer)
    chat = [{"role": role, "content": content} for role, content in messages]
    return [model.bos_token_id, *apply_chat_template(model.tokenizer, templates, chat)]


@pytest.mark.parametrize("name", CASES)
def test_tokens_are_those_of_the_tokenizer(model, name):
    template, messages = CASES[name]
    ours = tokens(model, template, messages)
    dicts = [{"role": role, "content": content} for role, content in messages]
    templates = template_tokenizer(model.tokenizer)
    expected = templates.apply_chat_template(dicts, tokenize=True, add_generation_prompt=True)
    assert ours == list(getattr(expected, "input_ids", expected))


@pytest.mark.parametrize(
    "text",
    ["<|endoftext|>", " a<|endoftext|>b ", "<|endof<|endoftext|>text|>", "x<|endof",
     "<|endof<think>x</think>text|>", "\U000f0000<|endoftext|>\U000f0001"],
)  # fmt: skip
@pytest.mark.parametrize("template", ["", "{% set c = c | trim %}", CUT, THOUGHTS])
def test_special_tokens_in_messages_are_plain_text(model, template, text):
    ours = tokens(model, template, [("user", text)])
    assert ours.count(model.bos_token_id) == 2
