"""Chat messages to tokens by the model's template, with special tokens in messages as plain text.

A template contains special tokens (`<|im_start|>`), and a message that contains the same characters
must not be able to imitate them. The template is rendered with the contents, which it may trim or
cut; special tokens in contents are replaced by single characters first and tokenized as plain text
afterwards. If a special token still consists of a message's text, the template is rendered with
markers instead of the contents and cut at the markers. Whether a tokenizer splits special tokens is
part of its state, which other threads use at the same time, so there are two tokenizers whose state
never changes.
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
        roles = ["system" if role == "developer" else role for role in roles]
        pieces = _pieces(templates, roles)
    contents = [content for _, content in messages]
    tokens = _encode_rendered(tokenizer, templates, roles, contents)
    if tokens is None:  # a special token would consist of a message's text
        tokens = []
        for i, piece in enumerate(pieces):
            if i % 2:
                tokens += _encode(tokenizer, contents[int(piece)], split=True)
            else:
                tokens += _encode(templates, piece, split=False)
    start = tokenizer.bos_token_id
    return tokens[1:] if tokens and tokens[0] == start else tokens


def _encode_rendered(
    tokenizer: Any, templates: Any, roles: Sequence[str], contents: Sequence[str]
) -> list[int] | None:
    """The tokens of the template rendered with the contents, as `apply_chat_template` gives them.

    Special tokens in contents are hidden from the template by a private-use character. None if a
    special token of the result is not the template's own, such as one that a template joins from
    two parts of a message.
    """
    added = templates.added_tokens_decoder.values()
    special = {*templates.all_special_tokens, *(str(t) for t in added if t.special)} - {""}
    if not special:
        return _encode(templates, _render(templates, roles, contents), split=False)
    longest_first = sorted(special, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, longest_first)))
    unused = (chr(c) for c in range(0xF0000, 0xFFFFE) if not any(chr(c) in t for t in contents))
    hidden = {token: next(unused) for token in longest_first}
    shielded = [pattern.sub(lambda match: hidden[match[0]], text) for text in contents]
    rendered = _render(templates, roles, shielded)
    ends = {token[0] for token in special} | {token[-1] for token in special}
    harmless = str.maketrans({end: "\uf8fd" for end in ends if not end.isspace()})
    without = _render(templates, roles, [text.translate(harmless) for text in shielded])
    if pattern.findall(rendered) != pattern.findall(without):
        return None
    tokens: list[int] = []
    original = {mark: token for token, mark in hidden.items()}
    for piece in re.split(f"([{''.join(original)}])", rendered):
        if piece in original:
            tokens += _encode(tokenizer, original[piece], split=True)
        elif piece:
            tokens += _encode(templates, piece, split=False)
    return tokens


def _pieces(templates: Any, roles: Sequence[str]) -> list[str]:
    """The rendered template in alternation with the numbers of messages."""
    rendered = _render(templates, roles, [f"\uf8ff{i}\uf8fe" for i in range(len(roles))])
    pieces = _MARKER.split(rendered)
    rendered_messages = {int(piece) for piece in pieces[1::2]}
    for i, role in enumerate(roles):
        if i not in rendered_messages:
            raise ValueError(
                f"the model's chat template omits message {i} of role {role!r}: use roles that the "
                "template supports"
            )
    return pieces


def _render(templates: Any, roles: Sequence[str], contents: Sequence[str]) -> str:
    pairs = zip(roles, contents, strict=True)
    try:
        rendered: str = templates.apply_chat_template(
            [{"role": role, "content": content} for role, content in pairs],
            chat_template=templates.chat_template or PLAIN,
            tokenize=False,
            add_generation_prompt=True,
        )
    except (TemplateError, TypeError, ValueError, AttributeError, LookupError) as error:
        raise ValueError(f"the model's chat template rejects these messages: {error}") from error
    return rendered


def _encode(tokenizer: Any, text: str, *, split: bool) -> list[int]:
    ids: list[int] = tokenizer(
        text, add_special_tokens=False, split_special_tokens=split, verbose=False
    ).input_ids
    return ids
