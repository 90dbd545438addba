"""Chat messages to tokens by the model's template, with special tokens in messages as plain text.

A template contains special tokens (`<|im_start|>`), and a message that contains the same characters
must not be able to imitate them. So the template is rendered with markers instead of the contents
and cut at the markers: the pieces of the template are tokenized with special tokens, the contents
without. Whether a tokenizer splits special tokens is part of its state, which other threads use at
the same time, so there are two tokenizers whose state never changes.
"""

import copy
import re
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

PLAIN = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
"""For a model without a template: a base model continues a written dialogue."""
_MARKER = re.compile("\uf8ff([0-9]+)\uf8fe")  # private-use characters, in no template


def template_tokenizer(tokenizer: Any) -> Any:
    """A copy of `tokenizer` that recognizes special tokens, for the pieces of the template."""
    copied = copy.deepcopy(tokenizer)
    _encode(copied, "", split=False)  # sets its state, so that threads can share it afterwards
    return copied


def apply_chat_template(
    tokenizer: Any, templates: Any, messages: Sequence[tuple[str, str]]
) -> list[int]:
    """Token ids of (role, content) pairs, up to where the assistant's next message begins.

    The start-of-text token is left out, because the model adds it. Messages of the role `developer`
    have the role `system` if the template does not support `developer`.

    Args:
        tokenizer: The model's tokenizer, which treats special tokens in a text as plain text.
        templates: The tokenizer that `template_tokenizer` made of it.
        messages: Pairs of role and content.

    Raises:
        ValueError: If the model's template rejects the roles in this order, or omits a message.
    """
    roles = [role for role, _ in messages]
    try:
        pieces = _pieces(templates, roles)
    except ValueError:
        if "developer" not in roles:
            raise
        pieces = _pieces(templates, ["system" if r == "developer" else r for r in roles])
    tokens: list[int] = []
    for i, piece in enumerate(pieces):
        if i % 2:
            tokens += _encode(tokenizer, messages[int(piece)][1], split=True)
        else:
            tokens += _encode(templates, piece, split=False)
    start = tokenizer.bos_token_id
    return tokens[1:] if tokens and tokens[0] == start else tokens


def _pieces(templates: Any, roles: Sequence[str]) -> list[str]:
    """The rendered template in alternation with the numbers of messages."""
    marked = [{"role": role, "content": f"\uf8ff{i}\uf8fe"} for i, role in enumerate(roles)]
    try:
        rendered = templates.apply_chat_template(
            marked,
            chat_template=templates.chat_template or PLAIN,
            tokenize=False,
            add_generation_prompt=True,
        )
    except TemplateError as error:
        raise ValueError(f"the model's chat template rejects these messages: {error}") from error
    pieces = _MARKER.split(rendered)
    rendered_messages = {int(piece) for piece in pieces[1::2]}
    for i, role in enumerate(roles):
        if i not in rendered_messages:
            raise ValueError(
                f"the model's chat template omits message {i} of role {role!r}: use roles that the "
                "template supports"
            )
    return pieces


def _encode(tokenizer: Any, text: str, *, split: bool) -> list[int]:
    ids: list[int] = tokenizer(
        text, add_special_tokens=False, split_special_tokens=split, verbose=False
    ).input_ids
    return ids
