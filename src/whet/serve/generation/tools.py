"""Function calls: in which format a model writes them, and how to read them from its text.

The format is known by the model's chat template. Where a call is required, its beginning is a part
of the prompt, and a grammar makes the rest a call of one of the tools.
"""

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MISTRAL_ID = 9
TOOL_CALLS, ARGS = "[TOOL_CALLS]", "[ARGS]"
"""Special tokens of Mistral's models, which decoding usually leaves out."""


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
    """Length of a call's id, without `call_`; Mistral's ids have 9 letters and digits in all."""

    def call(self, value: Any) -> "FunctionCall | None":
        """The call that a JSON value describes."""
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            return None
        arguments = value.get(self.arguments)
        if not isinstance(arguments, dict):
            return None
        try:
            text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        except (ValueError, RecursionError):  # NaN, which Python reads, is not JSON
            return None
        identifier = secrets.token_hex(self.id_length)[: self.id_length]
        if self.id_length != MISTRAL_ID:
            identifier = f"call_{identifier}"
        name, text = (part.encode("utf-8", "replace").decode() for part in (value["name"], text))
        return FunctionCall(identifier, name, text)

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
    "mistral": ToolFormat("mistral", "[", "", "arguments", "[TOOL_CALLS] [", MISTRAL_ID),
    "mistral-v11": ToolFormat("mistral-v11", "", "", "arguments", TOOL_CALLS, MISTRAL_ID),
    "qwen3-coder": ToolFormat(
        "qwen3-coder", "<tool_call>", "</tool_call>", "arguments", "<tool_call>\n"
    ),
}
"""The formats that are read. The first three contain JSON objects with name and arguments;
`mistral-v11` has the name before the JSON object of the arguments, and `qwen3-coder` has tags."""


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
    if "<tool_call>" in template and "<function=" in template and "<parameter=" in template:
        return FORMATS["qwen3-coder"]
    if TOOL_CALLS in template and "[CALL_ID]" not in template:
        return FORMATS["mistral-v11" if ARGS in template else "mistral"]
    if '{"name": function name, "parameters": dictionary' in template:
        return FORMATS["llama3"]
    raise ValueError(
        "tools: the format in which this model writes calls is not known to whet, which reads "
        f"those of {', '.join(FORMATS)}: use response_format instead"
    )


class ToolCallParser:
    """Reads calls from text that arrives in pieces. What is not a call is text of the answer."""

    def __init__(
        self,
        format: ToolFormat,
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        forced: bool = False,
    ) -> None:
        """A parser of one answer.

        Args:
            format: How the model writes calls.
            tools: The functions that it may call, in OpenAI's format.
            forced: Whether the text is the rest of an answer that begins with `format.prefix`;
                then it is a call as JSON, whatever the format.
        """
        self._format, self._forced = format, forced
        functions = [tool["function"] for tool in tools]
        self._schemas = {item["name"]: item["parameters"] for item in functions}
        self._held = ""
        self._in_text = False  # the answer does not begin with a call, in a format without `end`
        names = [re.escape(name) for name in sorted(self._schemas, key=len, reverse=True)]
        self._call = re.compile(
            rf"(?:{re.escape(TOOL_CALLS)})?({'|'.join(names) or '(?!)'})(?:{re.escape(ARGS)})?(?=\{{)"
        )
        starts = [TOOL_CALLS + name + ARGS for name in self._schemas]
        starts += [name + ARGS for name in self._schemas]
        self._prefixes = {start[:n] for start in starts for n in range(1, len(start) + 1)}

    def feed(self, text: str) -> list[str | FunctionCall]:
        """Add text; returns what is certain by now."""
        self._held += text
        if self._forced:
            return []
        if self._format.end:
            return self._tagged()
        if not self._format.begin:
            return self._named()
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
        calls = [self._format.call(value) for value in self._values(text)]
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
            values = self._values(self._held[len(begin) : stop])
            calls = [self._format.call(value) for value in values]
            whole, self._held = self._held[: stop + len(end)], self._held[stop + len(end) :]
            parts += [call for call in calls if call] if calls and None not in calls else [whole]
        tail = next((n for n in range(len(begin) - 1, 0, -1) if self._held.endswith(begin[:n])), 0)
        parts.append(self._held[: len(self._held) - tail])
        self._held = self._held[len(self._held) - tail :]
        return [part for part in parts if part]

    def _named(self) -> list[str | FunctionCall]:
        """The text before what may be the name of a function with its arguments."""
        match = self._call.search(self._held)
        at = match.start() if match else len(self._held)
        if match is None:
            longest = max(map(len, self._prefixes), default=0)
            tails = range(min(longest, at), 0, -1)
            at -= next((n for n in tails if self._held[-n:] in self._prefixes), 0)
        text, self._held = self._held[:at], self._held[at:]
        return [text] if text else []

    def _values(self, text: str) -> list[Any]:
        """Objects with the names and arguments of calls; none if there is anything else."""
        if self._forced or self._format.name not in ("mistral-v11", "qwen3-coder"):
            return _json_values(text.removeprefix(TOOL_CALLS))
        if self._format.name == "qwen3-coder":
            return _tagged_values(text, self._schemas)
        values: list[Any] = []
        while match := self._call.match(text):
            try:
                arguments, end = json.JSONDecoder().raw_decode(text, match.end())
            except (ValueError, RecursionError):
                return []
            values.append({"name": match[1], "arguments": arguments})
            text = text[end:].lstrip()
        return [] if text else values

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


