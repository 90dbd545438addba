"""Records of conversations: `messages`, or a `prompt` with its `response`.

Such a record becomes a document whose text is readable ("User: …", "Assistant: …") and whose
metadata `messages` keeps the roles as a list of `{"role": …, "content": …}`, so that a model can be
trained on the responses only. Its passages end between messages where they can; each has in
`messages` what it holds of them.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from whet.data.formats.sections import Section
from whet.data.values import is_missing

MESSAGES = "messages"
PROMPT, RESPONSES = "prompt", ("response", "completion")
SYSTEM = "system"
ANSWERING = "assistant"
ROLES = ("system", "developer", "user", ANSWERING, "tool", "function")
EXCHANGE, REPLY = 0, 1  # levels of sections: a passage ends before a user's message first
END = "\n\n"


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation as text."""

    text: str
    messages: list[dict[str, str]]
    sections: tuple[Section, ...]
    used: frozenset[str]
    """Fields of the record that are in it."""


def holds_conversation(names: Collection[str]) -> bool:
    """Whether a record with these fields is a conversation, perhaps with half of a pair missing."""
    return MESSAGES in names or PROMPT in names or RESPONSES[0] in names


def read_conversation(fields: Mapping[str, Any]) -> Conversation | str:
    """The conversation that a record holds; the reason if half of a pair is missing.

    >>> read_conversation({"prompt": "2 + 2?", "response": "4"}).text
    'User: 2 + 2?\\n\\nAssistant: 4'
    >>> read_conversation({"prompt": "2 + 2?"})
    "has a field 'prompt' but no 'response': expected both, each a text"
    """
    if MESSAGES in fields and not is_missing(fields[MESSAGES]):
        found = _messages(fields[MESSAGES])
        used = frozenset({MESSAGES})
    else:
        found = _pair(fields)
        used = frozenset({PROMPT, *RESPONSES, SYSTEM})
    if isinstance(found, str):
        return found
    text, sections = _as_text(found)
    return Conversation(text, found, sections, used)


def _pair(fields: Mapping[str, Any]) -> list[dict[str, str]] | str:
    response = next((name for name in RESPONSES if name in fields), RESPONSES[0])
    for name, other in ((PROMPT, response), (response, PROMPT)):
        value = fields.get(name)
        if is_missing(value) or value == "":
            state = "no" if name not in fields else "an empty"
            return f"has a field {other!r} but {state} {name!r}: expected both, each a text"
        if not isinstance(value, str):
            return f"field {name!r} holds {type(value).__name__}, expected a string"
    messages = [_message("user", fields[PROMPT]), _message(ANSWERING, fields[response])]
    system = fields.get(SYSTEM)
    return [_message(SYSTEM, system), *messages] if isinstance(system, str) and system else messages


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _messages(value: Any) -> list[dict[str, str]] | str:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        return f"field 'messages' holds {type(value).__name__}, expected a list of messages"
    messages: list[dict[str, str]] = []
    for number, entry in enumerate(value, start=1):
        place = f"message {number} of {len(value)}"
        role = entry.get("role") if isinstance(entry, Mapping) else None
        if role not in ROLES:
            return f"{place} has the role {role!r}: expected {', '.join(ROLES)}"
        content = _content(entry.get("content"))
        if content is None:
            return f"{place} has no text as `content`: expected a string, or a list of text parts"
        if content.strip():
            messages.append(_message(role, content))
    last = messages[-1]["role"] if messages else None
    if ANSWERING not in [message["role"] for message in messages]:
        return f"field 'messages' has no message of the {ANSWERING}: expected at least one"
    if last in ("user", "system", "developer"):
        return f"the last message is the {last}'s: expected a reply of the {ANSWERING} after it"
    return messages


def _content(value: Any) -> str | None:
    """The text of a message; of a call of tools, which has none, the empty text."""
    if value is None:
        return ""
    if isinstance(value, Sequence) and not isinstance(value, str):
        parts = [part.get("text") for part in value if isinstance(part, Mapping)]
        texts = [part for part in parts if isinstance(part, str)]
        return "\n".join(texts) if len(texts) == len(value) else None
    return value if isinstance(value, str) else None


def messages_of(meta: Mapping[str, Any], text: str) -> list[dict[str, str]] | None:
    """The messages that a document's metadata keep; None if it is not a conversation.

    A field `messages` of another form, or with contents that the document's text does not have, is
    metadata like any other.

    >>> messages_of({"messages": [{"role": "assistant", "content": "4"}]}, "Assistant: 4")
    [{'role': 'assistant', 'content': '4'}]
    >>> messages_of({"messages": 12}, "Twelve of them.") is None
    True
    """
    found = meta.get(MESSAGES)
    if not isinstance(found, Sequence) or isinstance(found, str) or not found:
        return None
    messages = list[dict[str, str]]()
    for entry in found:
        role, content = (
            (entry.get("role"), entry.get("content"))
            if isinstance(entry, Mapping)
            else (None, None)
        )
        if role not in ROLES or not isinstance(content, str) or content not in text:
            return None
        messages.append(_message(role, content))
    return messages


def _prefix(role: str) -> str:
    return f"{role.capitalize()}: "


def _as_text(messages: Sequence[Mapping[str, str]]) -> tuple[str, tuple[Section, ...]]:
    parts, sections, position = [], [], 0
    for message in messages:
        part = _prefix(message["role"]) + message["content"] + END
        level = EXCHANGE if message["role"] == "user" else REPLY
        sections.append(Section(position, level))
        parts.append(part)
        position += len(part)
    return "".join(parts).removesuffix(END), tuple(sections)


def passage_messages(
    messages: Sequence[Mapping[str, str]], text: str, start: int, stop: int
) -> list[dict[str, str]]:
    """What the passage `text[start:stop]` of a conversation's text holds of its messages."""
    held, position = [], 0
    for message in messages:
        begin = position + len(_prefix(message["role"]))
        end = begin + len(message["content"])
        content = text[max(begin, start) : min(end, stop)] if begin < stop and start < end else ""
        if content.strip():
            held.append(_message(message["role"], content))
        position = end + len(END)
    return held
