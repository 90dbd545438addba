"""Function calls: in which format a model writes them, and how to read them from its text.

The format is known by the model's chat template. Where a call is required, its beginning is a part
of the prompt, and a grammar makes the rest a call of one of the tools.
"""

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How a model writes function calls."""

    name: str
    begin: str
    """Text before a call; calls of a format without `end` are read when the answer is complete."""
    end: str
    """Text after a call."""
    arguments: str
    """Name of the field that contains the arguments."""
    prefix: str
    """Beginning of an answer that must be a call."""
    id_length: int = 24
    """Length of a call's id, without `call_`; 9 letters and digits in all for Mistral."""

    def call(self, value: Any) -> "FunctionCall | None":
        """The call that a JSON value describes."""
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            return None
        arguments = value.get(self.arguments)
        if not isinstance(arguments, dict):
            return None
        identifier = secrets.token_hex(self.id_length)[: self.id_length]
        if self.name != "mistral":
            identifier = f"call_{identifier}"
        return FunctionCall(identifier, value["name"], json.dumps(arguments, ensure_ascii=False))

    def call_schema(self, tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The JSON schema of a call of one of `tools`, which are in OpenAI's format."""
        functions = [tool["function"] for tool in tools]
        definitions = {
            function["name"]: _moved(function["parameters"], f"#/$defs/{function['name']}")
            for function in functions
        }
        calls = [
            {
                "type": "object",
                "properties": {
                    "name": {"const": name},
                    self.arguments: {"$ref": f"#/$defs/{name}"},
                },
                "required": ["name", self.arguments],
                "additionalProperties": False,
            }
            for name in definitions
        ]
        return {"anyOf": calls, "$defs": definitions}


FORMATS = {
    "hermes": ToolFormat("hermes", "<tool_call>", "</tool_call>", "arguments", "<tool_call>\n"),
    "llama3": ToolFormat("llama3", "{", "", "parameters", ""),
    "mistral": ToolFormat("mistral", "[", "", "arguments", "[TOOL_CALLS] [", id_length=9),
}


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """A call of a function by the model."""

    id: str
    name: str
    arguments: str
    """A JSON object."""


def tool_format(template: str) -> ToolFormat:
    """The format in which a model with this chat template writes calls.

    Raises:
        ValueError: If it is not one of `FORMATS`.
    """
    if "<tool_call>" in template and "<function=" not in template and "<arg_key>" not in template:
        return FORMATS["hermes"]
    if "[TOOL_CALLS]" in template and "[ARGS]" not in template:
        return FORMATS["mistral"]
    if '{"name": function name, "parameters": dictionary' in template:
        return FORMATS["llama3"]
    raise ValueError(
        "tools: the format in which this model writes calls is not known to whet, which reads "
        f"those of {', '.join(FORMATS)}: use response_format instead"
    )


class ToolCallParser:
    """Reads calls from text that arrives in pieces. What is not a call is text of the answer."""

    def __init__(self, format: ToolFormat, *, forced: bool = False) -> None:
        """`forced` if the text is the rest of an answer that begins with `format.prefix`."""
        self._format, self._forced = format, forced
        self._held = ""
        self._in_text = False  # the answer does not begin with a call, in a format without `end`

    def feed(self, text: str) -> list[str | FunctionCall]:
        """Add text; returns what is certain by now."""
        self._held += text
        if self._forced:
            return []
        if self._format.end:
            return self._tagged()
        start = self._held.lstrip()
        self._in_text = self._in_text or not (
            start.startswith(self._format.begin) or not start or "[TOOL_CALLS]".startswith(start)
        )
        return self._release() if self._in_text else []

    def finish(self) -> list[str | FunctionCall]:
        """What is left at the end of the answer."""
        if not self._held.strip():
            return self._release()
        start, end = self._format.begin, self._format.end
        text = self._held.strip()
        if not self._forced and end:
            text = text.removeprefix(start)
        values = _json_values(text.removeprefix("[TOOL_CALLS]"))
        calls = [self._format.call(value) for value in values]
        if not calls or None in calls or self._in_text:
            return self._release()
        self._held = ""
        return [call for call in calls if call is not None]

    def _tagged(self) -> list[str | FunctionCall]:
        """The text and the complete calls between `begin` and `end`."""
        begin, end = self._format.begin, self._format.end
        parts: list[str | FunctionCall] = []
        while (at := self._held.find(begin)) >= 0:
            parts += [self._held[:at]]
            self._held = self._held[at:]
            if (stop := self._held.find(end)) < 0:
                return [part for part in parts if part]
            values = _json_values(self._held[len(begin) : stop])
            calls = [self._format.call(value) for value in values]
            whole, self._held = self._held[: stop + len(end)], self._held[stop + len(end) :]
            parts += [call for call in calls if call] if calls and None not in calls else [whole]
        tail = next((n for n in range(len(begin) - 1, 0, -1) if self._held.endswith(begin[:n])), 0)
        parts.append(self._held[: len(self._held) - tail])
        self._held = self._held[len(self._held) - tail :]
        return [part for part in parts if part]

    def _release(self) -> list[str | FunctionCall]:
        held, self._held = self._held, ""
        return [held] if held else []


def _json_values(text: str) -> list[Any]:
    """The JSON values in `text`, of which a list is its items; none if there is anything else."""
    values: list[Any] = []
    decoder, rest = json.JSONDecoder(), text.strip()
    while rest:
        try:
            value, end = decoder.raw_decode(rest)
        except (ValueError, RecursionError):
            return []
        values += value if isinstance(value, list) else [value]
        rest = rest[end:].lstrip(" \n;,]")
    return values


def _moved(schema: Any, place: str) -> Any:
    """A schema whose references to its own root refer to `place`."""
    if isinstance(schema, dict):
        return {
            name: place + value[1:]
            if name == "$ref" and isinstance(value, str) and value.startswith("#")
            else _moved(value, place)
            for name, value in schema.items()
        }
    if isinstance(schema, list):
        return [_moved(item, place) for item in schema]
    return schema