def _tagged_values(text: str, schemas: Mapping[str, Any]) -> list[Any]:
    """The call that `<function=NAME>` and `<parameter=NAME>` describe: see Qwen3-Coder's template.

    Each tag and each value has lines of its own.
    """
    name, closed, body = text.strip().removeprefix("<function=").partition(">")
    before, *parameters = body.removesuffix("</function>").split("<parameter=")
    if not text.lstrip().startswith("<function=") or not body.endswith("</function>"):
        return []
    schema = schemas.get(name, {})
    properties = schema.get("properties")
    arguments = {}
    for parameter in parameters:
        field, _, value = parameter.rstrip().partition(">")
        if not value.endswith("</parameter>"):
            return []
        value = value.removesuffix("</parameter>").removeprefix("\n").removesuffix("\n")
        described = properties.get(field) if isinstance(properties, dict) else None
        arguments[field] = _typed(value, _types(described, schema))
    return [] if before.strip() or not closed else [{"name": name, "arguments": arguments}]


PYTHON_WORDS = {"True": True, "False": False, "None": None}
"""Values that the template of Qwen3-Coder writes as Python does."""


def _typed(text: str, types: set[str]) -> Any:
    """A value in a tag: text where the schema allows text, otherwise JSON if it is valid."""
    if "string" in types and not ("null" in types and text in ("null", "None")):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return PYTHON_WORDS.get(text, text)


def _types(schema: Any, root: Mapping[str, Any]) -> set[str]:
    """The JSON types that a schema names; empty if it names none, or is not a schema."""
    types, references, options = set[str](), set[str](), [schema]
    while options:
        option = options.pop()
        if not isinstance(option, dict):
            continue
        named = (option.get("type"), *_items(option, "type"))
        types |= {name for name in named if isinstance(name, str)}
        values = (option.get("const"), *_items(option, "enum"))
        types |= {"string"} if any(isinstance(value, str) for value in values) else set()
        options += [*_items(option, "anyOf"), *_items(option, "oneOf")]
        reference = option.get("$ref")
        if isinstance(reference, str) and reference not in references:
            references.add(reference)
            _, kind, name = f"#/{reference}".rsplit("/", 2)
            definitions = root.get(kind)
            options += [definitions.get(name)] if isinstance(definitions, dict) else []
    return types


def _items(schema: Mapping[str, Any], name: str) -> list[Any]:
    value = schema.get(name)
    return value if isinstance(value, list) else []


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
