"""Log-probabilities in OpenAI's two formats."""

from collections.abc import Callable, Sequence
from typing import Any

from whet.adapt.decoding.logprobs import TokenLogprob

TokenBytes = Callable[[int], bytes]
"""Gives the bytes of a token."""


def token_text(data: bytes) -> str:
    """A token as text; bytes that are not a text, such as half a character, in OpenAI's spelling."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def completion_logprobs(
    tokens: Sequence[TokenLogprob], token_bytes: TokenBytes, *, offset: int = 0, start: str = ""
) -> dict[str, Any]:
    """The object `logprobs` of a completion.

    Args:
        tokens: The tokens of the text.
        token_bytes: Gives the bytes of a token.
        offset: Position of the first token in the text, in characters.
        start: A start-of-text token before the tokens, which has no log-probability.
    """
    texts, offsets = ([start], [offset]) if start else ([], [])
    offset += len(start)
    for token in tokens:
        data = token_bytes(token.token_id)
        texts.append(token_text(data))
        offsets.append(offset)
        offset += characters(data)
    unknown = [None] if start else []
    return {
        "tokens": texts,
        "token_logprobs": [*unknown, *(token.logprob for token in tokens)],
        "top_logprobs": [
            *unknown,
            *({token_text(token_bytes(i)): logprob for i, logprob in t.top} for t in tokens),
        ],
        "text_offset": offsets,
    }


def characters(data: bytes) -> int:
    """How many characters begin in `data`."""
    return sum(byte & 0xC0 != 0x80 for byte in data)


def chat_logprobs(tokens: Sequence[TokenLogprob], token_bytes: TokenBytes, top: int) -> Any:
    """The object `logprobs` of an answer, with the `top` most likely tokens at each position."""

    def entry(token_id: int, logprob: float) -> dict[str, Any]:
        data = token_bytes(token_id)
        return {"token": token_text(data), "logprob": logprob, "bytes": list(data)}

    content = [
        entry(token.token_id, token.logprob)
        | {"top_logprobs": [entry(i, logprob) for i, logprob in token.top[:top]]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}
