"""How answers are written: complete or streamed, as completions or as chats."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from whet.adapt.decoding.logprobs import TokenLogprob
from whet.adapt.decoding.sampling import GeneratedText, TextPiece
from whet.serve.generation.logprobs import (
    TokenBytes,
    characters,
    chat_logprobs,
    completion_logprobs,
)
from whet.serve.generation.tools import FunctionCall, ToolCallParser, ToolFormat

Choice = dict[str, Any]


@runtime_checkable
class ChoiceStream(Protocol):
    """Writes one streamed choice."""

    def begin(self) -> Choice:
        """The choice of the first chunk."""
        ...

    def delta(self, piece: TextPiece) -> list[Choice]:
        """The choices of the chunks for a piece of text."""
        ...

    def end(self, text: GeneratedText) -> list[Choice]:
        """The choices of the last chunks."""
        ...


@runtime_checkable
class CompletionFormat(Protocol):
    """How one of the two kinds of completion is written."""

    id_prefix: str
    object: str
    chunk_object: str

    def choice(
        self, index: int, prompt: int, text: GeneratedText, before: Sequence[TokenLogprob]
    ) -> Choice:
        """A choice of a complete response; `before` are the logprobs of the prompt's tokens."""
        ...

    def stream(self, index: int, prompt: int) -> ChoiceStream:
        """A choice of a stream."""
        ...


@dataclass(frozen=True, slots=True)
class Echo:
    """A prompt that is a part of its answers."""

    text: str
    start: str
    """A start-of-text token that the client sent."""


class TextFormat:
    """The format of `/v1/completions`."""

    id_prefix, object, chunk_object = "cmpl", "text_completion", "text_completion"

    def __init__(self, echoes: Sequence[Echo] = (), token_bytes: TokenBytes | None = None) -> None:
        """`echoes` are the prompts if they are echoed; `token_bytes` is set for logprobs."""
        self.echoes, self.token_bytes = echoes, token_bytes

    def choice(
        self, index: int, prompt: int, text: GeneratedText, before: Sequence[TokenLogprob]
    ) -> Choice:
        echo = self.echoes[prompt] if self.echoes else Echo("", "")
        logprobs = None
        if self.token_bytes is not None:
            tokens = [*before, *text.logprobs]
            logprobs = completion_logprobs(tokens, self.token_bytes, start=echo.start)
        return _choice(index, reason(text), logprobs, text=echo.text + text.text)

    def stream(self, index: int, prompt: int) -> ChoiceStream:
        return _TextStream(self, index, self.echoes[prompt].text if self.echoes else "")


class _TextStream:
    def __init__(self, format: TextFormat, index: int, echo: str) -> None:
        self._format, self._index, self._echo = format, index, echo
        self._offset = len(echo)

    def begin(self) -> Choice:
        return _choice(self._index, text=self._echo)

    def delta(self, piece: TextPiece) -> list[Choice]:
        logprobs, token_bytes = None, self._format.token_bytes
        if token_bytes is not None:
            logprobs = completion_logprobs(piece.logprobs, token_bytes, offset=self._offset)
            data = b"".join(token_bytes(token.token_id) for token in piece.logprobs)
            self._offset += characters(data)
        return [_choice(self._index, None, logprobs, text=str(piece))]

    def end(self, text: GeneratedText) -> list[Choice]:
        return [_choice(self._index, reason(text), text="")]


class ChatFormat:
    """The format of `/v1/chat/completions`."""

    id_prefix, object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(
        self,
        *,
        tools: ToolFormat | None = None,
        functions: Sequence[Mapping[str, Any]] = (),
        forced: bool = False,
        parallel: bool = True,
        token_bytes: TokenBytes | None = None,
        top_logprobs: int = 0,
    ) -> None:
        """How the answers of one request are written.

        Args:
            tools: How the model writes function calls, if it may.
            functions: The functions that it may call, in OpenAI's format.
            forced: Whether it must.
            parallel: Whether an answer may contain several calls.
            token_bytes: Gives the bytes of a token, for logprobs.
            top_logprobs: Number of most likely tokens at each position.
        """
        self.tools, self.functions = tools, functions
        self.forced, self.parallel = forced, parallel
        self.token_bytes, self.top_logprobs = token_bytes, top_logprobs

    def parser(self) -> ToolCallParser | None:
        """A parser of one answer; None if the model cannot call functions."""
        if self.tools is None:
            return None
        return ToolCallParser(self.tools, self.functions, forced=self.forced)

    def logprobs(self, tokens: Sequence[TokenLogprob]) -> Any:
        """The object `logprobs`, if the request asks for it."""
        if self.token_bytes is None:
            return None
        return chat_logprobs(tokens, self.token_bytes, self.top_logprobs)

    def choice(
        self, index: int, prompt: int, text: GeneratedText, before: Sequence[TokenLogprob]
    ) -> Choice:
        parser, content, calls = self.parser(), text.text, list[FunctionCall]()
        if parser is not None:
            parts = [*parser.feed(text.text), *parser.finish()]
            content = "".join(part for part in parts if isinstance(part, str))
            calls = [part for part in parts if isinstance(part, FunctionCall)]
            calls = calls if self.parallel else calls[:1]
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if calls:
            message["content"] = content if content.strip() else None
            message["tool_calls"] = [_call(call) for call in calls]
        logprobs = self.logprobs(text.logprobs)
        return _choice(index, "tool_calls" if calls else reason(text), logprobs, message=message)

    def stream(self, index: int, prompt: int) -> ChoiceStream:
        return _ChatStream(self, index)


class _ChatStream:
    def __init__(self, format: ChatFormat, index: int) -> None:
        self._format, self._index, self._parser = format, index, format.parser()
        self._calls = 0

    def begin(self) -> Choice:
        return self._delta({"role": "assistant", "content": ""})

    def delta(self, piece: TextPiece) -> list[Choice]:
        logprobs = self._format.logprobs(piece.logprobs)
        if self._parser is None:
            return [self._delta({"content": str(piece)}, logprobs)]
        choices = self._parts(self._parser.feed(str(piece)))
        if logprobs is not None:  # those of text that is held back, too
            choices = choices or [self._delta({})]
            choices[0]["logprobs"] = logprobs
        return choices

    def end(self, text: GeneratedText) -> list[Choice]:
        choices = [] if self._parser is None else self._parts(self._parser.finish())
        last = _choice(self._index, "tool_calls" if self._calls else reason(text), delta={})
        return [*choices, last]

    def _parts(self, parts: Sequence[str | FunctionCall]) -> list[Choice]:
        choices: list[Choice] = []
        for part in parts:
            if isinstance(part, str):
                if not self._calls or part.strip():  # blanks between calls
                    choices.append(self._delta({"content": part}))
            elif self._format.parallel or not self._calls:
                call = {"index": self._calls} | _call(part)
                choices.append(self._delta({"tool_calls": [call]}))
                self._calls += 1
        return choices

    def _delta(self, delta: Mapping[str, Any], logprobs: Any = None) -> Choice:
        return _choice(self._index, None, logprobs, delta=dict(delta))


def reason(text: GeneratedText) -> str:
    """OpenAI's reason why a text ends."""
    return "length" if text.finish_reason == "length" else "stop"


def _choice(
    index: int, finish_reason: str | None = None, logprobs: Any = None, **content: Any
) -> Choice:
    return {"index": index, **content, "logprobs": logprobs, "finish_reason": finish_reason}


def _call(call: FunctionCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}
