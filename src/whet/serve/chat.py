"""Messages to tokens by the model's own template, which no message can pose as.

A template writes special tokens (`<|im_start|>`); a message that spells one must stay mere letters.
So the template is rendered around marks that stand for the contents, and cut at the marks: its own
pieces are read with special tokens, the contents without.
"""

import re
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

PLAIN = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
"""For a model without a template: a base model goes on with a dialogue written out."""
_MARK = re.compile("\uf8ff([0-9]+)\uf8fe")  # private use: no template holds it


def chat_tokens(tokenizer: Any, messages: Sequence[tuple[str, str]]) -> list[int]:
    """Token ids of (role, content) pairs, up to where the assistant's next message begins.

    Without the start-of-text token, which the model puts in front itself.

    Raises:
        ValueError: If the model's template refuses the roles in this order.
    """
    marked = [{"role": role, "content": f"\uf8ff{i}\uf8fe"} for i, (role, _) in enumerate(messages)]
    try:
        rendered = tokenizer.apply_chat_template(
            marked,
            chat_template=tokenizer.chat_template or PLAIN,
            tokenize=False,
            add_generation_prompt=True,
        )
    except TemplateError as error:
        raise ValueError(f"the model's chat template refuses these messages: {error}") from error
    pieces = _MARK.split(rendered)  # template, number, template, number, …, template
    tokens: list[int] = []
    for i, piece in enumerate(pieces):
        text = messages[int(piece)][1] if i % 2 else piece
        tokens += tokenizer(
            text, add_special_tokens=False, split_special_tokens=bool(i % 2), verbose=False
        ).input_ids
    start = tokenizer.bos_token_id
    return tokens[1:] if tokens and tokens[0] == start else tokens
