"""From the fields of a chat to a request for the engine, and the format of its answer."""

import secrets
from dataclasses import replace

from whet.adapt.decoding.sampling import SamplingParams
from whet.serve.dependencies import RequestContext
from whet.serve.generation.formats import ChatFormat
from whet.serve.generation.requests import AdaptedRequest, build_request
from whet.serve.schemas.chat import ChatRequest, NamedTool
from whet.serve.schemas.completions import CompletionParams


async def prepare_chat(
    context: RequestContext, body: ChatRequest
) -> tuple[AdaptedRequest, ChatFormat]:
    """Check a chat: its request, and the format of its answer. Raises as `build_request`."""
    sent = body.max_completion_tokens if body.max_tokens is None else body.max_tokens
    texts = [(message.role, message.text) for message in body.messages]
    query = "\n".join(text for role, text in texts if role in ("user", "assistant"))
    adapted = build_request(
        context,
        body.model,
        "".join(text for _, text in texts),
        body.adapt,
        query=query,
        max_tokens=None if sent == -1 else sent,
        sampling=replace(
            sampling_params(body), logprobs=body.top_logprobs if body.logprobs else None
        ),
    )
    return await _add_tokens(context, body, adapted)


async def _add_tokens(
    context: RequestContext, body: ChatRequest, adapted: AdaptedRequest
) -> tuple[AdaptedRequest, ChatFormat]:
    """The request with the tokens of the chat and the grammar of its answer, and their format."""
    state, schema, param = context.state, body.answer_schema, "response_format"
    tools = [tool.for_template() for tool in body.callable_tools]
    tool_format = state.tool_format() if tools else None
    forced = bool(tools) and (
        body.tool_choice == "required" or isinstance(body.tool_choice, NamedTool)
    )
    prefix, sampling = "", adapted.sampling
    if tool_format is not None and forced:
        prefix, schema, param = tool_format.prefix, tool_format.call_schema(tools), "tools"
    elif tool_format is not None and tool_format.end and not body.parallel_tool_calls:
        sampling = replace(sampling, stop=(*sampling.stop, tool_format.end))
    if schema is not None:
        sampling = replace(sampling, grammar=await state.grammars.compile(schema, param))
    messages = [message.for_template() for message in body.messages]
    token_ids = await state.encode_chat(messages, tools, prefix=prefix)
    format = ChatFormat(
        tools=tool_format,
        functions=tools,
        forced=forced,
        parallel=body.parallel_tool_calls,
        token_bytes=await state.token_bytes() if body.logprobs else None,
        top_logprobs=body.top_logprobs,
    )
    asked = replace(
        adapted,
        token_ids=tuple(token_ids),
        messages=tuple(messages),
        tools=tuple(tools),
        answer_prefix=prefix,
        sampling=sampling,
    )
    return asked, format


def sampling_params(body: CompletionParams) -> SamplingParams:
    """The sampling that a request asks for."""
    return SamplingParams(
        temperature=body.temperature,
        top_p=max(body.top_p, 1e-9),  # 0: the likeliest token
        top_k=max(body.top_k, 0),
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logit_bias=body.logit_bias,
        seed=secrets.randbits(63) if body.seed is None else body.seed % 2**63,
        stop=body.stop_texts,
        num_sequences=body.n,
    )
