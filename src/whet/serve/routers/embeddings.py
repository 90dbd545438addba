"""Embeddings by a data space's embedder, and the tokens of the language model."""

import base64
from typing import Any

import numpy as np
from fastapi import APIRouter, Response

from whet.adapt.model import LanguageModel
from whet.serve.dependencies import ContextDep
from whet.serve.errors import APIError, error_responses
from whet.serve.generation.requests import resolve_model
from whet.serve.schemas.client import ignored_header
from whet.serve.schemas.embeddings import (
    DetokenizeRequest,
    DetokenizeResponse,
    EmbeddingList,
    EmbeddingObject,
    EmbeddingRequest,
    EmbeddingUsage,
    TokenizeRequest,
    TokenizeResponse,
)

router = APIRouter(tags=["embeddings"])


@router.post("/v1/embeddings", responses=error_responses(403, 404, 503))
async def create_embeddings(
    body: EmbeddingRequest, context: ContextDep, response: Response
) -> EmbeddingList:
    """Embed texts as the documents of a data space were embedded."""
    response.headers.update(ignored_header(body, strict=context.state.config.strict))
    context.check_prompt(*body.input)
    view = context.state.spaces.view(body.model, context.key, param="model")
    embedder = view.space.embedder
    if body.dimensions not in (None, embedder.dimension):
        raise APIError(
            400, f"dimensions is {body.dimensions}: the vectors of {embedder.name} have "
            f"{embedder.dimension}, and cutting them would change their similarities",
            param="dimensions",
        )  # fmt: skip

    def embed() -> tuple[list[Any], int]:
        rows = np.ascontiguousarray(embedder.encode(body.input), "<f4")
        tokens = sum(len(context.state.model.encode(text)) for text in body.input)
        if body.encoding_format == "base64":
            return [base64.b64encode(row.tobytes()).decode() for row in rows], tokens
        return rows.tolist(), tokens

    vectors, tokens = await context.run_in_pool(embed)
    context.usage.tokens.level -= tokens
    return EmbeddingList(
        model=body.model,
        data=[EmbeddingObject(index=i, embedding=vector) for i, vector in enumerate(vectors)],
        usage=EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens),
    )


@router.post("/tokenize", responses=error_responses(403, 404))
async def tokenize(
    body: TokenizeRequest, context: ContextDep, response: Response
) -> TokenizeResponse:
    """Convert a prompt, or a chat by the model's template, to the tokens that the model reads."""
    response.headers.update(ignored_header(body, strict=context.state.config.strict))
    model = _model(context, body.model)
    if body.messages is not None:
        context.check_prompt("".join(message.text for message in body.messages))
        messages = [message.for_template() for message in body.messages]
        tokens = await context.state.encode_chat(messages)
    else:
        context.check_prompt(prompt := body.prompt or "")
        tokens = (await context.run_in_pool(model.encode, prompt)).tolist()
    if body.add_special_tokens:
        tokens = [model.bos_token_id, *tokens]
    strings = model.tokenizer.convert_ids_to_tokens(tokens) if body.return_token_strs else None
    return TokenizeResponse(
        count=len(tokens), max_model_len=model.max_length, tokens=tokens, token_strs=strings
    )


@router.post("/detokenize", responses=error_responses(403, 404))
async def detokenize(
    body: DetokenizeRequest, context: ContextDep, response: Response
) -> DetokenizeResponse:
    """Convert tokens to text, special tokens included."""
    response.headers.update(ignored_header(body, strict=context.state.config.strict))
    context.require_role("read")
    model = _model(context, body.model)
    if body.tokens and max(body.tokens) >= model.vocab_size:
        raise APIError(
            400, f"tokens contains {max(body.tokens)}: {context.state.name} has token ids 0 to "
            f"{model.vocab_size - 1}", param="tokens",
        )  # fmt: skip
    text = await context.run_in_pool(model.tokenizer.decode, body.tokens)
    return DetokenizeResponse(prompt=text)


def _model(context: ContextDep, name: str | None) -> LanguageModel:
    """The language model; raises APIError, 404, if `name` is not one that the key can use."""
    if name is not None:
        resolve_model(context, name)
    return context.state.model
