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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jinja2 import TemplateError

PLAIN = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
"""For a model without a template: a base model continues a written dialogue."""
Message = Mapping[str, Any]
READ_BY_TEMPLATES = ("role", "type")
"""Fields whose values templates compare with words of theirs."""
_MARKER = re.compile("\uf8ff([0-9]+)\uf8fe")  # private-use characters, in no template


def template_tokenizer(tokenizer: Any) -> Any:
    """A copy of `tokenizer` that recognizes special tokens, for the pieces of the template."""
    copied = copy.deepcopy(tokenizer)
    _encode(copied, "", split=False)  # sets its state, so that threads can share it afterwards
    return copied


def apply_chat_template(
    tokenizer: Any,
    templates: Any,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] = (),
    *,
    add_generation_prompt: bool = True,
    plain: bool = False,
) -> list[int]:
    """Token ids of a chat, by default up to where the assistant's next message begins.

    The start-of-text token is left out, because the model adds it. Messages of the role `developer`
    have the role `system` if the template does not support `developer`.

    Args:
        tokenizer: The model's tokenizer, which treats special tokens in a text as plain text.
        templates: The tokenizer that `template_tokenizer` made of it.
        messages: The messages in OpenAI's format; the content of each is a text.
        tools: The functions that the model may call, in OpenAI's format.
        add_generation_prompt: Whether the assistant's next message begins at the end.
        plain: Whether to write `role: content` lines, as for a model without a template.

    Raises:
        ValueError: If the model's template rejects the roles in this order, omits a message, or
            does not support tools.
    """
    chat = _Chat(messages, tools, add_generation_prompt, plain or not templates.chat_template)
    try:
        pieces = _pieces(templates, chat)
    except ValueError:
        if all(message["role"] != "developer" for message in messages):
            raise
        chat = chat.with_system_role()
        pieces = _pieces(templates, chat)
    if tools and _render(templates, chat) == _render(templates, replace(chat, tools=())):
        raise ValueError("tools: the model's chat template does not support tools")
    tokens = _encode_rendered(tokenizer, templates, chat)
    if tokens is None:  # a special token would consist of a message's text
        if chat.has_tools:
            raise ValueError("the messages and tools together form a special token: change them")
        tokens = []
        for i, piece in enumerate(pieces):
            if i % 2:
                tokens += _encode(tokenizer, messages[int(piece)]["content"], split=True)
            else:
                tokens += _encode(templates, piece, split=False)
    start = tokenizer.bos_token_id
    return tokens[1:] if tokens and tokens[0] == start else tokens


@dataclass(frozen=True, slots=True)
class _Chat:
    """The messages and tools that a template is rendered with."""

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]]
    add_generation_prompt: bool
    plain: bool

    @property
    def has_tools(self) -> bool:
        """Whether there is any text outside the contents of messages."""
        return bool(self.tools) or any("tool_calls" in message for message in self.messages)

    def with_system_role(self) -> "_Chat":
        """The chat with the role `system` instead of `developer`."""
        return replace(
            self,
            messages=[
                {**message, "role": "system"} if message["role"] == "developer" else message
                for message in self.messages
            ],
        )

    def texts(self) -> Iterator[str]:
        """Every text that the client wrote."""
        found: list[str] = []
        self.map(lambda text: found.append(text) or text)  # type: ignore[func-returns-value]
        yield from found

    def map(self, function: Callable[[str], str]) -> "_Chat":
        """The chat with `function` applied to every text that the client wrote."""
        return replace(
            self,
            messages=[_map_texts(message, function) for message in self.messages],
            tools=[_map_texts(tool, function) for tool in self.tools],
        )


def _map_texts(value: Any, function: Callable[[str], str], *, names: bool = False) -> Any:
    """Apply `function` to the texts in a value, and with `names` to the names of its fields.

    Templates read roles, types and the names of fields, except those within the arguments of a
    function, which the client chooses.
    """
    if isinstance(value, str):
        return function(value)
    if isinstance(value, dict):
        return {
            (function(name) if names else name): item
            if name in READ_BY_TEMPLATES and isinstance(item, str)
            else _map_texts(item, function, names=name in ("arguments", "properties"))
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_map_texts(item, function) for item in value]
    return value


def _encode_rendered(tokenizer: Any, templates: Any, chat: _Chat) -> list[int] | None:
    """The tokens of the template rendered with the contents, as `apply_chat_template` gives them.

    Special tokens in contents are hidden from the template by a private-use character. None if a
    special token of the result is not the template's own, such as one that a template joins from
    two parts of a message.
    """
    added = templates.added_tokens_decoder.values()
    special = {*templates.all_special_tokens, *(str(t) for t in added if t.special)} - {""}
    if not special:
        return _encode(templates, _render(templates, chat), split=False)
    longest_first = sorted(special, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, longest_first)))
    used = set().union(*chat.texts())
    unused = (chr(c) for c in range(0xF0000, 0xFFFFE) if chr(c) not in used)
    hidden = {token: next(unused) for token in longest_first}
    shielded = chat.map(lambda text: pattern.sub(lambda match: hidden[match[0]], text))
    rendered = _render(templates, shielded)
    ends = {token[0] for token in special} | {token[-1] for token in special}
    harmless = str.maketrans({end: "\uf8fd" for end in ends if not end.isspace()})
    without = _render(templates, shielded.map(lambda text: text.translate(harmless)))
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


def _pieces(templates: Any, chat: _Chat) -> list[str]:
    """The rendered template in alternation with the numbers of messages."""
    marked = [{**message, "content": f"\uf8ff{i}\uf8fe"} for i, message in enumerate(chat.messages)]
    pieces = _MARKER.split(_render(templates, replace(chat, messages=marked)))
    rendered_messages = {int(piece) for piece in pieces[1::2]}
    for i, message in enumerate(chat.messages):
        if i not in rendered_messages and not message.get("tool_calls"):
            raise ValueError(
                f"the model's chat template omits message {i} of role {message['role']!r}: use "
                "roles that the template supports"
            )
    return pieces


def _render(templates: Any, chat: _Chat) -> str:
    try:
        rendered: str = templates.apply_chat_template(
            list(chat.messages),
            tools=list(chat.tools) or None,
            chat_template=PLAIN if chat.plain else None,
            tokenize=False,
            add_generation_prompt=chat.add_generation_prompt,
        )
    except (TemplateError, TypeError, ValueError, AttributeError, LookupError) as error:
        raise ValueError(f"the model's chat template rejects these messages: {error}") from error
    return rendered


def encode_template(templates: Any, text: str) -> list[int]:
    """Token ids of a piece of the template, with its special tokens."""
    return _encode(templates, text, split=False)


def _encode(tokenizer: Any, text: str, *, split: bool) -> list[int]:
    ids: list[int] = tokenizer(
        text, add_special_tokens=False, split_special_tokens=split, verbose=False
    ).input_ids
    return ids
