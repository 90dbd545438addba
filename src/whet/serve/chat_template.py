"""Messages to tokens by the model's own template, which no message can pose as.

A template writes special tokens (`<|im_start|>`); a message that spells one must stay mere letters.
So the template is rendered around marks that stand for the contents, and cut at the marks: its own
pieces are read with special tokens, the contents without. A tokenizer holds that choice, and other
threads use it meanwhile: so there are two, which never change theirs.
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
"""For a model without a template: a base model goes on with a dialogue written out."""
_MARK = re.compile("\uf8ff([0-9]+)\uf8fe")  # private use: no template holds it


def templates_of(tokenizer: Any) -> Any:
    """A tokenizer of its own, which reads special tokens, for the templates' pieces."""
    templates = copy.deepcopy(tokenizer)
    _read(templates, "", split=False)  # settles it, so that threads may share it afterwards
    return templates


def chat_tokens(tokenizer: Any, templates: Any, messages: Sequence[tuple[str, str]]) -> list[int]:
    """Token ids of (role, content) pairs, up to where the assistant's next message begins.

    Without the start-of-text token, which the model puts in front itself. `developer` is called
    `system` where the template knows no other name of it.

    Args:
        tokenizer: The model's, which reads no special tokens out of a text.
        templates: What `templates_of` made of it.
        messages: Who says what.

    Raises:
        ValueError: If the model's template refuses the roles in this order, or leaves one out.
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
            tokens += _read(tokenizer, messages[int(piece)][1], split=True)
        else:
            tokens += _read(templates, piece, split=False)
    start = tokenizer.bos_token_id
    return tokens[1:] if tokens and tokens[0] == start else tokens


def _pieces(templates: Any, roles: Sequence[str]) -> list[str]:
    """Template, number of a message, template, number, …, template."""
    marked = [{"role": role, "content": f"\uf8ff{i}\uf8fe"} for i, role in enumerate(roles)]
    try:
        rendered = templates.apply_chat_template(
            marked,
            chat_template=templates.chat_template or PLAIN,
            tokenize=False,
            add_generation_prompt=True,
        )
    except TemplateError as error:
        raise ValueError(f"the model's chat template refuses these messages: {error}") from error
    pieces = _MARK.split(rendered)
    said = {int(piece) for piece in pieces[1::2]}
    for i, role in enumerate(roles):
        if i not in said:
            raise ValueError(
                f"the model's chat template leaves out message {i} of role {role!r}: expected "
                "roles that it knows"
            )
    return pieces


def _read(tokenizer: Any, text: str, *, split: bool) -> list[int]:
    ids: list[int] = tokenizer(
        text, add_special_tokens=False, split_special_tokens=split, verbose=False
    ).input_ids
    return ids
