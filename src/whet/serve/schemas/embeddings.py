"""Requests and responses about vectors and tokens: embeddings, tokenize, detokenize."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from whet.serve.schemas import Name, PositiveCount, ResponseModel, Text
from whet.serve.schemas.chat import Message
from whet.serve.schemas.client import ClientModel

MAX_INPUTS = 2048
"""Most texts in one request for embeddings, as at OpenAI."""
NO_TOKEN_IDS = (
    "input contains token ids, which belong to another tokenizer: expected a text or a list of "
    "texts (with LangChain, set check_embedding_ctx_length=False)"
)
InputText = Annotated[Text, Field(min_length=1)]
TokenId = Annotated[int, Field(ge=0, lt=2**31, strict=True)]


def _texts(value: Any) -> Any:
    """A single text as a list of one; token ids are refused, since they say not whose they are."""
    items = value if isinstance(value, list) else [value]
    if any(isinstance(item, int | list) and not isinstance(item, bool) for item in items):
        raise ValueError(NO_TOKEN_IDS)
    return items


class EmbeddingRequest(ClientModel):
    """Embed texts with the embedder of a data space."""

    model: Name
    """Name of the data space."""
    input: Annotated[
        list[InputText],
        Field(min_length=1, max_length=MAX_INPUTS),
        BeforeValidator(_texts, json_schema_input_type=InputText | list[InputText]),
    ]
    """A text, or a list of texts."""
    encoding_format: Literal["float", "base64"] = "float"
    """Numbers, or the bytes of little-endian float32 in base64."""
    dimensions: PositiveCount | None = None
    """Length of the vectors: only the embedder's own is accepted."""


class EmbeddingUsage(ResponseModel):
    prompt_tokens: int
    """Tokens of the texts, counted by the tokenizer of the server's language model."""
    total_tokens: int


class EmbeddingObject(ResponseModel):
    """The vector of one text."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str
    """The vector, of length 1; all zeros if the embedder knows no term of the text."""


class EmbeddingList(ResponseModel):
    """The vectors in the order of the texts."""

    object: Literal["list"] = "list"
    model: str
    data: list[EmbeddingObject]
    usage: EmbeddingUsage


class TokenizeRequest(ClientModel):
    """Convert a prompt or a chat to the tokens that the model reads."""

    model: Name | None = None
    """Name of the model [default: the server's model]."""
    prompt: Text | None = None
    """A text."""
    messages: Annotated[list[Message], Field(min_length=1, max_length=256)] | None = None
    """A chat, instead of `prompt`."""
    add_special_tokens: bool = True
    """Whether to include the token that whet puts in front of every text."""
    add_generation_prompt: Literal[True] = True
    """A chat always ends where the assistant's answer begins."""
    return_token_strs: bool = False
    """Whether the response contains the tokens' texts."""

    @model_validator(mode="after")
    def _check_prompt(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("expected either prompt or messages")
        return self


class TokenizeResponse(ResponseModel):
    """The tokens that the model reads."""

    count: int
    """Number of tokens."""
    max_model_len: int
    """Context of the model in tokens."""
    tokens: list[int]
    """Token ids."""
    token_strs: list[str] | None = None
    """The tokenizer's own spelling of each token."""


class DetokenizeRequest(ClientModel):
    """Convert tokens to text."""

    model: Name | None = None
    """Name of the model [default: the server's model]."""
    tokens: Annotated[list[TokenId], Field(max_length=1_000_000)]
    """Token ids."""


class DetokenizeResponse(ResponseModel):
    """The text of tokens."""

    prompt: str
